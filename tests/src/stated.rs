//! Functions of a language runtime that a program states of its own stacks, compared with those that a report tells.

use std::collections::{BTreeMap, HashMap, HashSet};

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

    /// Says what share was told right, as a row of the table that `cargo xtask bench runtimes` makes.
    pub fn say_shares(&self, title: &str) {
        let (functions, lines) = self.shares();
        let (stacks, frames) = (self.0.len(), self.0.iter().map(|(stated, _)| stated.len()).sum::<usize>());
        println!("shares | {title} | {stacks} | {frames} | {} | {} |", percent(functions), percent(lines));
    }

    /// How many were told as they were stated.
    #[must_use]
    pub fn right(&self) -> usize {
        self.0.iter().filter(|(stated, told)| Some(stated) == told.as_ref()).count()
    }
}

/// What is told of stacks whose code moves or is dropped, beside what was stated of them.
#[derive(Debug)]
pub struct Moving {
    stacks: usize,
    frames: usize,
    nameless: usize,
    /// What was told and can't be, lines apart.
    pub misnamed: Vec<String>,
    /// Stacks of the right functions with a line that was not stated, or without one that was.
    pub of_other_lines: Vec<String>,
}

impl Moving {
    /// Every stack that was told must be one that was stated, whatever its nameless frames are called, and no function may be told more
    /// often than it was stated: it would stand for another one.
    #[must_use]
    pub fn of(stated: &[Functions], told: &[Functions]) -> Self {
        let known = Known::of(stated);
        let (mut misnamed, mut of_other_lines) = (Vec::new(), Vec::new());
        for stack in told {
            if !known.may_have(stack, false) {
                misnamed.push(format!("no stack was stated as {}", outline(stack)));
            } else if !known.may_have(stack, true) {
                of_other_lines.push(outline(stack));
            }
        }
        let mut count: HashMap<FunctionOf, usize> = HashMap::new();
        stated.iter().flatten().for_each(|place| *count.entry(function(place)).or_default() += 1);
        let mut often: HashMap<FunctionOf, usize> = HashMap::new();
        let named = told.iter().flatten().filter(|place| !is_nameless(place));
        named.for_each(|place| *often.entry(function(place)).or_default() += 1);
        let too_often =
            often.iter().filter(|(place, told)| count.get(*place).is_some_and(|stated| *told > stated));
        misnamed.extend(too_often.map(|(place, told)| format!("{place:?} is told {told} times")));
        Self {
            stacks: told.len(),
            frames: stated.iter().map(Vec::len).sum(),
            nameless: told.iter().flatten().filter(|place| is_nameless(place)).count(),
            misnamed,
            of_other_lines,
        }
    }

    /// Says so, as a row of the table that `cargo xtask bench runtimes` makes.
    pub fn say(&self, title: &str) {
        let Self { stacks, frames, nameless, misnamed, of_other_lines } = self;
        let (misnamed, of_other_lines) = (misnamed.len(), of_other_lines.len());
        println!("misnamed | {title} | {stacks} | {frames} | {misnamed} | {of_other_lines} | {nameless} |");
    }

    /// Panics where a function has another's name, with the first of them.
    #[track_caller]
    pub fn assert_names(&self, title: &str) {
        let Self { misnamed, .. } = self;
        assert!(
            misnamed.is_empty(),
            "{title}: {}: {:#?}",
            misnamed.len(),
            &misnamed[..misnamed.len().min(5)]
        );
    }

    /// Panics where a function has another line in more stacks than this, with the first of them.
    #[track_caller]
    pub fn assert_lines(&self, title: &str, most: usize) {
        let Self { of_other_lines: lines, .. } = self;
        assert!(lines.len() <= most, "{title}: {}: {:#?}", lines.len(), &lines[..lines.len().min(5)]);
    }
}

/// A function and its file.
type FunctionOf<'a> = (&'a str, Option<&'a str>);

fn function((name, file, _): &Place) -> FunctionOf<'_> {
    (name, file.as_deref())
}

/// Stacks that were stated.
struct Known<'a> {
    distinct: HashSet<&'a [Place]>,
    by_function: HashMap<FunctionOf<'a>, Vec<&'a [Place]>>,
}

impl<'a> Known<'a> {
    fn of(stated: &'a [Functions]) -> Self {
        let distinct: HashSet<&[Place]> = stated.iter().map(Vec::as_slice).collect();
        let mut by_function: HashMap<FunctionOf, Vec<&[Place]>> = HashMap::new();
        for &stack in &distinct {
            let functions: HashSet<FunctionOf> = stack.iter().map(function).collect();
            functions.into_iter().for_each(|function| by_function.entry(function).or_default().push(stack));
        }
        Self { distinct, by_function }
    }

