//! Whether functions that leak below one leak together: because of it, or each for itself.

/// What leaks through one of the functions that a function calls.
#[derive(Clone, Copy, Debug)]
pub struct Branch {
    /// What its stacks weigh.
    pub weight: u64,
    /// The blocks of the one that has most.
    pub objects: u64,
    /// Whether they leak by themselves.
    pub leaks: bool,
    /// How far the number of blocks may be off, as a part of it, where it is an estimate.
    pub error: f64,
}

/// From so much of the whole on, in percent, a branch is worth an answer of its own.
const MAJOR: u64 = 10;

/// More branches than these are parts of one thing: no program leaks in so many places at once.
const MOST_CAUSES: usize = 4;

/// Whether it is one cause: there are no two large branches, or too many, or they go in step.
#[must_use]
pub fn is_one(branches: &[Branch]) -> bool {
    let whole = branches.iter().fold(0, |sum: u64, branch| sum.saturating_add(branch.weight));
    let is_major = |branch: &&Branch| branch.leaks && branch.weight >= whole / 100 * MAJOR;
    let mut major: Vec<&Branch> = branches.iter().filter(is_major).collect();
    major.sort_by_key(|branch| std::cmp::Reverse(branch.weight));
    let explained: u64 = major.iter().map(|branch| branch.weight).sum();
    match &major[..] {
        [] | [_] => true,
        several if several.len() > MOST_CAUSES || explained < whole / 100 * 80 => true,
        [first, others @ ..] => others.iter().all(|other| go_in_step(first, other)),
    }
}

/// Whether there are enough blocks of both to see at which pace they come.
pub const fn show_a_pace(a: &Branch, b: &Branch) -> bool {
    const ENOUGH: u64 = 8;
    a.objects >= ENOUGH && b.objects >= ENOUGH
}

/// Whether each call of their caller leaves as many blocks of both, or twice as many of one.
pub fn go_in_step(a: &Branch, b: &Branch) -> bool {
    const TOLERANCE: f64 = 0.03;

    let (fewer, more) = (a.objects.min(b.objects).max(1) as f64, a.objects.max(b.objects).max(1) as f64);
    let times = (more / fewer).round();
    let tolerance = TOLERANCE.max(1.0 / fewer).max(3.0 * a.error.hypot(b.error));
    times <= 2.0 && (more / fewer / times - 1.0).abs() <= tolerance
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(objects: u64, weight: u64) -> Branch {
        Branch { weight, objects, leaks: true, error: 0.0 }
    }

    #[test]
    fn parts_of_one_object_leak_together() {
        let parts = [branch(1000, 100), branch(1000, 80), branch(2003, 30)];
        assert!(is_one(&parts));
    }

    #[test]
    fn leaks_at_their_own_pace_are_several() {
        assert!(!is_one(&[branch(1000, 100), branch(730, 80)]));
        assert!(is_one(&[branch(1000, 100), branch(730, 8)]), "little besides is no other answer");
    }

    #[test]
    fn of_a_sample_a_step_is_as_wide_as_its_error() {
        let sampled = |objects| Branch { error: 0.1, ..branch(objects, 100) };
        assert!(is_one(&[sampled(1000), sampled(730)]));
        assert!(!is_one(&[sampled(1000), sampled(3000)]));
    }

    #[test]
    fn many_parts_are_parts_of_one_thing() {
        let parts: Vec<_> = (0..7).map(|number| branch(1000 + 77 * number, 50)).collect();
        assert!(is_one(&parts));
    }
}
