//! The gate: samples within a process that is already running ([docs/gate.md](../../../docs/gate.md)).
//!
//! While a gate is open, the pages with `malloc`, `calloc`, `realloc` and `free` are replaced by a copy in which one instruction of each
//! function is a jump to the sampler, an image that was mapped beside them. The sampler is the one that a launched command preloads, and
//! fires the same probes, so everything behind this stage takes the process for one that reports its blocks.
//!
//! - [`layout`]: what is put into the process, and where.
//! - [`image`]: the sampler in the form that needs no loader.
//! - `lock`: who may open and close it, and who relies on it.
//! - `descriptors`: whether the process' open files can be left alone.
//! - `room`: whether the kernel has room for it.
//! - `inject`: has the process make the few system calls that map it; the only part that is not pure or a look into `/proc`.
//!
//! Replacing pages, instead of writing jumps into them, is what makes it harmless:
//!
//! - One `mremap` replaces them all at once, for every thread, wherever it is: only whole instructions are replaced, by whole ones.
//! - The kernel finds the places of uprobes by the mapped file. The copy is of another file, so nobody's probe is ever written into a
//!   jump or taken out of one, whoever was killed.

mod descriptors;
pub mod image;
pub mod inject;
pub mod layout;
mod lock;
mod room;

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use self::{
    image::Image,
    inject::{
        NotMade, PATIENCE, PATIENCE_TO_CLOSE, make_calls,
        stub::{Argument, SystemCall, own_descriptors},
    },
    layout::{Code, Layout, PAGE},
    lock::{Lock, Use},
};
use crate::{
    model::{Address, AddressRange},
    plan::gate::{GatePlan, malloc_slot, plan_gate, throwing, uses},
    report::human::printable,
    target::{GATE_FILE, MappedObject, Mapping, Permissions, Target},
};

/// The sampler's word that is changed to make it forget its blocks.
const GENERATION: &str = "tracer_sampler_generation";

/// An open gate.
#[derive(Debug)]
pub struct OpenGate<'a> {
    target: &'a Target,
    /// The longest time that a thread of the process was held to open it.
    pub held: Duration,
    /// Nobody else opens or closes one of this process meanwhile.
    _lock: Lock,
}

/// Opens a gate in a process. One that a tracer left which was killed is taken over.
///
/// # Errors
/// One line that says why not. Then nothing in the process has changed, but for memory that nobody uses.
pub fn open(target: &Target) -> Result<OpenGate<'_>> {
    let mut lock = lock(target)?;
    refuse(target)?;
    // First of all: the code that another one has left may be about to open or close a gate.
    let objects = target.objects_among(&target.mappings()?, |_| true).opened;
    inject::clear(target, &objects).with_context(|| cannot("opened", target))?;
    let image = Image::embedded()?;
    let left = Found::look(target)?.filter(|left| left.is_open);
    let closed = left.map_or(Ok(Duration::ZERO), |left| left.close(target))?;
    let (object, plan) = choose(target, &objects)?;
    let (offset, length) = layout::span(&plan)?;
    let mut pages = vec![0; usize::try_from(length)?];
    object.file.read_exact_at(&mut pages, offset).context("the code of its allocator cannot be read")?;
    let place = object.address_of(offset).context("the code of its allocator is not mapped")?;
    let bias = bias(object, &plan).context("the code of its allocator is not mapped")?;
    let code = Code { plan: &plan, bias, place, pages: &pages };
    let memory = target.open_memory().context("its memory cannot be read")?;
    ensure!(
        has(&memory, place, &pages)?,
        "the code of {} is not as in its file: another tool has a probe or a breakpoint there",
        object.name()
    );
    room::check(target)?;
    // Before anything is mapped.
    check_whole(target, &[code.place_range()]).with_context(|| cannot("opened", target))?;
    room::check_unlocked(target, &[code.place_range()])?;
    let close = map_again(code.place, code.place, pages.len() as u64);
    inject::check_room(target, &objects, &[close], code.place_range())
        .with_context(|| cannot("opened", target))?;
    let (gate, put_in) = match Found::look(target)? {
        Some(left) if left.is_of(target, &image, &code)? => {
            left.forget_blocks(&image, &memory)?;
            (left.layout, Duration::ZERO)
        }
        _ => put_in(target, &objects, &image, &code, &mut lock)?,
    };
    room::check(target)?;
    let park = map_again(gate.place, gate.parked, gate.length);
    let replace = map_again(gate.copy(), gate.place, gate.length);
    let ranges = [gate.place_range(), gate.parked_range(), gate.copy_range()];
    check_whole(target, &ranges).with_context(|| cannot("opened", target))?;
    room::check_unlocked(target, &ranges).with_context(|| cannot("opened", target))?;
    let replaced = make_calls(target, &objects, &[park, replace], gate.place_range(), PATIENCE)
        .map_err(|why| match why {
            // It may be open in a moment, and nobody would close it.
            NotMade::Late | NotMade::Io { .. } if remove_locked(target).is_err() => {
                to_be_removed(target, &why.into())
            }
            why => too_old(why),
        })
        .with_context(|| cannot("opened", target))?;
    let is_open = Found::look(target)?.is_some_and(|found| found.is_open && found.layout == gate);
    ensure!(is_open, "{}: its mappings are not as they should be", cannot("opened", target));
    Ok(OpenGate { target, held: closed.max(put_in).max(replaced), _lock: lock })
}

