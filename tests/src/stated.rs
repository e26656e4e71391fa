//! Functions of a language runtime that a program states of its own stacks, compared with those that a report tells.

use std::collections::BTreeMap;

/// Function, file and line.
pub type Place = (String, Option<String>, Option<u32>);
/// The functions of a stack, innermost first.
pub type Functions = Vec<Place>;

/// Stacks that were stated, each with the one that was told of it, if any.
#[derive(Debug)]
pub struct Pairs(Vec<(Functions, Option<Functions>)>);

impl Pairs {
    /// Pairs each stack that was stated with one that was told: the same one, or of those that are left over the one of the same length
    /// that is most alike.
    #[must_use]
    pub fn of(stated: &[Functions], told: impl IntoIterator<Item = Functions>) -> Self {
        let mut left: BTreeMap<Functions, u64> = BTreeMap::new();
        told.into_iter().for_each(|stack| *left.entry(stack).or_default() += 1);
        let mut take = |stack: &Functions| {
            let count = left.get_mut(stack)?;
            *count -= 1;
            if *count == 0 {
                left.remove(stack);
            }
            Some(stack.clone())
        };
        let all = stated.iter().map(|stack| (stack.clone(), take(stack)));
        let (mut pairs, others): (Vec<_>, Vec<_>) = all.partition(|(_, told)| told.is_some());
        for (stated, _) in others {
            let likeness = |told: &&Functions| {
                told.iter().zip(&stated).map(|(told, stated)| likeness(told, stated)).sum::<i32>()
            };
            let alike = left.keys().filter(|told| told.len() == stated.len()).max_by_key(likeness).cloned();
            let alike = alike.or_else(|| left.keys().max_by_key(likeness).cloned());
            if let Some(count) = alike.as_ref().and_then(|alike| left.get_mut(alike)) {
                *count -= 1;
            }
            left.retain(|_, count| *count > 0);
            pairs.push((stated, alike));
        }
        Self(pairs)
    }

    /// Of the frames that were stated, how many per cent were told by function and file, and by line too.
    #[must_use]
    pub fn shares(&self) -> (f64, f64) {
        let all: usize = self.0.iter().map(|(stated, _)| stated.len()).sum();
        let right = |is_right: fn(&Place, &Place) -> bool| {
            let frames = self.0.iter().filter_map(|(stated, told)| Some(stated.iter().zip(told.as_ref()?)));
            let right = frames.flatten().filter(|(stated, told)| is_right(stated, told)).count();
            100.0 * right as f64 / all as f64
        };
        (
            right(|stated, told| (&stated.0, &stated.1) == (&told.0, &told.1)),
            right(|stated, told| stated == told),
        )
    }

    /// The first of those that were not told as they were stated, from the first frame that differs on.
    #[must_use]
    pub fn wrong(&self, most: usize) -> Vec<String> {
        let wrong = self.0.iter().filter(|(stated, told)| Some(stated) != told.as_ref());
        let outline = |(stated, told): &(Functions, Option<Functions>)| {
            let Some(told) = told else { return format!("stated {}, nothing told", outline(stated)) };
            let same = stated.iter().zip(told).take_while(|(stated, told)| stated == told).count();
            format!("after {same} stated {}; told {}", outline(&stated[same..]), outline(&told[same..]))
        };
        wrong.take(most).map(outline).collect()
    }

    /// The frames that have the name of another function than was stated; one without a name says nothing. None where a stack was not told,
    /// or is of another length.
    #[must_use]
    pub fn misnamed(&self) -> Option<Vec<(&Place, &Place)>> {
        let mut misnamed = Vec::new();
        for (stated, told) in &self.0 {
            let told = told.as_ref().filter(|told| told.len() == stated.len())?;
            misnamed.extend(stated.iter().zip(told).filter(|(stated, told)| likeness(told, stated) < 0));
        }
        Some(misnamed)
    }

    /// How many were told as they were stated.
    #[must_use]
    pub fn right(&self) -> usize {
        self.0.iter().filter(|(stated, told)| Some(stated) == told.as_ref()).count()
    }
}

/// How much speaks for the two being the same; a name in brackets says nothing.
fn likeness(told: &Place, stated: &Place) -> i32 {
    match told {
        told if told == stated => 1,
        (name, ..) if name.starts_with('[') => 0,
        _ => -100,
    }
}

fn outline(stack: &[Place]) -> String {
    let place = |(function, file, line): &Place| {
        let file = file.as_deref().and_then(|file| file.rsplit('/').next()).unwrap_or("-");
        format!("{function} ({file}:{})", line.unwrap_or(0))
    };
    stack.iter().take(4).map(place).collect::<Vec<_>>().join(" < ")
}
