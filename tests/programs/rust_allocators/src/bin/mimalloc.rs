//! mimalloc 3 under its own names.

use rust_allocators::{Functions, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FUNCTIONS: Functions = Functions {
    alloc: "mi_malloc_aligned",
    alloc_aligned: "mi_malloc_aligned",
    alloc_zeroed: "mi_zalloc_aligned",
    realloc: "mi_realloc_aligned",
};

fn main() {
    run(&FUNCTIONS, || (), (0, 0))
}
