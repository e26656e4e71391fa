//! How uprobes are attached: the best way that the kernel has, which is asked for it before anything is loaded.
//!
//! Taking out a uprobe that is a perf event takes the kernel some 80 ms, and one waits for the other
//! (`perf_uprobe_destroy` waits for several RCU grace periods under the mutex of all trace events): 2 seconds for the
//! probes in one C library. A link of many uprobes waits for one grace period, without that mutex.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{
    sys::{self, PerfEvent, ProgramLoad, UprobeLink},
    unkillable::unkillable,
};
use crate::model::Pid;

/// What the kernel can attach uprobes by; each can all that the one before it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UprobeLinks {
    /// A perf event each.
    PerfEvents,
    /// Many places of a file in one link (`BPF_TRACE_UPROBE_MULTI`), for one process or for all (Linux 6.10).
    Many,
    /// As that; and one program sees entry and return, and says at the entry by 1 that it does not want to see the return: then
    /// nothing is changed in the process (`BPF_TRACE_UPROBE_SESSION`, Linux 6.13).
    Sessions,
}

const KILLED: &str = "somebody killed the process that puts in probes";

pub(super) const PROG_TYPE_KPROBE: u32 = 2;
const TRACE_UPROBE_MULTI: u32 = 48;
const TRACE_UPROBE_SESSION: u32 = 57;

/// When a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// When a place is reached.
    Entry,
    /// When the function whose entry is probed returns.
    Return,
    /// At both; only with [`UprobeLinks::Sessions`].
    Both,
}

impl UprobeLinks {
    /// What the running kernel offers to this process.
    ///
    /// Loading tells nothing: no kernel compares the kind of link that a program is loaded for with what it knows. Only a link
    /// does, so links are made that must fail, for the one reason or the other.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        if !makes_links(TRACE_UPROBE_MULTI) {
            Self::PerfEvents
        } else if makes_links(TRACE_UPROBE_SESSION) {
            Self::Sessions
        } else {
            Self::Many
        }
    }

    /// How many processes have links of their own at most. More have them in common, and with everybody else: the work for N links
    /// grows with the square of N, and what they cost others does not.
    pub(super) const fn most_apart(self) -> usize {
        match self {
            // The probes of one process take a second to come out, those of the next another one.
            Self::PerfEvents => 2,
            Self::Many | Self::Sessions => 16,
        }
    }

    /// The kind of link that a program is loaded for.
    pub(super) fn attach_type(self, at: At) -> u32 {
        match (self, at) {
            (Self::PerfEvents, _) => 0,
            (Self::Many | Self::Sessions, At::Entry | At::Return) => TRACE_UPROBE_MULTI,
            (Self::Many | Self::Sessions, At::Both) => TRACE_UPROBE_SESSION,
        }
    }

    /// Attaches a program to places of a file, for one process or all, until the results are dropped.
    ///
    /// # Errors
    /// When the kernel refuses: the file or process is gone, or there is no permission.
    pub fn attach(
        self,
        program: BorrowedFd<'_>,
        file: &Path,
        places: &ProbeSites,
        at: At,
        scope: Option<Pid>,
    ) -> Result<Vec<ProbeLink>> {
        let path = CString::new(file.as_os_str().as_bytes())?;
        if self == Self::PerfEvents {
            let event_type = perf_event_type()?;
            let semaphores = places.semaphores.iter().copied().chain(std::iter::repeat(0));
            let places = places.offsets.iter().zip(&places.cookies).zip(semaphores);
            let attach = |((&offset, &cookie), semaphore)| {
                let place = PerfPlace { path: &path, offset, semaphore };
                let event = open_perf_event(event_type, place, at, scope)?;
                sys::link_perf_event(event.as_fd(), program, cookie).map(ProbeLink::new)
            };
            return Ok(unkillable(|| places.map(attach).collect::<io::Result<_>>()).context(KILLED)??);
        }
        let link = UprobeLink {
            program,
            attach_type: self.attach_type(at),
            path: &path,
            offsets: &places.offsets,
            cookies: &places.cookies,
            reference_counts: &places.semaphores,
            at_return: at == At::Return,
            pid: scope.map_or(0, |pid| pid.0),
        };
        Ok(vec![ProbeLink::new(unkillable(|| link.create()).context(KILLED)??)])
    }
}

/// Probes that are in until this is dropped.
#[derive(Debug)]
pub struct ProbeLink(Option<OwnedFd>);

impl ProbeLink {
    const fn new(descriptor: OwnedFd) -> Self {
        Self(Some(descriptor))
    }
}

