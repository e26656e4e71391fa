//! The image in the process of the test: mapped as tracer maps it, and called.

use std::{
    ffi::{CString, c_void},
    fs::File,
    io::Write as _,
    os::fd::{AsRawFd as _, FromRawFd as _},
    sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed},
    thread,
};

use object::{Object as _, ObjectSymbol as _};

use super::{Image, tests::FUNCTIONS};

type Malloc = unsafe extern "C" fn(usize) -> *mut u8;
type Free = unsafe extern "C" fn(*mut u8);
type OfTwo = unsafe extern "C" fn(usize, usize) -> *mut u8;
type Realloc = unsafe extern "C" fn(*mut u8, usize) -> *mut u8;
type PosixMemalign = unsafe extern "C" fn(*mut *mut u8, usize, usize) -> i32;

/// The image, mapped, in front of the functions of the C library. It stays.
#[derive(Clone, Copy)]
struct Mapped {
    base: usize,
    malloc: Malloc,
    calloc: OfTwo,
    realloc: Realloc,
    free: Free,
    memalign: OfTwo,
    aligned_alloc: OfTwo,
    posix_memalign: PosixMemalign,
    valloc: Malloc,
    pvalloc: Malloc,
}

fn libc_function(name: &str) -> u64 {
    let name = CString::new(name).unwrap();
    // SAFETY: the name ends with a zero.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) as u64 }
}

impl Mapped {
    fn new(mean: u64) -> Self {
        let image = Image::embedded().unwrap();
        let pages = image.pages() as usize;
        // SAFETY: the kernel chooses a range that nobody has; below, the image replaces it.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                pages,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let next: Vec<_> = FUNCTIONS.iter().map(|&name| (name, libc_function(name))).collect();
        assert!(next.iter().all(|&(_, address)| address != 0), "{next:x?}");
        let content = image.at(base as u64, &next, 0x1234_5678_9abc_def1).unwrap();
        // SAFETY: the name ends with a zero, and the descriptor is the file's from then on.
        let mut file =
            unsafe { File::from_raw_fd(libc::memfd_create(c"tracer-gate".as_ptr(), libc::MFD_CLOEXEC)) };
        file.write_all(&content).unwrap();
        // SAFETY: the ranges are those of the mapping above, which is the image's alone.
        unsafe {
            let code = libc::PROT_READ | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
            assert_eq!(libc::mmap(base, pages, code, flags, file.as_raw_fd(), 0), base);
            for range in image.writable() {
                let size = (range.end - range.start) as usize;
                let data = libc::PROT_READ | libc::PROT_WRITE;
                assert_eq!(libc::mprotect(base.byte_add(range.start as usize), size, data), 0);
            }
        }
        let address = |name: &str| base as usize + image.function(name).unwrap() as usize;
        // SAFETY: the image's functions have the types of those of the C library.
        let mapped = unsafe {
            Self {
                base: base as usize,
                malloc: std::mem::transmute::<usize, Malloc>(address("malloc")),
                calloc: std::mem::transmute::<usize, OfTwo>(address("calloc")),
                realloc: std::mem::transmute::<usize, Realloc>(address("realloc")),
                free: std::mem::transmute::<usize, Free>(address("free")),
                memalign: std::mem::transmute::<usize, OfTwo>(address("memalign")),
                aligned_alloc: std::mem::transmute::<usize, OfTwo>(address("aligned_alloc")),
                posix_memalign: std::mem::transmute::<usize, PosixMemalign>(address("posix_memalign")),
                valloc: std::mem::transmute::<usize, Malloc>(address("valloc")),
                pvalloc: std::mem::transmute::<usize, Malloc>(address("pvalloc")),
            }
        };
        mapped.word("tracer_sampler_mean").store(mean, Relaxed);
        mapped
    }

    /// The address of something of the image, by a part of its name.
    fn place(&self, name: &str) -> usize {
        let image = Image::embedded().unwrap();
        let file = object::File::parse(image.content).unwrap();
        let mut symbols = file.symbols();
        let symbol = symbols.find(|symbol| symbol.name().is_ok_and(|own| own.contains(name))).unwrap();
        self.base + symbol.address() as usize
    }

