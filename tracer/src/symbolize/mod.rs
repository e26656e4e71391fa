//! Stage 6: from addresses to frames, as soon as a stack is first seen, while its code is mapped.
//!
//! # Files, not the process
//! A target can exit, unload a library, or replace its files at any moment, and its pid can be given to another
//! process. blazesym's own process source reads `/proc/PID` anew for each request, so a stack of a process that is
//! gone cannot be named. Here the *files* of the executable mappings are kept open, as `target` opened them when they were first
//! seen; an address becomes a file offset, that an address as the file states it (svma), and blazesym is asked about the file
//! alone.
//!
//! Which file was mapped where is not asked when a stack is named, but was written down when the kernel was given it ([`CodeView`]):
//! a stack is named by the list of mappings that it was walked by, and not at all where there is none.
//!
//! # Never a guess
//! Each source of names is bounded by what it claims to cover: debug information by its ranges, symbols by their size,
//! jitdumps and perf maps by theirs. Where none covers an address, the frame says `module+0xoffset`, with the offset at which the function begins by
//! the frame information that exceptions need, so that all calls in it are one place.
//!
//! The order of the sources: debug information (in the object, or in a separate debug file found by build id or debug
//! link in the target's root or the tracer's), the symbol tables of the object, the target's jitdump, its perf map.

mod debug_file;
mod debuginfod;
mod demangle;
mod exports;
mod jit_code;
mod jit_dump;
mod modules;
mod object_file;
mod perf_map;
mod pool;
mod python_way;
mod runtimes;
mod view;
mod worker;

#[cfg(test)]
mod tests;

pub use self::debuginfod::{Debuginfod, Outcome as DebugFiles, Progress, Watcher, Wish};
pub use self::view::CodeView;
pub use self::worker::{Names, Worker};

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use self::jit_dump::{JitDump, JitFunction};
use self::modules::SharedModules;
use self::object_file::{Function, ObjectFile};
use self::perf_map::PerfMap;
use self::pool::FramePool;
use self::python_way::PythonWay;
use self::runtimes::SeenFrame;
use self::view::{Region, Views};
use crate::drain::{RuntimeFrame, WalkedCode};
use crate::model::{Address, Frame, Pid};
use crate::runtime;
use crate::target::{FileId, MappedObject, Mapping, Target};

/// Frames that are kept, in each of two generations. A frame takes about 500 bytes with its names; stacks share them.
const CACHED_FRAMES: usize = 32 << 10;

/// The largest vDSO that is believed; real ones are 8 to 16 KiB.
const VDSO_LIMIT: u64 = 1 << 20;

/// Names the code of one traced process. See the [module's documentation](self).
///
/// Not `Send`, as blazesym is not: it lives on the thread that made it.
struct Symbolizer {
    /// None of a process that was gone before it was looked at: its files name its stacks.
    target: Option<Arc<Target>>,
    views: Views<Rc<Module>>,
    modules: HashMap<(Option<FileId>, OsString), Rc<Module>>,
    shared: SharedModules,
    jit_dump: JitDump,
    perf_map: PerfMap,
    /// Whether frames stay that only say how a runtime works.
    native_frames: bool,
    /// Whether its Python has them in its loop.
    has_tail_calls: bool,
    frames: FrameCache,
    pool: FramePool,
}

/// What a mapping shows.
struct Module {
    /// Unlike any other's, past ones included.
    number: u64,
    name: String,
    build_id: Option<String>,
    /// Whether it shows a file, so that offsets into it mean something.
    is_file: bool,
    object: Option<ObjectFile>,
}

impl Symbolizer {
    /// A symbolizer for process `pid`, which it identifies now.
    fn new(pid: Pid, shared: &SharedModules, native_frames: bool) -> Self {
        Self::of(open(pid), shared, native_frames)
    }

    /// A symbolizer for a process.
    fn of(target: Option<Arc<Target>>, shared: &SharedModules, native_frames: bool) -> Self {
        Self {
            target,
            views: Views::default(),
            modules: HashMap::new(),
            shared: shared.clone(),
            jit_dump: JitDump::default(),
            perf_map: PerfMap::default(),
            native_frames,
            has_tail_calls: false,
            frames: FrameCache::default(),
            pool: FramePool::default(),
        }
    }