impl Drop for ProbeLink {
    fn drop(&mut self) {
        let _ = unkillable(|| drop(self.0.take()));
    }
}

/// Sites of probes in one file, and the cookie of each.
#[derive(Clone, Debug, Default)]
pub struct ProbeSites {
    offsets: Vec<u64>,
    cookies: Vec<u64>,
    /// Offsets of their semaphores, 0 for none; empty when none has one.
    semaphores: Vec<u64>,
}

impl ProbeSites {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }
}

impl FromIterator<(u64, u64, Option<u64>)> for ProbeSites {
    /// Takes offsets, cookies and semaphores.
    fn from_iter<I: IntoIterator<Item = (u64, u64, Option<u64>)>>(places: I) -> Self {
        let mut all = Self::default();
        for (offset, cookie, semaphore) in places {
            all.offsets.push(offset);
            all.cookies.push(cookie);
            all.semaphores.push(semaphore.unwrap_or(0));
        }
        if all.semaphores.iter().all(|&semaphore| semaphore == 0) {
            all.semaphores.clear();
        }
        all
    }
}

/// Loads a program that does nothing, for links of this type.
///
/// # Errors
/// When the kernel refuses: no permission, or no BPF.
pub fn load_empty_program(attach_type: u32) -> io::Result<OwnedFd> {
    /// `r0 = 0; exit`
    const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
    let attributes = ProgramLoad {
        program_type: PROG_TYPE_KPROBE,
        instruction_count: INSTRUCTIONS.len() as u32,
        instructions: INSTRUCTIONS.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        expected_attach_type: attach_type,
        ..ProgramLoad::default()
    };
    // SAFETY: everything that the attributes point at is a constant, and there is no log.
    unsafe { sys::load_program(&attributes) }
}

/// Whether this process can make links of this type for whole processes.
fn makes_links(attach_type: u32) -> bool {
    let Ok(program) = load_empty_program(attach_type) else { return false };
    // A directory is not a file that can be probed. The kernel says so once it has found the type of the link, the program's, and
    // all else in order. (libbpf's `probe_uprobe_multi_link` does the same.)
    let refused = |pid| {
        let (program, path) = (program.as_fd(), c"/");
        let link = UprobeLink {
            program,
            attach_type,
            path,
            offsets: &[0],
            cookies: &[],
            reference_counts: &[],
            at_return: false,
            pid,
        };
        link.create().err().and_then(|error| error.raw_os_error())
    };
    // Until Linux 6.10 a link for a process was for one thread of it. With that mended no process has the number -1, and the
    // directory is not looked at any more to say so.
    refused(0) == Some(libc::EBADF) && refused(u32::MAX) == Some(libc::EINVAL)
}

/// The number that perf gives to uprobe events here.
///
/// # Errors
/// When the kernel has none, or /sys is not mounted.
pub fn perf_event_type() -> Result<u32> {
    const TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";
    let number = fs::read_to_string(TYPE);
    let number = number.with_context(|| format!("no {TYPE}: uprobes need CONFIG_UPROBE_EVENTS and /sys"))?;
    number.trim().parse().with_context(|| format!("{TYPE} is no number"))
}

/// Where a uprobe goes.
#[derive(Clone, Copy, Debug)]
pub struct PerfPlace<'a> {
    /// The file.
    pub path: &'a CStr,
    /// Offset of the instruction.
    pub offset: u64,
    /// Offset of the word that the kernel counts up while the probe is there; 0 for none.
    pub semaphore: u64,
}

/// Makes a uprobe that is a perf event.
///
/// # Errors
/// When the kernel refuses.
pub fn open_perf_event(
    event_type: u32,
    place: PerfPlace<'_>,
    at: At,
    scope: Option<Pid>,
) -> io::Result<OwnedFd> {
    /// `format/retprobe` of the event source.
    const RETURN: u64 = 1;
    /// `format/ref_ctr_offset`: the upper half.
    const SEMAPHORE_SHIFT: u32 = 32;
    let semaphore = u32::try_from(place.semaphore).map_err(|_| io::ErrorKind::InvalidInput)?;
    let event = PerfEvent {
        event_type,
        config: if at == At::Return { RETURN } else { 0 } | (u64::from(semaphore) << SEMAPHORE_SHIFT),
        config1: place.path.as_ptr() as u64,
        config2: place.offset,
        ..PerfEvent::default()
    };
    // SAFETY: of an event of this type `config1` is the path, which outlives the call.
    unsafe { event.open(scope.map(|pid| pid.0)) }
}
