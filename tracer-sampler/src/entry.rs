//! The functions that every form of this library puts in front of the allocator's, and the semaphores of their probes. `malloc` is the
//! form's own.

use core::{arch::global_asm, mem::offset_of};

use crate::{
    call::{
        Call, after_outermost, after_posix, before_aligned, before_calloc, before_outermost, before_posix,
        before_realloc,
    },
    form::{
        next_aligned_alloc, next_calloc, next_free, next_memalign, next_posix_memalign, next_pvalloc,
        next_realloc, next_valloc,
    },
    thread::ThreadCell,
};

// The semaphores: whoever listens to a probe has the kernel count up the word that its note names. The base, by which readers see
// whether the file has been moved about. What the linker must keep is marked so (R).
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
    "#
);

const _: () = assert!(offset_of!(Call, arguments) == 64 && size_of::<Call>() == 88);
const _: () = assert!(offset_of!(ThreadCell, budget) == 0);
const _: () = assert!(offset_of!(ThreadCell, drawn_for) == 8);

outermost! {
    calloc = "calloc", next_calloc, before_calloc, after_outermost;
    memalign = "memalign", next_memalign, before_aligned, after_outermost;
    aligned_alloc = "aligned_alloc", next_aligned_alloc, before_aligned, after_outermost;
    posix_memalign = "posix_memalign", next_posix_memalign, before_posix, after_posix;
    valloc = "valloc", next_valloc, before_outermost, after_outermost;
    pvalloc = "pvalloc", next_pvalloc, before_outermost, after_outermost;
}

resize! {
    realloc = "realloc", next_realloc, before_realloc;
}

release! {
    free = "free", next_free;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: it ends the process.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
