//! The machine code that makes system calls in a process: pure, made of numbers.
//!
//! A thread of the target is led into it by one change of its registers. From then on the code needs nobody: it begins a thread that
//! makes the calls and ends, restores every register, and jumps to where the thread was. Whoever dies meanwhile, the target goes on.
//!
//! The thread that makes the calls takes no signal and uses no stack. What it is to open it opens in a table of descriptors of its own, which
//! is one of the calls ([`own_descriptors`]): nobody sees it, it takes no number from the program, and it is closed when the thread ends.
//! That table is empty as soon as it is there. The kernel copies the first 64 of the program's descriptors all the same, and closes them
//! before the call returns; a copy that is kept would keep files open that another thread closes meanwhile.
//!
//! From low to high addresses: the header, what the thread that is led aside executes, what the other one does. Whoever dies, a handler of
//! a signal may come back into the former at any time later: it was begun before the first instruction that blocks signals, or behind the
//! last one. So that part is never taken away from a stub that was left (`Left`).

use libc::{
    CLONE_FILES, CLONE_FS, CLONE_SIGHAND, CLONE_SYSVSEM, CLONE_THREAD, CLONE_VM, CLOSE_RANGE_UNSHARE,
    SIG_SETMASK, SYS_clone, SYS_close_range, SYS_exit, SYS_rt_sigprocmask,
};

use crate::model::Address;

/// In front of the code, so that whoever comes later sees what it is.
pub(super) const MARK: &[u8; 16] = b"tracer gate stub";
/// The same, while it is written or taken away, when nobody executes it. The marks differ in their second words, and words are written at
/// once. Of this one the second word is there first, and last.
pub(super) const MARK_UNUSED: &[u8; 16] = b"tracer gate none";
/// The same, when it makes no calls any more.
pub(super) const MARK_DONE: &[u8; 16] = b"tracer gate done";
/// The mark; then, of 32 bits each, where another thread is begun, where signals are let in again, and how much stays of a stub that was
/// left; then the signals that are blocked, and those that were before.
pub(super) const HEADER: usize = 16 + 16 + 8 + 8;
const ALL_SIGNALS: u64 = 32;
const SIGNALS_BEFORE: u64 = 40;

/// A system call. One that fails ends the thread: those behind it are not made.
#[derive(Clone, Copy, Debug)]
pub struct SystemCall {
    /// Its number.
    pub number: i64,
    /// Its arguments; those that it does not have are 0.
    pub arguments: [Argument; 6],
}

/// An argument of a [`SystemCall`].
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A number or an address.
    Number(u64),
    /// The address of these bytes, with a zero behind them.
    Text(&'static str),
    /// What the last `memfd_create` returned.
    Descriptor,
}

/// From this call on the thread has a table of descriptors of its own, without any.
#[must_use]
pub const fn own_descriptors() -> SystemCall {
    use Argument::Number;
    let (last, flags) = (Number(u32::MAX as u64), Number(CLOSE_RANGE_UNSHARE as u64));
    SystemCall {
        number: SYS_close_range,
        arguments: [Number(0), last, flags, Number(0), Number(0), Number(0)],
    }
}

/// The registers of a thread that are lost in a system call or used here, as they are to be afterwards.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "they are registers")]
pub struct Restored {
    /// Where the thread goes on.
    pub instruction: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r10: u64,
    pub r11: u64,
    /// The signals that it had blocked, one bit each.
    pub blocked: u64,
}

impl Restored {
    /// What takes the longest code.
    pub(super) const fn longest() -> Self {
        const ALL: u64 = u64::MAX;
        Self {
            instruction: ALL,
            rax: ALL,
            rcx: ALL,
            rdx: ALL,
            rsi: ALL,
            rdi: ALL,
            r8: ALL,
            r10: ALL,
            r11: ALL,
            blocked: ALL,
        }
    }
}

/// The code, made for one thread at one moment.
#[derive(Debug)]
pub struct Stub {
    /// What to write, from the given address on.
    pub bytes: Vec<u8>,
    /// Where the thread is to go on.
    pub entry: Address,
    /// So many bytes of it stay when whoever made it is killed in the middle.
    pub kept: u64,
    /// Behind the `syscall` in which the thread is for the last time: from there on only its registers are restored.
    pub left: Address,
}

