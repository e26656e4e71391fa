//! The code of the traced processes: which file is mapped where, and the unwind tables of the files.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::Entry},
    fs::File,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use tracer_ebpf::{
    event::{MappingCall, MappingEvent},
    process::{CodeList, ProcessIndex},
    runtime::v8::Layout as WalkedV8,
    unwind::Mapping as Code,
};

use super::{
    hotspot::{HotSpots, MappedFile},
    pythons::{NO_PYTHON_NAMES, Pythons},
};
use crate::{
    attach::{Capture, UnwindSizes, UnwindTables},
    runtime::{Layouts, MemoryFile, hotspot, python, v8},
    symbolize::CodeView,
    target::{FileId, MappedObject, Mapping, Target},
    unwind::{Cache, CacheLimits, CodeSegments, TRAMPOLINE_HEAD, Table, begins_with_trampoline},
};

/// What is known of the files that hold code.
pub struct CodeFiles {
    cache: Option<Cache>,
    files: HashMap<FileId, CodeFile>,
    vdso: Option<CodeFile>,
    /// Code that programs copied at run time, by its bytes. It is always the same, but for its length.
    trampolines: HashMap<Vec<u8>, CodeFile>,
    /// What each process had mapped when it was last looked at.
    installed: HashMap<ProcessIndex, Installed>,
    /// The HotSpots that are known.
    hotspots: HotSpots,
    pythons: Pythons,
    /// Files that no process has mapped any more, in the order in which they were unmapped.
    unmapped: VecDeque<FileId>,
    files_seen: u32,
}

/// How many files are kept that no process has mapped any more, since they may be loaded again.
const KEPT_UNMAPPED: usize = 16;

struct CodeFile {
    /// The open file: it keeps its inode from being given to another one.
    object: Option<Arc<MappedObject>>,
    table: InKernel,
    segments: CodeSegments,
    /// Where things are in its V8, if it has one that is known.
    v8: Option<Arc<v8::Layout>>,
    /// Where its HotSpot says where things are, if it has one.
    hotspot: Option<hotspot::Symbols>,
    /// The Python in it, if it is one that is known.
    python: Option<Arc<python::Build>>,
    /// Its number: no other file gets it.
    number: u32,
}

/// Whether a table is where the walk can use it.
enum InKernel {
    Not(Box<Table>),
    /// Under this number, or one of the constants of [`Code`].
    As(u32),
}

#[derive(Default)]
struct Installed {
    code: Vec<Mapping>,
    files: BTreeSet<FileId>,
}

impl CodeFiles {
    /// Nothing is known yet.
    pub fn new() -> Self {
        let open = || Cache::open(&Cache::default_directory()?, CacheLimits::default());
        let cache = open().inspect_err(|error| log::info!("unwind tables are not cached: {error}")).ok();
        Self {
            cache,
            files: HashMap::new(),
            vdso: None,
            trampolines: HashMap::new(),
            installed: HashMap::new(),
            hotspots: HotSpots::default(),
            pythons: Pythons::default(),
            unmapped: VecDeque::new(),
            files_seen: 0,
        }
    }

    /// Reads the tables of what the process has mapped. It is no error when it is gone: there is nothing to walk then.
    pub fn read(&mut self, target: &Target) {
        let Ok(mappings) = target.mappings() else { return };
        let objects = target.objects_among(&mappings, |id| !self.files.contains_key(&id));
        for object in objects.opened {
            self.read_object(object);
        }
        // Code that was compiled as the program ran has no tables, and never will have: it is walked by frame pointers.
        for id in objects.others {
            self.files_seen += 1;
            self.files.insert(
                id,
                CodeFile {
                    object: None,
                    table: InKernel::As(Code::NO_TABLE),
                    segments: CodeSegments::default(),
                    v8: None,
                    hotspot: None,
                    python: None,
                    number: self.files_seen,
                },
            );
        }
        if self.vdso.is_none()
            && let Some(vdso) = mappings.iter().find(|mapping| mapping.name == "[vdso]")
        {
            self.files_seen += 1;
            self.vdso = read_vdso(target, vdso, self.files_seen);
        }
    }

