//! jemalloc 5.3.1 under the prefix `_rjem_`, with the functions that C23 brought.

use std::hint::black_box;

use rust_allocators::{Functions, run};
use tikv_jemalloc_sys::{aligned_alloc, free_aligned_sized, free_sized, malloc};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const FUNCTIONS: Functions = Functions {
    alloc: "_rjem_malloc",
    alloc_aligned: "_rjem_mallocx",
    alloc_zeroed: "_rjem_calloc",
    realloc: "_rjem_realloc",
};

#[inline(never)]
fn release_as_c23_does() {
    for _ in 0..6 {
        // SAFETY: the blocks are released once, by the size and alignment that they were made with.
        unsafe {
            free_sized(black_box(malloc(black_box(80))), 80);
            free_aligned_sized(black_box(aligned_alloc(256, black_box(512))), 256, 512);
        }
    }
}

fn main() {
    run(&FUNCTIONS, release_as_c23_does, (12, 6 * (80 + 512)))
}