    /// A symbolizer for a child of the process, which has the same code. When the child is gone already its stacks are those of its
    /// parent's code.
    fn fork(&self, child: Pid) -> Self {
        Self {
            target: open(child).or_else(|| self.target.clone()),
            views: self.views.clone(),
            modules: self.modules.clone(),
            shared: self.shared.clone(),
            jit_dump: JitDump::default(),
            perf_map: PerfMap::default(),
            native_frames: self.native_frames,
            has_tail_calls: self.has_tail_calls,
            frames: FrameCache::default(),
            pool: FramePool::default(),
        }
    }

    /// The frames of one stack, leaf first, by what was mapped when it was walked: for each address the
    /// functions inlined there, innermost first, then the function they are in. What cannot be named is a frame with
    /// module and offset, or with nothing but its address.
    fn symbolize(&mut self, frames: &[SeenFrame], walked: WalkedCode) -> Vec<Arc<Frame>> {
        let last = frames.len().saturating_sub(1);
        let find = |(index, frame): (usize, &SeenFrame)| {
            self.views.find(call(frame.walked.address), walked, walked.last_is_unknown && index == last)
        };
        let regions: Vec<_> = frames.iter().enumerate().map(find).collect();
        self.name(frames, &regions)
    }

    /// From now on stacks can come that were walked by this.
    fn add_code(&mut self, view: &CodeView) {
        self.has_tail_calls =
            view.runtimes.python.as_ref().is_some_and(|python| python.build.has_tail_calls());
        self.jit_dump.look_for(&view.code, self.target.as_deref());
        let region = |mapping| Region::new(mapping, self.module(mapping, view.object(mapping)));
        let regions = view.code.iter().map(region).collect();
        self.views.push(view, regions);
        self.modules.retain(|_, module| Rc::strong_count(module) > 1);
    }

    /// The named frames, each in the region of code that is at the call before it.
    fn name(&mut self, seen: &[SeenFrame], regions: &[Option<Region<Rc<Module>>>]) -> Vec<Arc<Frame>> {
        let mut frames = Vec::with_capacity(seen.len());
        let mut jit_is_current = false;
        let way = PythonWay::of(seen, regions, self.has_tail_calls);
        for (index, (frame, region)) in seen.iter().zip(regions).enumerate() {
            let ip = frame.walked.address;
            match (&frame.functions, frame.walked.runtime) {
                // What is known of WebAssembly is in V8's jitdump alone.
                (Some(Ok(functions)), RuntimeFrame::V8Internal(_)) => {
                    let base = functions.first().map(|function| runtime_frame(ip, function));
                    let base = base.unwrap_or_else(|| Frame { ip, ..Frame::default() });
                    self.read_jit(&mut jit_is_current);
                    let named = self.jit_dump.find(call(ip)).map(|function| jit_frame(&base, &function));
                    frames.push(self.pool.share(named.unwrap_or(base)));
                }
                (Some(Ok(functions)), _) => {
                    let is_shown =
                        |function: &&runtime::Function| self.native_frames || !function.is_internal;
                    let shown = functions.iter().filter(is_shown);
                    frames.extend(shown.map(|function| self.pool.share(runtime_frame(ip, function))));
                }
                (Some(Err(_)), of) => {
                    let unread = runtime::Function::unread(of.language());
                    frames.push(self.pool.share(runtime_frame(ip, &unread)));
                }
                (None, RuntimeFrame::V8Internal(_) | RuntimeFrame::PythonLoop) if !self.native_frames => {}
                (None, _) => {
                    let named = self.look_up(ip, region.as_ref(), &mut jit_is_current);
                    let is_way = way.as_ref().is_some_and(|way| way.leads_by(index, &named));
                    if !is_way || self.native_frames || frames.is_empty() {
                        frames.extend_from_slice(&named);
                    }
                }
            }
        }
        frames
    }

