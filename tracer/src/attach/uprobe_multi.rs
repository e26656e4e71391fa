//! Many uprobes of a file in one link (`BPF_TRACE_UPROBE_MULTI`, Linux 6.6).
//!
//! Taking out a uprobe that is a perf event takes the kernel some 80 ms, and one waits for the other
//! (`perf_uprobe_destroy` waits for several RCU grace periods under the mutex of all trace events): 2 seconds for the
//! probes in one C library. A link of many uprobes waits for one grace period, without that mutex.
//!
//! aya 0.14 neither loads programs for this kind of link nor makes such links, so both are done here, by `bpf(2)`. What it knows of the
//! object file is its parser's (`aya-obj`), and the maps are those that it made.

use std::{
    collections::HashSet,
    ffi::{CString, c_int},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use aya::{Ebpf, maps::Map};
use aya_obj::{Function, Object};

use crate::model::Pid;

/// A program that can be attached to many places at once.
pub struct Program(OwnedFd);

/// Places in one file, and the cookie of each.
#[derive(Clone, Debug, Default)]
pub struct Places {
    offsets: Vec<u64>,
    cookies: Vec<u64>,
}

impl Places {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }
}

impl FromIterator<(u64, u64)> for Places {
    /// Takes offsets and cookies.
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(places: I) -> Self {
        let (offsets, cookies) = places.into_iter().unzip();
        Self { offsets, cookies }
    }
}

/// When a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// When a place is reached.
    Entry,
    /// When the function whose entry is probed returns.
    Return,
}

/// Loads the programs with these names. `ebpf` holds the maps of the same object.
///
/// # Errors
/// When the kernel does not take them, or cannot attach them to one whole process.
pub fn load<const N: usize>(object: &[u8], ebpf: &Ebpf, names: [&str; N]) -> Result<[Program; N]> {
    let mut object = Object::parse(object)?;
    let btf = match aya::features().btf() {
        Some(features) => object.fixup_and_sanitize_btf(features)?.map(|btf| load_btf(&btf.to_bytes())),
        None => None,
    };
    let btf = btf.transpose().context("the kernel does not take the types of the BPF programs")?;
    relocate(&mut object, ebpf)?;
    let mut programs = Vec::with_capacity(N);
    for name in names {
        let program = object.programs.get(name).with_context(|| format!("no program {name}"))?;
        let function = object.functions.get(&program.function_key());
        let function = function.with_context(|| format!("no function of program {name}"))?;
        let loaded = load_program(name, function, &object.license, btf.as_ref().map(OwnedFd::as_fd));
        programs.push(Program(loaded.with_context(|| format!("the kernel does not take program {name}"))?));
    }
    let programs: [Program; N] = programs.try_into().ok().context("a program for each name")?;
    if let Some(program) = programs.first() {
        program.check_process_filter()?;
    }
    Ok(programs)
}

/// Whether this process can make links of many uprobes for whole processes. They ask for less than uprobes that are perf
/// events: `CAP_BPF` and `CAP_PERFMON`, on every kernel that has them.
#[must_use]
pub fn is_available() -> bool {
    /// `r0 = 0; exit`
    const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
    let attributes = ProgramLoad {
        program_type: PROG_TYPE_KPROBE,
        instruction_count: INSTRUCTIONS.len() as u32,
        instructions: INSTRUCTIONS.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        expected_attach_type: TRACE_UPROBE_MULTI,
        ..ProgramLoad::default()
    };
    // SAFETY: the attributes are those of the command, and everything they point at outlives the call.
    let program = unsafe { bpf(BPF_PROG_LOAD, &attributes) };
    program.is_ok_and(|program| Program(program).check_process_filter().is_ok())
}

/// Puts the descriptors of the maps into the instructions.
fn relocate(object: &mut Object, ebpf: &Ebpf) -> Result<()> {
    let text: HashSet<usize> = object.functions.keys().map(|&(section, _)| section).collect();
    let maps: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
    let mut made = Vec::with_capacity(maps.len());
    for (name, map) in &maps {
        let fd = map_fd(ebpf, name)?.as_raw_fd();
        made.push((name.as_str(), fd, map));
    }
    object.relocate_maps(made.into_iter(), &text)?;
    Ok(object.relocate_calls(&text)?)
}

fn map_fd<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>> {
    match ebpf.map(name) {
        Some(Map::Array(map) | Map::HashMap(map) | Map::ProgramArray(map) | Map::RingBuf(map)) => {
            Ok(map.fd().as_fd())
        }
        Some(_) => bail!("map {name} is of a kind that is not expected"),
        None => bail!("the BPF object has no map {name}"),
    }
}

