//! Keeps programs on tracepoints from being preempted, where the kernel would not.
//!
//! Linux runs programs on raw tracepoints (from 7.0) and on tracepoints of single system calls (from 7.2) with preemption on. A thread that is preempted in
//! one of them keeps the kernel from running that program for any other thread on that CPU, until it goes on: their mappings
//! would be missed. Our programs call two helpers that do nothing, before and after their work; here they become calls of
//! the kernel's own functions that turn preemption off and on.

use std::os::fd::OwnedFd;

use anyhow::Result;
use aya_obj::generated::bpf_insn;

use super::{
    kernel_types::functions_of_this_kernel,
    sys::{self, ProgramLoad},
};

/// The kernel's functions, by their numbers among its types.
#[derive(Clone, Copy, Debug)]
pub struct PreemptionSwitch {
    off: u32,
    on: u32,
}

impl PreemptionSwitch {
    /// That of a kernel that runs programs on tracepoints with preemption on.
    pub fn if_needed() -> Option<Self> {
        if !runs_programs_with_preemption() {
            return None;
        }
        let switch = Self::of_this_kernel();
        switch
            .inspect_err(|error| log::warn!("the kernel may leave out programs on tracepoints: {error:#}"))
            .ok()
    }

    /// That of the running kernel, which has one since Linux 6.10.
    ///
    /// # Errors
    /// When it has none.
    pub fn of_this_kernel() -> Result<Self> {
        let [off, on] = functions_of_this_kernel(["bpf_preempt_disable", "bpf_preempt_enable"])?;
        Ok(Self { off, on })
    }

    /// The same instructions, with preemption off between the two helpers that do nothing.
    pub fn put_into(self, instructions: &[bpf_insn]) -> Vec<bpf_insn> {
        /// `bpf_get_numa_node_id` and `bpf_jiffies64`: `tracer-ebpf/src/bpf/preemption.rs` calls them.
        const HELPER_OFF: i32 = 42;
        const HELPER_ON: i32 = 118;
        /// `BPF_JMP | BPF_CALL`
        const CALL: u8 = 0x85;
        const HELPER: u8 = 0;
        /// `BPF_PSEUDO_KFUNC_CALL`
        const KERNEL_FUNCTION: u8 = 2;
        let mut instructions = instructions.to_vec();
        for instruction in instructions.iter_mut().filter(|one| one.code == CALL && one.src_reg() == HELPER) {
            let function = match instruction.imm {
                HELPER_OFF => self.off,
                HELPER_ON => self.on,
                _ => continue,
            };
            instruction.set_src_reg(KERNEL_FUNCTION);
            instruction.imm = function.cast_signed();
        }
        instructions
    }
}

/// Whether programs on tracepoints of system calls run with preemption on: then they may sleep, too, and the kernel takes one that says
/// so (7.2).
fn runs_programs_with_preemption() -> bool {
    /// `BPF_PROG_TYPE_TRACEPOINT`
    const TRACEPOINT: u32 = 5;
    /// `BPF_F_SLEEPABLE`
    const SLEEPABLE: u32 = 1 << 4;
    /// `r0 = 0; exit`
    const NOTHING: [u64; 2] = [0xb7, 0x95];
    let attributes = ProgramLoad {
        program_type: TRACEPOINT,
        instruction_count: NOTHING.len() as u32,
        instructions: NOTHING.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        flags: SLEEPABLE,
        ..ProgramLoad::default()
    };
    // SAFETY: the attributes point at constants.
    let loaded: std::io::Result<OwnedFd> = unsafe { sys::load_program(&attributes) };
    loaded.is_ok()
}
