//! A word that BPF programs and user space change at the same time.
//!
//! Rust's `AtomicU64` cannot be used in BPF: the backend selects neither its loads nor its exchanges. What is needed is written as
//! the instructions themselves; on the host it is an `AtomicU64`.

#[cfg(target_arch = "bpf")]
mod arch {
    use core::cell::UnsafeCell;

    /// A 64-bit word in memory that several CPUs change.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct Word(UnsafeCell<u64>);

    // SAFETY: every access is one instruction on an aligned word, which the CPU carries out whole.
    unsafe impl Sync for Word {}

    impl Word {
        /// What the word holds.
        #[inline(always)]
        pub fn load(&self) -> u64 {
            // SAFETY: the cell is valid and aligned.
            unsafe { self.0.get().read_volatile() }
        }

        /// Makes the word hold something else. BPF's own stores before it are seen before it on x86_64.
        #[inline(always)]
        pub fn store(&self, value: u64) {
            // SAFETY: the cell is valid and aligned.
            unsafe { self.0.get().write_volatile(value) }
        }

        /// Stores `new` if the word holds `current`; gives what it held before. A full barrier.
        #[inline(always)]
        pub fn compare_exchange(&self, current: u64, new: u64) -> u64 {
            let previous;
            // SAFETY: the cell is valid and aligned; the instruction touches nothing else.
            unsafe {
                core::arch::asm!(
                    "r0 = cmpxchg_64({word} + 0, r0, {new})",
                    word = in(reg) self.0.get(),
                    new = in(reg) new,
                    inlateout("r0") current => previous,
                    options(nostack)
                );
            }
            previous
        }

        /// Adds to the word, wrapping around; no order with other memory.
        #[inline(always)]
        pub fn add(&self, amount: u64) {
            // SAFETY: the cell is valid and aligned; the instruction touches nothing else.
            unsafe {
                core::arch::asm!(
                    "lock *(u64 *)({word} + 0) += {amount}",
                    word = in(reg) self.0.get(),
                    amount = in(reg) amount,
                    options(nostack)
                );
            }
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
mod arch {
    use core::sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
    };

    /// A 64-bit word in memory that several CPUs change.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct Word(AtomicU64);

    impl Word {
        /// A word that holds this.
        #[must_use]
        pub const fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        /// What the word holds.
        #[inline(always)]
        pub fn load(&self) -> u64 {
            self.0.load(Acquire)
        }

        /// Makes the word hold something else; what was stored before is seen before it.
        #[inline(always)]
        pub fn store(&self, value: u64) {
            self.0.store(value, Release);
        }

        /// Stores `new` if the word holds `current`; gives what it held before. A full barrier.
        #[inline(always)]
        pub fn compare_exchange(&self, current: u64, new: u64) -> u64 {
            self.0.compare_exchange(current, new, SeqCst, SeqCst).unwrap_or_else(|previous| previous)
        }

        /// Adds to the word, wrapping around; no order with other memory.
        #[inline(always)]
        pub fn add(&self, amount: u64) {
            self.0.fetch_add(amount, Relaxed);
        }
    }
}

pub use arch::Word;