/// Makes the code for this address.
#[must_use]
pub fn stub(at: Address, calls: &[SystemCall], restored: &Restored) -> Stub {
    let mut code = Code::default();
    code.bytes.resize(HEADER, 0);
    let entry = code.here();
    code.set_blocked_signals(ALL_SIGNALS);
    let begins = code.here();
    let flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    code.set(RDI, flags as u64);
    [RSI, RDX, R10, R8].iter().for_each(|&register| code.set(register, 0));
    code.system_call(SYS_clone);
    // No instruction up to here and in what follows changes a flag, which is the program's.
    code.bytes.extend(MOV_RCX_RAX);
    code.bytes.extend(JRCXZ);
    let to_child = code.bytes.len();
    code.bytes.push(0);
    let ends = code.here();
    code.set_blocked_signals(SIGNALS_BEFORE);
    let left = code.here();
    code.restore(restored);
    // `jrcxz` reaches 127 bytes, which what restores the registers has not.
    code.bytes[to_child] = (code.bytes.len() - to_child - 1) as u8;
    let kept = code.here();
    code.make(calls);
    code.link();
    let offsets = [begins, ends, kept, 0].map(|offset| (offset as u32).to_le_bytes());
    let header = [&MARK[..], &offsets.concat(), &u64::MAX.to_le_bytes(), &restored.blocked.to_le_bytes()];
    code.bytes[..HEADER].copy_from_slice(&header.concat());
    Stub { entry: Address(at.0 + entry), left: Address(at.0 + left), kept, bytes: code.bytes }
}

/// Whether a stub begins here that nobody executes.
pub(super) fn is_unused(bytes: &[u8]) -> bool {
    bytes.starts_with(MARK_UNUSED) || bytes.starts_with(&[0; 8]) && bytes[8..].starts_with(&MARK_UNUSED[8..])
}

/// A stub that a tracer has left which was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// Where in it this has to be written, so that a thread which comes goes on to where it was, and makes no calls.
    pub(super) defused: (u64, [u8; 2]),
    /// So much of it stays, since a thread may come back to it.
    pub(super) kept: u64,
}

impl Left {
    /// By its header.
    pub(super) fn parse(header: &[u8; HEADER]) -> Option<Self> {
        let offset = |at: usize| Some(u64::from(u32::from_le_bytes(*header[at..].first_chunk()?)));
        let (begins, ends, kept) = (offset(16)?, offset(20)?, offset(24)?);
        // `jmp` over what begins another thread.
        let distance = i8::try_from(ends.checked_sub(begins)?.checked_sub(2)?).ok()?;
        (kept >= HEADER as u64).then_some(Self { defused: (begins, [0xeb, distance.cast_unsigned()]), kept })
    }
}

/// A register, by its number in instructions.
#[derive(Clone, Copy, Debug)]
struct Register(u8);

const RAX: Register = Register(0);
const RCX: Register = Register(1);
const RDX: Register = Register(2);
const RSI: Register = Register(6);
const RDI: Register = Register(7);
const R8: Register = Register(8);
const R9: Register = Register(9);
const R10: Register = Register(10);
const R11: Register = Register(11);

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const MOV_RCX_RAX: [u8; 3] = [0x48, 0x89, 0xc1];
const MOV_R12_RAX: [u8; 3] = [0x49, 0x89, 0xc4];
const MOV_RDI_RAX: [u8; 3] = [0x48, 0x89, 0xc7];
const XOR_EAX_EAX: [u8; 2] = [0x31, 0xc0];
const NEG_RAX: [u8; 3] = [0x48, 0xf7, 0xd8];
const UD2: [u8; 2] = [0x0f, 0x0b];
/// With a distance of 8 bits.
const JRCXZ: [u8; 1] = [0xe3];
/// With a distance of 32 bits.
const JAE: [u8; 2] = [0x0f, 0x83];
/// `cmp rax, -4095`: errors are the numbers from there on.
const COMPARE_WITH_ERRORS: [u8; 6] = [0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff];
/// `jmp qword ptr [rip]`: to the address that follows.
const JUMP_TO_WORD_BEHIND: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];

/// A place that is known later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Failed,
    /// By its number.
    Text(usize),
}

/// Code that does not depend on where it is.
#[derive(Debug, Default)]
struct Code {
    bytes: Vec<u8>,
    places: Vec<(Label, u64)>,
    /// Distances of 32 bits that are to be filled in: where they are.
    distances: Vec<(Label, u64)>,
}

