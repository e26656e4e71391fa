//! `bpf(2)` and `perf_event_open(2)`, as far as aya 0.14 does not make them: it knows no link of many uprobes and no session
//! programs, and its way of loading a program cannot be told which of them it is for.
//!
//! Structures are those of include/uapi/linux/bpf.h and perf_event.h, cut off behind the last member that is used: the kernel
//! takes the rest as zeros.

use std::{
    ffi::{CStr, c_int, c_long},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

const MAP_CREATE: c_int = 0;
const MAP_UPDATE_ELEM: c_int = 2;
const PROG_LOAD: c_int = 5;
const RAW_TRACEPOINT_OPEN: c_int = 17;
const BTF_LOAD: c_int = 18;
const LINK_CREATE: c_int = 28;

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to the line information.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ProgramLoad {
    pub program_type: u32,
    pub instruction_count: u32,
    pub instructions: u64,
    pub license: u64,
    pub log_level: u32,
    pub log_size: u32,
    pub log: u64,
    pub kernel_version: u32,
    pub flags: u32,
    pub name: [u8; 16],
    pub interface: u32,
    pub expected_attach_type: u32,
    pub btf: u32,
    pub function_record_size: u32,
    pub functions: u64,
    pub function_count: u32,
    pub line_record_size: u32,
    pub lines: u64,
    pub line_count: u32,
    pub padding: u32,
}

/// Loads a program.
///
/// # Safety
/// What the attributes point at must be there, as long as they say; the log must be writable.
pub unsafe fn load_program(attributes: &ProgramLoad) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are those of the command; the caller answers for the rest.
    unsafe { bpf(PROG_LOAD, attributes) }
}

/// Loads the types of programs (BTF).
pub fn load_btf(types: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        types: u64,
        log: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        padding: u32,
    }
    let size = types.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let attributes =
        Load { types: types.as_ptr() as u64, log: 0, size, log_size: 0, log_level: 0, padding: 0 };
    // SAFETY: the attributes are those of the command, and `types` outlives the call.
    unsafe { bpf(BTF_LOAD, &attributes) }
}

/// Attaches a program to many places of a file (`BPF_TRACE_UPROBE_MULTI` or `_SESSION`).
#[derive(Clone, Copy)]
pub struct UprobeLink<'a> {
    pub program: BorrowedFd<'a>,
    pub attach_type: u32,
    pub path: &'a CStr,
    pub offsets: &'a [u64],
    /// One for each offset, or none.
    pub cookies: &'a [u64],
    /// One for each offset, or none: the word that the kernel counts up in each process while the probe is in it; 0 for none.
    pub reference_counts: &'a [u64],
    /// At the return of the functions that begin at the offsets.
    pub at_return: bool,
    /// 0 for every process.
    pub pid: u32,
}

impl UprobeLink<'_> {
    /// Makes the link, which lasts until the result is dropped.
    pub fn create(self) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Create {
            program: RawFd,
            target: u32,
            attach_type: u32,
            flags: u32,
            path: u64,
            offsets: u64,
            reference_counts: u64,
            cookies: u64,
            count: u32,
            flags_of_uprobes: u32,
            pid: u32,
            padding: u32,
        }
        const RETURN: u32 = 1;
        let list = |list: &[u64]| if list.is_empty() { 0 } else { list.as_ptr() as u64 };
        let Self { program, attach_type, path, offsets, cookies, reference_counts, at_return, pid } = self;
        let is_of_each = |list: &[u64]| list.is_empty() || list.len() == offsets.len();
        if !is_of_each(cookies) || !is_of_each(reference_counts) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let attributes = Create {
            program: program.as_raw_fd(),
            target: 0,
            attach_type,
            flags: 0,
            path: path.as_ptr() as u64,
            offsets: offsets.as_ptr() as u64,
            reference_counts: list(reference_counts),
            cookies: list(cookies),
            count: offsets.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?,
            flags_of_uprobes: if at_return { RETURN } else { 0 },
            pid,
            padding: 0,
        };
        // SAFETY: the attributes are those of the command; the slices are as long as `count` and outlive the call.
        unsafe { bpf(LINK_CREATE, &attributes) }
    }
}

/// Runs a program at a perf event (Linux 5.15), which has this cookie, until the result is dropped.
pub fn link_perf_event(event: BorrowedFd<'_>, program: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        program: RawFd,
        target: RawFd,
        attach_type: u32,
        flags: u32,
        cookie: u64,
    }
    const PERF_EVENT: u32 = 41;
    let attributes = Create {
        program: program.as_raw_fd(),
        target: event.as_raw_fd(),
        attach_type: PERF_EVENT,
        flags: 0,
        cookie,
    };
    // SAFETY: the attributes are those of the command, and hold no pointers.
    unsafe { bpf(LINK_CREATE, &attributes) }
}

