//! Work that goes on when this process is killed.
//!
//! The kernel puts a uprobe in and takes it out page by page. Where the thread that asked for it is to be killed, it stops on the way
//! (`__get_user_pages`) and tells only its log ("failed to unregister, leaking uprobe"). Then breakpoints stay in the process that
//! was traced. A link that a process still has when it exits is taken out whole, so only the calls themselves are in danger.

use std::{
    ffi::c_void,
    io,
    mem::{self, MaybeUninit},
    ptr,
};

use libc::{
    __WALL, CLONE_FILES, CLONE_FS, CLONE_VFORK, CLONE_VM, EINTR, MAP_ANONYMOUS, MAP_PRIVATE, MAP_STACK,
    PR_SET_NAME, PROT_READ, PROT_WRITE, SIG_BLOCK, SIG_SETMASK, c_int,
};

/// What its process is called: not as the program is, which may be killed by name.
const NAME: &std::ffi::CStr = c"probes";
const STACK_BYTES: usize = 256 << 10;

/// Does something in a process of its own, with the memory and descriptors of this one, and waits for it. Whoever kills this process
/// does not kill that one; it then ends when the work is done. Where no process can be had, it is done here. `None` when somebody has
/// killed that process, of all.
pub fn unkillable<W: FnOnce() -> T, T>(work: W) -> Option<T> {
    let mut job = Job { work: Some(work), result: None };
    // A process that shares memory runs this thread's handlers of signals: none may come.
    let before = block_signals();
    let ended = Stack::map().and_then(|stack| run(&stack, &mut job));
    restore_signals(&before);
    match ended {
        Ok(End::Done) => {}
        Ok(End::Killed) => {
            // It may have been about to write the result.
            mem::forget(job);
            return None;
        }
        Err(error) => {
            log::debug!("no process for a link: {error}");
            job.run();
        }
    }
    job.result
}

/// How the process ended.
enum End {
    Done,
    Killed,
}

struct Job<W, T> {
    work: Option<W>,
    result: Option<T>,
}

impl<W: FnOnce() -> T, T> Job<W, T> {
    fn run(&mut self) {
        if let Some(work) = self.work.take() {
            self.result = Some(work());
        }
    }
}

/// Runs the job in the process, while this thread stands still.
fn run<W: FnOnce() -> T, T>(stack: &Stack, job: &mut Job<W, T>) -> io::Result<End> {
    extern "C" fn main<W: FnOnce() -> T, T>(job: *mut c_void) -> c_int {
        // SAFETY: the name ends with a zero. Out of the group of processes nobody reaches it who kills them all at once.
        unsafe {
            libc::prctl(PR_SET_NAME, NAME.as_ptr());
            libc::setpgid(0, 0);
        }
        // SAFETY: it is the job below, which nobody else uses until this process ends.
        unsafe { &mut *job.cast::<Job<W, T>>() }.run();
        0
    }
    let flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_FS;
    // SAFETY: the stack is large enough and is not used otherwise. This thread waits, so the process may use what is this thread's: its
    // storage and what the job borrows. If this process is killed, its memory stays for as long as the other one has it.
    let pid = unsafe { libc::clone(main::<W, T>, stack.top(), flags, ptr::from_mut(job).cast()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut status = 0;
    // SAFETY: there is room for the status.
    while unsafe { libc::waitpid(pid, &raw mut status, __WALL) } < 0
        && io::Error::last_os_error().raw_os_error() == Some(EINTR)
    {}
    Ok(if libc::WIFEXITED(status) { End::Done } else { End::Killed })
}

struct Stack(*mut c_void);

impl Stack {
    fn map() -> io::Result<Self> {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK;
        // SAFETY: a new mapping at an address that the kernel chooses takes no memory of ours away.
        let memory =
            unsafe { libc::mmap(ptr::null_mut(), STACK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0) };
        if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(memory)) }
    }

    const fn top(&self) -> *mut c_void {
        self.0.wrapping_byte_add(STACK_BYTES)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and the process that used it has ended.
        unsafe { libc::munmap(self.0, STACK_BYTES) };
    }
}

fn block_signals() -> libc::sigset_t {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: both sets are written before they are read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(SIG_BLOCK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: the set was given by the kernel.
    unsafe { libc::pthread_sigmask(SIG_SETMASK, before, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsRawFd as _, process};

    use super::*;

    #[test]
    fn the_work_is_done_by_another_process_with_the_same_memory_and_descriptors() {
        let mut seen = Vec::new();
        let work = || {
            // SAFETY: it has no arguments.
            seen.push(unsafe { libc::getpid() });
            fs::File::open("/proc/self/comm").expect("it can be opened")
        };
        let file = unkillable(work).expect("nobody kills it");
        assert_ne!(seen, [process::id().cast_signed()]);
        let link =
            fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("it is open here, too");
        assert_eq!(link.to_string_lossy(), format!("/proc/{}/comm", seen[0]));
    }

    #[test]
    fn whoever_kills_that_process_does_not_kill_this_one() {
        let killed = unkillable(|| {
            // SAFETY: it is this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        });
        assert_eq!(killed, None);
    }

    #[test]
    fn many_threads_have_work_at_a_time() {
        let sums = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..32_u64)
                .map(|n| scope.spawn(move || unkillable(|| (0..=n).sum::<u64>()).expect("nobody kills it")))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("it ends")).collect::<Vec<_>>()
        });
        assert_eq!(sums, (0..32_u64).map(|n| n * (n + 1) / 2).collect::<Vec<_>>());
    }
}
