//! The programs, each loaded when it is first needed: the verifier takes up to a second for one, and no recording needs all.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{Ebpf, maps::Map};
use aya_obj::{Function, Object, ProgramSection};

use super::{
    sys::{self, ProgramLoad},
    uprobes::{At, PROG_TYPE_KPROBE, UprobeLinks},
};

/// The programs, by name.
pub struct Programs {
    loader: Arc<Loader>,
    loaded: BTreeMap<&'static str, OwnedFd>,
    understudies: BTreeMap<&'static str, OwnedFd>,
    /// Those that are being loaded meanwhile.
    ahead: Option<JoinHandle<Vec<Attempt>>>,
}

/// A program, and what came of loading it.
type Attempt = (&'static str, Result<OwnedFd>);

impl Programs {
    /// The programs of an object file, whose maps `ebpf` holds. None is loaded yet.
    ///
    /// # Errors
    /// When the object is not what it should be.
    pub fn new(object: &[u8], ebpf: &Ebpf, links: UprobeLinks) -> Result<Self> {
        let loader = Arc::new(Loader::new(object, ebpf, links)?);
        Ok(Self { loader, loaded: BTreeMap::new(), understudies: BTreeMap::new(), ahead: None })
    }

    /// Begins to load what will be needed, on a thread of its own. Without one they are loaded when they are needed.
    pub fn load_ahead(&mut self, names: Vec<&'static str>) {
        let loader = Arc::clone(&self.loader);
        let load = move || names.into_iter().map(|name| (name, loader.load(name))).collect();
        self.ahead = thread::Builder::new().name("loader".to_owned()).spawn(load).ok();
    }

    /// A program, which is loaded from now on.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn get(&mut self, name: &'static str) -> Result<BorrowedFd<'_>> {
        if !self.loaded.contains_key(name) {
            self.take_ahead()?;
        }
        if !self.loaded.contains_key(name) {
            self.loaded.insert(name, self.loader.load(name)?);
        }
        Ok(self.loaded.get(name).context("it has been loaded")?.as_fd())
    }

    /// A program once more, as a program of its own.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn understudy(&mut self, name: &'static str) -> Result<BorrowedFd<'_>> {
        if !self.understudies.contains_key(name) {
            self.understudies.insert(name, self.loader.load(name)?);
        }
        Ok(self.understudies.get(name).context("it has been loaded")?.as_fd())
    }

    fn take_ahead(&mut self) -> Result<()> {
        let Some(ahead) = self.ahead.take() else { return Ok(()) };
        for (name, program) in ahead.join().map_err(|_| anyhow!("a thread ended that loads programs"))? {
            self.loaded.insert(name, program?);
        }
        Ok(())
    }

    /// The programs that have been loaded and asked for.
    pub fn loaded(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.loaded.iter().map(|(&name, program)| (name, program.as_fd()))
    }

    /// A program that has been loaded and asked for.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.loaded.get(name).map(|program| program.as_fd())
    }

    /// Loads every program that the kernel can attach.
    ///
    /// # Errors
    /// When the kernel does not take one.
    pub fn load_all(&mut self) -> Result<()> {
        let sessions = self.loader.links == UprobeLinks::Sessions;
        let all = PROGRAMS.iter().filter(|&&(_, at)| at != Some(At::Both) || sessions);
        all.map(|&(name, _)| name).try_for_each(|name| self.get(name).map(drop))
    }
}

/// Every program of the object; uprobe programs with the moment that they are for.
const PROGRAMS: &[(&str, Option<At>)] = &[
    ("allocate", Some(At::Entry)),
    ("allocated", Some(At::Return)),
    ("call", Some(At::Both)),
    ("exited", Some(At::Entry)),
    ("release", Some(At::Entry)),
    ("usdt_alloc", Some(At::Entry)),
    ("usdt_free", Some(At::Entry)),
    ("mapping_enter", None),
    ("mapping_exit", None),
    ("any_syscall_enter", None),
    ("any_syscall_exit", None),
    ("page_fault", None),
    ("process_exec", None),
    ("process_fork", None),
    ("process_exit", None),
];

/// What loads programs: they, their types and the descriptors of their maps.
struct Loader {
    object: Object,
    types: Option<OwnedFd>,
    links: UprobeLinks,
}

