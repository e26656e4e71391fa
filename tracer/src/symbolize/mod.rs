//! Stage 6: from addresses to frames, as soon as a stack is first seen, while its code is mapped.
//!
//! # Files, not the process
//! A target can exit, unload a library, or replace its files at any moment, and its pid can be given to another
//! process. blazesym's own process source reads `/proc/PID` anew for each request, so a stack of a process that is
//! gone cannot be named. Here the *files* of the executable mappings are opened when a mapping is first seen (through
//! `/proc/PID/map_files`, which works for deleted files and in any mount namespace) and kept open; an address becomes
//! a file offset, that an address as the file states it (svma), and blazesym is asked about the file alone.
//! What has been unmapped is remembered until something else is mapped over it.
//!
//! # Never a guess
//! Each source of names is bounded by what it claims to cover: debug information by its ranges, symbols by their size,
//! perf maps by theirs. Where none covers an address, the frame says `module+0xoffset`.
//!
//! The order of the sources: debug information (in the object, or in a separate debug file found by build id or debug
//! link in the target's root or the tracer's), the symbol tables of the object, the perf map of the target.

mod debug_file;
mod demangle;
mod exports;
mod mappings;
mod object_file;
mod perf_map;
mod pool;
mod process;
mod worker;

#[cfg(test)]
mod tests;

pub use self::worker::{Names, Worker};

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::mappings::{AddressSpace, FileId, Mapping, Region};
use self::object_file::{Function, ObjectFile};
use self::perf_map::PerfMap;
use self::pool::FramePool;
use self::process::Process;
use crate::model::{Address, Frame, Pid};

/// Frames that are kept, in each of two generations. A frame takes about 500 bytes with its names; stacks share them.
const CACHED_FRAMES: usize = 32 << 10;

/// Regions that are no longer mapped and still remembered, before all of them are forgotten.
const REMEMBERED_REGIONS: usize = 4096;

/// An address that is nowhere mapped may belong to a library loaded just now, but broken stacks are full of such
/// addresses: reading the mappings again for their sake takes at most one part in this many of the time.
const REREAD_SHARE: u32 = 20;

/// Names the code of one traced process. See the [module's documentation](self).
///
/// Not `Send`, as blazesym is not: it lives on the thread that made it.
pub struct Symbolizer {
    process: Option<Process>,
    space: AddressSpace<Rc<Module>>,
    modules: HashMap<(Option<FileId>, PathBuf), Rc<Module>>,
    perf_map: PerfMap,
    frames: FrameCache,
    pool: FramePool,
    read: MappingsRead,
}

/// When the mappings were last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MappingsRead {
    /// Not since they changed.
    No,
    /// Then, and it took that long.
    At(Instant, Duration),
}

/// Code that the target has, or had, mapped: what other stages and reports want to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedModule<'a> {
    /// Where it is mapped.
    pub range: Range<Address>,
    /// Offset in the file of the first byte of `range`.
    pub file_offset: u64,
    /// Its path below the target's root, or the mapping's name; empty for anonymous memory.
    pub path: &'a Path,
    /// Its build id, in hex.
    pub build_id: Option<&'a str>,
}

/// What a mapping shows.
struct Module {
    name: String,
    path: PathBuf,
    build_id: Option<String>,
    /// Whether it shows a file, so that offsets into it mean something.
    is_file: bool,
    object: Option<ObjectFile>,
}

