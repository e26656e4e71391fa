//! What is particular to x86_64: where registers and arguments are.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::generated::{
        bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user, bpf_task_pt_regs,
    },
};
use tracer_ebpf::{event::MappingCall, probe::Arg, unwind::Registers, usdt::Register};

/// The size of a return address on the stack.
pub const WORD: u64 = 8;

/// The registers of a thread in user space.
#[derive(Clone, Copy)]
pub struct UserRegisters(*const pt_regs);

macro_rules! register {
    ($(#[$doc:meta])* $name:ident = $field:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(self) -> u64 {
            // SAFETY: both constructors give a pointer to registers that the kernel keeps for as long as the program runs.
            unsafe { (*self.0).$field }
        }
    };
}

impl UserRegisters {
    /// The registers at a probe: its context.
    #[inline(always)]
    pub fn at_probe(regs: *const pt_regs) -> Self {
        Self(regs)
    }

    /// The registers with which the current thread entered the kernel.
    #[inline(always)]
    pub fn at_system_call() -> Self {
        // SAFETY: both helpers only read the current task, which is running this program.
        Self(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs)
    }

    register!(/// Instruction pointer.
        ip = rip);
    register!(/// Stack pointer.
        sp = rsp);
    register!(/// Frame pointer, where the code keeps one.
        bp = rbp);
    register!(/// What a function or system call returned.
        result = rax);
    register!(/// The number of the system call that the thread is in.
        system_call = orig_rax);

    /// The registers that a walk begins with.
    #[inline(always)]
    pub fn for_walk(self) -> Registers {
        Registers { ip: self.ip(), sp: self.sp(), bp: self.bp() }
    }

    /// The arguments of a function at its entry.
    #[inline(always)]
    pub fn arguments(self) -> [u64; Arg::COUNT as usize] {
        // SAFETY: as in the accessors above.
        let regs = unsafe { &*self.0 };
        [regs.rdi, regs.rsi, regs.rdx, regs.rcx, regs.r8, regs.r9]
    }

    /// An argument of a function at its entry.
    #[inline(always)]
    pub fn argument(self, arg: Arg) -> u64 {
        // All six are read, and then one is chosen: the verifier allows no context pointer with a computed offset, which is what the
        // compiler makes of a choice among plain reads.
        // SAFETY: as in the accessors above.
        let read = |register: *const u64| unsafe { register.read_volatile() };
        // SAFETY: the registers are there, as in the accessors above; no reference is made.
        let [rdi, rsi, rdx, rcx, r8, r9] = unsafe {
            [
                read(&raw const (*self.0).rdi),
                read(&raw const (*self.0).rsi),
                read(&raw const (*self.0).rdx),
                read(&raw const (*self.0).rcx),
                read(&raw const (*self.0).r8),
                read(&raw const (*self.0).r9),
            ]
        };
        match arg.number() {
            0 => rdi,
            1 => rsi,
            2 => rdx,
            3 => rcx,
            4 => r8,
            _ => r9,
        }
    }

    /// A register by its place among the others.
    #[inline(always)]
    pub fn by_place(self, register: Register) -> u64 {
        let mut value = 0_u64;
        // The verifier allows no context pointer with a computed offset to be read, but to be given to this helper.
        // SAFETY: the destination is one word long, and the offset is one of the registers'.
        unsafe {
            let source = self.0.cast::<u8>().add(register.offset() as usize);
            bpf_probe_read_kernel((&raw mut value).cast(), size_of::<u64>() as u32, source.cast());
        }
        value
    }

    /// The arguments of the system call that the thread is in.
    #[inline(always)]
    pub fn system_call_arguments(self) -> [u64; 6] {
        // SAFETY: as in the accessors above.
        let regs = unsafe { &*self.0 };
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]
    }
}

/// The system call with this number, if it is one that changes mappings.
#[inline(always)]
pub fn mapping_call(number: u64) -> Option<MappingCall> {
    match number {
        9 => Some(MappingCall::Mmap),
        11 => Some(MappingCall::Munmap),
        25 => Some(MappingCall::Mremap),
        12 => Some(MappingCall::Brk),
        _ => None,
    }
}

/// Whether a page fault is the first touch of a page of user memory: no page was there, and it was data that was wanted.
#[inline(always)]
pub fn is_first_touch(address: u64, error_code: u64) -> bool {
    /// `enum x86_pf_error_code`
    const PROTECTION: u64 = 1;
    const INSTRUCTION: u64 = 1 << 4;
    error_code & (PROTECTION | INSTRUCTION) == 0 && address >> 63 == 0
}

/// Where the current thread's own memory is: the base of `fs`, which is this far in the kernel's `struct task_struct`.
#[inline(always)]
pub fn thread_base(offset: u64) -> u64 {
    let mut base = 0_u64;
    // SAFETY: the destination is one word long; the helper refuses any source that is not readable. Threads set it by a system call,
    // which leaves it in the structure, too.
    unsafe {
        let task = bpf_get_current_task_btf() as *const u8;
        let source = task.wrapping_add(offset as usize);
        bpf_probe_read_kernel((&raw mut base).cast(), size_of::<u64>() as u32, source.cast());
    }
    base
}

/// Reads one word of the current thread's memory.
#[inline(always)]
pub fn read_word(address: u64) -> Option<u64> {
    let mut word = 0_u64;
    // SAFETY: the destination is one word long; the helper refuses any source that is no readable user memory.
    let status =
        unsafe { bpf_probe_read_user((&raw mut word).cast(), size_of::<u64>() as u32, address as *const _) };
    if status == 0 { Some(word) } else { None }
}

/// Reads one byte of the current thread's memory.
#[inline(always)]
pub fn read_byte(address: u64) -> Option<u8> {
    let mut byte = 0_u8;
    // SAFETY: the destination is one byte long; the helper refuses any source that is no readable user memory.
    let status = unsafe { bpf_probe_read_user((&raw mut byte).cast(), 1, address as *const _) };
    if status == 0 { Some(byte) } else { None }
}

/// Reads `length` bytes of the current thread's memory.
///
/// # Safety
/// There must be room for them at `destination`.
#[inline(always)]
pub unsafe fn read_bytes(destination: *mut u8, length: u32, address: u64) -> bool {
    // SAFETY: the caller answers for the destination; the helper refuses any source that is no readable user memory.
    unsafe { bpf_probe_read_user(destination.cast(), length, address as *const _) == 0 }
}
