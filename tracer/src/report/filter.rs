//! What a reader looks for in a recording: stacks by their names, their weight and their verdict.

use std::collections::BTreeSet;
use std::sync::Arc;

use regex::Regex;

use super::QuickMap;
use crate::model::{Bytes, Frame, Profile, StackReport, Totals, Verdict};

/// Which stacks to keep. The default keeps all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only stacks that name a function, module or allocator function like this.
    pub focus: Option<Regex>,
    /// No stacks that name one like this.
    pub ignore: Option<Regex>,
    /// Only stacks of at least this weight.
    pub min_weight: Bytes,
    /// Only stacks with one of these verdicts; empty for any.
    pub only: BTreeSet<Verdict>,
}

/// A pattern is no regular expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is no regular expression: {reason}")]
pub struct BadPattern {
    pattern: String,
    reason: String,
}

/// Reads a pattern; the error is one line.
pub fn pattern(text: &str) -> Result<Regex, BadPattern> {
    Regex::new(text).map_err(|error| {
        // The library draws the pattern and an arrow before it says what is wrong.
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        BadPattern { pattern: text.to_owned(), reason }
    })
}

impl Filter {
    fn keeps_all(&self) -> bool {
        self.focus.is_none() && self.ignore.is_none() && self.min_weight.0 == 0 && self.only.is_empty()
    }

    /// Leaves in the profile what the filter keeps, with totals that are the sums of it. What was seen and lost in the
    /// window stays as it was.
    pub fn apply(&self, profile: &mut Profile) {
        if self.keeps_all() {
            return;
        }
        let mut focus = self.focus.as_ref().map(StackSearch::new);
        let mut ignore = self.ignore.as_ref().map(StackSearch::new);
        profile.stacks.retain(|stack| {
            stack.weight_bytes >= self.min_weight.0
                && (self.only.is_empty() || stack.verdict.is_some_and(|verdict| self.only.contains(&verdict)))
                && focus.as_mut().is_none_or(|focus| focus.finds(stack))
                && !ignore.as_mut().is_some_and(|ignore| ignore.finds(stack))
        });
        profile.totals = Totals::of(&profile.stacks);
        // They are of all stacks.
        profile.causes.clear();
    }
}

/// A search through many stacks, which share their frames.
struct StackSearch<'a> {
    pattern: &'a Regex,
    by_frame: QuickMap<*const Frame, bool>,
}

impl<'a> StackSearch<'a> {
    fn new(pattern: &'a Regex) -> Self {
        Self { pattern, by_frame: QuickMap::default() }
    }

    fn finds(&mut self, stack: &StackReport) -> bool {
        self.pattern.is_match(&stack.api) || stack.frames.iter().any(|frame| self.finds_in(frame))
    }

    fn finds_in(&mut self, frame: &Arc<Frame>) -> bool {
        let pattern = self.pattern;
        *self.by_frame.entry(Arc::as_ptr(frame)).or_insert_with(|| {
            let module = frame.module.as_deref();
            pattern.is_match(&frame.label()) || module.is_some_and(|module| pattern.is_match(module))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures;

    /// The apis of what is left of the node fixture.
    fn left(filter: Filter) -> Vec<String> {
        let mut profile = fixtures::node();
        filter.apply(&mut profile);
        assert_eq!(profile.totals, Totals::of(&profile.stacks));
        profile.stacks.into_iter().map(|stack| stack.api).collect()
    }

    fn some(text: &str) -> Option<Regex> {
        Some(pattern(text).unwrap())
    }

    #[test]
    fn stacks_are_found_by_any_name() {
        assert_eq!(left(Filter { focus: some("Session::.*pen"), ..Filter::default() }), ["malloc"]);
        let by_module = left(Filter { focus: some(r"^addon\.node$"), ..Filter::default() });
        assert_eq!(by_module, ["malloc", "operator new(unsigned long)", "malloc"]);
        assert_eq!(left(Filter { focus: some("^calloc$"), ..Filter::default() }), ["calloc"]);
        assert_eq!(left(Filter { focus: some("nowhere"), ..Filter::default() }), [""; 0]);
        let ignored = left(Filter { ignore: some("addon"), ..Filter::default() });
        assert_eq!(ignored, ["mmap", "mmap", "calloc", "mmap"]);
    }

    #[test]
    fn stacks_are_found_by_weight_and_verdict() {
        assert_eq!(
            left(Filter { min_weight: Bytes(3 << 20), ..Filter::default() }),
            ["malloc", "mmap", "mmap"]
        );
        assert_eq!(left(Filter { only: [Verdict::Leaking].into(), ..Filter::default() }), ["malloc"]);
        assert_eq!(left(Filter::default()).len(), fixtures::node().stacks.len());
    }

    #[test]
    fn a_bad_pattern_is_one_line() {
        let error = pattern("a(b").unwrap_err().to_string();
        assert_eq!(error, "\"a(b\" is no regular expression: unclosed group");
    }
}