/// Runs a program at a raw tracepoint until the result is dropped. Before Linux 6.10 the cookie must be 0.
pub fn open_raw_tracepoint(name: &CStr, program: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Open {
        name: u64,
        program: RawFd,
        padding: u32,
        cookie: u64,
    }
    let attributes = Open { name: name.as_ptr() as u64, program: program.as_raw_fd(), padding: 0, cookie };
    // SAFETY: the attributes are those of the command, and the name outlives the call.
    unsafe { bpf(RAW_TRACEPOINT_OPEN, &attributes) }
}

/// Makes a map of so many elements of 4 bytes.
pub fn create_map(map_type: u32, max_entries: u32, inner_map: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        inner_map: RawFd,
    }
    let inner_map = inner_map.map_or(0, |map| map.as_raw_fd());
    let attributes = Create { map_type, key_size: 4, value_size: 4, max_entries, flags: 0, inner_map };
    // SAFETY: the attributes are those of the command, and hold no pointers.
    unsafe { bpf(MAP_CREATE, &attributes) }
}

/// Sets an element of a map of elements of 4 bytes.
pub fn set_element(map: BorrowedFd<'_>, key: u32, value: u32) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        map: RawFd,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let attributes = Update {
        map: map.as_raw_fd(),
        padding: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command; key and value have the map's sizes and outlive the call.
    let status =
        unsafe { libc::syscall(libc::SYS_bpf, MAP_UPDATE_ELEM, &raw const attributes, size_of::<Update>()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether `bpf(2)` gets as far as the kernel, which knows no such command, and says so in one way or another. A seccomp filter
/// refuses it before, whatever the command.
///
/// # Errors
/// How it is refused.
pub fn may_call_bpf() -> io::Result<()> {
    const NO_COMMAND: c_int = 0x7fff;
    // SAFETY: a command that there is not has no attributes.
    match unsafe { bpf(NO_COMMAND, &0_u64) } {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// A `bpf(2)` that makes a descriptor.
///
/// # Safety
/// `attributes` must be those of the command, and what they point at must be there and as long as they say.
unsafe fn bpf<A>(command: c_int, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes and, as the caller promises, nothing that is not there.
    descriptor(unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>())
    })
}

/// `struct perf_event_attr` up to `sample_regs_intr` (`PERF_ATTR_SIZE_VER4`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PerfEvent {
    pub event_type: u32,
    pub size: u32,
    pub config: u64,
    pub sample_period: u64,
    pub sample_type: u64,
    pub read_format: u64,
    pub flags: u64,
    pub wakeup_events: u32,
    pub breakpoint_type: u32,
    pub config1: u64,
    pub config2: u64,
    pub branch_sample_type: u64,
    pub registers_of_user: u64,
    pub stack_of_user: u32,
    pub clock: i32,
    pub registers_of_kernel: u64,
}

impl PerfEvent {
    /// Opens the event, which counts from now on: of one process or, on a tracepoint or uprobe, of all of them.
    ///
    /// # Safety
    /// Where the kernel takes `config1` for a pointer it must point at a string.
    pub unsafe fn open(mut self, pid: Option<u32>) -> io::Result<OwnedFd> {
        const NO_GROUP: c_int = -1;
        const ANY: c_int = -1;
        // A program on an event of every process runs on every CPU, whichever one the event names.
        const FIRST_CPU: c_int = 0;
        const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
        self.size = size_of::<Self>() as u32;
        let (pid, cpu) = match pid {
            Some(pid) => (pid.try_into().map_err(|_| io::ErrorKind::InvalidInput)?, ANY),
            None => (ANY, FIRST_CPU),
        };
        // SAFETY: the kernel reads `size` bytes of the attributes; the caller answers for the string.
        descriptor(unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const self,
                pid as libc::pid_t,
                cpu,
                NO_GROUP,
                CLOSE_ON_EXEC,
            )
        })
    }
}

/// Whether a perf event may show registers of the kernel. A kernel that is locked down for confidentiality refuses it to everybody
/// (`LOCKDOWN_PERF`); others, to those who may not look into the kernel.
///
/// # Errors
/// Why not.
pub fn may_see_kernel_registers() -> io::Result<()> {
    /// `PERF_TYPE_SOFTWARE`, `PERF_COUNT_SW_DUMMY`: it never counts anything.
    const SOFTWARE: u32 = 1;
    const DUMMY: u64 = 9;
    /// `PERF_SAMPLE_REGS_INTR`
    const REGISTERS: u64 = 1 << 18;
    let event = PerfEvent {
        event_type: SOFTWARE,
        config: DUMMY,
        sample_type: REGISTERS,
        registers_of_kernel: 1,
        ..PerfEvent::default()
    };
    // SAFETY: an event of this type has no pointer.
    unsafe { event.open(None) }.map(drop)
}

/// The descriptor that a system call has made.
fn descriptor(returned: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(returned).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
