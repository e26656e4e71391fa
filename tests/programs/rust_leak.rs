// Rust: what the standard library's own types leak, by the names of the functions that made them.
include!("protocol.rs");

mod pool {
    pub struct Session {
        pub buffer: Vec<u8>,
    }

    impl Session {
        #[inline(never)]
        pub fn open(bytes: usize) -> Self {
            Self { buffer: Vec::with_capacity(std::hint::black_box(bytes)) }
        }
    }
}

#[inline(never)]
fn leak_boxes(count: usize) {
    for _ in 0..count {
        std::hint::black_box(Box::leak(Box::new([1u8; 300])));
    }
}

#[inline(never)]
fn leak_grown_vector() {
    let mut vector: Vec<u8> = Vec::with_capacity(std::hint::black_box(100));
    vector.reserve_exact(std::hint::black_box(700));
    std::mem::forget(std::hint::black_box(vector));
}

fn main() {
    let mut sessions = Vec::with_capacity(16);
    ready(
        &[("leak_boxes", "malloc", 8, 2400), ("pool::Session::open", "malloc", 4, 2000), ("leak_grown_vector", "realloc", 1, 700)],
        (1 + 1, 100 + 900),
    );
    leak_boxes(8);
    sessions.extend((0..4).map(|_| pool::Session::open(500)));
    leak_grown_vector();
    drop(std::hint::black_box(pool::Session::open(900)));
    std::hint::black_box(sessions.iter().map(|session| session.buffer.capacity()).sum::<usize>());
    done();
}
