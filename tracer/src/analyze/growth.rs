//! Whether what a stack holds grows, how fast, and whether that is a leak: pure functions of a series of sizes.
//!
//! # Methods
//! - The *rate* is the Theil–Sen slope, the median of the slopes between all pairs of points: up to 29 % of them can be
//!   arbitrarily wrong without moving it far (Sen 1968, <https://doi.org/10.1080/01621459.1968.10480934>).
//! - *Whether* it grows is the Mann–Kendall trend test, one-sided at 1 %: do later points exceed earlier ones more
//!   often than chance would have it (Kendall 1975)?
//! - *What is never given back* is told by the birth of what is left: of a leak every quarter of the history has left
//!   about as much, whatever was allocated and freed besides. Turnover leaves only what is young, a cache that fills
//!   and stops only what is old. Noise in the sizes, which hides a slow leak from the trend, plays no part in this.

use std::ops::Range;
use std::time::Duration;

use crate::model::{Bytes, Verdict};

/// A size at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Nanoseconds since the window's start.
    pub t_ns: u64,
    /// Outstanding bytes.
    pub bytes: Bytes,
}

/// Growth in bytes a second: the Theil–Sen slope. `None` for fewer than two points in time.
#[must_use]
pub fn rate(points: &[Point]) -> Option<f64> {
    let mut slopes: Vec<f64> = pairs(points)
        .filter(|(early, late)| late.t_ns > early.t_ns)
        .map(|(early, late)| {
            let seconds = Duration::from_nanos(late.t_ns - early.t_ns).as_secs_f64();
            (late.bytes.0 as f64 - early.bytes.0 as f64) / seconds
        })
        .collect();
    median(&mut slopes)
}

fn pairs(points: &[Point]) -> impl Iterator<Item = (Point, Point)> + '_ {
    let after = |index: usize| points[index + 1..].iter();
    points.iter().enumerate().flat_map(move |(index, &early)| after(index).map(move |&late| (early, late)))
}

fn median(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let (middle, is_odd) = (values.len() / 2, !values.len().is_multiple_of(2));
    let (below, &mut upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    if is_odd {
        return Some(upper);
    }
    let lower = below.iter().copied().max_by(f64::total_cmp)?;
    Some(f64::midpoint(lower, upper))
}

/// Whether the sizes rise by more than chance: Mann–Kendall, one-sided, 1 %.
fn rises(points: &[Point], standard_error: Bytes) -> bool {
    /// The standard normal distribution's 99 % quantile.
    const QUANTILE: f64 = 2.326;

    let score: i64 = pairs(points).map(|(early, late)| late.bytes.cmp(&early.bytes) as i64).sum();
    // The variance of the score where there is no trend, less what ties take from it.
    let term = |count: usize| (count * count.saturating_sub(1) * (2 * count + 5)) as f64 / 18.0;
    let mut sizes: Vec<Bytes> = points.iter().map(|point| point.bytes).collect();
    sizes.sort_unstable();
    let ties: f64 = sizes.chunk_by(|a, b| a == b).map(|tie| term(tie.len())).sum();
    let variance = term(points.len()) - ties;
    variance > 0.0 && (score - 1) as f64 / variance.sqrt() > QUANTILE && is_material(points, standard_error)
}

/// Whether the rise is at least a hundredth of the size: of a hundred stacks that waver by a block, the test for a trend
/// takes one for rising. And it is more than the sample may make it, whose errors last as long as the blocks do.
fn is_material(points: &[Point], standard_error: Bytes) -> bool {
    let (Some(first), Some(last), Some(rate)) = (points.first(), points.last(), rate(points)) else {
        return false;
    };
    let seconds = Duration::from_nanos(last.t_ns.saturating_sub(first.t_ns)).as_secs_f64();
    rate * seconds >= (last.bytes.0 as f64 / 100.0).max(3.0 * standard_error.0 as f64)
}

/// When what is left was allocated: outstanding bytes by time of birth, in equal parts of a span.
#[derive(Clone, Copy, Debug)]
pub struct Births {
    start_ns: u64,
    end_ns: u64,
    bytes: [u64; Self::PARTS],
    /// As many as were seen: of a sample, those that were kept, which is what there is evidence of.
    blocks: [u32; Self::PARTS],
}

impl Births {
    const PARTS: usize = 32;

    /// Of nothing, over the time from `start_ns` to `end_ns`, on the clock of the [points](Point).
    #[must_use]
    pub const fn new(start_ns: u64, end_ns: u64) -> Self {
        Self { start_ns, end_ns, bytes: [0; Self::PARTS], blocks: [0; Self::PARTS] }
    }

    /// Adds a block that is still there.
    pub fn add(&mut self, born_ns: u64, bytes: Bytes) {
        let at = self.part_at(born_ns);
        self.bytes[at] = self.bytes[at].saturating_add(bytes.0);
        self.blocks[at] = self.blocks[at].saturating_add(1);
    }

    /// What is left of these and of others, over the same span.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        for (part, more) in self.bytes.iter_mut().zip(others.bytes) {
            *part = part.saturating_add(more);
        }
        for (part, more) in self.blocks.iter_mut().zip(others.blocks) {
            *part = part.saturating_add(more);
        }
        self
    }

    /// How old half of the oldest `bytes` are at least at the end; within a part they are taken to be spread evenly.
    #[must_use]
    pub fn median_age_ns(&self, bytes: u64) -> Option<u64> {
        let length = self.end_ns.saturating_sub(self.start_ns) as f64 / Self::PARTS as f64;
        let mut wanted = bytes as f64 / 2.0;
        for (part, &born) in self.bytes.iter().enumerate() {
            let born = born as f64;
            if born > 0.0 && born >= wanted {
                let at = self.start_ns as f64 + length * (part as f64 + wanted / born);
                // A float cast saturates.
                return Some(self.end_ns.saturating_sub(at as u64));
            }
            wanted -= born;
        }
        None
    }

    /// So many blocks were seen that are left.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.iter().map(|&blocks| u64::from(blocks)).sum()
    }

    /// What is left of the first half.
    #[must_use]
    pub fn bytes_of_first_half(&self) -> u64 {
        self.bytes[..Self::PARTS / 2].iter().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }

    fn part_at(&self, t_ns: u64) -> usize {
        let length = u128::from(self.end_ns.saturating_sub(self.start_ns).max(1));
        let part = u128::from(t_ns.saturating_sub(self.start_ns)) * Self::PARTS as u128 / length;
        usize::try_from(part).unwrap_or(usize::MAX).min(Self::PARTS - 1)
    }
}