impl Code {
    fn here(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn define(&mut self, label: Label) {
        self.places.push((label, self.here()));
    }

    fn distance(&mut self, label: Label) {
        self.distances.push((label, self.here()));
        self.bytes.extend([0; 4]);
    }

    fn link(&mut self) {
        for (label, at) in &self.distances {
            let place = self.places.iter().find(|(placed, _)| placed == label);
            // Every label is defined above, next to where it is used.
            let Some((_, place)) = place else { continue };
            let distance = (place.cast_signed() - at.cast_signed() - 4) as i32;
            self.bytes[*at as usize..][..4].copy_from_slice(&distance.to_le_bytes());
        }
    }

    /// `mov`, which changes no flag, as briefly as it can be: what is written to the lower half clears the upper one.
    fn set(&mut self, Register(number): Register, value: u64) {
        let (extended, low) = (number >> 3, number & 7);
        match u32::try_from(value) {
            Ok(value) => {
                if extended == 1 {
                    self.bytes.push(0x41);
                }
                self.bytes.push(0xb8 | low);
                self.bytes.extend(value.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x48 | extended, 0xb8 | low]);
                self.bytes.extend(value.to_le_bytes());
            }
        }
    }

    /// `lea register, [rip + distance]`, of which the distance follows.
    fn set_address(&mut self, Register(number): Register) {
        self.bytes.extend([0x48 | (number >> 3) << 2, 0x8d, 0x05 | (number & 7) << 3]);
    }

    /// `mov register, r12`
    fn set_descriptor(&mut self, Register(number): Register) {
        self.bytes.extend([0x4c | number >> 3, 0x89, 0xe0 | number & 7]);
    }

    fn system_call(&mut self, number: i64) {
        self.set(RAX, number.cast_unsigned());
        self.bytes.extend(SYSCALL);
    }

    /// `rt_sigprocmask(SIG_SETMASK, set, NULL, 8)`, with a set of the header.
    fn set_blocked_signals(&mut self, set: u64) {
        self.set(RDI, SIG_SETMASK as u64);
        self.set_address(RSI);
        let distance = set.cast_signed() - self.here().cast_signed() - 4;
        self.bytes.extend((distance as i32).to_le_bytes());
        self.set(RDX, 0);
        self.set(R10, 8);
        self.system_call(SYS_rt_sigprocmask);
    }

    /// The thread goes on as if nothing had been.
    fn restore(&mut self, restored: &Restored) {
        self.set(RAX, restored.rax);
        self.set(RCX, restored.rcx);
        self.set(RDX, restored.rdx);
        self.set(RSI, restored.rsi);
        self.set(RDI, restored.rdi);
        self.set(R8, restored.r8);
        self.set(R10, restored.r10);
        self.set(R11, restored.r11);
        self.bytes.extend(JUMP_TO_WORD_BEHIND);
        self.bytes.extend(restored.instruction.to_le_bytes());
    }

