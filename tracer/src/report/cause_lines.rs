//! Causes as lines of text: who is to blame, how fast, and for how much of what is held.

use super::human::{Change, counted, per_minute, printable, share, shorten};
use crate::model::{Bytes, Cause, Profile, Verdict};

/// What holds less than this, in percent of everything, is not worth a line.
const WORTH_A_LINE: u64 = 1;

/// The causes that say more than the stacks do: there are several, or one of several stacks.
pub(crate) fn shown_causes(profile: &Profile) -> Vec<&Cause> {
    let all = whole(profile);
    let worth = |cause: &&Cause| cause.weight_bytes > 0 && cause.weight_bytes >= all / 100 * WORTH_A_LINE;
    let causes: Vec<_> = profile.causes.iter().filter(worth).collect();
    if let [only] = causes[..]
        && only.stacks <= 1
    {
        return Vec::new();
    }
    causes
}

/// What all causes hold.
pub(crate) fn whole(profile: &Profile) -> u64 {
    profile.causes.iter().fold(0, |sum, cause| sum.saturating_add(cause.weight_bytes))
}

/// `98.1 %  leaking +175.2 MiB/min  58.6 MiB in 3,748 blocks, 37 stacks`
pub(crate) fn figures(cause: &Cause, whole: u64) -> String {
    let rate = cause.growth_bytes_per_second.filter(|rate| (rate * 60.0).abs() >= 1.0);
    let rate = rate.map_or_else(String::new, |rate| format!(" {}", per_minute(rate)));
    let stacks = counted(cause.stacks, "stack");
    let processes = match cause.processes {
        0 | 1 => String::new(),
        several => format!(" of {several} processes"),
    };
    format!(
        "{:>7}  {} in {}, {stacks}{processes}, {}{rate}",
        share(cause.weight_bytes, whole),
        Bytes(cause.weight_bytes),
        counted(cause.outstanding_objects, "block"),
        name(cause.verdict),
    )
}

/// Who it is, in one line of so many columns, or in two.
pub(crate) fn place(cause: &Cause, columns: usize) -> Vec<String> {
    let sentence = printable(&cause.sentence()).into_owned();
    if sentence.chars().count() <= columns {
        return vec![sentence];
    }
    let place = printable(&format!("{}`{}`", cause.before_place(), cause.place)).into_owned();
    let rest = sentence.strip_prefix(&*place).unwrap_or_default().trim_start().to_owned();
    [place, rest]
        .iter()
        .filter(|line| !line.is_empty())
        .map(|line| shorten(line, columns).into_owned())
        .collect()
}

/// As a reader takes it.
pub(crate) const fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Leaking => "leaking",
        Verdict::Growing => "growing",
        Verdict::Steady => "steady",
        Verdict::OneOff => "allocated once",
        Verdict::Unknown => "too little to tell",
    }
}

/// `+175.2 MiB`, of a minute.
pub(crate) fn growth(cause: &Cause) -> String {
    cause.growth_bytes_per_second.map_or_else(String::new, |rate| Change((rate * 60.0) as i64).to_string())
}
