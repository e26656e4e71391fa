//! What is done before and after a call that may be sampled. The machine code calls it.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{
    form,
    set::{Sampled, Set},
    settings::USUAL_MEAN,
    thread::{Entropy, Thread, ThreadCell},
};

/// The sampled blocks that are live.
pub static SAMPLED: Set = Set::new();

/// Mean bytes between samples. Whoever traces the process may write to it at any time, from outside: that is what it is exported for.
#[unsafe(no_mangle)]
pub static tracer_sampler_mean: AtomicU64 = AtomicU64::new(USUAL_MEAN);

/// Sampled blocks for which the set had no room: they are not told.
#[unsafe(no_mangle)]
pub static tracer_sampler_dropped: AtomicU64 = AtomicU64::new(0);

/// Blocks of another generation are forgotten: they were sampled before a time in which their releases were not seen. tracer changes it
/// when it opens a gate again, from outside.
#[unsafe(no_mangle)]
pub static tracer_sampler_generation: AtomicU64 = AtomicU64::new(0);

/// The current generation.
fn generation() -> u16 {
    tracer_sampler_generation.load(Relaxed) as u16
}

/// Takes a block out of the set, if it is in.
fn take(block: u64) -> Option<Sampled> {
    loop {
        let sampled = SAMPLED.remove(block)?;
        if sampled.generation == generation() {
            return Some(sampled);
        }
    }
}

/// A call under way, as the machine code lays it out on the stack.
#[repr(C)]
pub struct Call {
    /// What the probe says: the block. Set by [`after`] and its like.
    pub block: u64,
    /// What the probe says: its size.
    pub size: u64,
    /// What the probe says: its weight. Before the call, what the new block will weigh; 0 when it is not sampled.
    pub weight: u64,
    /// What the call returned.
    pub result: u64,
    /// The budget to go on with after the call; [`Thread::NESTED`] when it is as it should be.
    pub budget: u64,
    /// The thread.
    pub thread: *const ThreadCell,
    /// What was known of the block that it releases; of `operator new`, which releases none, the draws before it.
    pub old_size: u64,
    /// What it weighed; 0 when it was not sampled.
    pub old_weight: u64,
    /// The arguments.
    pub arguments: [u64; 3],
}

/// What makes the draws of one thread differ from those of another, and of one process from those of its parent.
struct OfThread(u64);

impl Entropy for OfThread {
    fn seed(&self) -> u64 {
        form::seed() ^ self.0
    }

    fn process(&self) -> u64 {
        form::process()
    }
}

impl Call {
    pub fn thread(&self) -> &ThreadCell {
        // SAFETY: the machine code puts the current thread's state there.
        unsafe { &*self.thread }
    }

    /// Counts what the call asks for.
    pub fn count(&mut self, size: u64) {
        let entropy = OfThread(self.thread.addr() as u64);
        let mean = tracer_sampler_mean.load(Relaxed);
        self.size = size;
        self.weight = 0;
        // No allocator gives more.
        if size <= i64::MAX as u64 {
            let mut thread = self.thread().load();
            self.weight = thread.count(size, mean, &entropy);
            self.thread().store(thread);
        }
    }

    /// As [`Call::count`]; until the call ends, nothing that it calls is counted: one allocator's `calloc` is another one's `malloc`.
    fn count_outermost(&mut self, size: u64) {
        self.count(size);
        self.budget = self.thread().nest();
    }

    /// The call has ended with this block. Whether the probe is to fire.
    pub fn end(&mut self, block: u64) -> u64 {
        if block == 0 || self.weight == 0 {
            return 0;
        }
        self.block = block;
        let sampled = Sampled { size: self.size, weight: self.weight, generation: generation() };
        if SAMPLED.insert(block, sampled) {
            return 1;
        }
        tracer_sampler_dropped.fetch_add(1, Relaxed);
        0
    }
}

/// The call that the machine code made room for.
///
/// # Safety
/// The pointer must be what the machine code passes.
pub unsafe fn of<'a>(call: *mut Call) -> &'a mut Call {
    // SAFETY: the caller answers for it.
    unsafe { &mut *call }
}

/// Before `malloc(size)`.
pub unsafe extern "C" fn before_sized(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    call.count(call.arguments[0]);
    0
}

/// Before `valloc(size)`.
pub unsafe extern "C" fn before_outermost(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    call.count_outermost(call.arguments[0]);
    0
}

/// Before `memalign(alignment, size)`.
pub unsafe extern "C" fn before_aligned(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    call.count_outermost(call.arguments[1]);
    0
}

/// Before `posix_memalign(block, alignment, size)`.
pub unsafe extern "C" fn before_posix(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    call.count_outermost(call.arguments[2]);
    0
}

/// Before `calloc(count, size)`.
pub unsafe extern "C" fn before_calloc(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    call.count_outermost(call.arguments[0].saturating_mul(call.arguments[1]));
    0
}

/// Before `realloc(old, size)`: 1 when the release of the old block is to be told. It is told now, since another thread can be given
/// its address before this call returns.
pub unsafe extern "C" fn before_realloc(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    let [old, size, _] = call.arguments;
    call.release_and_count(old, size)
}

/// Whether somebody listens to the probe of allocations.
fn looked_at() -> bool {
    unsafe extern "C" {
        static otel_memory_alloc_semaphore: AtomicU16;
    }
    use core::sync::atomic::AtomicU16;
    // SAFETY: it is defined in `entry`, and is but read and written whole.
    unsafe { otel_memory_alloc_semaphore.load(Relaxed) != 0 }
}

/// After a call that gives a block: 1 when the probe is to fire.
pub unsafe extern "C" fn after(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    call.end(call.result)
}

/// As [`after`], for calls of which what they called was not counted.
pub unsafe extern "C" fn after_outermost(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    call.go_on();
    call.end(call.result)
}

/// After `posix_memalign`, which returns 0 and puts the block where its first argument points.
pub unsafe extern "C" fn after_posix(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    call.go_on();
    if call.result as u32 != 0 {
        return 0;
    }
    // SAFETY: the call has just written it.
    let block = unsafe { *(call.arguments[0] as *const u64) };
    call.end(block)
}

/// After `realloc`. One that failed has left the old block as it was, so it is told again.
pub unsafe extern "C" fn after_realloc(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { of(call) };
    call.go_on();
    let old = call.arguments[0];
    if call.result != 0 || call.size == 0 || call.old_weight == 0 {
        return call.end(call.result);
    }
    (call.size, call.weight) = (call.old_size, call.old_weight);
    call.end(old)
}

impl Call {
    /// Takes the old block out of the set, and counts the new one. Whether the release of the old one is to be told.
    pub fn release_and_count(&mut self, old: u64, size: u64) -> u64 {
        let removed = take(old);
        self.old_weight = 0;
        if let Some(Sampled { size, weight, .. }) = removed {
            (self.old_size, self.old_weight) = (size, weight);
        }
        if looked_at() {
            self.count_outermost(size);
        } else {
            (self.size, self.weight, self.budget) = (size, 0, Thread::NESTED);
        }
        removed.is_some().into()
    }

    /// What is called from now on is counted again.
    fn go_on(&mut self) {
        self.thread().go_on(self.budget);
    }
}

/// Before a block is released: 1 when that is to be told.
pub unsafe extern "C" fn before_free(block: u64) -> u64 {
    take(block).is_some().into()
}