/// What is known about a stack besides its history.
#[derive(Clone, Copy, Debug)]
pub struct Turnover {
    /// Objects that it allocated in the window.
    pub allocated_objects: u64,
    /// Those of them that were freed.
    pub freed_objects: u64,
    /// When those were allocated that are left.
    pub births: Births,
    /// Of the bytes that are left, when they are estimated from a sample; else 0.
    pub standard_error: Bytes,
    /// How often it certainly happened that something was left: the blocks of one stack, where several are judged together. An object
    /// of twenty parts leaves twenty blocks at once.
    pub times: u64,
    /// Whether it is one mapping that is used in part: what grows is its use.
    pub is_one_in_use: bool,
    /// Whether only threads hold it by which a runtime works for itself, which need more while the program warms up.
    pub is_housekeeping: bool,
}

/// A verdict and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// The reason, as the end of a sentence.
    pub reason: &'static str,
}

/// The shortest history that is judged, from the first allocation on.
pub const SHORTEST: Duration = Duration::from_secs(6);

/// From then on a runtime is taken to know what its program does often.
const WARM: Duration = Duration::from_secs(60);

/// The fewest points that are judged.
pub const FEWEST_POINTS: usize = 12;

/// The fewest blocks left that are called a leak.
pub const FEWEST_BLOCKS: u64 = 8;