    /// Reads the table of one file.
    pub fn read_object(&mut self, object: MappedObject) {
        let Entry::Vacant(entry) = self.files.entry(object.id) else { return };
        let bytes = object.bytes().unwrap_or_else(|error| {
            log::info!("cannot read {}: {error}", object.path.display());
            Vec::new()
        });
        let table = match &self.cache {
            Some(cache) => cache.table(&bytes).map(|(table, _)| table),
            None => Table::from_elf(&bytes),
        };
        let table = match table {
            Ok(table) => InKernel::Not(Box::new(table)),
            Err(error) => {
                log::info!("{} is walked by frame pointers: {error}", object.path.display());
                InKernel::As(Code::NO_TABLE)
            }
        };
        self.files_seen += 1;
        entry.insert(CodeFile {
            segments: CodeSegments::of(&bytes),
            v8: v8_in(&bytes, &object),
            hotspot: hotspot::Symbols::of_elf(&bytes),
            python: python_in(&bytes, &object),
            object: Some(Arc::new(object)),
            table,
            number: self.files_seen,
        });
    }

    /// How much room the tables that were read need in the kernel.
    pub fn sizes(&self) -> UnwindSizes {
        let tables = self.files.values().chain(&self.vdso).filter_map(|file| match &file.table {
            InKernel::Not(table) => Some((table.pages().len() as u64, table.rows().len() as u64)),
            InKernel::As(_) => None,
        });
        let (pages, rows) = tables.fold((0, 0), |(pages, rows), table| (pages + table.0, rows + table.1));
        UnwindSizes::with_room_for(pages, rows)
    }

    /// Hands the tables and the process' executable mappings to the walk. Gives what its stacks are to be named by.
    pub fn install(
        &mut self,
        process: ProcessIndex,
        target: &Target,
        capture: &mut Capture,
    ) -> Vec<CodeView> {
        /// Code can change while it is looked at, but does not do so forever.
        const LOOKS: usize = 4;
        let mut views = Vec::new();
        for _ in 0..LOOKS {
            if self.install_once(process, target, capture, &mut views).is_some() {
                break;
            }
        }
        views
    }

    /// One try, which fails when code is unmapped meanwhile, or the process is gone.
    ///
    /// New code is listed first as not ready: what unmaps it from then on finds it in the list. When it is still mapped then, it is made
    /// ready. So no list ever says of unmapped code that it can be walked.
    fn install_once(
        &mut self,
        process: ProcessIndex,
        target: &Target,
        capture: &mut Capture,
        views: &mut Vec<CodeView>,
    ) -> Option<()> {
        let (before, changes) = (capture.code_list(process), capture.code_changes(process));
        let mappings = executable(target)?;
        let memory = target.open_file("mem").ok().map(MemoryFile);
        self.hotspots.look(process, hotspot_file(&self.files, &mappings), memory.as_ref());
        capture.set_hotspot(process, self.hotspots.layout(process).map(|layout| &layout.walked));
        let v8 = self.v8_file(&mappings).and_then(|file| Some((file.v8.as_ref()?.walked, file.number)));
        capture
            .set_v8(process, v8.map_or_else(Default::default, |(walked, file)| WalkedV8 { file, ..walked }));
        self.pythons.see(process, self.python_of(&mappings), target, capture);
        let file = memory.as_ref().map(|memory| &memory.0);
        let code = |mapping| self.code(mapping, file, capture.unwind_tables());
        let ready: Vec<Code> = mappings.iter().map(code).collect();
        let is_old = |code: &Code| capture.is_listed(process, code);
        let (mut listed, old): (Vec<Code>, Vec<bool>) =
            ready.iter().map(|code| (*code, is_old(code))).unzip();
        for (code, _) in listed.iter_mut().zip(&old).filter(|(_, old)| !**old) {
            (code.table, code.file) = (Code::NOT_READY, 0);
        }
        let list = self.list(process, &mappings, &listed, before, capture)?;
        let of_old = mappings.iter().zip(&old).filter(|(_, old)| **old).map(|(mapping, _)| mapping.clone());
        views.push(self.view(process, list.generation, None, of_old.collect()));
        if executable(target)? != mappings {
            return None;
        }
        let list = self.list(process, &mappings, &ready, list, capture)?;
        let is_exact = capture.code_changes(process) == changes;
        capture.set_code_changes_seen(process, changes);
        // BPF tells the lower half.
        views.push(self.view(process, list.generation, is_exact.then_some(changes as u32), mappings));
        Some(())
    }