/// The one call here that a kernel may not know.
fn too_old(error: NotMade) -> anyhow::Error {
    match &error {
        NotMade::Refused(refused) if refused.raw_os_error() == Some(libc::EINVAL) => {
            anyhow!("the kernel cannot map code again in another place: that needs Linux 5.13")
        }
        _ => error.into(),
    }
}

fn cannot(what: &str, target: &Target) -> String {
    format!("the gate of {} ({}) cannot be {what}", printable(target.comm()), target.pid())
}

/// Whether the process is gone. A process of which the first thread alone has ended shows nothing of its memory either.
fn has_no_memory(target: &Target) -> bool {
    /// So long a large process takes to end, after it has let go of its memory.
    const TO_END: Duration = Duration::from_secs(3);
    let since = Instant::now();
    while !target.has_exited() && target.mappings_with_gate().is_ok_and(|mappings| mappings.is_empty()) {
        if since.elapsed() > TO_END {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    target.has_exited()
}

fn executes_another_program(target: &Target) -> bool {
    let is_of_gate = |mapping: &Mapping| mapping.is_named(GATE_FILE);
    target.mappings_with_gate().is_ok_and(|mappings| !mappings.is_empty() && !mappings.iter().any(is_of_gate))
}

/// What to do about a gate that stays open.
fn to_be_removed(target: &Target, why: &anyhow::Error) -> anyhow::Error {
    let pid = target.pid();
    anyhow!("{why:#}; it counts bytes, and nothing else, until `tracer gate --remove --pid {pid}` closes it")
}

impl OpenGate<'_> {
    /// Closes it: the process has the code of its files again. The sampler stays mapped, since a thread may be in it, and is used again
    /// by the next gate. How long a thread was held for that; none when there is none to close: the process has ended, or executes
    /// another program.
    ///
    /// # Errors
    /// When it could not be closed; then it counts bytes, and nothing else.
    pub fn close(self) -> Result<Option<Duration>> {
        if has_no_memory(self.target) {
            return Ok(None);
        }
        let closed = Found::look(self.target).and_then(|found| {
            let open = found.filter(|found| found.is_open);
            open.map(|found| found.close(self.target)).transpose()
        });
        match closed {
            Err(_) if executes_another_program(self.target) || has_no_memory(self.target) => Ok(None),
            closed => closed.map_err(|why| to_be_removed(self.target, &why)),
        }
    }
}

/// Closes a gate that a tracer left which was killed, and takes away its code. How long a thread was held for that; none when there was no gate.
///
/// # Errors
/// When another tracer has it, or it cannot be closed.
pub fn remove(target: &Target) -> Result<Option<Duration>> {
    let _lock = lock(target)?;
    remove_locked(target)
}

fn remove_locked(target: &Target) -> Result<Option<Duration>> {
    // First, since it may be about to open one.
    inject::clear(target, &target.objects()?.opened).with_context(|| cannot("removed", target))?;
    let left = Found::look(target)?.filter(|found| found.is_open);
    left.map(|found| found.close(target)).transpose()
}

/// Keeps the gate as it is that a process has open, left by a tracer that was killed or taken along from its parent. None if none is open.
///
/// # Errors
/// When another tracer has it, and so will close it.
pub fn keep_open(target: &Target) -> Result<Option<KeptOpen>> {
    if !target.has_open_gate() {
        return Ok(None);
    }
    let mut lock = Lock::default();
    lock_memory(target, &mut lock, Use::Read)?;
    Ok(Some(KeptOpen { _lock: lock }))
}

/// As long as this is there nobody closes the gate.
#[derive(Debug)]
pub struct KeptOpen {
    _lock: Lock,
}

/// What a gate would do in a process, as text.
///
/// # Errors
/// One line that says why it would not be opened.
pub fn plan_of(target: &Target) -> Result<String> {
    let objects = target.objects()?.opened;
    let (object, plan) = choose(target, &objects)?;
    let mut text = format!("{}\n{plan}", object.path.display());
    if let Err(why) = refuse(target) {
        text += &format!("\nrefused: {why:#}\n");
    }
    Ok(text)
}

/// The file with the allocator that the process uses.
fn choose<'a>(target: &Target, objects: &'a [MappedObject]) -> Result<(&'a MappedObject, GatePlan)> {
    let (mut libc, mut others, mut refused) = (None, Vec::new(), None);
    for object in objects {
        let name = object.name();
        // The loader has a `malloc` for itself (glibc before 2.34); a gate's sampler has one, too.
        let is_loader = name.starts_with("ld-") && !name.starts_with("ld-musl");
        if is_loader || object.is_gate() {
            continue;
        }
        let bytes = object.bytes().with_context(|| format!("{name} cannot be read"))?;
        match plan_gate(&bytes) {
            Ok(None) => {}
            Ok(Some(plan)) if ["libc.", "libc-", "ld-musl"].iter().any(|libc| name.starts_with(libc)) => {
                let another = libc.replace((object, plan));
                ensure!(another.is_none(), "it has two C libraries, and a gate can be in one only");
            }
            Ok(Some(plan)) => others.push((object, plan)),
            Err(why) => refused = Some(anyhow!("{name}: {why}")),
        }
    }
    if let Some(why) = refused {
        return Err(why);
    }
    ensure!(others.len() < 2, "it has several allocators, and nobody can say which of them it uses");
    let other = others.pop();
    if let (Some((libc, plan)), Some((other, _))) = (&libc, &other) {
        check_only_one_is_used(target, libc, plan, other)?;
    }
    let chosen = other.or(libc);
    let (object, plan) = chosen.context("it has no malloc, calloc, realloc and free in one file")?;
    let first = plan.functions.first().context("it has no function")?;
    let places = object.segments.iter().filter(|segment| segment.address_of(first.file_offset).is_some());
    ensure!(
        places.count() < 2,
        "it has loaded {} twice (dlmopen), and a gate can be in one only",
        object.name()
    );
    if target.is_program(object)
        && let Some(operator) = plan.excluded.iter().find_map(|name| throwing(name))
    {
        bail!("{} has an {operator} that does not call its malloc, which a gate cannot be in", object.name());
    }
    let is_part_of_cxx = |name: &str| ["libstdc++", "libc++"].iter().any(|library| name.starts_with(library));
    for caller in objects.iter().filter(|caller| caller.id != object.id && !is_part_of_cxx(&caller.name())) {
        let bytes = caller.bytes().with_context(|| format!("{} cannot be read", caller.name()))?;
        if let Some(function) = uses(&bytes, &plan.excluded) {
            bail!("{} uses {function} of {}, which a gate cannot be in", caller.name(), object.name());
        }
    }
    Ok((object, plan))
}