/// Judges the history of what a stack holds, or several together. What comes before the first allocation is no part of it.
///
/// | verdict | when |
/// |---|---|
/// | `steady` | nothing is left; or half of it was freed, it does not rise, and nothing to speak of is left of the first half |
/// | `unknown` | shorter than [`SHORTEST`], or fewer than [`FEWEST_POINTS`] points |
/// | `leaking` | at least [`FEWEST_BLOCKS`] blocks are left, known to a fifth, and every quarter of the history left about as much of them |
/// | `growing` | the same of a runtime's own threads, unless it is a minute long and does not slow down; or its second half rises, but that does not hold |
/// | `one_off` | it has stopped (`Left::has_stopped`) |
/// | `unknown` | there are too few blocks to tell |
#[must_use]
pub fn judge(history: &[Point], turnover: &Turnover) -> Judgement {
    let judgement = |verdict, reason| Judgement { verdict, reason };
    let start = history.iter().position(|point| point.bytes > Bytes(0)).unwrap_or(history.len());
    let history = &history[start..];
    let (Some(first), Some(last)) = (history.first(), history.last()) else {
        return judgement(Verdict::Steady, "it holds nothing");
    };
    if last.bytes == Bytes(0) {
        return judgement(Verdict::Steady, "everything it allocated was freed");
    }
    let span = Duration::from_nanos(last.t_ns.saturating_sub(first.t_ns));
    if span < SHORTEST || history.len() < FEWEST_POINTS {
        return judgement(Verdict::Unknown, "it was not watched long enough");
    }
    let (_, second_half) = history.split_at(history.len() / 2);
    let left = Left::since(&turnover.births, first.t_ns);
    // A fifth is what 25 samples give: six for each quarter.
    let is_known = last.bytes.0 / 5 >= turnover.standard_error.0;
    if left.blocks() >= FEWEST_BLOCKS && is_known && accumulates(left.quarters(), turnover) {
        if turnover.is_housekeeping && (span < WARM || left.slows_down()) {
            judgement(
                Verdict::Growing,
                "the runtime compiles or collects, and needs more until the program is warm",
            )
        } else {
            judgement(Verdict::Leaking, "it grows steadily, and its old blocks are never freed")
        }
    } else if rises(second_half, turnover.standard_error) {
        judgement(
            Verdict::Growing,
            "it grows, but too few of the remaining blocks are old, or it does not grow steadily",
        )
    } else if turns_over(turnover) && left.is_young() {
        judgement(Verdict::Steady, "it frees as much as it allocates")
    } else if turnover.is_one_in_use || left.has_stopped(turnover.times) {
        judgement(Verdict::OneOff, "it stopped growing and keeps what it has")
    } else {
        judgement(Verdict::Unknown, "too few of its blocks tell whether it stopped, or frees them later")
    }
}

/// Whether it frees at least half of what it allocates, and did so often.
fn turns_over(turnover: &Turnover) -> bool {
    const OFTEN: u64 = 8;
    turnover.freed_objects >= OFTEN && turnover.freed_objects >= turnover.allocated_objects / 2
}

/// What is left, by when it was allocated, from a moment on.
#[derive(Clone, Copy, Debug)]
struct Left<'a> {
    bytes: &'a [u64],
    blocks: &'a [u32],
}

/// What would happen by chance less often than this is taken not to have happened so.
const CHANCE: f64 = 1e-4;

impl<'a> Left<'a> {
    fn since(births: &'a Births, from_ns: u64) -> Self {
        let from = births.part_at(from_ns);
        Self { bytes: &births.bytes[from..], blocks: &births.blocks[from..] }
    }

    fn blocks(&self) -> u64 {
        self.blocks.iter().map(|&blocks| u64::from(blocks)).sum()
    }

    fn blocks_in(&self, parts: Range<usize>) -> u64 {
        self.blocks[parts].iter().map(|&blocks| u64::from(blocks)).sum()
    }

    /// The time in quarters: the mean of what is left of each one's parts.
    fn quarters(&self) -> [f64; 4] {
        [0, 1, 2, 3].map(|quarter| {
            let quarter = &self.bytes[quarter * self.bytes.len() / 4..(quarter + 1) * self.bytes.len() / 4];
            quarter.iter().map(|&bytes| bytes as f64).sum::<f64>() / quarter.len().max(1) as f64
        })
    }

    /// Whether the second half left less than four fifths of what the first did.
    fn slows_down(&self) -> bool {
        let [first, second, third, last] = self.quarters();
        (third + last) * 5.0 < (first + second) * 4.0
    }

    /// Whether nothing is left of the first half, but for a two-hundredth. Of a leak, half of it would be there.
    fn is_young(&self) -> bool {
        let total = self.bytes.iter().fold(0, |sum: u64, &bytes| sum.saturating_add(bytes));
        let old =
            self.bytes[..self.bytes.len() / 2].iter().fold(0, |sum: u64, &bytes| sum.saturating_add(bytes));
        old <= total / 200
    }