    /// Makes this the list that the walk uses.
    fn list(
        &mut self,
        process: ProcessIndex,
        mappings: &[Mapping],
        code: &[Code],
        before: CodeList,
        capture: &mut Capture,
    ) -> Option<CodeList> {
        let files: BTreeSet<FileId> = mappings.iter().filter_map(Mapping::file_id).collect();
        let installed = self.installed.entry(process).or_default();
        let gone: Vec<FileId> = installed.files.difference(&files).copied().collect();
        let list = capture.set_code(process, code, before, !gone.is_empty());
        let Some(list) = list else {
            log::debug!("the list of a process' code was not replaced: it changed, or is too long");
            return None;
        };
        *installed = Installed { code: mappings.to_vec(), files };
        self.forget_unmapped(&gone, capture.unwind_tables());
        Some(list)
    }

    fn view(
        &self,
        process: ProcessIndex,
        generation: u16,
        changes: Option<u32>,
        code: Vec<Mapping>,
    ) -> CodeView {
        let objects = code.iter().filter_map(|mapping| self.files.get(&mapping.file_id()?)?.object.clone());
        let runtimes = Layouts {
            v8: self.v8_file(&code).and_then(|file| file.v8.clone()),
            hotspot: self.hotspots.layout(process).cloned(),
            python: self.pythons.of(process),
        };
        CodeView { process, generation, changes, objects: objects.collect(), runtimes, code }
    }

    /// The file among the mapped ones that has a V8 that is known.
    fn v8_file(&self, code: &[Mapping]) -> Option<&CodeFile> {
        let mut files = code.iter().filter_map(|mapping| self.files.get(&mapping.file_id()?));
        files.find(|file| file.v8.is_some())
    }

    /// The Python among the mapped files that is known.
    fn python_of(&self, code: &[Mapping]) -> Option<python::Located> {
        code.iter().find_map(|mapping| {
            let file = self.files.get(&mapping.file_id()?)?;
            let build = Arc::clone(file.python.as_ref()?);
            let bias = file.segments.load_bias(mapping.start.0, mapping.file_offset)?;
            Some(python::Located { build, bias })
        })
    }

    /// Looks where the threads of Python are, in processes that had none when they were last looked at.
    pub fn look_for_python_threads<'a>(
        &mut self,
        target: impl Fn(ProcessIndex) -> Option<&'a Target>,
        capture: &Capture,
    ) {
        self.pythons.look(target, capture);
    }

    /// Lets go of files that no process has mapped, but for the latest few.
    fn forget_unmapped(&mut self, gone: &[FileId], tables: &mut UnwindTables) {
        let is_mapped = |id: &FileId| self.installed.values().any(|installed| installed.files.contains(id));
        self.unmapped.retain(|id| !is_mapped(id) && !gone.contains(id));
        self.unmapped.extend(gone.iter().copied().filter(|id| !is_mapped(id)));
        while self.unmapped.len() > KEPT_UNMAPPED {
            let Some(file) = self.unmapped.pop_front().and_then(|id| self.files.remove(&id)) else {
                continue;
            };
            if let InKernel::As(number) = file.table {
                tables.remove(number);
            }
        }
    }

    /// Whether an event unmaps, moves or replaces something that was code.
    pub fn is_released_by(&self, event: &MappingEvent) -> bool {
        let Ok(call) = MappingCall::try_from(event.call) else { return false };
        let released = call.released(event.args);
        let was_code =
            |code: &Mapping| released.iter().any(|released| released.overlaps(code.start.0, code.end.0));
        event.at_exit == 1
            && self.installed.get(&event.process).is_some_and(|installed| installed.code.iter().any(was_code))
    }

    fn code(&mut self, mapping: &Mapping, memory: Option<&File>, tables: &mut UnwindTables) -> Code {
        let (start, end) = (mapping.start.0, mapping.end.0);
        let without = |table| Code { start, end, bias: 0, table, file: 0 };
        if let Some(file) = memory.and_then(|memory| self.trampolines_in(mapping, memory)) {
            return Code { start, end, bias: start, table: file.table.number(tables), file: file.number };
        }
        let file = match mapping.file_id() {
            Some(id) => self.files.get_mut(&id),
            None if mapping.name == "[vdso]" => self.vdso.as_mut(),
            None => return without(Code::NO_TABLE),
        };
        let Some(file) = file else { return without(Code::NOT_READY) };
        match file.segments.load_bias(start, mapping.file_offset) {
            Some(bias) => Code { start, end, bias, table: file.table.number(tables), file: file.number },
            None => Code { file: file.number, ..without(Code::NO_TABLE) },
        }
    }
}

