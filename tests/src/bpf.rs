//! The few bpf(2) commands the tests need themselves: which programs are loaded, and what the JIT made of them.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// `BPF_PROG_TYPE_KPROBE`, the type of uprobe programs.
pub const PROG_TYPE_KPROBE: u32 = 2;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// One instruction of BPF, as `struct bpf_insn`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source register in the high half.
    pub registers: u8,
    /// Offset of a jump or of a memory access.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

/// A loaded program.
#[derive(Debug)]
pub struct LoadedProgram(OwnedFd);

/// What the kernel tells about a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// One of `BPF_PROG_TYPE_*`.
    pub kind: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The machine code, of every function of the program.
    pub jited: Vec<u8>,
}

/// The beginning of the kernel's `union bpf_attr` for `BPF_PROG_LOAD`.
#[derive(Default)]
#[repr(C)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The same for `BPF_PROG_GET_FD_BY_ID`.
#[derive(Default)]
#[repr(C)]
struct IdAttributes {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The same for `BPF_OBJ_GET_INFO_BY_FD`.
#[derive(Default)]
#[repr(C)]
struct InfoAttributes {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`, up to the program's name.
#[derive(Default)]
#[repr(C)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// bpf(2). The kernel reads `size_of::<A>()` bytes of attributes; fields beyond them count as zero.
///
/// # Safety
/// Every address in `attributes` must point at memory that is valid for what `command` does with it.
unsafe fn bpf<A>(command: libc::c_int, attributes: &mut A) -> io::Result<i64> {
    // SAFETY: `attributes` is a live value of the stated size, and the caller answers for the addresses in it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes ownership of the descriptor that a bpf(2) command returned.
fn own(descriptor: i64) -> OwnedFd {
    let raw = i32::try_from(descriptor).expect("descriptors are small");
    // SAFETY: bpf(2) has just returned it, so it is open and nobody else's.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

impl LoadedProgram {
    /// Loads a program of the given type, with a licence that allows every helper function.
    pub fn load(kind: u32, instructions: &[Instruction]) -> io::Result<Self> {
        let mut attributes = LoadAttributes {
            prog_type: kind,
            insn_cnt: u32::try_from(instructions.len()).expect("test programs are short"),
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            ..LoadAttributes::default()
        };
        // SAFETY: the instructions (as many as stated) and the license outlive the call.
        unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }.map(|descriptor| Self(own(descriptor)))
    }

    /// The loaded program with this id.
    pub fn by_id(id: u32) -> io::Result<Self> {
        let mut attributes = IdAttributes { id, ..IdAttributes::default() };
        // SAFETY: these attributes hold no address.
        unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes) }.map(|descriptor| Self(own(descriptor)))
    }

    /// Its type, name and machine code.
    pub fn info(&self) -> io::Result<ProgramInfo> {
        let sized = self.raw_info(&mut [])?;
        let mut jited = vec![0; sized.jited_len as usize];
        let raw = self.raw_info(&mut jited)?;
        let name = raw.name.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(ProgramInfo { kind: raw.kind, name: String::from_utf8_lossy(name).into_owned(), jited })
    }

    /// Asks for the program's description, and for its machine code into `jited`.
    fn raw_info(&self, jited: &mut [u8]) -> io::Result<RawProgramInfo> {
        let mut info = RawProgramInfo {
            jited_len: u32::try_from(jited.len()).expect("programs are small"),
            jited: jited.as_mut_ptr() as u64,
            ..RawProgramInfo::default()
        };
        let mut attributes = InfoAttributes {
            bpf_fd: u32::try_from(self.0.as_raw_fd()).expect("descriptors are positive"),
            info_len: size_of::<RawProgramInfo>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        };
        // SAFETY: `info` is valid for the stated length, and the kernel writes at most `jited_len` bytes at `jited`.
        unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        Ok(info)
    }
}

/// Whether a program with this id is loaded.
#[must_use]
pub fn program_exists(id: u32) -> bool {
    LoadedProgram::by_id(id).is_ok()
}

/// The ids of the programs that a process holds descriptors of, directly or through links.
#[must_use]
pub fn programs_held_by(pid: u32) -> BTreeSet<u32> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return BTreeSet::new() };
    let texts = descriptors.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok()))
        .collect()
}

/// How many instructions the verifier looked at for each program that a process holds a descriptor of.
#[must_use]
pub fn verified_instructions(pid: u32) -> Vec<u64> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return Vec::new() };
    let texts = descriptors.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let verified = |text: String| {
        text.lines().find_map(|line| line.strip_prefix("verified_insns:")?.trim().parse().ok())
    };
    texts.filter_map(verified).collect()
}