impl Symbolizer {
    /// A symbolizer for process `pid`, which it identifies now and reads only when there is something to name.
    /// It can do nothing for a process that does not exist.
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        let process = Process::open(pid);
        Self {
            process: process.inspect_err(|error| log::debug!("cannot open process {pid}: {error}")).ok(),
            space: AddressSpace::default(),
            modules: HashMap::new(),
            perf_map: PerfMap::default(),
            frames: FrameCache::default(),
            pool: FramePool::default(),
            read: MappingsRead::No,
        }
    }

    /// The frames of one stack of return addresses, leaf first: for each address the functions inlined there,
    /// innermost first, then the function they are in. What cannot be named is a frame with module and offset, or
    /// with nothing but its address.
    pub fn symbolize(&mut self, addresses: &[Address]) -> Vec<Arc<Frame>> {
        self.read_mappings(addresses);
        let mut frames = Vec::with_capacity(addresses.len());
        let mut perf_map_is_current = false;
        for &address in addresses {
            let found =
                self.frames.get(address).unwrap_or_else(|| self.look_up(address, &mut perf_map_is_current));
            frames.extend_from_slice(&found);
        }
        frames
    }

    /// The target has mapped or unmapped code: what was derived from mappings that are replaced is not used any more.
    pub fn mappings_changed(&mut self) {
        self.read = MappingsRead::No;
    }

    /// Every executable mapping, by address; those that are gone included, unless something else is there now.
    pub fn modules(&self) -> impl Iterator<Item = MappedModule<'_>> {
        self.space.iter().map(|(range, region)| MappedModule {
            file_offset: region.file_offset(range.start),
            range: Address(range.start)..Address(range.end),
            path: &region.module.path,
            build_id: region.module.build_id.as_deref(),
        })
    }

    fn look_up(&mut self, address: Address, perf_map_is_current: &mut bool) -> Rc<[Arc<Frame>]> {
        let mut frame = Frame { ip: address, ..Frame::default() };
        // A return address can be the first one after its function, or even its mapping: look at the call.
        let (Some(call), Some(process)) = (address.0.checked_sub(1), &self.process) else {
            return Rc::new([self.pool.share(frame)]);
        };
        if let Some(region) = self.space.find(call) {
            frame = region.module.frame(frame, region, call);
            let functions = region.module.functions(region, call, process);
            if !functions.is_empty() {
                let named = functions.into_iter().map(|function| self.pool.share(name(&frame, function)));
                let frames: Rc<[Arc<Frame>]> = named.collect();
                self.frames.insert(address, &frames);
                return frames;
            }
        }
        // From here on nothing is kept: the runtime can put other code there without mapping anything.
        if !std::mem::replace(perf_map_is_current, true) {
            self.perf_map.update(process);
        }
        if let Some(name) = self.perf_map.find(call) {
            frame.function = Some(name.to_owned());
            frame.language = Some("jit".to_owned());
        }
        Rc::new([self.pool.share(frame)])
    }

    /// Makes the mappings current, if they have changed or do not cover `addresses`.
    fn read_mappings(&mut self, addresses: &[Address]) {
        let Some(process) = &self.process else { return };
        let covers = |address: &Address| self.space.find(address.0.saturating_sub(1)).is_some();
        match self.read {
            MappingsRead::At(..) if addresses.iter().all(covers) => return,
            MappingsRead::At(at, took) if at.elapsed() < took * REREAD_SHARE => return,
            MappingsRead::At(..) | MappingsRead::No => {}
        }
        let start = Instant::now();
        match process.maps() {
            Ok(maps) => self.enter(mappings::parse(&maps)),
            Err(error) => log::debug!("cannot read the mappings: {error}"),
        }
        self.read = MappingsRead::At(Instant::now(), start.elapsed());
    }

    fn enter(&mut self, mappings: impl Iterator<Item = Mapping>) {
        let mut present = AddressSpace::default();
        let mut changed = false;
        for mapping in mappings {
            let Some(module) = self.module(&mapping) else { return };
            present.map(&mapping, Rc::clone(&module));
            changed |= self.space.map(&mapping, module);
        }
        if self.space.len() > present.len() + REMEMBERED_REGIONS {
            (self.space, changed) = (present, true);
        }
        if changed {
            self.frames = FrameCache::default();
        }
        self.modules.retain(|_, module| Rc::strong_count(module) > 1);
    }

    /// The module that `mapping` shows, opened if need be. A file can be gone before it is opened, and come back.
    fn module(&mut self, mapping: &Mapping) -> Option<Rc<Module>> {
        let process = self.process.as_ref()?;
        let key = (mapping.file, mapping.path.clone());
        let known = self.modules.get(&key);
        if let Some(module) = known.filter(|module| module.object.is_some() || !module.is_file) {
            return Some(Rc::clone(module));
        }
        let module = Module::open(mapping, process);
        match known {
            Some(known) if module.object.is_none() => Some(Rc::clone(known)),
            _ => {
                let module = Rc::new(module);
                self.modules.insert(key, Rc::clone(&module));
                Some(module)
            }
        }
    }
}

/// A module is one file, opened: equal to itself only.
impl PartialEq for Module {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Module {
    fn open(mapping: &Mapping, process: &Process) -> Self {
        let path = process.path_below_root(mapping);
        let file = match mapping.file {
            Some(id) => Some(process.open_mapped(mapping, id)),
            None if mapping.path == Path::new("[vdso]") => Some(process.copy_vdso(&mapping.range)),
            None => None,
        };
        let object = file.and_then(|file| {
            let object = file.and_then(|file| ObjectFile::open(file, path.clone()));
            object.inspect_err(|error| log::debug!("no symbols for {}: {error}", mapping.path.display())).ok()
        });
        Self {
            name: mapping.module_name(),
            build_id: object.as_ref().and_then(ObjectFile::build_id),
            is_file: mapping.file.is_some() || object.is_some(),
            object,
            path,
        }
    }

    fn functions(&self, region: &Region<Rc<Module>>, address: u64, process: &Process) -> Vec<Function> {
        let Some(object) = &self.object else { return Vec::new() };
        let svma = object.svma(region.file_offset(address));
        svma.map(|svma| object.functions(svma, process)).unwrap_or_default()
    }

    /// What a frame at the call at `call` says of its module.
    fn frame(&self, frame: Frame, region: &Region<Rc<Module>>, call: u64) -> Frame {
        let file_offset = region.file_offset(call);
        // A file that is not ELF states no addresses but offsets.
        let offset = self.object.as_ref().and_then(|object| object.svma(file_offset)).unwrap_or(file_offset);
        Frame {
            module: Some(self.name.clone()),
            build_id: self.build_id.clone(),
            offset: self.is_file.then(|| format!("{:#x}", offset.wrapping_add(1))),
            ..frame
        }
    }
}

fn name(base: &Frame, function: Function) -> Frame {
    Frame {
        function: Some(function.name.text),
        language: function.name.language.map(str::to_owned),
        file: function.file,
        line: function.line,
        inlined: function.inlined,
        ..base.clone()
    }
}

/// The frames of recently seen addresses: those of one generation, and those of the one before. Stacks share most of
/// their addresses, so the addresses in use survive.
#[derive(Default)]
struct FrameCache {
    new: HashMap<Address, Rc<[Arc<Frame>]>>,
    old: HashMap<Address, Rc<[Arc<Frame>]>>,
    /// How many frames `new` holds.
    frames: usize,
}

impl FrameCache {
    fn get(&mut self, address: Address) -> Option<Rc<[Arc<Frame>]>> {
        if let Some(frames) = self.new.get(&address) {
            return Some(Rc::clone(frames));
        }
        let frames = self.old.remove(&address)?;
        self.insert(address, &frames);
        Some(frames)
    }

    fn insert(&mut self, address: Address, frames: &Rc<[Arc<Frame>]>) {
        if self.frames + frames.len() > CACHED_FRAMES {
            self.old = std::mem::take(&mut self.new);
            self.frames = 0;
        }
        self.frames += frames.len();
        self.new.insert(address, Rc::clone(frames));
    }
}
