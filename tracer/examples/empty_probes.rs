//! Puts probes that do nothing where the tracer would put its own, or at the entries of the same functions: the floor that
//! `cargo xtask bench overhead` measures the tracer against.
//!
//! `empty_probes PID planned|entries` says `ready` when they are in, and takes them out when its input ends.

use std::{
    ffi::{CString, c_int, c_long},
    fs,
    io::{self, Read as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result, bail};
use tracer::{
    model::Pid,
    plan::{Place, Planner},
    target::Target,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pid, at] = &arguments[..] else { bail!("usage: empty_probes PID planned|entries") };
    let pid = Pid(pid.parse().context("PID is a number")?);
    let at_entries = match at.as_str() {
        "planned" => false,
        "entries" => true,
        other => bail!("`{other}` is neither `planned` nor `entries`"),
    };
    let probes = attach(&Target::open(pid)?, at_entries)?;
    println!("ready {} probes", probes.len());
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Attaches to every function that the tracer would probe.
fn attach(target: &Target, at_entries: bool) -> Result<Vec<OwnedFd>> {
    let program = load_empty_program().context("cannot load an empty program")?;
    let mut probes = Vec::new();
    for object in target.objects()?.opened {
        let mut bytes = Vec::new();
        (&object.file).read_to_end(&mut bytes)?;
        let path = CString::new(object.uprobe_path().into_os_string().into_encoded_bytes())?;
        for probe in Planner::default().plan(&bytes)?.probes {
            let site = probe.place.site();
            let moved_by = if at_entries { u64::from(site.offset_in_function) } else { 0 };
            let offset = site.file_offset - moved_by;
            let is_return: &[bool] = match probe.place {
                Place::EntryAndReturn(_) => &[false, true],
                Place::Entry { .. } | Place::EntryAndExits { .. } => &[false],
            };
            for &is_return in is_return {
                let event = open_uprobe(&path, offset, is_return, target.pid())?;
                run_at(&event, &program)?;
                probes.push(event);
            }
        }
    }
    Ok(probes)
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is needed.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
}

fn load_empty_program() -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: c_int = 5;
    const BPF_PROG_TYPE_KPROBE: u32 = 2;
    /// `r0 = 0; exit`
    const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
    let attr = ProgramLoad {
        program_type: BPF_PROG_TYPE_KPROBE,
        instruction_count: INSTRUCTIONS.len() as u32,
        instructions: INSTRUCTIONS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..ProgramLoad::default()
    };
    // SAFETY: the kernel reads `attr` and what it points at, all of which outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<ProgramLoad>()) })
}

/// `struct perf_event_attr` as far as a uprobe needs it (`PERF_ATTR_SIZE_VER1`).
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sampling: [u64; 4],
    wakeup_events: u32,
    breakpoint_type: u32,
    path: u64,
    offset: u64,
}

fn open_uprobe(path: &CString, offset: u64, is_return: bool, pid: Pid) -> Result<OwnedFd> {
    const PMU_TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";
    const ANY_CPU: c_int = -1;
    const NO_GROUP: c_int = -1;
    let attr = PerfEventAttr {
        kind: fs::read_to_string(PMU_TYPE).context("this kernel has no uprobes")?.trim().parse()?,
        size: size_of::<PerfEventAttr>() as u32,
        config: is_return.into(),
        path: path.as_ptr() as u64,
        offset,
        ..PerfEventAttr::default()
    };
    // SAFETY: the kernel reads `attr` and the path it points at, both of which outlive the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, pid.0 as c_int, ANY_CPU, NO_GROUP, 0)
    };
    owned(fd).with_context(|| format!("cannot probe {} at {offset:#x}", path.to_string_lossy()))
}

fn run_at(event: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
    const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
    for (request, argument) in [(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)] {
        // SAFETY: both requests take a number, not a pointer.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn owned(fd: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
