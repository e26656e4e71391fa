//! System calls, made without the C library: nothing here touches `errno`.

use core::arch::asm;

/// A system call of up to six arguments; what the kernel returns, negative for an error.
///
/// # Safety
/// As the system call wants it.
unsafe fn system_call(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the caller answers for what the kernel does with the arguments; the kernel changes no other registers than these.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// Zeroed memory from the kernel; none when there is none to be had.
pub fn map(bytes: usize) -> Option<*mut u8> {
    const MMAP: usize = 9;
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    // SAFETY: the kernel chooses a range that nobody has.
    let address = unsafe { system_call(MMAP, [0, bytes, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]) };
    usize::try_from(address).ok().map(|address| address as *mut u8)
}

/// Gives memory back.
///
/// # Safety
/// It must be from [`map`], whole, and nobody may use it any more.
pub unsafe fn unmap(address: *mut u8, bytes: usize) {
    const MUNMAP: usize = 11;
    // SAFETY: the caller answers for the range.
    unsafe { system_call(MUNMAP, [address as usize, bytes, 0, 0, 0, 0]) };
}

/// The number of this process.
#[cfg_attr(not(feature = "library"), expect(dead_code, reason = "only the library itself draws by it"))]
pub fn process_id() -> u64 {
    const GETPID: usize = 39;
    // SAFETY: it has no arguments and cannot fail.
    unsafe { system_call(GETPID, [0; 6]) as u64 }
}