    /// What the other thread does. It ends with the error of the call that failed, or with 0.
    fn make(&mut self, calls: &[SystemCall]) {
        let mut texts = Vec::new();
        for call in calls {
            for (register, argument) in [RDI, RSI, RDX, R10, R8, R9].into_iter().zip(call.arguments) {
                match argument {
                    Argument::Number(value) => self.set(register, value),
                    Argument::Descriptor => self.set_descriptor(register),
                    Argument::Text(text) => {
                        self.set_address(register);
                        self.distance(Label::Text(texts.len()));
                        texts.push(text);
                    }
                }
            }
            self.system_call(call.number);
            self.bytes.extend(COMPARE_WITH_ERRORS);
            self.bytes.extend(JAE);
            self.distance(Label::Failed);
            if call.number == libc::SYS_memfd_create {
                self.bytes.extend(MOV_R12_RAX);
            }
        }
        self.bytes.extend(XOR_EAX_EAX);
        self.define(Label::Failed);
        self.bytes.extend(NEG_RAX);
        self.bytes.extend(MOV_RDI_RAX);
        self.system_call(SYS_exit);
        self.bytes.extend(UD2);
        for (number, text) in texts.into_iter().enumerate() {
            self.define(Label::Text(number));
            self.bytes.extend(text.as_bytes());
            self.bytes.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    use super::*;

    fn made(calls: &[SystemCall]) -> Stub {
        stub(Address(0x7f00_0000_1000), calls, &Restored::longest())
    }

    #[test]
    fn the_thread_that_is_led_aside_keeps_its_flags_and_its_stack() {
        let stub = made(&[]);
        let start = (stub.entry.0 - 0x7f00_0000_1000) as usize;
        let mut left = None;
        for instruction in
            Decoder::with_ip(64, &stub.bytes[start..], stub.entry.0, DecoderOptions::NONE).iter()
        {
            let changes_flags = instruction.rflags_modified() != 0;
            assert!(!changes_flags || instruction.mnemonic() == Mnemonic::Syscall, "{instruction}");
            assert!(!instruction.is_stack_instruction(), "{instruction}");
            if instruction.mnemonic() == Mnemonic::Syscall {
                left = Some(instruction.next_ip());
            }
            if instruction.is_jmp_near_indirect() {
                break;
            }
            assert!(!instruction.is_invalid());
        }
        assert_eq!(left, Some(stub.left.0));
    }

    #[test]
    fn a_stub_that_was_left_makes_no_calls_any_more() {
        let stub = made(&[SystemCall { number: libc::SYS_getpid, arguments: [Argument::Number(0); 6] }]);
        let left = Left::parse(stub.bytes[..HEADER].try_into().unwrap()).unwrap();
        let mut bytes = stub.bytes[..left.kept as usize].to_vec();
        let (at, jump) = left.defused;
        bytes[at as usize..][..2].copy_from_slice(&jump);
        // What a thread executes from the beginning on, and where it gets to.
        let (base, mut at, mut calls) = (stub.entry.0 - HEADER as u64, stub.entry.0, 0);
        loop {
            let offset = (at - base) as usize;
            let instruction = Decoder::with_ip(64, &bytes[offset..], at, DecoderOptions::NONE).decode();
            calls += u32::from(instruction.mnemonic() == Mnemonic::Syscall);
            if instruction.is_jmp_near_indirect() {
                let target = &bytes[(instruction.next_ip() - base) as usize..];
                assert_eq!(target, u64::MAX.to_le_bytes());
                break;
            }
            assert!(!instruction.is_invalid());
            at = if instruction.is_jmp_short() {
                instruction.near_branch_target()
            } else {
                instruction.next_ip()
            };
        }
        assert_eq!(calls, 2, "signals are blocked, and let in again");
        // Each place at which a handler comes back is the beginning of an instruction as before.
        assert_eq!(stub.bytes[HEADER..left.defused.0 as usize], bytes[HEADER..left.defused.0 as usize]);
    }

    #[test]
    fn arguments_are_set_as_the_call_has_them() {
        let number = Argument::Number;
        let call = SystemCall {
            number: libc::SYS_mremap,
            arguments: [
                number(1),
                number(1 << 40),
                Argument::Descriptor,
                number(4),
                number(1 << 33),
                number(6),
            ],
        };
        let stub = made(&[call]);
        let texts: Vec<String> =
            Decoder::with_ip(64, &stub.bytes[HEADER..], stub.entry.0, DecoderOptions::NONE)
                .iter()
                .map(|instruction| instruction.to_string().to_lowercase())
                .collect();
        let expected = [
            "mov $1,%edi",
            "movabs $0x10000000000,%rsi",
            "mov %r12,%rdx",
            "mov $4,%r10d",
            "movabs $0x200000000,%r8",
            "mov $6,%r9d",
            "mov $0x19,%eax",
            "syscall",
            "cmp $0xfffffffffffff001,%rax",
        ];
        assert!(texts.windows(expected.len()).any(|part| part == expected), "{texts:#?}");
    }

    #[test]
    fn texts_and_marks_are_where_they_are_looked_for() {
        let create = SystemCall {
            number: libc::SYS_memfd_create,
            arguments: [
                Argument::Text("a name"),
                Argument::Descriptor,
                Argument::Number(1 << 40),
                Argument::Number(0),
                Argument::Number(0),
                Argument::Number(0),
            ],
        };
        let stub = made(&[create]);
        assert!(stub.bytes.starts_with(MARK));
        assert!(stub.bytes.windows(7).any(|bytes| bytes == b"a name\0"));
        assert!(stub.bytes.len() < made(&[create; 8]).bytes.len());
    }
}