    /// Whether nothing comes to it any more, by more evidence than chance would give if it were a leak: that leaves blocks at random
    /// moments, so all of `n` are within a part `f` of the time with probability `f^(n - 1)`. What came in several bursts must have
    /// stopped by their number; one that goes on until it ends is the filling of something.
    fn has_stopped(&self, times: u64) -> bool {
        if times < FEWEST_BLOCKS || self.blocks() < FEWEST_BLOCKS {
            return false;
        }
        let parts = self.blocks.len();
        let is_late = |from: usize, to: usize| self.blocks_in(parts * from / 16..parts * to / 16);
        // What is on its way is young, and says nothing about what is kept.
        let (kept, on_its_way) = (is_late(0, 15), is_late(15, 16));
        let end =
            self.blocks[..parts * 15 / 16].iter().rposition(|&blocks| blocks > 0).map_or(0, |last| last + 1);
        let part = end as f64 / parts as f64;
        let by_chance = |times: u64| part.powf(times.saturating_sub(1) as f64);
        let bursts = self.blocks[..end].iter().filter(|&&blocks| blocks > 0).count();
        let begin = self.blocks.iter().position(|&blocks| blocks > 0).unwrap_or(0);
        let is_one_filling = end - begin.min(end) == bursts;
        let happened = times.min(kept);
        let ended = part <= 0.75
            && on_its_way <= kept
            && happened >= FEWEST_BLOCKS
            && by_chance(happened) < CHANCE
            && (is_one_filling || by_chance(bursts as u64) < CHANCE);
        ended || self.fades(times)
    }

    /// Whether a twentieth at most of many blocks came in the second half.
    fn fades(&self, times: u64) -> bool {
        const MANY: u64 = 64;
        let half = self.blocks.len() / 2;
        let (early, late) = (self.blocks_in(0..half), self.blocks_in(half..self.blocks.len()));
        let bursts = self.blocks[..half].iter().filter(|&&blocks| blocks > 0).count();
        times >= MANY && early + late >= MANY && late * 20 <= early && bursts >= half / 2
    }
}

