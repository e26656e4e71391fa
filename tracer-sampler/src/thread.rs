//! What a thread knows: how many bytes it may still allocate until a block is sampled.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracer_ebpf::sampling::Sampling;

use crate::interval::{self, Random};

/// The state of a thread. Zeros, as a new thread has them, are a thread that samples every block, until it sees another mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// Bytes until the next sample.
    pub budget: u64,
    /// The mean that the budget was drawn with, in bytes.
    pub drawn_for: u64,
    random: Random,
}

/// Where the state of a thread is kept.
///
/// A signal handler that allocates may change it at any point; whatever it makes of it is a state that goes on.
#[derive(Debug)]
#[repr(C)]
pub struct ThreadCell {
    /// The machine code subtracts from it.
    pub(crate) budget: AtomicU64,
    /// The machine code compares it.
    pub(crate) drawn_for: AtomicU64,
    random: AtomicU64,
}

impl ThreadCell {
    /// A new thread.
    #[must_use]
    pub const fn new() -> Self {
        Self { budget: AtomicU64::new(0), drawn_for: AtomicU64::new(0), random: AtomicU64::new(0) }
    }

    /// The state.
    #[must_use]
    pub fn load(&self) -> Thread {
        Thread {
            budget: self.budget.load(Relaxed),
            drawn_for: self.drawn_for.load(Relaxed),
            random: Random::new(self.random.load(Relaxed)),
        }
    }

    /// Replaces the state.
    pub fn store(&self, thread: Thread) {
        self.budget.store(thread.budget, Relaxed);
        self.drawn_for.store(thread.drawn_for, Relaxed);
        self.random.store(thread.random.state(), Relaxed);
    }

    /// Counts nothing from now on, until [`ThreadCell::go_on`] is called with what this returns: the budget that was there, or
    /// [`Thread::NESTED`] if nothing was counted already. So it is who began it that ends it.
    #[must_use]
    pub fn nest(&self) -> u64 {
        let budget = self.budget.load(Relaxed);
        if Thread::is_nested(budget) {
            return Thread::NESTED;
        }
        self.budget.store(Thread::NESTED, Relaxed);
        budget
    }

    /// Counts again, with this budget.
    pub fn go_on(&self, budget: u64) {
        if budget != Thread::NESTED {
            self.budget.store(budget, Relaxed);
        }
    }
}

impl Default for ThreadCell {
    fn default() -> Self {
        Self::new()
    }
}

/// No interval is longer: 37 times the largest mean.
const LONGEST: u64 = 40 * Sampling::LARGEST_MEAN;

/// What is drawn at random depends on this, besides on the thread's own state.
pub trait Entropy {
    /// For a thread that begins.
    fn seed(&self) -> u64;
    /// For each interval; differs between a process and its forked children.
    fn process(&self) -> u64;
}

impl Thread {
    /// The budget while a call goes on that was counted already, so that what it calls is not counted.
    pub const NESTED: u64 = 1 << 50;

    /// Where it is less by so much, it is none of a call that still goes on: no call asks for that. A `siglongjmp` has left it.
    const ABANDONED: u64 = 1 << 40;

    /// Whether a call goes on that was counted. More than [`Thread::NESTED`] is none: in the library, a signal handler that comes
    /// between the machine code's subtraction and what takes it back leaves a budget below 0.
    const fn is_nested(budget: u64) -> bool {
        Self::NESTED - Self::ABANDONED < budget && budget <= Self::NESTED
    }

    /// Counts a block of so many bytes. What it stands for, in bytes, if it is sampled; else 0. One in `mean` bytes is sampled.
    pub fn count(&mut self, size: u64, mean: u64, entropy: &impl Entropy) -> u64 {
        // Blocks of no bytes are as likely as those of one: so `Sampling` has it, and so the weights are.
        let size_counted = size.max(1);
        if Self::is_nested(self.budget) {
            self.budget = self.budget.saturating_sub(size_counted);
            return 0;
        }
        if self.drawn_for != mean || self.budget > LONGEST {
            self.draw(mean, entropy);
        }
        match self.budget.checked_sub(size_counted) {
            Some(rest) => {
                self.budget = rest;
                0
            }
            None => {
                self.draw(mean, entropy);
                weight(size, mean)
            }
        }
    }

    /// A number that differs after each draw.
    #[must_use]
    pub const fn draws(&self) -> u64 {
        self.random.state()
    }

    fn draw(&mut self, mean: u64, entropy: &impl Entropy) {
        if self.drawn_for == 0 {
            self.random = Random::new(entropy.seed());
        }
        self.budget = interval::bytes(self.random.next(entropy.process()), known(mean));
        self.drawn_for = mean;
    }
}

/// A mean as [`Sampling`] knows it.
fn known(mean: u64) -> u64 {
    mean.min(Sampling::LARGEST_MEAN)
}

