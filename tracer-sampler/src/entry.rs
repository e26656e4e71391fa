//! The functions that this library puts in front of the allocator's, and the probes.
//!
//! They are machine code, because all of it must leave no frame where the allocator throws an exception or the caller walks its
//! stack: what is not sampled ends in a jump to the allocator, as if this library were not there. What may be sampled calls it from a
//! frame that the unwind tables describe, and that no exception stops at.
//!
//! Each function has probes of its own, so that a tracer knows by the place which function was called. The instruction under a probe
//! is a `nop` of two bytes: one of five is replaced by a call when it is probed (Linux 6.18), which kills forked children.

use core::{
    arch::{global_asm, naked_asm},
    ffi::{CStr, c_void},
    mem::offset_of,
    sync::atomic::{
        AtomicPtr, AtomicU8,
        Ordering::{Relaxed, Release},
    },
};

use crate::{
    call::{self, SAMPLED, tracer_sampler_mean},
    lookup::Objects,
    set::{FILTER_FACTOR, Set},
};

// The semaphores: whoever listens to a probe has the kernel count up the word that its note names. The base, by which readers see
// whether the file has been moved about. The state of a thread, of which the library has its place in every thread from the start
// (initial-exec): nothing is allocated for it. What the linker must keep is marked so (R).
global_asm!(
    r#"
    .pushsection .probes,"awR",@progbits
    .balign 2
    .globl otel_memory_alloc_semaphore, otel_memory_free_semaphore
    .hidden otel_memory_alloc_semaphore, otel_memory_free_semaphore
    .type otel_memory_alloc_semaphore, @object
    .size otel_memory_alloc_semaphore, 2
    .type otel_memory_free_semaphore, @object
    .size otel_memory_free_semaphore, 2
otel_memory_alloc_semaphore:
    .2byte 0
otel_memory_free_semaphore:
    .2byte 0
    .popsection

    .pushsection .stapsdt.base,"aR",@progbits
    .weak _.stapsdt.base
    .hidden _.stapsdt.base
_.stapsdt.base:
    .space 1
    .size _.stapsdt.base, 1
    .popsection

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
    size = const size_of::<crate::thread::Thread>(),
);

/// The probe's place, with a note: name, and where its arguments are.
macro_rules! probe {
    ($name:literal, $arguments:literal) => {
        concat!(
            "990: .byte 0x66, 0x90\n",
            ".pushsection .note.stapsdt,\"\",\"note\"\n",
            ".balign 4\n",
            ".4byte 992f - 991f, 994f - 993f, 3\n",
            "991: .asciz \"stapsdt\"\n",
            "992: .balign 4\n",
            "993: .8byte 990b\n",
            ".8byte _.stapsdt.base\n",
            ".8byte otel_memory_",
            $name,
            "_semaphore\n",
            ".asciz \"otel_memory\"\n",
            ".asciz \"",
            $name,
            "\"\n",
            ".asciz \"",
            $arguments,
            "\"\n",
            "994: .balign 4\n",
            ".popsection\n",
        )
    };
}

/// Room for a [`call::Call`] on the stack, below the arguments; then the call, with `before` and `after`, and the probe.
macro_rules! sampled_call {
    ($released:expr) => {
        concat!(
            "push rdx\n.cfi_adjust_cfa_offset 8\n",
            "push rsi\n.cfi_adjust_cfa_offset 8\n",
            "push rdi\n.cfi_adjust_cfa_offset 8\n",
            "sub rsp, 64\n.cfi_adjust_cfa_offset 64\n",
            "mov rax, qword ptr [rip + tracer_sampler_thread@GOTTPOFF]\n",
            "add rax, qword ptr fs:[0]\n",
            "mov qword ptr [rsp + {thread}], rax\n",
            "mov rdi, rsp\n",
            "call {before}\n",
            $released,
            "mov rdi, qword ptr [rsp + 64]\n",
            "mov rsi, qword ptr [rsp + 72]\n",
            "mov rdx, qword ptr [rsp + 80]\n",
            "call qword ptr [rip + {next}]\n",
            "mov qword ptr [rsp + {result}], rax\n",
            "mov rdi, rsp\n",
            "call {after}\n",
            "test eax, eax\n",
            "je 4f\n",
            "mov rdi, qword ptr [rsp + {block}]\n",
            "mov rsi, qword ptr [rsp + {size}]\n",
            "mov rdx, qword ptr [rsp + {weight}]\n",
            probe!("alloc", "8@%rdi 8@%rsi 8@%rdx"),
            "4: mov rax, qword ptr [rsp + {result}]\n",
            "add rsp, 88\n.cfi_adjust_cfa_offset -88\n",
            "ret\n",
        )
    };
}

/// The release of an old block is told, if `before` says so.
macro_rules! released_block {
    () => {
        concat!(
            "test eax, eax\n",
            "je 5f\n",
            "mov rdi, qword ptr [rsp + 64]\n",
            probe!("free", "8@%rdi"),
            "5:\n"
        )
    };
}

const _: () = assert!(offset_of!(call::Call, arguments) == 64 && size_of::<call::Call>() == 88);