impl Loader {
    fn new(object: &[u8], ebpf: &Ebpf, links: UprobeLinks) -> Result<Self> {
        let mut object = Object::parse(object)?;
        let types = match aya::features().btf() {
            Some(features) => {
                object.fixup_and_sanitize_btf(features)?.map(|btf| sys::load_btf(&btf.to_bytes()))
            }
            None => None,
        };
        let types = types.transpose().context("the kernel rejects the types of the BPF programs")?;
        relocate(&mut object, ebpf)?;
        Ok(Self { object, types, links })
    }

    fn load(&self, name: &'static str) -> Result<OwnedFd> {
        let program = self.object.programs.get(name).with_context(|| format!("no program {name}"))?;
        let function = self.object.functions.get(&program.function_key());
        let function = function.with_context(|| format!("no function of program {name}"))?;
        let (program_type, attach_type) = self.kind(name, &program.section)?;
        let began = Instant::now();
        let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
        let mut attributes = self.attributes(name, function, program_type, attach_type);
        (attributes.functions, attributes.lines) = (functions.as_ptr() as u64, lines.as_ptr() as u64);
        // More than the verifier ever says of a program that it takes; it would refuse one for a log that is cut.
        let mut statistics = vec![0_u8; 64 << 10];
        if log::log_enabled!(log::Level::Debug) {
            (attributes.log, attributes.log_size, attributes.log_level) =
                (statistics.as_mut_ptr() as u64, statistics.len() as u32, LOG_STATISTICS);
        }
        // SAFETY: what the attributes point at is `self`'s or one of the three above, and outlives the call.
        let loaded = unsafe { sys::load_program(&attributes) };
        let loaded = loaded.map_err(|error| refusal(name, error, attributes))?;
        log::debug!(
            "{name} was loaded in {:.2?}: {}",
            began.elapsed(),
            text(&statistics).replace('\n', ", ")
        );
        Ok(loaded)
    }

    /// Type of a program, and the kind of link that it is loaded for.
    fn kind(&self, name: &str, section: &ProgramSection) -> Result<(u32, u32)> {
        const TRACEPOINT: u32 = 5;
        const RAW_TRACEPOINT: u32 = 17;
        let at = PROGRAMS.iter().find(|(program, _)| *program == name).and_then(|&(_, at)| at);
        match (section, at) {
            (ProgramSection::UProbe { .. } | ProgramSection::URetProbe { .. }, Some(at)) => {
                Ok((PROG_TYPE_KPROBE, self.links.attach_type(at)))
            }
            (ProgramSection::TracePoint, None) => Ok((TRACEPOINT, 0)),
            (ProgramSection::RawTracePoint, None) => Ok((RAW_TRACEPOINT, 0)),
            _ => bail!("program {name} has an unexpected kind"),
        }
    }

    /// All but the places of function and line information, which count only with types.
    fn attributes(
        &self,
        name: &str,
        function: &Function,
        program_type: u32,
        attach_type: u32,
    ) -> ProgramLoad {
        let mut attributes = ProgramLoad {
            program_type,
            instruction_count: function.instructions.len() as u32,
            instructions: function.instructions.as_ptr() as u64,
            license: self.object.license.as_ptr() as u64,
            expected_attach_type: attach_type,
            ..ProgramLoad::default()
        };
        // The last byte stays 0.
        for (to, from) in attributes.name[..15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        if let Some(types) = &self.types {
            attributes.btf = types.as_raw_fd().cast_unsigned();
            attributes.function_record_size = function.func_info_rec_size as u32;
            attributes.function_count = function.func_info.len() as u32;
            attributes.line_record_size = function.line_info_rec_size as u32;
            attributes.line_count = function.line_info.len() as u32;
        }
        attributes
    }
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
        Some(_) => bail!("map {name} has an unexpected kind"),
        None => bail!("the BPF object has no map {name}"),
    }
}

/// Why the kernel does not take a program: one line. What the verifier said before is a message of its own.
fn refusal(name: &str, error: io::Error, attributes: ProgramLoad) -> anyhow::Error {
    // SAFETY: as in `Loader::load`.
    let log = unsafe { verifier_log(attributes, 0) };
    let reason = refused_for(&log).map(str::to_owned);
    let error = anyhow::Error::from(error).context(format!("the kernel rejects BPF program {name}"));
    match reason {
        Some(reason) => {
            log::error!("the verifier's log of BPF program {name} ends:");
            end_of(&log).for_each(|line| log::error!("    {line}"));
            error.context(format!("the verifier refuses BPF program {name}: {reason}"))
        }
        None => error,
    }
}