    fn look_up(
        &mut self,
        address: Address,
        region: Option<&Region<Rc<Module>>>,
        jit_is_current: &mut bool,
    ) -> Rc<[Arc<Frame>]> {
        let mut frame = Frame { ip: address, ..Frame::default() };
        if address.0 == 0 {
            return Rc::new([self.pool.share(frame)]);
        }
        let call = call(address);
        if let Some(region) = region {
            let key = (address, region.module.number, region.file_offset(call));
            if let Some(frames) = self.frames.get(key) {
                return frames;
            }
            frame = region.module.frame(frame, region, call);
            let functions = region.module.functions(region, call, self.target.as_deref());
            if !functions.is_empty() {
                let named = functions.into_iter().map(|function| self.pool.share(name(&frame, function)));
                let frames: Rc<[Arc<Frame>]> = named.collect();
                self.frames.insert(key, &frames);
                return frames;
            }
        }
        // From here on nothing is kept: the runtime can put other code there without mapping anything.
        self.read_jit(jit_is_current);
        if let Some(function) = self.jit_dump.find(call) {
            frame = jit_frame(&frame, &function);
        } else if let Some(name) = self.perf_map.find(call) {
            frame.function = Some(name.to_owned());
            frame.language = Some(JIT.to_owned());
        } else if let Some(region) = region {
            let begin = region.module.function_begin(region.file_offset(call));
            frame.function_offset = begin.map(|begin| format!("{begin:#x}"));
        }
        Rc::new([self.pool.share(frame)])
    }

    /// Reads what the runtime has written of its code since the last stack.
    fn read_jit(&mut self, is_current: &mut bool) {
        if let Some(target) = &self.target
            && !std::mem::replace(is_current, true)
        {
            self.jit_dump.update();
            self.perf_map.update(target);
        }
    }

    /// Whether frames have no name whose names the runtime may still write: out of a buffer, some time after it made the code.
    fn may_be_named_late(&self, frames: &[Arc<Frame>]) -> bool {
        self.jit_dump.is_there() && frames.iter().any(|frame| is_nameless(frame))
    }

    /// The frames of a stack, seen at that time of `CLOCK_MONOTONIC`, with the names that the runtime has written since then.
    fn name_late(&mut self, frames: &[Arc<Frame>], seen: u64) -> Vec<Arc<Frame>> {
        let frames = frames.iter().map(|frame| {
            let named = is_nameless(frame).then(|| self.jit_dump.find_as_of(call(frame.ip), seen)).flatten();
            let named = named.map(|function| jit_frame(frame, &function));
            named.map_or_else(|| Arc::clone(frame), |named| self.pool.share(named))
        });
        frames.collect()
    }

    /// The module that `mapping` shows, of a file that is open. A file can be gone before it is opened, and come back.
    fn module(&mut self, mapping: &Mapping, object: Option<&MappedObject>) -> Rc<Module> {
        let key = (mapping.file_id(), mapping.name.clone());
        let known = self.modules.get(&key);
        if let Some(module) = known.filter(|module| module.object.is_some() || !module.is_file) {
            return Rc::clone(module);
        }
        let target = self.target.as_deref();
        let module =
            self.shared.get_or(mapping, target, |number| Module::open(mapping, object, target, number));
        match known {
            Some(known) if module.object.is_none() => Rc::clone(known),
            _ => {
                self.modules.insert(key, Rc::clone(&module));
                module
            }
        }
    }
}

fn open(pid: Pid) -> Option<Arc<Target>> {
    let target = Target::open(pid).inspect_err(|error| log::debug!("not looked at for names: {error}"));
    target.ok().map(Arc::new)
}

impl Module {
    fn open(mapping: &Mapping, object: Option<&MappedObject>, target: Option<&Target>, number: u64) -> Self {
        let file = match (object, target) {
            // Opened anew: whoever reads through the other descriptor is not disturbed.
            (Some(object), _) => Some(File::open(object.uprobe_path())),
            (None, Some(target)) if mapping.name == "[vdso]" => Some(copy_vdso(target, mapping)),
            (None, _) => None,
        };
        let shown = PathBuf::from(&mapping.name);
        let object = file.and_then(|file| {
            let path = target.map_or_else(|| shown.clone(), |target| target.own_path(&shown));
            let object = file.and_then(|file| ObjectFile::open(file, path));
            object.inspect_err(|error| log::debug!("no symbols for {}: {error}", shown.display())).ok()
        });
        Self {
            number,
            name: module_name(mapping),
            build_id: object.as_ref().and_then(ObjectFile::build_id),
            is_file: mapping.file_id().is_some() || object.is_some(),
            object,
        }
    }

