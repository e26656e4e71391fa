//! The library that is preloaded: every function of the family, in front of those of whatever allocator is loaded behind it.

use core::{
    arch::{global_asm, naked_asm},
    ffi::{CStr, c_char, c_void},
    mem::offset_of,
    sync::atomic::{
        AtomicPtr, AtomicU8,
        Ordering::{Relaxed, Release},
    },
};

use crate::{
    call::{self, Call, tracer_sampler_mean},
    entry::{free, memalign, realloc},
    kernel,
    lookup::Objects,
    settings::{self, USUAL_MEAN, VARIABLE},
    thread::ThreadCell,
};

// The state of a thread, of which the library has its place in every thread from the start (initial-exec): nothing is allocated for it.
global_asm!(
    r#"
    .pushsection .tbss,"awT",@nobits
    .balign 8
    .globl tracer_sampler_thread
    .hidden tracer_sampler_thread
    .type tracer_sampler_thread, @object
    .size tracer_sampler_thread, {size}
tracer_sampler_thread:
    .zero {size}
    .popsection
    "#,
    size = const size_of::<ThreadCell>(),
);

/// Puts the address of the thread's state into `rax`.
macro_rules! current_thread {
    () => {
        "mov rax, qword ptr [rip + tracer_sampler_thread@GOTTPOFF]\nadd rax, qword ptr fs:[0]\n"
    };
}