/// Whether every quarter of the history left about as much. The old ones may have left a third less than the third one:
/// where a block lives as long as the history on average, the first quarter keeps 61 % of what the third one does. Where next to
/// nothing was freed no block was, and they may have left a quarter as much: a program has more to do at times. The
/// late ones may have left half as much as the average: growth that slows down faster is coming to its end. (The last
/// quarter holds young blocks on their way besides.)
fn accumulates(quarters: [f64; 4], turnover: &Turnover) -> bool {
    let [first, second, third, last] = quarters;
    let average = (first + second + third) / 3.0;
    let keeps_everything = turnover.freed_objects <= turnover.allocated_objects / 20;
    let at_least = if keeps_everything { 0.25 } else { 2.0 / 3.0 };
    first.min(second) >= third * at_least && third.min(last) >= average / 2.0 && average > 0.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// One point a second.
    fn series(sizes: impl IntoIterator<Item = u64>) -> Vec<Point> {
        let point = |(second, bytes)| Point { t_ns: second * SECOND, bytes: Bytes(bytes) };
        (0..).zip(sizes).map(point).collect()
    }

    /// Noise between 0 and `amplitude` that is the same in every run.
    fn noise(second: u64, amplitude: u64) -> u64 {
        let mixed =
            (second + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).wrapping_mul(0xd129_0acb);
        (mixed >> 32) % amplitude
    }

    /// The judgement after `seconds` in which the blocks given by (second of birth, lifetime, bytes) came and went.
    fn verdict(seconds: u64, blocks: impl IntoIterator<Item = (u64, u64, u64)>) -> Verdict {
        verdict_with_error(seconds, blocks, Bytes(0))
    }

    /// The same with an error in the bytes that are left.
    fn verdict_with_error(
        seconds: u64,
        blocks: impl IntoIterator<Item = (u64, u64, u64)>,
        standard_error: Bytes,
    ) -> Verdict {
        verdict_of(seconds, blocks, standard_error, false)
    }

    /// The same of a runtime's own threads.
    fn verdict_of_housekeeping(seconds: u64, blocks: impl IntoIterator<Item = (u64, u64, u64)>) -> Verdict {
        verdict_of(seconds, blocks, Bytes(0), true)
    }

    fn verdict_of(
        seconds: u64,
        blocks: impl IntoIterator<Item = (u64, u64, u64)>,
        standard_error: Bytes,
        is_housekeeping: bool,
    ) -> Verdict {
        let mut sizes = vec![0; seconds as usize + 1];
        let mut births = Births::new(0, seconds * SECOND);
        let (mut allocated_objects, mut freed_objects) = (0, 0);
        for (born, lifetime, bytes) in blocks {
            allocated_objects += 1;
            let died = born.saturating_add(lifetime);
            (born..died.min(seconds + 1)).for_each(|second| sizes[second as usize] += bytes);
            if died > seconds {
                births.add(born * SECOND, Bytes(bytes));
            } else {
                freed_objects += 1;
            }
        }
        let turnover = Turnover {
            allocated_objects,
            freed_objects,
            births,
            standard_error,
            times: births.blocks(),
            is_one_in_use: false,
            is_housekeeping,
        };
        judge(&series(sizes), &turnover).verdict
    }

    const FOREVER: u64 = u64::MAX;

    /// Many blocks a second that live for some seconds.
    fn traffic(seconds: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        (0..seconds * 50).map(|n| (n / 50, 1 + noise(n, 4), 1000 + noise(n, 3000)))
    }

    fn leak(from: u64, to: u64, bytes: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        (from..to).map(move |second| (second, FOREVER, bytes))
    }

    #[test]
    fn a_steady_leak_is_leaking() {
        assert_eq!(verdict(60, leak(0, 60, 1000)), Verdict::Leaking);
    }

    #[test]
    fn a_runtime_leaks_itself_only_if_it_goes_on_when_the_program_is_warm() {
        assert_eq!(verdict_of_housekeeping(30, leak(0, 30, 1000)), Verdict::Growing);
        assert_eq!(verdict_of_housekeeping(120, leak(0, 120, 1000)), Verdict::Leaking);
        let slower = || (0..120).map(|second| (second, FOREVER, 1000 - 5 * second));
        assert_eq!(verdict_of_housekeeping(120, slower()), Verdict::Growing);
        assert_eq!(verdict(120, slower()), Verdict::Leaking);
    }

    #[test]
    fn a_slow_leak_under_heavy_turnover_is_leaking() {
        // 50 blocks a second come and go, one in 50 seconds stays.
        let slow = (0..12).map(|n| (n * 50, FOREVER, 100));
        assert_eq!(verdict(600, traffic(600).chain(slow)), Verdict::Leaking);
        assert_eq!(verdict(600, traffic(600)), Verdict::Steady);
    }

    #[test]
    fn a_leak_that_begins_in_the_middle_is_leaking() {
        assert_eq!(verdict(60, leak(31, 60, 1000)), Verdict::Leaking);
    }

    #[test]
    fn a_leak_beside_a_sawtooth_is_leaking() {
        let batches = || (0..60).map(|t| (t, 5 - t % 5, 100_000));
        assert_eq!(verdict(60, batches().chain(leak(0, 60, 10))), Verdict::Leaking);
        assert_eq!(verdict(60, batches()), Verdict::Steady);
    }

    #[test]
    fn growth_of_young_blocks_is_only_growing() {
        // More and more of them, each gone after five seconds.
        assert_eq!(verdict(60, (0..60).map(|t| (t, 5, t * 1000))), Verdict::Growing);
    }

    #[test]
    fn growth_that_slows_down_is_only_growing() {
        let filling = |t: u64| (t, FOREVER, (1e6 * (-(t as f64) / 8.0).exp()) as u64);
        assert_eq!(verdict(60, (0..60).map(filling)), Verdict::Growing);
    }

    #[test]
    fn growth_that_began_at_the_end_is_only_growing() {
        assert_eq!(verdict(60, leak(0, 1, 5000).chain(leak(40, 60, 1000))), Verdict::Growing);
    }

    #[test]
    fn what_shrinks_is_not_growing() {
        assert_eq!(verdict(60, (0..100).map(|n| (n / 50, 20 + n / 3, 1000))), Verdict::Steady);
    }

    #[test]
    fn a_few_blocks_are_no_leak() {
        let few = |count: u64| (0..count).map(move |n| (n * 60 / count, FOREVER, 1000));
        assert_ne!(verdict(60, few(FEWEST_BLOCKS - 1)), Verdict::Leaking);
        assert_eq!(verdict(60, few(FEWEST_BLOCKS)), Verdict::Leaking);
    }

    #[test]
    fn half_of_the_bytes_are_older_than_the_median() {
        let mut births = Births::new(0, 32 * SECOND);
        assert_eq!(births.median_age_ns(0), None);
        (0..32).for_each(|second| births.add(second * SECOND, Bytes(100)));
        assert_eq!(births.median_age_ns(3200), Some(16 * SECOND));
        // The oldest quarter alone.
        assert_eq!(births.median_age_ns(800), Some(28 * SECOND));
        assert_eq!(births.median_age_ns(u64::MAX), None);
    }

    #[test]
    fn a_cache_that_was_cut_back_is_one_off() {
        let made = || leak(0, 2, 1000).chain((0..200).map(|n| (n / 100, 2, 10)));
        assert_eq!(
            verdict(60, (0..100).map(|n| (1, if n % 2 == 0 { FOREVER } else { 1 }, 1000))),
            Verdict::OneOff
        );
        // Two blocks tell nothing.
        assert_eq!(verdict(60, made()), Verdict::Unknown);
    }

    #[test]
    fn a_few_samples_are_neither_leak_nor_growth() {
        // 60 kB are left. Ten samples tell that to a third, fifty to a seventh.
        assert_eq!(verdict_with_error(60, leak(0, 60, 1000), Bytes(19_000)), Verdict::Unknown);
        assert_eq!(verdict_with_error(60, leak(0, 60, 1000), Bytes(8500)), Verdict::Leaking);
    }

    #[test]
    fn a_rise_by_a_block_is_no_growth() {
        let sizes = (0..40).map(|t| 1_000_000 + 5 * t);
        assert!(!rises(&series(sizes), Bytes(0)));
        assert!(rises(&series((0..40).map(|t| 1_000_000 + 5000 * t)), Bytes(0)));
    }

    #[test]
    fn what_fills_and_stops_is_one_off() {
        assert_eq!(verdict(60, leak(0, 20, 1000)), Verdict::OneOff);
        assert_eq!(verdict(60, (0..40).map(|_| (0, FOREVER, 1000))), Verdict::OneOff);
        assert_eq!(verdict(60, leak(0, 1, 5000)), Verdict::Unknown, "one block tells nothing");
        let bursts = [0, 25].into_iter().flat_map(|second| (0..40).map(move |_| (second, FOREVER, 1000)));
        assert_eq!(verdict(60, bursts), Verdict::Unknown, "a third one may be on its way");
    }

    #[test]
    fn a_queue_that_wanders_is_no_leak() {
        // First in, first out, of a length that does a random walk.
        let blocks = (0..2000).map(|n| (n * 120 / 2000, 5 + noise(n / 100, 20), 1000));
        assert_ne!(verdict(120, blocks), Verdict::Leaking);
    }

    #[test]
    fn short_histories_are_unknown() {
        assert_eq!(verdict(7, leak(0, 7, 1000)), Verdict::Unknown);
        assert_eq!(verdict(60, leak(55, 60, 1000)), Verdict::Unknown);
    }

    #[test]
    fn nothing_left_is_steady_however_short() {
        assert_eq!(verdict(3, []), Verdict::Steady);
        assert_eq!(verdict(3, [(0, 2, 1000)]), Verdict::Steady);
    }

    #[test]
    fn the_rate_ignores_outliers() {
        let sizes = (0..40).map(|t| if t % 5 == 3 { 9_000_000 } else { 1000 * t });
        let found = rate(&series(sizes)).unwrap();
        assert!((found - 1000.0).abs() < 150.0, "{found}");
    }

    #[test]
    fn there_is_no_rate_without_time() {
        let point = Point { t_ns: 5, bytes: Bytes(1) };
        assert_eq!(rate(&[]), None);
        assert_eq!(rate(&[point]), None);
        assert_eq!(rate(&[point, Point { bytes: Bytes(2), ..point }]), None);
    }

    proptest! {
        #[test]
        fn the_rate_of_a_line_is_its_slope(slope in 0..1_000_000_u64, base in 0..1_000_000_u64, count in 2..70_u64) {
            let found = rate(&series((0..count).map(|t| base + slope * t))).unwrap();
            prop_assert!((found - slope as f64).abs() < 1e-6 * (1.0 + slope as f64));
        }

        #[test]
        fn any_history_is_judged(
            points in prop::collection::vec((any::<u64>(), any::<u64>()), 0..70),
            allocated_objects in any::<u64>(), freed_objects in any::<u64>(),
            born in prop::collection::vec((any::<u64>(), any::<u64>()), 0..9),
            start in any::<u64>(), end in any::<u64>(), error in any::<u64>(),
        ) {
            let points: Vec<_> = points.iter().map(|&(t_ns, bytes)| Point { t_ns, bytes: Bytes(bytes) }).collect();
            let mut births = Births::new(start, end);
            born.iter().for_each(|&(born_ns, bytes)| births.add(born_ns, Bytes(bytes)));
            let standard_error = Bytes(error);
            let turnover = Turnover {
                allocated_objects,
                freed_objects,
                births,
                standard_error,
                times: allocated_objects,
                is_one_in_use: false,
                is_housekeeping: false,
            };
            let _ = judge(&points, &turnover);
            prop_assert!(rate(&points).is_none_or(f64::is_finite));
        }
    }
}