    /// Whether a stack may be one of them, which are found by their functions.
    fn may_have(&self, told: &[Place], by_lines: bool) -> bool {
        let mut named = told.iter().filter(|place| !is_nameless(place)).peekable();
        if named.peek().is_none() || self.distinct.contains(told) {
            return true;
        }
        let stacks = named.map(|place| self.by_function.get(&function(place)).map_or(&[][..], Vec::as_slice));
        let fewest = stacks.min_by_key(|stacks| stacks.len()).unwrap_or_default();
        fewest.iter().any(|stated| may_be(told, stated, by_lines))
    }
}

/// Whether the one may be the other. A frame without a name stands for one of any name, and for all that were inlined into it; where lines do
/// not count, one without a line stands also for those that were inlined into it.
fn may_be(told: &[Place], stated: &[Place], by_lines: bool) -> bool {
    let Some((place, rest)) = told.split_first() else { return true };
    if is_nameless(place) {
        return (1..=stated.len()).any(|skipped| may_be(rest, &stated[skipped..], by_lines));
    }
    let may_lack_inlined = !by_lines && place.2.is_none();
    let is_it = |stated: &Place| function(stated) == function(place) && (!by_lines || stated.2 == place.2);
    let most = if may_lack_inlined { stated.len() } else { stated.len().min(1) };
    (0..most).any(|inlined| is_it(&stated[inlined]) && may_be(rest, &stated[inlined + 1..], by_lines))
}

fn is_nameless(place: &Place) -> bool {
    place.0.starts_with('[')
}

/// How much speaks for the two being the same; a name in brackets says nothing.
fn likeness(told: &Place, stated: &Place) -> i32 {
    match told {
        told if told == stated => 1,
        (name, ..) if name.starts_with('[') => 0,
        _ => -100,
    }
}

/// What is nearly all is not all.
fn percent(share: f64) -> String {
    if share < 100.0 { format!("{:.2} %", share.min(99.99)) } else { "100 %".to_owned() }
}

fn outline(stack: &[Place]) -> String {
    let place = |(function, file, line): &Place| {
        let file = file.as_deref().and_then(|file| file.rsplit('/').next()).unwrap_or("-");
        format!("{function} ({file}:{})", line.unwrap_or(0))
    };
    stack.iter().take(8).map(place).collect::<Vec<_>>().join(" < ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(names: &[&str]) -> Functions {
        names.iter().map(|name| ((*name).to_owned(), None, None)).collect()
    }

    #[test]
    fn a_frame_without_a_name_stands_for_any_and_one_with_another_name_is_told() {
        let stated = [stack(&["a", "b", "c", "d"]), stack(&["a", "x", "d"])];
        let misnamed = |told: &[&str]| Moving::of(&stated, &[stack(told)]).misnamed.len();
        for told in
            [&["a", "b", "c", "d"][..], &["a", "[java]", "d"], &["[java]"; 4], &["[java]", "x", "[java]"]]
        {
            assert_eq!(misnamed(told), 0, "{told:?}");
        }
        for told in [&["a", "c", "c", "d"][..], &["a", "[java]", "y", "d"], &["b", "[java]", "x", "d"]] {
            assert_ne!(misnamed(told), 0, "{told:?}");
        }
        let lined = |line| vec![vec![("a".to_owned(), Some("a.js".to_owned()), line)]];
        let inlined = ("b".to_owned(), Some("a.js".to_owned()), Some(1));
        let with_inlined =
            |line| vec![vec![inlined.clone(), ("a".to_owned(), Some("a.js".to_owned()), line)]];
        let lacks_inlined = Moving::of(&with_inlined(Some(3)), &lined(None));
        assert_eq!((lacks_inlined.misnamed.len(), lacks_inlined.of_other_lines.len()), (0, 1));
        assert_eq!(Moving::of(&with_inlined(Some(3)), &lined(Some(3))).misnamed.len(), 1);
        for (told, other_lines) in [(Some(3), 0), (Some(4), 1), (None, 1)] {
            let moving = Moving::of(&lined(Some(3)), &lined(told));
            assert_eq!((moving.misnamed.len(), moving.of_other_lines.len()), (0, other_lines), "{told:?}");
        }
        // One was stated with it, so of two stacks that are told with it one is another.
        let twice = [stack(&["a", "x", "d"]), stack(&["[java]", "x", "[java]"])];
        assert_eq!(Moving::of(&stated, &twice).misnamed.len(), 1);
    }
}
