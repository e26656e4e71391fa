//! Folded stacks: `outermost;..;innermost;api weight`, one line each, as every flame graph tool reads them.

use std::collections::BTreeMap;
use std::io;

use super::view::{View, labels};
use super::{Options, Report};
use crate::model::Profile;

/// The `.folded` report.
pub struct Folded;

impl Report for Folded {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        for (stack, weight) in fold(profile, &View::new(profile, options), ':') {
            writeln!(out, "{stack} {weight}")?;
        }
        Ok(())
    }
}

/// The folded stacks and their weights, in the order of their text; stacks that read the same are one. The separator
/// cannot stand in a name (a Rust type may hold one: `[u8; 8]`), `semicolon` stands for it.
pub(super) fn fold(profile: &Profile, view: &View<'_>, semicolon: char) -> BTreeMap<String, u64> {
    let mut folded: BTreeMap<String, u64> = BTreeMap::new();
    for stack in &view.stacks {
        let mut line = String::new();
        for label in labels(profile, stack) {
            if !line.is_empty() {
                line.push(';');
            }
            line.extend(label.text.chars().map(|c| if c == ';' { semicolon } else { c }));
        }
        let weight = folded.entry(line).or_default();
        *weight = weight.saturating_add(view.weight.of(stack));
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Weight, fixtures};

    fn render(profile: &Profile, options: &Options) -> String {
        let mut out = Vec::new();
        Folded.write(profile, options, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn golden() {
        for (name, profile) in fixtures::all() {
            insta::assert_snapshot!(format!("folded_{name}"), render(&profile, &Options::default()));
        }
    }

    #[test]
    fn one_line_a_stack_and_the_weights_add_up() {
        for (name, profile) in fixtures::all() {
            for weight in [Weight::Bytes, Weight::Objects] {
                let options = Options { weight, ..Options::default() };
                let text = render(&profile, &options);
                let weights =
                    text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap());
                assert_eq!(weights.sum::<u64>(), View::new(&profile, &options).total, "{name}");
            }
        }
    }

    #[test]
    fn stacks_that_differ_in_addresses_only_are_one() {
        let mut profile = fixtures::lossy();
        let mut twin = profile.stacks[0].clone();
        std::sync::Arc::make_mut(&mut twin.frames[0]).ip.0 += 8;
        profile.stacks.push(twin);
        assert_eq!(render(&profile, &Options::default()), "main;leak;malloc 200000\n");
    }
}