/// What a sampled block stands for, in bytes; at least one, since 0 says that it is not sampled. By the same integers as tracer has
/// it, so that tracer recognises a rate that it set.
fn weight(size: u64, mean: u64) -> u64 {
    Sampling::with_mean(known(mean)).weight(size.max(1)).bytes.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u64);

    impl Entropy for Fixed {
        fn seed(&self) -> u64 {
            self.0
        }

        fn process(&self) -> u64 {
            0
        }
    }

    /// Estimated objects over real ones, for blocks of one size, and the standard error of that.
    fn estimate(size: u64, mean: u64, blocks: u64) -> (f64, f64) {
        let (mut thread, mut objects) = (Thread::default(), 0.0);
        let entropy = Fixed(size ^ mean);
        for _ in 0..blocks {
            objects += thread.count(size, mean, &entropy) as f64 / size as f64;
        }
        let chance = -(-(size as f64) / mean as f64).exp_m1();
        (objects / blocks as f64, ((1.0 - chance) / chance / blocks as f64).sqrt())
    }

    #[test]
    fn estimates_are_unbiased_from_8_bytes_to_8_mebibytes() {
        for mean in [512, 4096, 512 << 10] {
            for shift in 3..=23 {
                let size = 1_u64 << shift;
                let (estimated, error) = estimate(size, mean, 400_000);
                // Weights are whole bytes.
                let rounding = 1.0 / size.max(mean) as f64;
                assert!(
                    (estimated - 1.0).abs() <= 5.0 * error + rounding,
                    "{size} of {mean}: {estimated} +- {error}"
                );
            }
        }
    }

    #[test]
    fn sizes_that_are_mixed_are_each_estimated_right() {
        let sizes = [8_u64, 24, 100, 700, 4096, 70_000, 1 << 20];
        let mean = 20_000;
        let (mut thread, entropy) = (Thread::default(), Fixed(3));
        let mut random = Random::new(9);
        let (mut made, mut estimated, mut variance) = ([0.0; 7], [0.0; 7], [0.0; 7]);
        for _ in 0..2_000_000 {
            let at = (random.next(0) % 7) as usize;
            let objects = thread.count(sizes[at], mean, &entropy) as f64 / sizes[at] as f64;
            made[at] += 1.0;
            estimated[at] += objects;
            variance[at] += objects * (objects - 1.0).max(0.0);
        }
        for at in 0..7 {
            let off = estimated[at] - made[at];
            assert!(off.abs() <= 5.0 * variance[at].sqrt() + 1e-3 * made[at], "{}: {off}", sizes[at]);
        }
    }

    #[test]
    fn a_mean_that_changes_again_and_again_leaves_estimates_unbiased() {
        let (mut thread, entropy) = (Thread::default(), Fixed(5));
        let (mut bytes, mut variance) = (0.0, 0.0);
        const BLOCKS: u64 = 3_000_000;
        for number in 0..BLOCKS {
            let mean = [1000, 64_000, 300][(number / 13 % 3) as usize];
            let weight = thread.count(40, mean, &entropy) as f64;
            bytes += weight;
            variance += weight * (weight - 40.0).max(0.0);
        }
        let off = bytes - 40.0 * BLOCKS as f64;
        assert!(off.abs() <= 5.0 * variance.sqrt(), "{off} of {}", 40 * BLOCKS);
    }

    #[test]
    fn a_mean_of_no_bytes_samples_every_block_exactly() {
        let (mut thread, entropy) = (Thread::default(), Fixed(1));
        for size in [1, 8, 1 << 40] {
            assert_eq!(thread.count(size, 0, &entropy), size);
        }
        assert_eq!(thread.count(0, 0, &entropy), 1);
    }

    #[test]
    fn an_abandoned_call_does_not_blind_its_thread() {
        let (mut thread, entropy) = (Thread::default(), Fixed(1));
        thread.count(8, 100, &entropy);
        thread.budget = Thread::NESTED;
        assert_eq!(thread.count(1 << 39, 100, &entropy), 0, "what is nested is not counted");
        assert_eq!(thread.count(1 << 39, 100, &entropy), 0);
        thread.count(8, 100, &entropy);
        assert!(thread.budget < 4000);
    }

    #[test]
    fn a_budget_below_0_does_not_blind_its_thread() {
        let (mut thread, entropy) = (Thread::default(), Fixed(1));
        thread.count(8, 100, &entropy);
        thread.budget = 0_u64.wrapping_sub(1000);
        thread.count(8, 100, &entropy);
        assert!(thread.budget < 4000);
    }

    #[test]
    fn who_began_to_count_nothing_ends_it() {
        let cell = ThreadCell::new();
        cell.store(Thread { budget: 70, ..Thread::default() });
        let outer = cell.nest();
        let inner = cell.nest();
        let mut thread = cell.load();
        assert_eq!(thread.count(1 << 20, 100, &Fixed(1)), 0, "what is nested is not counted");
        cell.store(thread);
        cell.go_on(inner);
        assert_eq!(cell.nest(), Thread::NESTED);
        cell.go_on(outer);
        assert_eq!(cell.load().budget, 70);
    }
}