/// A library may have an allocator that it uses alone. The one that all use is the one that the C library calls, too.
fn check_only_one_is_used(
    target: &Target,
    libc: &MappedObject,
    plan: &GatePlan,
    other: &MappedObject,
) -> Result<()> {
    let bytes = libc.bytes().with_context(|| format!("{} cannot be read", libc.name()))?;
    let Some((slot, bias)) = malloc_slot(&bytes).zip(bias(libc, plan)) else { return Ok(()) };
    let memory = target.open_memory().context("its memory cannot be read")?;
    let mut word = [0; 8];
    memory.read_exact_at(&mut word, bias.wrapping_add(slot)).context("its memory cannot be read")?;
    let malloc = plan.functions.iter().find(|function| function.name == "malloc");
    let own = malloc.map(|malloc| bias.wrapping_add(malloc.site.svma));
    // What is bound at the first call is not bound yet.
    ensure!(
        own != Some(u64::from_le_bytes(word)),
        "{} has an allocator of its own beside the C library's, and a gate can be in one only",
        other.name()
    );
    Ok(())
}

/// Address in the process less address in the file.
fn bias(object: &MappedObject, plan: &GatePlan) -> Option<u64> {
    let first = plan.functions.first()?;
    Some(object.address_of(first.file_offset)?.0.wrapping_sub(first.site.address()))
}

