//! The states of the threads of a process that was running before this came: a table, since nobody can be given storage in each of its
//! threads any more.
//!
//! A thread finds its line by the address of its control block. Lines are never given back, since nobody says that a thread ends. A new
//! thread at the same address (C libraries keep the stacks of threads that have ended, and use them again) goes on with what is left of
//! the budget, which is as good as a new one: intervals have no memory. So is any other budget. That is why a line can be taken over
//! without asking when the ones near it are taken: whichever of two threads writes last, and whatever it writes, both go on with budgets
//! that are none of their doing. A line that is taken over again and again costs time, not truth.
//!
//! The one mark that must not stay behind is [`Thread::NESTED`]: a thread that loses its line in the middle of a call puts the budget
//! back at its end, into whosever line it is by then. Between reading a budget and writing it back, a thread could write that mark after
//! that. It takes two threads in the same line, one of them between two neighbouring instructions, and ends as a `siglongjmp` does.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::thread::{Thread, ThreadCell};

/// The state of a thread, in a cache line of its own.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line {
    /// Whose it is; 0 as long as it is nobody's. The machine code compares it.
    pub(crate) owner: AtomicU64,
    /// What is known of it. The machine code counts in it.
    pub(crate) thread: ThreadCell,
}

/// The table.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Threads([Line; Threads::LINES]);

impl Default for Threads {
    fn default() -> Self {
        Self::new()
    }
}

impl Threads {
    /// Lines: 256 KiB, of which only those that are used take memory.
    pub const LINES: usize = 1 << 12;
    /// A thread's line is among this many, from its home on.
    const NEAR: usize = 8;
    /// What an address is multiplied by, modulo 2^64; the index is in the product from bit [`Threads::SHIFT`] on. It is of 31 bits, as
    /// many as an instruction holds, so the index depends on bits 8 to 49 of the address. Control blocks are as far from each other as
    /// stacks, 64 KiB to 64 MiB and guard pages. The factor is the best of some thousands for these distances.
    pub(crate) const FACTOR: u32 = 0x70c2_82dd;
    /// As above.
    pub(crate) const SHIFT: u32 = 38;

    /// A table without threads.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { Line { owner: AtomicU64::new(0), thread: ThreadCell::new() } }; Self::LINES])
    }

    /// The state of a thread, given the address of its control block, which is not 0. The machine code of `malloc` finds those that are
    /// at home by itself.
    pub fn find(&self, thread: u64) -> &ThreadCell {
        let home = Self::home(thread);
        let near = (0..Self::NEAR).map(|step| &self.0[(home + step) % Self::LINES]);
        let own = near.into_iter().find(|line| match line.owner.load(Relaxed) {
            0 => match line.owner.compare_exchange(0, thread, Relaxed, Relaxed) {
                Ok(_) => true,
                // A signal handler of this thread.
                Err(owner) => owner == thread,
            },
            owner => owner == thread,
        });
        own.map_or_else(|| self.take_over(home, thread), |line| &line.thread)
    }

    #[cold]
    fn take_over(&self, home: usize, thread: u64) -> &ThreadCell {
        let line = &self.0[home];
        line.owner.store(thread, Relaxed);
        line.thread.store(Thread::default());
        &line.thread
    }

    const fn home(thread: u64) -> usize {
        (thread.wrapping_mul(Self::FACTOR as u64) >> Self::SHIFT) as usize % Self::LINES
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn threads() -> Box<Threads> {
        Box::new(Threads::new())
    }

    #[test]
    fn a_thread_finds_its_own_state_again() {
        let threads = threads();
        let address = |number: u64| 0x7f12_3456_7740 - number * 0x80_1000;
        for number in 0..500 {
            threads.find(address(number)).budget.store(number, Relaxed);
        }
        for number in 0..500 {
            assert_eq!(threads.find(address(number)).load().budget, number);
        }
    }

    #[test]
    fn a_line_is_taken_over_when_those_near_it_are_taken() {
        let threads = threads();
        let same_home =
            (1_u64..).filter(|&thread| Threads::home(thread << 12) == 7).map(|thread| thread << 12);
        let owners: Vec<u64> = same_home.take(Threads::NEAR + 1).collect();
        for &owner in &owners {
            assert_eq!(threads.find(owner).load(), Thread::default());
            threads.find(owner).budget.store(owner, Relaxed);
        }
        // The first one has lost its line, and gets the home again: a new state.
        assert_eq!(threads.find(owners[8]).load().budget, owners[8]);
        for &owner in &owners[1..8] {
            assert_eq!(threads.find(owner).load().budget, owner);
        }
        assert_eq!(threads.find(owners[0]).load(), Thread::default());
    }

    /// How many of so many threads, whose control blocks are so far from each other, are not at home.
    fn away(count: u64, distance: u64) -> usize {
        let threads = threads();
        let addresses = (1..=count).map(|number| 0x7fab_cdef_e700 - number * distance);
        addresses
            .filter(|&address| {
                !core::ptr::eq(threads.find(address), &threads.0[Threads::home(address)].thread)
            })
            .count()
    }

    #[test]
    fn nearly_all_threads_are_at_home() {
        let sizes = [
            64 << 10,
            68 << 10,
            128 << 10,
            256 << 10,
            512 << 10,
            1 << 20,
            2 << 20,
            4 << 20,
            8 << 20,
            10 << 20,
            16 << 20,
            64 << 20,
        ];
        for size in sizes {
            for guard in [0, 4 << 10] {
                let [few, many] = [100, 1000].map(|count| away(count, size + guard));
                println!("{size:#x} + {guard:#x}: {few} of 100, {many} of 1000");
                // At random, 1 % and 11 % would be away.
                assert!(few == 0 && many <= 60, "{size:#x} + {guard:#x}: {few}, {many}");
            }
        }
    }

    #[test]
    fn threads_that_claim_lines_at_once_get_different_ones() {
        let threads = threads();
        thread::scope(|scope| {
            for number in 1..=8_u64 {
                let threads = &threads;
                scope.spawn(move || {
                    for round in 0..100 {
                        let owner = round << 30 | number << 12;
                        threads.find(owner).budget.store(owner, Relaxed);
                        assert_eq!(threads.find(owner).load().budget, owner);
                    }
                });
            }
        });
    }
}
