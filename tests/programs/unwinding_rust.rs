// Stacks at allocations in Rust: closures, generics, threads, a panic that unwinds. unwinding.rs knows the chains.

use std::{hint::black_box, panic, thread};

include!("protocol.rs");

#[inline(never)]
fn allocate(size: usize) {
    std::mem::forget(black_box(Vec::<u8>::with_capacity(black_box(size))));
}

#[inline(never)]
fn called_back(a: &u32, b: &u32) -> std::cmp::Ordering {
    if *a == 40 && *b == 39 || *a == 39 && *b == 40 {
        allocate(302);
    }
    a.cmp(b)
}

#[inline(never)]
fn sorts(numbers: &mut [u32]) {
    numbers.sort_by(called_back);
    black_box(numbers);
}

struct Guard;

impl Drop for Guard {
    #[inline(never)]
    fn drop(&mut self) {
        allocate(303);
        black_box(());
    }
}

#[inline(never)]
fn panics() {
    let _guard = black_box(Guard);
    panic::resume_unwind(Box::new(7));
}

#[inline(never)]
fn catches() {
    black_box(panic::catch_unwind(panics).is_err());
}

#[inline(never)]
fn in_thread() {
    allocate(304);
    black_box(());
}

#[inline(never)]
fn through_object(work: &dyn Fn(usize)) {
    work(301);
    black_box(());
}

fn main() {
    let mut numbers: Vec<u32> = (0..64).map(|number| number * 39 % 64).collect();
    ready(&[], (0, 0));
    through_object(black_box(&|size| {
        allocate(size);
        black_box(());
    }));
    sorts(&mut numbers);
    catches();
    thread::spawn(in_thread).join().unwrap();
    done();
}