impl Program {
    /// Attaches to the places of a file, for one process; until the result is dropped.
    ///
    /// # Errors
    /// When the kernel refuses: the file or process is gone, or there is no permission.
    pub fn attach(&self, file: &Path, places: &Places, at: At, pid: Pid) -> io::Result<OwnedFd> {
        const UPROBE_MULTI_RETURN: u32 = 1;
        let path = CString::new(file.as_os_str().as_bytes())?;
        let flags = if at == At::Return { UPROBE_MULTI_RETURN } else { 0 };
        create_link(&LinkCreate {
            program: self.0.as_raw_fd(),
            attach_type: TRACE_UPROBE_MULTI,
            path: path.as_ptr() as u64,
            offsets: places.offsets.as_ptr() as u64,
            cookies: places.cookies.as_ptr() as u64,
            count: places.offsets.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?,
            flags_of_uprobes: flags,
            pid: pid.0,
            ..LinkCreate::default()
        })
    }

    /// Until Linux 6.10 such a link for a process was for one thread of it. What came with the mend is seen from outside: no process
    /// has the number -1, and a directory is not looked at any more to say so (libbpf's `probe_uprobe_multi_link` does the same).
    fn check_process_filter(&self) -> Result<()> {
        let refused = |pid| {
            let offset = 0_u64;
            let link = create_link(&LinkCreate {
                program: self.0.as_raw_fd(),
                attach_type: TRACE_UPROBE_MULTI,
                path: c"/".as_ptr() as u64,
                offsets: &raw const offset as u64,
                count: 1,
                pid,
                ..LinkCreate::default()
            });
            link.err().and_then(|error| error.raw_os_error())
        };
        if refused(0) != Some(libc::EBADF) {
            bail!("this kernel has no links of many uprobes");
        }
        if refused(u32::MAX) != Some(libc::EINVAL) {
            bail!("this kernel's links of many uprobes are for single threads");
        }
        Ok(())
    }

    /// Its descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const BPF_PROG_LOAD: c_int = 5;
const BPF_BTF_LOAD: c_int = 18;
const BPF_LINK_CREATE: c_int = 28;
const PROG_TYPE_KPROBE: u32 = 2;
const TRACE_UPROBE_MULTI: u32 = 48;

/// `union bpf_attr` for `BPF_BTF_LOAD`.
#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to the line information.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    btf: u32,
    function_record_size: u32,
    functions: u64,
    function_count: u32,
    line_record_size: u32,
    lines: u64,
    line_count: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE` with its member `uprobe_multi`.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
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

fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    let size = bytes.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let attributes = BtfLoad { btf: bytes.as_ptr() as u64, size, ..BtfLoad::default() };
    // SAFETY: the attributes are those of the command, and `bytes` outlives the call.
    unsafe { bpf(BPF_BTF_LOAD, &attributes) }
}

fn load_program(
    name: &str,
    function: &Function,
    license: &CString,
    btf: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let functions = function.func_info.func_info_bytes();
    let lines = function.line_info.line_info_bytes();
    let mut attributes = ProgramLoad {
        program_type: PROG_TYPE_KPROBE,
        instruction_count: function.instructions.len() as u32,
        instructions: function.instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: TRACE_UPROBE_MULTI,
        ..ProgramLoad::default()
    };
    // The last byte stays 0.
    for (to, from) in attributes.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    if let Some(btf) = btf {
        attributes.btf = btf.as_raw_fd().cast_unsigned();
        attributes.function_record_size = function.func_info_rec_size as u32;
        attributes.functions = functions.as_ptr() as u64;
        attributes.function_count = function.func_info.len() as u32;
        attributes.line_record_size = function.line_info_rec_size as u32;
        attributes.lines = lines.as_ptr() as u64;
        attributes.line_count = function.line_info.len() as u32;
    }
    // SAFETY: the attributes are those of the command, and everything they point at outlives the call.
    unsafe { bpf(BPF_PROG_LOAD, &attributes) }
}

fn create_link(attributes: &LinkCreate) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are those of the command; the callers keep what they point at.
    unsafe { bpf(BPF_LINK_CREATE, attributes) }
}

/// A `bpf(2)` that makes a descriptor.
///
/// # Safety
/// `attributes` must be those of the command, and what they point at must be readable and as long as they say.
pub(super) unsafe fn bpf<A>(command: c_int, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes and, as the caller promises, nothing that is not there.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>()) };
    let fd = RawFd::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
