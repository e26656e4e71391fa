//! Folded stacks: `outermost;..;innermost;api weight`, one line each, as every flame graph tool reads them.
//! The heaviest come first.

use std::io;

use super::tree::Tree;
use super::view::View;
use super::{Options, Report};
use crate::model::Profile;

/// The `.folded` report.
pub struct Folded;

impl Report for Folded {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let view = View::new(profile, options);
        for line in Tree::new(profile, &view).folded(view.weight, ":") {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{WeightUnit, fixtures};

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
            for weight in [WeightUnit::Bytes, WeightUnit::Objects] {
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