/// The next definition of each function: at first, what finds it.
macro_rules! next {
    ($($next:ident: $first:ident, $name:literal, $missing:path, $symbol:literal;)*) => {
        $(
            #[doc = concat!("The allocator's `", $symbol, "`.")]
            #[expect(non_upper_case_globals, reason = "it stands for a function")]
            static $next: AtomicPtr<c_void> = AtomicPtr::new($first as *mut c_void);

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
        thread = const offset_of!(call::Call, thread),
        result = const offset_of!(call::Call, result),
        block = const offset_of!(call::Call, block),
        size = const offset_of!(call::Call, size),
        weight = const offset_of!(call::Call, weight),
    )
}

const _: () = assert!(offset_of!(crate::thread::Thread, budget) == 0);
const _: () = assert!(offset_of!(crate::thread::Thread, drawn_for) == 8);

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
                before = sym call::before_new,
                after = sym call::after_new,
                thread = const offset_of!(call::Call, thread),
                result = const offset_of!(call::Call, result),
                block = const offset_of!(call::Call, block),
                size = const offset_of!(call::Call, size),
                weight = const offset_of!(call::Call, weight),
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

/// Functions that may call others of the family, which must not be counted then.
macro_rules! outermost {
    ($($function:ident = $name:literal, $next:ident, $before:ident, $after:ident;)*) => {$(
        /// Stands in front of the allocator's function of this name.
        #[unsafe(naked)]
        #[unsafe(export_name = $name)]
        pub unsafe extern "C" fn $function() {
            naked_asm!(
                ".cfi_startproc",
                "cmp word ptr [rip + otel_memory_alloc_semaphore], 0",
                "jne 3f",
                "jmp qword ptr [rip + {next}]",
                "3:",
                sampled_call!(""),
                ".cfi_endproc",
                next = sym $next,
                before = sym call::$before,
                after = sym call::$after,
                thread = const offset_of!(call::Call, thread),
                result = const offset_of!(call::Call, result),
                block = const offset_of!(call::Call, block),
                size = const offset_of!(call::Call, size),
                weight = const offset_of!(call::Call, weight),
            )
        }
    )*};
}

outermost! {
    calloc = "calloc", next_calloc, before_calloc, after_outermost;
    memalign = "memalign", next_memalign, before_aligned, after_outermost;
    aligned_alloc = "aligned_alloc", next_aligned_alloc, before_aligned, after_outermost;
    posix_memalign = "posix_memalign", next_posix_memalign, before_posix, after_posix;
    valloc = "valloc", next_valloc, before_outermost, after_outermost;
    pvalloc = "pvalloc", next_pvalloc, before_outermost, after_outermost;
}

/// Functions that release a block, too. They go straight to the allocator if nobody looks and no block is sampled.
macro_rules! resize {
    ($($function:ident = $name:literal, $next:ident, $before:ident;)*) => {$(
        /// Stands in front of the allocator's function of this name.
        #[unsafe(naked)]
        #[unsafe(export_name = $name)]
        pub unsafe extern "C" fn $function() {
            naked_asm!(
                ".cfi_startproc",
                "cmp word ptr [rip + otel_memory_alloc_semaphore], 0",
                "jne 3f",
                "cmp qword ptr [rip + {set} + {count}], 0",
                "jne 3f",
                "jmp qword ptr [rip + {next}]",
                "3:",
                sampled_call!(released_block!()),
                ".cfi_endproc",
                set = sym SAMPLED,
                count = const offset_of!(Set, count),
                next = sym $next,
                before = sym call::$before,
                after = sym call::after_realloc,
                thread = const offset_of!(call::Call, thread),
                result = const offset_of!(call::Call, result),
                block = const offset_of!(call::Call, block),
                size = const offset_of!(call::Call, size),
                weight = const offset_of!(call::Call, weight),
            )
        }
    )*};
}

resize! {
    realloc = "realloc", next_realloc, before_realloc;
    reallocarray = "reallocarray", next_reallocarray, before_reallocarray;
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

/// Functions that release the block that is their first argument.
macro_rules! release {
    ($($function:ident = $name:literal, $next:ident;)*) => {$(
        /// Stands in front of the allocator's function of this name.
        #[unsafe(naked)]
        #[unsafe(export_name = $name)]
        pub unsafe extern "C" fn $function() {
            naked_asm!(
                ".cfi_startproc",
                "cmp qword ptr [rip + {set} + {count}], 0",
                "je 2f",
                "imul r11d, edi, {factor}",
                "shr r11d, 16",
                "lea r10, [rip + {set} + {filter}]",
                "cmp byte ptr [r10 + r11], 0",
                "jne 3f",
                "2: jmp qword ptr [rip + {next}]",
                "3:",
                "push rdx\n.cfi_adjust_cfa_offset 8",
                "push rsi\n.cfi_adjust_cfa_offset 8",
                "push rdi\n.cfi_adjust_cfa_offset 8",
                "call {before}",
                "mov rdi, qword ptr [rsp]",
                "test eax, eax",
                "je 4f",
                probe!("free", "8@%rdi"),
                "4: pop rdi\n.cfi_adjust_cfa_offset -8",
                "pop rsi\n.cfi_adjust_cfa_offset -8",
                "pop rdx\n.cfi_adjust_cfa_offset -8",
                "jmp qword ptr [rip + {next}]",
                ".cfi_endproc",
                set = sym SAMPLED,
                count = const offset_of!(Set, count),
                filter = const offset_of!(Set, filter),
                factor = const FILTER_FACTOR as i32,
                next = sym $next,
                before = sym call::before_free,
            )
        }
    )*};
}

release! {
    free = "free", next_free;
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
static START: unsafe extern "C" fn(usize, *const c_void, *const *const core::ffi::c_char) = call::start;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: it ends the process.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
