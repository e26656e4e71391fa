//! What a Rust program with another allocator leaks, by the names of the functions of that allocator.

include!("../../protocol.rs");

use std::hint::black_box;

/// The allocator's functions that the standard library's types come to.
pub struct Functions {
    pub alloc: &'static str,
    pub alloc_aligned: &'static str,
    pub alloc_zeroed: &'static str,
    pub realloc: &'static str,
}

#[repr(align(256))]
struct Aligned([u8; 512]);

#[inline(never)]
fn leak_plain() {
    for _ in 0..40 {
        std::mem::forget(black_box(Vec::<u8>::with_capacity(black_box(300))));
    }
}

#[inline(never)]
fn leak_aligned() {
    for _ in 0..3 {
        black_box(Box::leak(Box::new(Aligned([black_box(1); 512]))));
    }
}

#[inline(never)]
fn leak_zeroed() {
    for _ in 0..5 {
        std::mem::forget(black_box(vec![0_u8; black_box(700)]));
    }
}

#[inline(never)]
fn leak_grown() {
    let mut grown = black_box(Vec::<u8>::with_capacity(black_box(100)));
    grown.reserve_exact(black_box(900));
    std::mem::forget(black_box(grown));
}

#[inline(never)]
fn release() {
    for _ in 0..20 {
        drop(black_box(Vec::<u8>::with_capacity(black_box(200))));
    }
}

/// Does all that, and `more`, which frees what it allocates: so many blocks and bytes.
pub fn run(functions: &Functions, more: fn(), (blocks, bytes): (u64, u64)) -> ! {
    let leaks = [
        ("leak_plain", functions.alloc, 40, 40 * 300),
        ("leak_aligned", functions.alloc_aligned, 3, 3 * 512),
        ("leak_zeroed", functions.alloc_zeroed, 5, 5 * 700),
        ("leak_grown", functions.realloc, 1, 900),
    ];
    ready(&leaks, (1 + 20 + blocks, 100 + 20 * 200 + bytes));
    leak_plain();
    leak_aligned();
    leak_zeroed();
    leak_grown();
    release();
    more();
    done()
}