/// What can be known beforehand.
fn refuse(target: &Target) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "a gate needs x86_64");
    let status = target.read("status").context("its status cannot be read")?;
    let status = String::from_utf8_lossy(&status);
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if let Some(tracer) = field("TracerPid:").filter(|&tracer| tracer != "0") {
        bail!("process {tracer} traces it (gdb, strace): only one can at a time");
    }
    ensure!(
        field("Seccomp:") != Some("1"),
        "its system calls are restricted to read and write (seccomp's strict mode)"
    );
    // The thread that makes the calls gets one, which may be where the gate is to go.
    ensure!(
        !field("x86_Thread_features:").is_some_and(|features| features.contains("shstk")),
        "it has shadow stacks, with which a gate was not tried"
    );
    match field("State:").and_then(|state| state.chars().next()) {
        Some('T' | 't') => bail!("it is stopped: continue it with `kill -CONT {}`", target.pid()),
        Some('Z' | 'X') => bail!("it has ended"),
        _ => Ok(()),
    }
}

fn lock(target: &Target) -> Result<Lock> {
    let mut lock = Lock::of(target)?;
    lock_memory(target, &mut lock, Use::Change)?;
    Ok(lock)
}

fn lock_memory(target: &Target, lock: &mut Lock, how: Use) -> Result<()> {
    let Some(found) = Found::look(target)? else { return Ok(()) };
    let mapping =
        target.mappings_with_gate()?.into_iter().find(|mapping| mapping.start == found.layout.image);
    // Without the right to open it no gate can be put in. One that was left can be closed.
    let memory = mapping.and_then(|mapping| {
        open_mapped(target, &mapping, fs::OpenOptions::new().read(true).write(true)).ok()
    });
    memory.map_or(Ok(()), |memory| lock.memory(target, memory, how))
}

fn has(memory: &File, at: Address, bytes: &[u8]) -> Result<bool> {
    let mut there = vec![0; bytes.len()];
    memory.read_exact_at(&mut there, at.0).context("its memory cannot be read")?;
    Ok(there == bytes)
}

const fn number(value: u64) -> Argument {
    Argument::Number(value)
}

/// Maps what is at one address at another one, too, in place of what is there. What was read of the file stays readable at both: the
/// pages move, and those at the old address come from the file again (`MREMAP_DONTUNMAP`, Linux 5.13 for files).
fn map_again(from: Address, to: Address, length: u64) -> SystemCall {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    SystemCall {
        number: libc::SYS_mremap,
        arguments: [
            number(from.0),
            number(length),
            number(length),
            number(flags as u64),
            number(to.0),
            number(0),
        ],
    }
}

/// What is replaced, and what replaces it, must each be one mapping: of several the kernel maps none again, and may unmap what it was to
/// replace before it sees that (`mremap`, before Linux 6.17).
fn check_whole(target: &Target, ranges: &[AddressRange]) -> Result<()> {
    let mappings = target.mappings_with_gate()?;
    let is_whole = |range: &AddressRange| {
        mappings.iter().any(|mapping| mapping.start <= range.start && range.end <= mapping.end)
    };
    let is_so = ranges.iter().all(is_whole);
    ensure!(
        is_so,
        "the pages of its allocator are several mappings (by mlock, madvise or mprotect on a part of them)"
    );
    Ok(())
}

