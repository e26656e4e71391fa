//! Each distinct rule once, numbered.

use std::collections::HashMap;

use tracer_ebpf::unwind::Rule;

/// Numbers for rules: every file's table has its own, and the kernel has one for all files.
///
/// A number has 16 bits in a row. All 3,109 files of a full machine together have fewer than 7,000 distinct rules (node
/// 88, libLLVM 730), so that is ample; only a hostile file uses more, and gets [`Rule::UNSUPPORTED`] for them.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    numbers: HashMap<Rule, u16>,
    /// Neighbouring rows often alternate between few rules.
    last: (Rule, u16),
    refused: u64,
}

impl Rules {
    /// The most rules there can be.
    pub const MAX: usize = 1 << 16;
    /// The number of [`Rule::NO_TABLE`].
    pub const NO_TABLE: u16 = 0;
    /// The number of [`Rule::UNSUPPORTED`].
    pub const UNSUPPORTED: u16 = 1;

    /// The two rules whose numbers are fixed.
    #[must_use]
    pub fn new() -> Self {
        let rules = vec![Rule::NO_TABLE, Rule::UNSUPPORTED];
        let numbers =
            HashMap::from([(Rule::NO_TABLE, Self::NO_TABLE), (Rule::UNSUPPORTED, Self::UNSUPPORTED)]);
        Self { rules, numbers, last: (Rule::NO_TABLE, Self::NO_TABLE), refused: 0 }
    }

    /// The number of `rule`; a new one if it has none yet.
    pub fn number(&mut self, rule: Rule) -> u16 {
        if self.last.0 == rule {
            return self.last.1;
        }
        let number = match self.numbers.get(&rule) {
            Some(&number) => number,
            None => match u16::try_from(self.rules.len()) {
                Ok(number) => {
                    self.rules.push(rule);
                    self.numbers.insert(rule, number);
                    number
                }
                Err(_) => {
                    self.refused += 1;
                    return Self::UNSUPPORTED;
                }
            },
        };
        self.last = (rule, number);
        number
    }

    /// The rules, by number.
    #[must_use]
    pub fn as_slice(&self) -> &[Rule] {
        &self.rules
    }

    /// How many times a rule found no number left.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::unwind::{Cfa, SavedBp};

    use super::*;

    fn rule(offset: i64) -> Rule {
        Rule::new(Cfa::Sp(offset), SavedBp::Same).expect("fits")
    }

    #[test]
    fn equal_rules_share_a_number() {
        let mut rules = Rules::new();
        let (a, b) = (rules.number(rule(8)), rules.number(rule(16)));
        assert_eq!((rules.number(rule(8)), rules.number(rule(16))), (a, b));
        assert_eq!(rules.as_slice()[usize::from(b)], rule(16));
        assert_eq!(rules.number(Rule::NO_TABLE), Rules::NO_TABLE);
        assert_eq!(rules.number(Rule::UNSUPPORTED), Rules::UNSUPPORTED);
    }

    #[test]
    fn when_the_numbers_are_used_up_further_rules_are_refused_and_counted() {
        let mut rules = Rules::new();
        for offset in 0..(Rules::MAX as i64 - 2) {
            assert_ne!(rules.number(rule(offset)), Rules::UNSUPPORTED);
        }
        assert_eq!(rules.number(rule(-8)), Rules::UNSUPPORTED);
        assert_eq!(rules.number(rule(5)), 7, "known rules keep their numbers");
        assert_eq!((rules.as_slice().len(), rules.refused()), (Rules::MAX, 1));
    }
}