/// The next definition of each function: at first, what finds it.
macro_rules! next {
    ($($next:ident: $first:ident, $name:literal, $missing:path, $symbol:literal;)*) => {
        $(
            #[doc = concat!("The allocator's `", $symbol, "`.")]
            #[expect(non_upper_case_globals, reason = "it stands for a function")]
            pub static $next: AtomicPtr<c_void> = AtomicPtr::new($first as *mut c_void);

            /// The first call: finds the allocator.
            #[unsafe(naked)]
            unsafe extern "C" fn $first() {
                naked_asm!(
                    ".cfi_startproc",
                    "push rdi\n.cfi_adjust_cfa_offset 8",
                    "push rsi\n.cfi_adjust_cfa_offset 8",
                    "push rdx\n.cfi_adjust_cfa_offset 8",
                    "call {find}",
                    "pop rdx\n.cfi_adjust_cfa_offset -8",
                    "pop rsi\n.cfi_adjust_cfa_offset -8",
                    "pop rdi\n.cfi_adjust_cfa_offset -8",
                    "jmp qword ptr [rip + {next}]",
                    ".cfi_endproc",
                    find = sym find,
                    next = sym $next,
                )
            }
        )*

        /// Finds every function. Several threads may do it at once: all find the same.
        extern "C" fn find() {
            let objects = Objects::behind_this();
            let allocator = objects.find(c"malloc").map(|definition| definition.object);
            $(
                let found = objects.find(&NUL_TERMINATED.$next);
                // An operator in a library of its own (libstdc++) gets its blocks from `malloc`, which is counted. One beside the
                // allocator's `malloc` does not.
                let own = found.is_some() && found.map(|definition| definition.object) == allocator;
                COUNTED.$next.store(own.into(), Relaxed);
                let address = found.map_or($missing as *mut c_void, |definition| definition.address);
                $next.store(address, Release);
            )*
        }

        /// Of operators: whether a call is counted here.
        struct Counted { $($next: AtomicU8),* }
        static COUNTED: Counted = Counted { $($next: AtomicU8::new(0)),* };

        struct NulTerminated { $($next: &'static CStr),* }
        const NUL_TERMINATED: NulTerminated = NulTerminated { $($next: $name),* };
    };
}

next! {
    next_malloc: first_malloc, c"malloc", no_block, "malloc";
    next_calloc: first_calloc, c"calloc", no_block, "calloc";
    next_realloc: first_realloc, c"realloc", no_block, "realloc";
    next_reallocarray: first_reallocarray, c"reallocarray", realloc_product, "reallocarray";
    next_memalign: first_memalign, c"memalign", no_block, "memalign";
    next_aligned_alloc: first_aligned_alloc, c"aligned_alloc", no_block, "aligned_alloc";
    next_posix_memalign: first_posix_memalign, c"posix_memalign", no_memory, "posix_memalign";
    next_valloc: first_valloc, c"valloc", no_block, "valloc";
    next_pvalloc: first_pvalloc, c"pvalloc", no_block, "pvalloc";
    next_free: first_free, c"free", nothing, "free";
    next_free_sized: first_free_sized, c"free_sized", free, "free_sized";
    next_free_aligned_sized: first_free_aligned_sized, c"free_aligned_sized", free, "free_aligned_sized";
    next_new: first_new, c"_Znwm", new_by_malloc, "operator new";
    next_new_array: first_new_array, c"_Znam", new_by_malloc, "operator new[]";
    next_new_nothrow: first_new_nothrow, c"_ZnwmRKSt9nothrow_t", new_by_malloc_or_null, "operator new";
    next_new_array_nothrow: first_new_array_nothrow, c"_ZnamRKSt9nothrow_t", new_by_malloc_or_null, "operator new[]";
    next_new_aligned: first_new_aligned, c"_ZnwmSt11align_val_t", new_by_memalign, "operator new";
    next_new_array_aligned: first_new_array_aligned, c"_ZnamSt11align_val_t", new_by_memalign, "operator new[]";
    next_new_aligned_nothrow: first_new_aligned_nothrow, c"_ZnwmSt11align_val_tRKSt9nothrow_t", new_by_memalign_or_null, "operator new";
    next_new_array_aligned_nothrow: first_new_array_aligned_nothrow, c"_ZnamSt11align_val_tRKSt9nothrow_t", new_by_memalign_or_null, "operator new[]";
    next_delete: first_delete, c"_ZdlPv", free, "operator delete";
    next_delete_array: first_delete_array, c"_ZdaPv", free, "operator delete[]";
    next_delete_sized: first_delete_sized, c"_ZdlPvm", free, "operator delete";
    next_delete_array_sized: first_delete_array_sized, c"_ZdaPvm", free, "operator delete[]";
    next_delete_nothrow: first_delete_nothrow, c"_ZdlPvRKSt9nothrow_t", free, "operator delete";
    next_delete_array_nothrow: first_delete_array_nothrow, c"_ZdaPvRKSt9nothrow_t", free, "operator delete[]";
    next_delete_aligned: first_delete_aligned, c"_ZdlPvSt11align_val_t", free, "operator delete";
    next_delete_array_aligned: first_delete_array_aligned, c"_ZdaPvSt11align_val_t", free, "operator delete[]";
    next_delete_sized_aligned: first_delete_sized_aligned, c"_ZdlPvmSt11align_val_t", free, "operator delete";
    next_delete_array_sized_aligned: first_delete_array_sized_aligned, c"_ZdaPvmSt11align_val_t", free, "operator delete[]";
    next_delete_aligned_nothrow: first_delete_aligned_nothrow, c"_ZdlPvSt11align_val_tRKSt9nothrow_t", free, "operator delete";
    next_delete_array_aligned_nothrow: first_delete_array_aligned_nothrow, c"_ZdaPvSt11align_val_tRKSt9nothrow_t", free, "operator delete[]";
}

/// Nearly all blocks come from here, and nearly none of them is sampled: what is not is counted without leaving this.
#[unsafe(naked)]
#[unsafe(export_name = "malloc")]
pub unsafe extern "C" fn malloc() {
    naked_asm!(
        ".cfi_startproc",
        "cmp word ptr [rip + otel_memory_alloc_semaphore], 0",
        "je 2f",
        "mov rax, qword ptr [rip + tracer_sampler_thread@GOTTPOFF]",
        "mov r11, qword ptr [rip + {mean}]",
        "cmp qword ptr fs:[rax + 8], r11",
        "jne 3f",
        // Blocks of no bytes are as likely as those of one.
        "mov r10, rdi",
        "cmp r10, 1",
        "adc r10, 0",
        "sub qword ptr fs:[rax], r10",
        "jb 6f",
        "2: jmp qword ptr [rip + {next}]",
        "6: add qword ptr fs:[rax], r10",
        "3:",
        sampled_call!(""),
        ".cfi_endproc",
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

/// Operators: those that only call `malloc` of another file are passed by.
macro_rules! operators {
    ($($function:ident = $name:literal, $next:ident;)*) => {$(
        /// Stands in front of the allocator's operator of this name.
        #[unsafe(naked)]
        #[unsafe(export_name = $name)]
        pub unsafe extern "C" fn $function() {
            naked_asm!(
                ".cfi_startproc",
                "cmp word ptr [rip + otel_memory_alloc_semaphore], 0",
                "je 2f",
                "cmp byte ptr [rip + {counted} + {counted_at}], 0",
                "jne 3f",
                "2: jmp qword ptr [rip + {next}]",
                "3:",
                sampled_call!(""),
                ".cfi_endproc",
                counted = sym COUNTED,
                counted_at = const offset_of!(Counted, $next),
                next = sym $next,
                before = sym before_new,
                after = sym after_new,
                thread = const offset_of!(Call, thread),
                result = const offset_of!(Call, result),
                block = const offset_of!(Call, block),
                size = const offset_of!(Call, size),
                weight = const offset_of!(Call, weight),
            )
        }
    )*};
}

operators! {
    new = "_Znwm", next_new;
    new_array = "_Znam", next_new_array;
    new_nothrow = "_ZnwmRKSt9nothrow_t", next_new_nothrow;
    new_array_nothrow = "_ZnamRKSt9nothrow_t", next_new_array_nothrow;
    new_aligned = "_ZnwmSt11align_val_t", next_new_aligned;
    new_array_aligned = "_ZnamSt11align_val_t", next_new_array_aligned;
    new_aligned_nothrow = "_ZnwmSt11align_val_tRKSt9nothrow_t", next_new_aligned_nothrow;
    new_array_aligned_nothrow = "_ZnamSt11align_val_tRKSt9nothrow_t", next_new_array_aligned_nothrow;
}

/// Before `operator new(size)`. It may leave by an exception, behind which nobody could say that calls are counted again. So it is
/// counted when it returns, and unless what it called was counted: jemalloc's calls `malloc` if it has no block at hand.
pub unsafe extern "C" fn before_new(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { call::of(call) };
    let thread = call.thread().load();
    (call.budget, call.old_size) = (thread.budget, thread.draws());
    0
}

/// After `operator new(size)`.
pub unsafe extern "C" fn after_new(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { call::of(call) };
    let thread = call.thread().load();
    if call.result == 0 || (thread.budget, thread.draws()) != (call.budget, call.old_size) {
        return 0;
    }
    call.count(call.arguments[0]);
    call.end(call.result)
}

resize! {
    reallocarray = "reallocarray", next_reallocarray, before_reallocarray;
}

/// Before `reallocarray(old, count, size)`: as [`before_realloc`].
pub unsafe extern "C" fn before_reallocarray(call: *mut Call) -> u64 {
    // SAFETY: as the machine code has it.
    let call = unsafe { call::of(call) };
    let [old, count, size] = call.arguments;
    call.release_and_count(old, count.saturating_mul(size))
}

/// In place of `reallocarray`, where there is none (glibc before 2.26).
#[unsafe(naked)]
unsafe extern "C" fn realloc_product() {
    naked_asm!(
        ".cfi_startproc",
        "mov rax, rdx",
        "mul rsi",
        "mov rsi, rax",
        "jno 3f",
        // Nobody has that much: `realloc` fails, and says why in `errno`.
        "mov rsi, -1",
        "3: jmp {realloc}",
        ".cfi_endproc",
        realloc = sym realloc,
    )
}

release! {
    free_sized = "free_sized", next_free_sized;
    free_aligned_sized = "free_aligned_sized", next_free_aligned_sized;
    delete = "_ZdlPv", next_delete;
    delete_array = "_ZdaPv", next_delete_array;
    delete_sized = "_ZdlPvm", next_delete_sized;
    delete_array_sized = "_ZdaPvm", next_delete_array_sized;
    delete_nothrow = "_ZdlPvRKSt9nothrow_t", next_delete_nothrow;
    delete_array_nothrow = "_ZdaPvRKSt9nothrow_t", next_delete_array_nothrow;
    delete_aligned = "_ZdlPvSt11align_val_t", next_delete_aligned;
    delete_array_aligned = "_ZdaPvSt11align_val_t", next_delete_array_aligned;
    delete_sized_aligned = "_ZdlPvmSt11align_val_t", next_delete_sized_aligned;
    delete_array_sized_aligned = "_ZdaPvmSt11align_val_t", next_delete_array_sized_aligned;
    delete_aligned_nothrow = "_ZdlPvSt11align_val_tRKSt9nothrow_t", next_delete_aligned_nothrow;
    delete_array_aligned_nothrow = "_ZdaPvSt11align_val_tRKSt9nothrow_t", next_delete_array_aligned_nothrow;
}

/// In place of a function that the allocator lacks.
unsafe extern "C" fn no_block() -> *mut c_void {
    core::ptr::null_mut()
}

/// In place of `posix_memalign`: `ENOMEM`.
unsafe extern "C" fn no_memory() -> i32 {
    12
}

/// In place of `free`, where there is no `malloc`.
unsafe extern "C" fn nothing() {}

/// `operator new` in a program that has none behind this library: a library that was loaded later, with a C++ library of its own, calls
/// it. Its blocks come from `malloc`, as those of libstdc++ and libc++ do. When there is no memory, its own operator does the rest: calls
/// the handlers, and throws.
#[unsafe(naked)]
unsafe extern "C" fn new_by_malloc() {
    naked_asm!(
        ".cfi_startproc",
        "push rdi\n.cfi_adjust_cfa_offset 8",
        "cmp rdi, 1",
        "adc rdi, 0",
        "call {malloc}",
        "pop rdi\n.cfi_adjust_cfa_offset -8",
        "test rax, rax",
        "je 3f",
        "ret",
        "3: push rdi\n.cfi_adjust_cfa_offset 8",
        "call {late}",
        "pop rdi\n.cfi_adjust_cfa_offset -8",
        "jmp rax",
        ".cfi_endproc",
        malloc = sym malloc,
        late = sym late_new,
    )
}

/// As [`new_by_malloc`], of the kind that returns null.
#[unsafe(naked)]
unsafe extern "C" fn new_by_malloc_or_null() {
    naked_asm!(
        ".cfi_startproc",
        "cmp rdi, 1",
        "adc rdi, 0",
        "jmp {malloc}",
        ".cfi_endproc",
        malloc = sym malloc,
    )
}

/// As [`new_by_malloc`], with an alignment: `(size, alignment)`.
#[unsafe(naked)]
unsafe extern "C" fn new_by_memalign() {
    naked_asm!(
        ".cfi_startproc",
        "push rsi\n.cfi_adjust_cfa_offset 8",
        "push rdi\n.cfi_adjust_cfa_offset 8",
        "sub rsp, 8\n.cfi_adjust_cfa_offset 8",
        "cmp rdi, 1",
        "adc rdi, 0",
        "xchg rdi, rsi",
        "call {memalign}",
        "test rax, rax",
        "jne 3f",
        "call {late}",
        "mov r11, rax",
        "add rsp, 8\n.cfi_adjust_cfa_offset -8",
        "pop rdi\n.cfi_adjust_cfa_offset -8",
        "pop rsi\n.cfi_adjust_cfa_offset -8",
        "jmp r11",
        "3:",
        ".cfi_adjust_cfa_offset 24",
        "add rsp, 24\n.cfi_adjust_cfa_offset -24",
        "ret",
        ".cfi_endproc",
        memalign = sym memalign,
        late = sym late_new_aligned,
    )
}

/// As [`new_by_memalign`], of the kind that returns null.
#[unsafe(naked)]
unsafe extern "C" fn new_by_memalign_or_null() {
    naked_asm!(
        ".cfi_startproc",
        "cmp rdi, 1",
        "adc rdi, 0",
        "xchg rdi, rsi",
        "jmp {memalign}",
        ".cfi_endproc",
        memalign = sym memalign,
    )
}

/// The `operator new` that has been loaded since.
unsafe extern "C" fn late_new() -> *mut c_void {
    late(c"_Znwm")
}

/// The aligned `operator new` that has been loaded since.
unsafe extern "C" fn late_new_aligned() -> *mut c_void {
    late(c"_ZnwmSt11align_val_t")
}

fn late(name: &CStr) -> *mut c_void {
    Objects::behind_this().find(name).map_or(abort as *mut c_void, |definition| definition.address)
}

/// There is no memory, and nobody who could say so.
#[unsafe(naked)]
unsafe extern "C" fn abort() {
    naked_asm!("ud2")
}

/// The loader runs this at the start.
#[used]
#[unsafe(link_section = ".init_array")]
static START: unsafe extern "C" fn(usize, *const c_void, *const *const c_char) = start;

/// Reads the environment. glibc passes it to what runs at the start; musl passes nothing, but has it by then.
pub unsafe extern "C" fn start(_count: usize, _arguments: *const c_void, passed: *const *const c_char) {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: the C library defines it.
    let own = unsafe { environ };
    // SAFETY: one of the two is the environment, which ends with a null pointer: musl has set its own by now.
    let setting = unsafe { variable(if own.is_null() { passed } else { own }) };
    if let Some(mean) = setting {
        // A tracer that was here first has the last word.
        let _ = tracer_sampler_mean.compare_exchange(USUAL_MEAN, mean, Relaxed, Relaxed);
    }
}

/// What the environment says of the mean.
unsafe fn variable(mut environment: *const *const c_char) -> Option<u64> {
    /// Longer is no number.
    const LONGEST: usize = 32;
    let name = VARIABLE.as_bytes();
    // SAFETY: the environment is an array of strings that ends with a null pointer; no string is read beyond its end.
    unsafe {
        while !(*environment).is_null() {
            let text = *environment;
            if name.iter().enumerate().all(|(at, &byte)| *text.add(at) as u8 == byte)
                && *text.add(name.len()) == b'=' as c_char
            {
                let value = text.add(name.len() + 1).cast::<u8>();
                let length = (0..LONGEST).find(|&at| *value.add(at) == 0)?;
                return settings::parse_bytes(core::slice::from_raw_parts(value, length));
            }
            environment = environment.add(1);
        }
        None
    }
}

/// What makes the draws of this process differ from those of another: random bytes of the kernel.
pub fn seed() -> u64 {
    unsafe extern "C" {
        fn getauxval(kind: u64) -> u64;
    }
    /// The address of 16 random bytes.
    const RANDOM: u64 = 25;
    // SAFETY: it only looks into the auxiliary vector.
    let random = unsafe { getauxval(RANDOM) } as *const u64;
    // SAFETY: the kernel puts 16 bytes there.
    if random.is_null() { 0 } else { unsafe { random.read_unaligned() } }
}

/// A forked child has the generators of its parent, and must not draw the same.
pub fn process() -> u64 {
    kernel::process_id()
}
