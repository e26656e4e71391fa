//! The code of the traced processes: which file is mapped where, and the unwind tables of the files.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
    os::unix::fs::FileExt as _,
};

use tracer_ebpf::{
    event::{MappingCall, MappingEvent},
    unwind::Mapping as Code,
};

use crate::{
    attach::{Capture, UnwindSizes, UnwindTables},
    target::{FileId, Mapping, Object, Target},
    unwind::{Cache, CacheLimits, Table, load_bias},
};

/// What is known of the files that hold code.
pub struct CodeFiles {
    cache: Option<Cache>,
    files: HashMap<FileId, CodeFile>,
    vdso: Option<CodeFile>,
    /// Where each process had code when it was last looked at.
    installed: HashMap<u16, Vec<Range<u64>>>,
}

struct CodeFile {
    /// The open file: it keeps its inode from being given to another one.
    _object: Option<Object>,
    table: InKernel,
    /// Addresses, as the file states them, by the offset in the file at which a mapping begins.
    svmas: HashMap<u64, u64>,
}

/// Whether a table is where the walk can use it.
enum InKernel {
    Not(Box<Table>),
    /// Under this number, or one of the constants of [`Code`].
    As(u32),
}

impl CodeFiles {
    /// Nothing is known yet.
    pub fn new() -> Self {
        let open = || Cache::open(&Cache::default_directory()?, CacheLimits::default());
        let cache = open().inspect_err(|error| log::info!("unwind tables are not cached: {error}")).ok();
        Self { cache, files: HashMap::new(), vdso: None, installed: HashMap::new() }
    }

    /// Reads the tables of what the process has mapped. It is no error when it is gone: there is nothing to walk then.
    pub fn read(&mut self, target: &Target) {
        let Ok(mappings) = target.mappings() else { return };
        let Ok(objects) = target.objects_where(|id| !self.files.contains_key(&id)) else { return };
        for object in objects.opened {
            self.read_object(object);
        }
        if self.vdso.is_none()
            && let Some(vdso) = mappings.iter().find(|mapping| mapping.name == "[vdso]")
        {
            self.vdso = read_vdso(target, vdso);
        }
    }

    /// Reads the table of one file.
    pub fn read_object(&mut self, object: Object) {
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
        let executable = object.segments.iter().filter(|segment| segment.executable);
        let svmas = executable.filter_map(|segment| {
            let bias = load_bias(&bytes, segment.start.0, segment.file_offset)?;
            Some((segment.file_offset, segment.start.0.wrapping_sub(bias)))
        });
        entry.insert(CodeFile { svmas: svmas.collect(), _object: Some(object), table });
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

    /// Hands the tables and the process' executable mappings to the walk.
    pub fn install(&mut self, process: u16, target: &Target, capture: &mut Capture) {
        let Ok(mappings) = target.mappings() else { return };
        let executable =
            mappings.iter().filter(|mapping| mapping.permissions.execute && mapping.name != "[vsyscall]");
        let code: Vec<Code> = executable.map(|mapping| self.code(mapping, capture.unwind_tables())).collect();
        self.installed.insert(process, code.iter().map(|mapping| mapping.start..mapping.end).collect());
        if !capture.set_code(process, &code) {
            log::warn!("{} has more executable mappings than there is room for", target.comm());
        }
    }

    /// Whether an event unmaps or moves something that was code.
    pub fn is_released_by(&self, event: &MappingEvent) -> bool {
        let [start, length, ..] = event.args;
        let releases =
            matches!(MappingCall::try_from(event.call), Ok(MappingCall::Munmap | MappingCall::Mremap));
        let end = start.saturating_add(length);
        let overlaps = |code: &Range<u64>| code.start < end && start < code.end;
        releases
            && event.at_exit == 1
            && self.installed.get(&event.process).is_some_and(|code| code.iter().any(overlaps))
    }

    fn code(&mut self, mapping: &Mapping, tables: &mut UnwindTables) -> Code {
        let (start, end) = (mapping.start.0, mapping.end.0);
        let without = |table| Code { start, end, bias: 0, table, padding: 0 };
        let file = match mapping.file_id() {
            Some(id) => self.files.get_mut(&id),
            None if mapping.name == "[vdso]" => self.vdso.as_mut(),
            None => return without(Code::NO_TABLE),
        };
        let Some(file) = file else { return without(Code::NOT_READY) };
        let Some(svma) = file.svmas.get(&mapping.file_offset) else { return without(Code::NO_TABLE) };
        Code { start, end, bias: start.wrapping_sub(*svma), table: file.table.number(tables), padding: 0 }
    }
}

impl InKernel {
    /// The number of the table, which is handed to the kernel if it has not been.
    fn number(&mut self, tables: &mut UnwindTables) -> u32 {
        let number = match self {
            Self::As(number) => return *number,
            Self::Not(table) => tables.add(table).unwrap_or_else(|| {
                log::warn!("there is no room for another unwind table: its code is not walked");
                Code::NOT_READY
            }),
        };
        *self = Self::As(number);
        number
    }
}

fn read_vdso(target: &Target, vdso: &Mapping) -> Option<CodeFile> {
    let mut bytes = vec![0; usize::try_from(vdso.len()).ok()?];
    target.open_file("mem").ok()?.read_exact_at(&mut bytes, vdso.start.0).ok()?;
    let table = Table::from_elf(&bytes).ok()?;
    let bias = load_bias(&bytes, vdso.start.0, 0)?;
    let svmas = HashMap::from([(vdso.file_offset, vdso.start.0.wrapping_sub(bias))]);
    Some(CodeFile { _object: None, table: InKernel::Not(Box::new(table)), svmas })
}