/// Loads a program that is refused once more, for the verifier's log.
///
/// # Safety
/// What the attributes point at must be there, as long as they say.
unsafe fn verifier_log(mut attributes: ProgramLoad, more: u32) -> String {
    /// `BPF_LOG_LEVEL1`.
    const LEVEL: u32 = 1 | LOG_STATISTICS;
    const FIRST: usize = 64 << 10;
    /// Of memory that is not touched before the kernel writes to it.
    const LARGEST: usize = 256 << 20;
    let mut size = FIRST;
    loop {
        let mut log = vec![0_u8; size];
        (attributes.log, attributes.log_size, attributes.log_level) =
            (log.as_mut_ptr() as u64, log.len() as u32, LEVEL | more);
        // SAFETY: the caller answers for all but the log, of which the kernel writes no more than there is room for.
        let refused = unsafe { sys::load_program(&attributes) }.err();
        // Before Linux 6.4 the kernel keeps the beginning of a log that is too long, and says so; since then its end.
        let is_cut = refused.is_some_and(|error| error.raw_os_error() == Some(libc::ENOSPC));
        if !is_cut || size >= LARGEST {
            return text(&log);
        }
        size *= 8;
    }
}

/// `BPF_LOG_STATS`: what the verifier did, in three lines.
const LOG_STATISTICS: u32 = 4;

/// What the kernel wrote, up to the first zero.
fn text(log: &[u8]) -> String {
    let length = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..length]).trim_end().to_owned()
}

/// The last lines of a log.
fn end_of(log: &str) -> impl Iterator<Item = &str> {
    const LINES: usize = 30;
    log.lines().skip(log.lines().count().saturating_sub(LINES))
}

/// The line that says why: the last one before the statistics.
fn refused_for(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 4] = ["processed ", "verification time ", "stack depth ", "subprog "];
    let is_statistic = |line: &&str| STATISTICS.iter().any(|start| line.starts_with(start));
    log.lines().rev().map(str::trim).find(|line| !line.is_empty() && !is_statistic(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts to 5,000, and then writes to the context, which is not allowed: its log has some megabytes.
    const REFUSED: [u64; 5] = [
        0xb7,                     // r0 = 0
        0x1_0000_0007,            // r0 += 1
        5000 << 32 | 0xfffe_00a5, // if r0 < 5000 goto -2
        0x7fff_0000 | 0x017b,     // *(u64 *)(r1 + 32767) = r0
        0x95,                     // exit
    ];

    fn refused() -> ProgramLoad {
        ProgramLoad {
            program_type: PROG_TYPE_KPROBE,
            instruction_count: REFUSED.len() as u32,
            instructions: REFUSED.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            ..ProgramLoad::default()
        }
    }

    /// As root. With `BPF_LOG_FIXED` the kernel does with its log what it did before Linux 6.4.
    #[test]
    fn a_long_log_is_shown_to_its_end_whichever_part_of_it_the_kernel_keeps() {
        const FIXED: u32 = 8;
        for more in [0, FIXED] {
            // SAFETY: the attributes point at constants.
            let log = unsafe { verifier_log(refused(), more) };
            let reason = refused_for(&log).expect("there is a reason");
            assert!(reason.contains("invalid bpf_context access off=32767"), "{more}: {reason}");
            assert!(end_of(&log).any(|line| line.trim() == reason));
        }
    }

    #[test]
    fn a_refusal_is_one_line_with_the_reason() {
        let error = refusal("allocate", io::Error::from_raw_os_error(libc::EACCES), refused());
        let line = format!("{error:#}");
        assert!(line.starts_with("the verifier refuses BPF program allocate: invalid bpf_context"), "{line}");
        assert!(line.ends_with("Permission denied (os error 13)") && !line.contains('\n'), "{line}");
        // Without the right to load there is no log.
        let unloadable = ProgramLoad { program_type: u32::MAX, ..refused() };
        let error = refusal("allocate", io::Error::from_raw_os_error(libc::EPERM), unloadable);
        assert!(format!("{error:#}").starts_with("the kernel rejects BPF program allocate: "));
    }

    #[test]
    fn statistics_are_no_reason() {
        let log = "1: (95) exit\nR3 unbounded memory access\nverification time 5 usec\nstack depth 8\nprocessed 5 insns (limit 1000000)\n";
        assert_eq!(refused_for(log), Some("R3 unbounded memory access"));
        assert_eq!(refused_for(""), None);
        assert_eq!(end_of("a\nb").collect::<Vec<_>>(), ["a", "b"]);
    }
}
