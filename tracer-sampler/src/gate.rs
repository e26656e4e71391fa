//! The image that tracer maps into a process that runs already. tracer leads the functions of the C library here, and `next_*` to copies
//! of what it changed there.
//!
//! There is no loader: nothing is imported, nothing runs at the start, no thread has storage for this ([`crate::threads`]). What the
//! process must know is written into the image before it is mapped.

use core::{
    arch::{asm, naked_asm},
    ffi::c_void,
    mem::offset_of,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed},
};

use crate::{
    call::{self, Call, tracer_sampler_mean},
    thread::ThreadCell,
    threads::{Line, Threads},
};

/// The states of all threads.
static THREADS: Threads = Threads::new();

/// Random bytes, by which the draws of one process differ from those of another. tracer writes them before this runs.
#[unsafe(no_mangle)]
pub static tracer_gate_seed: AtomicU64 = AtomicU64::new(0);

/// What tracer has written there.
pub fn seed() -> u64 {
    tracer_gate_seed.load(Relaxed)
}

/// Children of the process draw as it does: a filter of system calls may kill for the question who they are.
pub fn process() -> u64 {
    0
}

/// Puts the address of the thread's state into `rax`.
macro_rules! current_thread {
    () => {
        "call tracer_gate_thread\n"
    };
}

/// The state of this thread.
#[unsafe(no_mangle)]
extern "C" fn tracer_gate_thread() -> *const ThreadCell {
    let control_block: u64;
    // SAFETY: the ABI keeps the address of the thread's control block there.
    unsafe {
        asm!("mov {}, qword ptr fs:[0]", out(reg) control_block, options(nostack, readonly, preserves_flags))
    };
    THREADS.find(control_block)
}

/// The allocator's functions. tracer fills these in.
macro_rules! next {
    ($($next:ident = $name:literal, $symbol:literal;)*) => {$(
        #[doc = concat!("The allocator's `", $symbol, "`.")]
        #[expect(non_upper_case_globals, reason = "it stands for a function")]
        #[unsafe(export_name = $name)]
        pub static $next: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
    )*};
}

next! {
    next_malloc = "tracer_gate_next_malloc", "malloc";
    next_calloc = "tracer_gate_next_calloc", "calloc";
    next_realloc = "tracer_gate_next_realloc", "realloc";
    next_memalign = "tracer_gate_next_memalign", "memalign";
    next_aligned_alloc = "tracer_gate_next_aligned_alloc", "aligned_alloc";
    next_posix_memalign = "tracer_gate_next_posix_memalign", "posix_memalign";
    next_valloc = "tracer_gate_next_valloc", "valloc";
    next_pvalloc = "tracer_gate_next_pvalloc", "pvalloc";
    next_free = "tracer_gate_next_free", "free";
}

/// As the library's: what is not sampled is counted without leaving this. A thread that is not at home in the table calls for its state.
/// The budget is not subtracted from where it is, since a thread that has just lost its line must leave no budget below 0 there.
#[unsafe(naked)]
#[unsafe(export_name = "malloc")]
pub unsafe extern "C" fn malloc() {
    naked_asm!(
        ".cfi_startproc",
        "cmp word ptr [rip + otel_memory_alloc_semaphore], 0",
        "je 2f",
        "mov r10, qword ptr fs:[0]",
        "imul rax, r10, {factor}",
        "shr rax, {shift}",
        "and eax, {mask}",
        "lea r11, [rip + {threads}]",
        "cmp qword ptr [r11 + rax + {owner}], r10",
        "jne 3f",
        "mov r10, qword ptr [rip + {mean}]",
        "cmp qword ptr [r11 + rax + {drawn_for}], r10",
        "jne 3f",
        "mov r10, qword ptr [r11 + rax + {budget}]",
        // Blocks of no bytes are as likely as those of one: the comparison borrows for these.
        "cmp rdi, 1",
        "sbb r10, rdi",
        "jb 3f",
        "mov qword ptr [r11 + rax + {budget}], r10",
        "2: jmp qword ptr [rip + {next}]",
        "3:",
        sampled_call!(""),
        ".cfi_endproc",
        factor = const Threads::FACTOR,
        // The place of a line, and not its number.
        shift = const Threads::SHIFT - size_of::<Line>().ilog2(),
        mask = const size_of::<Threads>() - size_of::<Line>(),
        threads = sym THREADS,
        owner = const offset_of!(Line, owner),
        budget = const offset_of!(Line, thread) + offset_of!(ThreadCell, budget),
        drawn_for = const offset_of!(Line, thread) + offset_of!(ThreadCell, drawn_for),
        mean = sym tracer_sampler_mean,
        next = sym next_malloc,
        before = sym call::before_sized,
        after = sym call::after,
        thread = const offset_of!(Call, thread),
        result = const offset_of!(Call, result),
        block = const offset_of!(Call, block),
        size = const offset_of!(Call, size),
        weight = const offset_of!(Call, weight),
    )
}

const _: () = assert!(size_of::<Line>().is_power_of_two() && size_of::<Threads>().is_power_of_two());