impl CodeFiles {
    /// What a process copied to memory of no file, to call functions through.
    fn trampolines_in(&mut self, mapping: &Mapping, memory: &File) -> Option<&mut CodeFile> {
        /// CPython asks for 64 KiB at a time; what is next to each other is one mapping.
        const LONGEST: u64 = 1 << 20;
        /// Lengths of such mappings that are told apart, in all processes.
        const MOST: usize = 64;
        let is_of_no_file =
            mapping.file_id().is_none() && !mapping.name.as_encoded_bytes().starts_with(b"[v");
        let mut head = [0; TRAMPOLINE_HEAD];
        if !is_of_no_file || mapping.len() > LONGEST {
            return None;
        }
        memory.read_exact_at(&mut head, mapping.start.0).ok()?;
        if !begins_with_trampoline(&head) {
            return None;
        }
        let mut code = vec![0; usize::try_from(mapping.len()).ok()?];
        memory.read_exact_at(&mut code, mapping.start.0).ok()?;
        let known = self.trampolines.len();
        match self.trampolines.entry(code) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(new) if known < MOST => {
                let table = InKernel::Not(Box::new(Table::of_trampolines(new.key())?));
                self.files_seen += 1;
                let segments = CodeSegments::default();
                Some(new.insert(CodeFile {
                    object: None,
                    table,
                    segments,
                    v8: None,
                    hotspot: None,
                    python: None,
                    number: self.files_seen,
                }))
            }
            Entry::Vacant(_) => None,
        }
    }
}

/// The file among the mapped ones that has a HotSpot.
fn hotspot_file<'a>(files: &'a HashMap<FileId, CodeFile>, code: &[Mapping]) -> Option<MappedFile<'a>> {
    code.iter().find_map(|mapping| {
        let file = files.get(&mapping.file_id()?)?;
        let symbols = file.hotspot.as_ref()?;
        let bias = file.segments.load_bias(mapping.start.0, mapping.file_offset)?;
        Some(MappedFile { number: file.number, bias, symbols })
    })
}

/// Where things are in the V8 that a file has. What is not known is walked and named as other code is.
fn v8_in(bytes: &[u8], object: &MappedObject) -> Option<Arc<v8::Layout>> {
    match v8::Layout::of_elf(bytes) {
        Ok(layout) => layout.map(Arc::new),
        Err(error) => {
            log::warn!(
                "{}: {error}: JavaScript functions have no names; stacks are whole, and native functions have theirs",
                object.name()
            );
            None
        }
    }
}

/// The Python that a file has. What is not known is walked and named as other code is.
fn python_in(bytes: &[u8], object: &MappedObject) -> Option<Arc<python::Build>> {
    match python::Build::of_elf(bytes) {
        Ok(build) => build.map(Arc::new),
        Err(error) => {
            log::warn!("{}: {error}: {NO_PYTHON_NAMES}", object.name());
            None
        }
    }
}

/// What a process can run now.
fn executable(target: &Target) -> Option<Vec<Mapping>> {
    let mut mappings = target.mappings().ok()?;
    mappings.retain(|mapping| mapping.permissions.execute && mapping.name != "[vsyscall]");
    Some(mappings)
}

impl InKernel {
    /// The number of the table, which is handed to the kernel if it has not been.
    fn number(&mut self, tables: &mut UnwindTables) -> u32 {
        let number = match self {
            Self::As(number) => return *number,
            Self::Not(table) => match tables.add(table) {
                Some(number) => number,
                None => {
                    log::warn!("there is no room for another unwind table: its code is not walked");
                    // There may be room when others are gone.
                    return Code::NOT_READY;
                }
            },
        };
        *self = Self::As(number);
        number
    }
}

fn read_vdso(target: &Target, vdso: &Mapping, number: u32) -> Option<CodeFile> {
    let mut bytes = vec![0; usize::try_from(vdso.len()).ok()?];
    target.open_file("mem").ok()?.read_exact_at(&mut bytes, vdso.start.0).ok()?;
    let table = Table::from_elf(&bytes).ok()?;
    Some(CodeFile {
        object: None,
        table: InKernel::Not(Box::new(table)),
        segments: CodeSegments::of(&bytes),
        v8: None,
        hotspot: None,
        python: None,
        number,
    })
}
