//! snmalloc by the functions that it has for Rust.

use rust_allocators::{Functions, run};

#[global_allocator]
static ALLOCATOR: snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;

const FUNCTIONS: Functions = Functions {
    alloc: "sn_rust_alloc",
    alloc_aligned: "sn_rust_alloc",
    alloc_zeroed: "sn_rust_alloc_zeroed",
    realloc: "sn_rust_realloc",
};

fn main() {
    run(&FUNCTIONS, || (), (0, 0))
}
