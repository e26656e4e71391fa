//! A system call that was interrupted because its thread was to stand still, and by nothing else, is made again. The kernel does so by
//! itself unless the thread's registers are changed, so it is done here as the kernel would (`arch_do_signal_or_restart` in
//! arch/x86/kernel/signal.c). Some calls return `EINTR` even then; the program has not asked for that, so they are made again, too.

use libc::{c_long, user_regs_struct};

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -(libc::EINTR as i64);

/// The length of `syscall`.
const INSTRUCTION: u64 = 2;

/// Calls that return `EINTR` when they are interrupted, have done nothing by then, and do the same when they are made again, but that a
/// limit of time begins anew: signal(7), "Interruption of system calls by stop signals". Those of sockets are among them that have such a
/// limit (`SO_RCVTIMEO`, `SO_SNDTIMEO`).
const MADE_AGAIN: [c_long; 19] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_io_uring_enter,
];

/// The number of the call that the thread makes instead of the one in which it was interrupted, if it makes one.
fn again(stopped: &user_regs_struct) -> Option<u64> {
    let number = stopped.orig_rax;
    match stopped.rax.cast_signed() {
        _ if number.cast_signed() < 0 => None,
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Some(number),
        ERESTART_RESTARTBLOCK => Some(libc::SYS_restart_syscall as u64),
        EINTR if MADE_AGAIN.contains(&(number.cast_signed())) => Some(number),
        _ => None,
    }
}

/// Where the instruction is that makes a call again, if one is made.
pub(super) fn made_again_by(stopped: &user_regs_struct) -> Option<u64> {
    again(stopped).map(|_| stopped.rip.wrapping_sub(INSTRUCTION))
}

/// The registers with which the thread goes on.
pub(super) fn going_on(stopped: &user_regs_struct) -> user_regs_struct {
    let mut registers = *stopped;
    if stopped.orig_rax.cast_signed() < 0 {
        return registers;
    }
    if let Some(number) = again(stopped) {
        registers.rax = number;
        registers.rip -= INSTRUCTION;
    }
    // The kernel is not to make it again a second time.
    registers.orig_rax = u64::MAX;
    registers
}

/// The registers with which the thread goes on if the kernel sees that it was interrupted, and no signal has come: it does the rest.
pub(super) fn of_interrupted(stopped: &user_regs_struct) -> user_regs_struct {
    let is_left_to_us = stopped.orig_rax.cast_signed() >= 0 && stopped.rax.cast_signed() == EINTR;
    if is_left_to_us { going_on(stopped) } else { *stopped }
}

/// Whether a thread that waits in this call can be held without its noticing: it is made again, and has done nothing by then. One that
/// may have done a part, such as `write`, returns how much that was.
pub(super) fn can_be_interrupted(number: c_long, arguments: [u64; 6]) -> bool {
    const RESTARTED: [c_long; 12] = [
        libc::SYS_futex,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_select,
        libc::SYS_pselect6,
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_wait4,
        libc::SYS_waitid,
        libc::SYS_rt_sigsuspend,
        libc::SYS_pause,
        // One of these that was interrupted before.
        libc::SYS_restart_syscall,
    ];
    let waits_for_all = |flags: u64| flags & libc::MSG_WAITALL as u64 != 0;
    let does_part = match number {
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_recvmmsg => {
            true
        }
        libc::SYS_recvfrom => waits_for_all(arguments[3]),
        libc::SYS_recvmsg => waits_for_all(arguments[2]),
        libc::SYS_io_getevents => arguments[1] > 1,
        libc::SYS_io_uring_enter => arguments[1] > 0 || arguments[2] > 1,
        _ => false,
    };
    !does_part && (MADE_AGAIN.contains(&number) || RESTARTED.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(number: c_long, result: i64) -> user_regs_struct {
        // SAFETY: it is made of numbers alone.
        let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
        (registers.orig_rax, registers.rax, registers.rip) = (number as u64, result as u64, 0x1002);
        registers
    }

    fn goes_on(number: c_long, result: i64) -> (u64, i64) {
        let registers = going_on(&stopped(number, result));
        (registers.rip, registers.rax.cast_signed())
    }

    #[test]
    fn what_the_kernel_would_make_again_is_made_again() {
        for result in [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND] {
            assert_eq!(goes_on(libc::SYS_read, result), (0x1000, libc::SYS_read));
        }
        let restart = libc::SYS_restart_syscall;
        assert_eq!(goes_on(libc::SYS_nanosleep, ERESTART_RESTARTBLOCK), (0x1000, restart));
    }

    #[test]
    fn calls_that_would_return_eintr_are_made_again_if_that_is_harmless() {
        assert_eq!(goes_on(libc::SYS_epoll_wait, EINTR), (0x1000, libc::SYS_epoll_wait));
        // A descriptor is closed even so, and its number may be another's by now.
        assert_eq!(goes_on(libc::SYS_close, EINTR), (0x1002, EINTR));
    }

    #[test]
    fn calls_that_do_a_part_are_left_alone_if_others_will_do() {
        let can_be = |number, arguments| can_be_interrupted(number, arguments);
        assert!(can_be(libc::SYS_futex, [0; 6]) && can_be(libc::SYS_restart_syscall, [0; 6]));
        assert!(!can_be(libc::SYS_write, [1, 0, 1 << 20, 0, 0, 0]) && !can_be(libc::SYS_connect, [0; 6]));
        assert!(can_be(libc::SYS_recvfrom, [0; 6]) && !can_be(libc::SYS_recvfrom, [0, 0, 9, 0x100, 0, 0]));
        assert!(can_be(libc::SYS_io_uring_enter, [0, 0, 1, 1, 0, 0]));
        assert!(!can_be(libc::SYS_io_uring_enter, [0, 3, 1, 1, 0, 0]));
    }

    #[test]
    fn what_has_returned_or_was_no_call_is_left_alone() {
        assert_eq!(goes_on(libc::SYS_read, 5), (0x1002, 5));
        assert_eq!(goes_on(-1, ERESTARTSYS), (0x1002, ERESTARTSYS));
    }
}