    fn functions(&self, region: &Region<Rc<Module>>, address: u64, target: Option<&Target>) -> Vec<Function> {
        let Some(object) = &self.object else { return Vec::new() };
        let file_offset = region.file_offset(address);
        if object.returns_from_signal(file_offset + 1) {
            return vec![Function::signal_handler_called()];
        }
        let svma = object.svma(file_offset);
        svma.map(|svma| object.functions(svma, target)).unwrap_or_default()
    }

    /// Where the function that the byte at `file_offset` is in begins.
    fn function_begin(&self, file_offset: u64) -> Option<u64> {
        let object = self.object.as_ref()?;
        object.function_begin(object.svma(file_offset)?)
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

/// What a frame in a mapping calls its module: the file's name, the mapping's name, or `[anon]`.
fn module_name(mapping: &Mapping) -> String {
    match mapping.path().and_then(Path::file_name) {
        Some(file) => file.to_string_lossy().into_owned(),
        None if mapping.name.is_empty() => "[anon]".to_owned(),
        None => mapping.name.to_string_lossy().into_owned(),
    }
}

/// The vDSO, an ELF file that exists in memory only, as a file.
fn copy_vdso(target: &Target, vdso: &Mapping) -> io::Result<File> {
    let mut bytes = vec![0; vdso.len().min(VDSO_LIMIT) as usize];
    target.open_file("mem")?.read_exact_at(&mut bytes, vdso.start.0)?;
    let copy = File::from(rustix::fs::memfd_create("vdso", rustix::fs::MemfdFlags::CLOEXEC)?);
    copy.write_all_at(&bytes, 0)?;
    Ok(copy)
}

/// The frame of a function of a language runtime.
fn runtime_frame(ip: Address, function: &runtime::Function) -> Frame {
    Frame {
        ip,
        function: Some(function.name.clone()),
        file: function.file.clone(),
        line: function.line,
        inlined: function.inlined,
        language: Some(function.language.to_owned()),
        ..Frame::default()
    }
}

/// The language of code of which a runtime says nothing but its name.
const JIT: &str = "jit";

/// The frame of a function that the runtime says it made.
fn jit_frame(base: &Frame, function: &JitFunction<'_>) -> Frame {
    Frame {
        function: Some(function.name.to_owned()),
        language: Some(base.language.clone().unwrap_or_else(|| JIT.to_owned())),
        file: function.place.map(|(file, _)| file.to_owned()),
        line: function.place.map(|(_, line)| line),
        ..base.clone()
    }
}

/// Whether it is code of which its runtime may say more.
fn is_nameless(frame: &Frame) -> bool {
    frame.function.is_none() && frame.build_id.is_none()
        || frame.function.as_deref() == Some(runtime::v8::WASM)
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

/// The address to look at for the frame of a return address, which can be the first one after its function, or even its mapping.
fn call(address: Address) -> u64 {
    address.0.saturating_sub(1)
}

/// An address, and what is there: the number of the module and the offset in its file.
type CodeKey = (Address, u64, u64);

/// The frames of recently seen addresses: those of one generation, and those of the one before. Stacks share most of
/// their addresses, so the addresses in use survive.
#[derive(Default)]
struct FrameCache {
    new: HashMap<CodeKey, Rc<[Arc<Frame>]>>,
    old: HashMap<CodeKey, Rc<[Arc<Frame>]>>,
    /// How many frames `new` holds.
    frames: usize,
}

impl FrameCache {
    fn get(&mut self, key: CodeKey) -> Option<Rc<[Arc<Frame>]>> {
        if let Some(frames) = self.new.get(&key) {
            return Some(Rc::clone(frames));
        }
        let frames = self.old.remove(&key)?;
        self.insert(key, &frames);
        Some(frames)
    }

    fn insert(&mut self, key: CodeKey, frames: &Rc<[Arc<Frame>]>) {
        if self.frames + frames.len() > CACHED_FRAMES {
            self.old = std::mem::take(&mut self.new);
            self.frames = 0;
        }
        self.frames += frames.len();
        self.new.insert(key, Rc::clone(frames));
    }
}

/// The function at an address by a perf map that consists of this text.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn find_in_perf_map(text: &[u8], address: u64) -> Option<String> {
    perf_map::PerfMap::of_text(text).find(address).map(str::to_owned)
}

/// What a jitdump of process 1 that consists of these bytes says of an address.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn find_in_jit_dump(bytes: &[u8], address: u64) -> Option<String> {
    jit_dump::find_in(bytes, address)
}