/// Maps the gate's file, and fills it.
fn put_in(
    target: &Target,
    objects: &[MappedObject],
    image: &Image<'_>,
    code: &Code<'_>,
    lock: &mut Lock,
) -> Result<(Layout, Duration)> {
    /// The program maps memory meanwhile, and may take the range that was free.
    const TRIES: usize = 5;
    let mappings = target.mappings_with_gate()?;
    let allocator =
        mappings.iter().find(|mapping| mapping.range().intersection(code.place_range()).is_some());
    // Before anything is mapped.
    descriptors::check(target).with_context(|| cannot("opened", target))?;
    open_mapped(
        target,
        allocator.context("its allocator is not mapped")?,
        fs::OpenOptions::new().read(true),
    )?;
    let mut tries = 1..=TRIES;
    let (layout, held) = loop {
        let layout = layout::place(image, code, &target.mappings_with_gate()?)?;
        match make_calls(target, objects, &calls(&layout, image), layout.place_range(), PATIENCE) {
            Ok(held) => break (layout, held),
            Err(NotMade::Refused(error))
                if error.raw_os_error() == Some(libc::EEXIST) && tries.next().is_some() => {}
            Err(error) => return Err(error).with_context(|| cannot("put in", target)),
        }
    };
    let content = layout::content(image, code, &layout, seed()?)?;
    let mapping = target.mappings_with_gate()?.into_iter().find(|mapping| mapping.start == layout.image);
    let mapping =
        mapping.filter(|mapping| mapping.is_named(GATE_FILE)).context("the gate's memory is not there")?;
    let mut file = open_mapped(target, &mapping, fs::OpenOptions::new().read(true).write(true))?;
    file.write_all(&content).context("the gate's memory cannot be written")?;
    lock.memory(target, file, Use::Change)?;
    Ok((layout, held))
}

/// Opens the very file that is mapped.
fn open_mapped(target: &Target, mapping: &Mapping, options: &fs::OpenOptions) -> Result<File> {
    let link = format!("/proc/{}/map_files/{:x}-{:x}", target.pid(), mapping.start.0, mapping.end.0);
    let file = options.open(link);
    file.context("the gate's memory cannot be written (that needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE)")
}

fn seed() -> Result<u64> {
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(seed))
}

fn calls(layout: &Layout, image: &Image<'_>) -> Vec<SystemCall> {
    let mmap = |at: u64, bytes: u64, protection: i32, flags: i32, file| SystemCall {
        number: libc::SYS_mmap,
        arguments: [
            number(at),
            number(bytes),
            number(protection as u64),
            number(flags as u64),
            file,
            number(0),
        ],
    };
    let name = SystemCall {
        number: libc::SYS_memfd_create,
        arguments: [
            Argument::Text(GATE_FILE.strip_prefix("/memfd:").unwrap_or(GATE_FILE)),
            number(libc::MFD_CLOEXEC.into()),
            number(0),
            number(0),
            number(0),
            number(0),
        ],
    };
    let code = libc::PROT_READ | libc::PROT_EXEC;
    let free = libc::MAP_FIXED_NOREPLACE;
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | free;
    let mut calls = vec![
        own_descriptors(),
        name,
        // First what a security module may refuse: then nothing is left.
        mmap(layout.image.0, layout.file_bytes, code, libc::MAP_PRIVATE | free, Argument::Descriptor),
        mmap(layout.parked.0, layout.length, libc::PROT_NONE, anonymous, number(u64::MAX)),
    ];
    calls.extend(image.writable().iter().map(|range| SystemCall {
        number: libc::SYS_mprotect,
        arguments: [
            number(layout.image.0 + range.start),
            number(range.end - range.start),
            number((libc::PROT_READ | libc::PROT_WRITE) as u64),
            number(0),
            number(0),
            number(0),
        ],
    }));
    calls
}

/// A gate that is in a process.
#[derive(Clone, Copy, Debug)]
struct Found {
    layout: Layout,
    is_open: bool,
}