    fn word(&self, name: &str) -> &'static AtomicU64 {
        // SAFETY: the image stays, and has an aligned word there.
        unsafe { &*(self.place(name) as *const AtomicU64) }
    }

    /// Listens to the probes, as far as the image knows.
    fn listen(&self, listeners: u16) {
        for name in ["otel_memory_alloc_semaphore", "otel_memory_free_semaphore"] {
            // SAFETY: the image stays, and has an aligned word of two bytes there.
            unsafe { &*(self.place(name) as *const AtomicU16) }.store(listeners, Relaxed);
        }
    }

    /// How many sampled blocks are live.
    fn sampled(&self) -> u64 {
        self.word("SAMPLED").load(Relaxed)
    }

    /// A block, by each function in turn.
    fn allocate(&self, kind: usize, size: usize) -> *mut u8 {
        let mut block = std::ptr::null_mut();
        // SAFETY: the arguments are those that the C library takes.
        unsafe {
            match kind % 8 {
                0 => (self.malloc)(size),
                1 => {
                    block = (self.calloc)(3, size.div_ceil(3));
                    assert!((0..size).all(|at| *block.add(at) == 0));
                    block
                }
                2 => (self.realloc)((self.malloc)(size / 2), size),
                3 => (self.memalign)(64, size),
                4 => (self.aligned_alloc)(64, size.next_multiple_of(64)),
                5 => {
                    assert_eq!((self.posix_memalign)(&raw mut block, 128, size), 0);
                    block
                }
                6 => (self.valloc)(size),
                _ => (self.pvalloc)(size),
            }
        }
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

#[test]
fn eight_threads_allocate_and_release_through_it() {
    let mapped = Mapped::new(1000);
    mapped.listen(1);
    thread::scope(|scope| {
        for number in 0..8_usize {
            scope.spawn(move || {
                let mut live = vec![(0_usize, 0_usize); 64];
                let mut random = number as u64 + 1;
                for round in 0..20_000_usize {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let (at, size) = ((random >> 40) as usize % 64, 1 + (random >> 20) as usize % 900);
                    let (old, old_size) = live[at];
                    // SAFETY: the block was written whole, and is released once.
                    unsafe {
                        if old != 0 {
                            let block = old as *mut u8;
                            assert!(*block == at as u8 && *block.add(old_size - 1) == at as u8);
                            (mapped.free)(block);
                        }
                        let block = mapped.allocate(round, size);
                        assert!(!block.is_null());
                        block.write_bytes(at as u8, size);
                        live[at] = (block as usize, size);
                    }
                }
                assert!(mapped.sampled() > 0);
                for (block, _) in live {
                    // SAFETY: as above.
                    unsafe { (mapped.free)(block as *mut u8) };
                }
            });
        }
    });
    assert_eq!((mapped.sampled(), mapped.word("tracer_sampler_dropped").load(Relaxed)), (0, 0));
}

#[test]
fn it_samples_as_often_as_it_is_to_and_not_without_listeners() {
    let mapped = Mapped::new(10_000);
    let blocks = |count: usize| -> Vec<*mut u8> { (0..count).map(|_| mapped.allocate(0, 100)).collect() };
    let release = |blocks: Vec<*mut u8>| {
        // SAFETY: each is released once.
        blocks.into_iter().for_each(|block| unsafe { (mapped.free)(block) });
    };
    release(blocks(1000));
    assert_eq!(mapped.sampled(), 0);
    mapped.listen(1);
    let live = blocks(100_000);
    // One in 10,000 of 10 million bytes; five standard errors.
    let sampled = mapped.sampled();
    assert!((840..=1160).contains(&sampled), "{sampled}");
    mapped.listen(0);
    release(live);
    assert_eq!(mapped.sampled(), 0, "releases are seen when nobody listens any more");
}

#[test]
fn what_fails_fails_as_without_it() {
    let mapped = Mapped::new(0);
    mapped.listen(1);
    // SAFETY: sizes that nobody has; the block is released once.
    unsafe {
        let block = (mapped.malloc)(100);
        assert_eq!(mapped.sampled(), 1);
        for _ in 0..2 {
            *libc::__errno_location() = 0;
            assert!((mapped.realloc)(block, usize::MAX / 2).is_null());
            assert_eq!(errno(), libc::ENOMEM);
            assert_eq!(mapped.sampled(), 1, "the block is still there");
        }
        assert!((mapped.malloc)(usize::MAX).is_null() && (mapped.calloc)(usize::MAX, 2).is_null());
        let mut none = std::ptr::null_mut();
        assert_eq!((mapped.posix_memalign)(&raw mut none, 3, 8), libc::EINVAL);
        assert_eq!(mapped.sampled(), 1);
        *libc::__errno_location() = 77;
        (mapped.free)(std::ptr::null_mut());
        (mapped.free)((mapped.realloc)(block, 0x20_0000));
        let empty = (mapped.malloc)(0);
        (mapped.free)(empty);
        assert_eq!((errno(), mapped.sampled()), (77, 0));
    }
}

#[test]
fn what_was_freed_while_no_gate_was_open_is_forgotten() {
    let mapped = Mapped::new(0);
    mapped.listen(1);
    let generation = mapped.word("tracer_sampler_generation");
    // SAFETY: each is released once.
    unsafe {
        let free = std::mem::transmute::<u64, Free>(libc_function("free"));
        let before = (mapped.malloc)(100);
        free(before);
        generation.store(1, Relaxed);
        let block = (mapped.malloc)(100);
        assert_eq!(block, before, "the C library gives what was freed last");
        assert_eq!(mapped.sampled(), 2);
        (mapped.free)(block);
        assert_eq!(mapped.sampled(), 0);
        // A block that lives on is not told as a new one by a `realloc` that fails.
        let block = (mapped.malloc)(100);
        generation.store(2, Relaxed);
        assert!((mapped.realloc)(block, usize::MAX / 2).is_null());
        assert_eq!(mapped.sampled(), 0);
        (mapped.free)(block);
    }
}

#[test]
fn registers_that_belong_to_the_caller_are_kept() {
    let mapped = Mapped::new(0);
    mapped.listen(1);
    for function in [mapped.malloc as *const c_void, mapped.valloc as *const c_void] {
        let (mut block, mut kept) = (100_u64, 0_u64);
        // SAFETY: it calls a function with one argument, with an aligned stack, and says what that changes.
        unsafe {
            std::arch::asm!(
                "push rbx", "push rbp",
                "mov rbx, 0x1111", "mov rbp, 0x2222", "mov r13, 0x4444", "mov r14, 0x5555",
                "mov r15, rsp",
                "and rsp, -16",
                "call r12",
                "xor rbx, 0x1111", "xor rbp, 0x2222", "xor r13, 0x4444", "xor r14, 0x5555",
                "or rbx, rbp", "or rbx, r13", "or rbx, r14",
                "mov rcx, rsp", "mov rdx, r15", "and rdx, -16", "xor rcx, rdx", "or rcx, rbx",
                "mov rsp, r15",
                "pop rbp", "pop rbx",
                in("r12") function,
                inout("rdi") block => _,
                out("rax") block, out("rcx") kept,
                out("r13") _, out("r14") _, out("r15") _,
                clobber_abi("C"),
            );
            (mapped.free)(block as *mut u8);
        }
        assert_eq!(kept, 0);
    }
    assert_eq!(mapped.sampled(), 0);
}

/// A measurement, and no test: `cargo test --release -- --ignored --nocapture pair`.
#[test]
#[ignore = "measures"]
fn a_pair_costs() {
    let mapped = Mapped::new(512 << 10);
    const PAIRS: u32 = 500_000;
    const TURNS: usize = 200;
    let turn = |(malloc, free): (Malloc, Free)| {
        let start = std::time::Instant::now();
        for _ in 0..PAIRS {
            // SAFETY: each is released once.
            unsafe { free(std::hint::black_box(malloc(std::hint::black_box(64)))) };
        }
        start.elapsed().as_nanos() as f64 / f64::from(PAIRS)
    };
    // SAFETY: they are of these types.
    let (malloc, free) = unsafe {
        (
            std::mem::transmute::<u64, Malloc>(libc_function("malloc")),
            std::mem::transmute::<u64, Free>(libc_function("free")),
        )
    };
    // Turn by turn, so that what else the machine does is shared.
    let mut live = Vec::new();
    let mut figures = [const { Vec::new() }; 4];
    for _ in 0..TURNS {
        mapped.listen(0);
        figures[0].push(turn((malloc, free)));
        figures[1].push(turn((mapped.malloc, mapped.free)));
        mapped.listen(1);
        figures[2].push(turn((mapped.malloc, mapped.free)));
        live.extend((0..200_000).map(|_| mapped.allocate(0, 100)));
        figures[3].push(turn((mapped.malloc, mapped.free)));
        // SAFETY: each is released once.
        live.drain(..).for_each(|block| unsafe { (mapped.free)(block) });
    }
    let what = ["the C library", "the image, nobody listens", "sampling", "sampling, 40 sampled blocks live"];
    for (what, figures) in what.iter().zip(&mut figures) {
        figures.sort_by(f64::total_cmp);
        println!("{what}: {:.2} ns, {:.2} at best", figures[TURNS / 2], figures[0]);
    }
}