impl Found {
    fn look(target: &Target) -> Result<Option<Self>> {
        let mappings = target.mappings_with_gate()?;
        ensure!(!mappings.is_empty(), "its memory is not shown any more: its first thread has ended");
        let parts: Vec<&Mapping> = mappings.iter().filter(|mapping| mapping.is_named(GATE_FILE)).collect();
        if parts.is_empty() {
            return Ok(None);
        }
        let memory = target.open_memory().context("its memory cannot be read")?;
        // The last one that was put in.
        for first in parts.iter().rev().filter(|mapping| mapping.file_offset == 0) {
            let of_file = || parts.iter().filter(|part| part.inode == first.inode);
            let mut end = first.start;
            for part in of_file().filter(|part| part.start >= first.start) {
                if part.start == end {
                    end = part.end;
                }
            }
            let mut header = vec![0; PAGE as usize];
            let at = Address(first.start.0 + Layout::header_offset(end.0 - first.start.0));
            if memory.read_exact_at(&mut header, at.0).is_err() {
                continue;
            }
            if let Some(layout) = Layout::parse(&header).filter(|layout| layout.image == first.start) {
                let is_open = of_file().any(|part| part.start == layout.place);
                return Ok(Some(Self { layout, is_open }));
            }
        }
        Ok(None)
    }

    fn close(&self, target: &Target) -> Result<Duration> {
        room::check(target).with_context(|| cannot("closed", target))?;
        let objects = target.objects()?.opened;
        let Layout { parked, place, length, .. } = self.layout;
        let place_range = self.layout.place_range();
        check_whole(target, &[place_range, self.layout.parked_range()])
            .with_context(|| cannot("closed", target))?;
        let held =
            make_calls(target, &objects, &[map_again(parked, place, length)], place_range, PATIENCE_TO_CLOSE)
                .with_context(|| cannot("closed", target))?;
        ensure!(
            !Self::look(target)?.is_some_and(|found| found.is_open),
            "{}: its mappings are not as they should be",
            cannot("closed", target)
        );
        Ok(held)
    }

    /// Those that were sampled before are not live blocks of the next recording: their releases were not seen.
    fn forget_blocks(&self, image: &Image<'_>, memory: &File) -> Result<()> {
        let offset = image.word(GENERATION).context("the sampler counts no generations")?;
        let at = self.layout.image.0 + offset;
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, at).context("the gate's memory cannot be read")?;
        let next = u64::from_le_bytes(word).wrapping_add(1);
        memory.write_all_at(&next.to_le_bytes(), at).context("the gate's memory cannot be written")
    }

    /// Whether it is what this tracer would put in for this code, and is where its header says.
    fn is_of(&self, target: &Target, image: &Image<'_>, code: &Code<'_>) -> Result<bool> {
        let layout = self.layout;
        if layout.place != code.place || layout.length != code.pages.len() as u64 {
            return Ok(false);
        }
        // The program may have unmapped it, or a kernel that could not map the original pages again.
        let mappings = target.mappings_with_gate()?;
        let at = |address| mappings.iter().find(|mapping| mapping.start <= address && address < mapping.end);
        let offset =
            |mapping: &Mapping, address: Address| mapping.file_offset + (address.0 - mapping.start.0);
        let (Some(place), Some(parked), Some(copy)) =
            (at(layout.place), at(layout.parked), at(layout.copy()))
        else {
            return Ok(false);
        };
        let is_reserved = parked.inode == 0 && parked.permissions == Permissions::default();
        let is_original = (parked.device, parked.inode) == (place.device, place.inode)
            && offset(parked, layout.parked) == offset(place, layout.place);
        if parked.end != layout.image
            || !(is_reserved || is_original)
            || !copy.is_named(GATE_FILE)
            || offset(copy, layout.copy()) != layout.copy_offset
        {
            return Ok(false);
        }
        let Ok(content) = layout::content(image, code, &layout, 0) else { return Ok(false) };
        let memory = target.open_memory().context("its memory cannot be read")?;
        let mut start = 0;
        // What the program writes is between what it executes.
        let end = std::iter::once(layout.file_bytes..layout.file_bytes);
        for range in image.writable().iter().cloned().chain(end) {
            let constant = &content[start as usize..range.start as usize];
            if !has(&memory, Address(layout.image.0 + start), constant)? {
                return Ok(false);
            }
            start = range.end;
        }
        Ok(true)
    }
}
