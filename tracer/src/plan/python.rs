//! CPython's object allocator, which serves blocks of up to 512 bytes from pools of its own (`Objects/obmalloc.c`): where its functions
//! are in a file that has the interpreter.
//!
//! `PyObject_Malloc` and its like jump through a table in memory (`_PyObject`, from 3.12 on a part of `_PyRuntime`) to functions with one
//! more argument in front, which do the work and are what is probed. Where the symbol table has these (`_PyObject_Malloc`), they are
//! found by it. Else the table is found by the jump, and the functions by what the file, or the loader, writes into the table.
//!
//! A compiler that knows from a test run where the jumps lead puts the functions' code into their callers, behind a comparison of what
//! the table has with the function's address (Debian's `python3`, at 263 places). Probes on the functions would not see these calls.
//! But the bytes in front of a function that fill up the line before it do nothing, so a table that leads *there* leads to the function,
//! and no comparison holds any more: all calls go through the function. Such a [`Detour`] is to be put into the table of a process while
//! it is traced.

use super::api::{Api, ApiId, Role, counted, release, resize, sized};
use super::arch::x86_64::{Function, TableCall, does_nothing};
use super::catalog::Catalog;
use super::object::{ElfObject, Symbols};

/// The functions in the table, each with the exported function that jumps to it.
const FUNCTIONS: [(&str, &str, Role); 4] = [
    ("PyObject_Malloc", "_PyObject_Malloc", sized(1)),
    ("PyObject_Calloc", "_PyObject_Calloc", counted(1, 2)),
    ("PyObject_Realloc", "_PyObject_Realloc", resize(1, 2)),
    ("PyObject_Free", "_PyObject_Free", release(1)),
];

/// The exported functions that have the code of those in the table within them, if any of the interpreter has.
const INLINING: [&str; 4] = ["PyObject_Malloc", "PyObject_Free", "PyMem_Malloc", "PyMem_Free"];

/// The functions that jump through the first word of a table. That of `PyMem_Malloc` has the same functions in it.
const TABLES: [&str; 2] = ["PyObject_Malloc", "PyMem_Malloc"];

/// Why objects cannot be followed.
const INLINED: &str = "it is compiled into its callers; start the program with PYTHONMALLOC=malloc, and trace it without --objects";

const NO_TABLE: &str = "its table is not where its functions look for it";

/// The most bytes of filling between functions.
const MOST_FILLING: u64 = 15;

/// A word of a table in memory that leads to a function, and an address that leads there as well, for which nobody looks. Addresses are
/// as the file states them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// The word.
    pub slot: u64,
    /// The function, whose address the word has.
    pub function: u64,
    /// The instructions in front of it that do nothing.
    pub instead: u64,
}

/// What messages call its functions, where they are not probed.
pub const OBJECTS: &str = "PyObject_Malloc";

/// The numbers of its functions in a catalog, in the order of [`FUNCTIONS`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObjectAllocator([ApiId; 4]);

/// Whether a function, by the name that reports have, is of the object allocator.
#[must_use]
pub fn is_of_objects(function: &str) -> bool {
    FUNCTIONS.iter().any(|(_, name, _)| *name == function)
}

impl ObjectAllocator {
    /// From now on the catalog has its functions.
    pub(super) fn add_to(catalog: &mut Catalog) -> Self {
        Self(FUNCTIONS.map(|(_, name, role)| catalog.add(Api { name: name.into(), role, throws: false })))
    }

    /// Finds its functions in a file, which `symbols` has by their names already if the file names them, and the detours that it takes
    /// for their calls to be seen. An error says why they cannot be followed; they are taken out then.
    pub(super) fn find(
        &self,
        object: &ElfObject<'_>,
        symbols: &mut Symbols,
    ) -> Result<Vec<Detour>, &'static str> {
        let found = self.find_all(object, symbols);
        if found.is_err() {
            symbols.forget(&self.0);
        }
        found
    }

    fn find_all(&self, object: &ElfObject<'_>, symbols: &mut Symbols) -> Result<Vec<Detour>, &'static str> {
        let wanted: Vec<&str> = FUNCTIONS.iter().map(|(name, ..)| *name).chain(INLINING).collect();
        let exported = object.functions_named(&wanted);
        let function = |name: &str| {
            let &(svma, size) = exported.get(name)?;
            Some(Function { svma, code: object.code_at(svma)?, size })
        };
        let slot = |name| slot_of(object, function(name)?.calls_through_table()?);
        let Some(first) = function("PyObject_Malloc") else { return Ok(Vec::new()) };
        // Of another file that only has a function of this name.
        let Some(_) = first.calls_through_table() else { return Ok(Vec::new()) };
        if INLINING.iter().filter_map(|name| function(name)).any(|function| function.compares_with_callee()) {
            let tables = TABLES.map(|name| slot(name).and_then(|slot| Table::at(object, slot)));
            let [Some(objects), memory] = tables else { return Err(NO_TABLE) };
            for (svma, api) in objects.functions.into_iter().zip(self.0) {
                symbols.add(svma, api);
            }
            // What has another function stays as it is.
            let tables = [Some(objects), memory.filter(|memory| memory.functions == objects.functions)];
            return detours(object, tables.into_iter().flatten()).ok_or(INLINED);
        }
        for ((name, _, _), api) in FUNCTIONS.iter().zip(self.0) {
            if symbols.address_of(api).is_some() {
                continue;
            }
            let target = slot(name).and_then(|slot| object.word_at_start(slot));
            let svma = target.filter(|&svma| object.code_at(svma).is_some()).ok_or(NO_TABLE)?;
            symbols.add(svma, api);
        }
        Ok(Vec::new())
    }
}

/// The functions of a `PyMemAllocatorEx`: malloc, calloc, realloc and free, one word after the other.
#[derive(Clone, Copy)]
struct Table {
    slot: u64,
    functions: [u64; 4],
}

impl Table {
    /// The one whose first function is in this word.
    fn at(object: &ElfObject<'_>, slot: u64) -> Option<Self> {
        let mut functions = [0; 4];
        for (function, at) in functions.iter_mut().zip((slot..).step_by(8)) {
            *function = object.word_at_start(at).filter(|&svma| object.code_at(svma).is_some())?;
        }
        Some(Self { slot, functions })
    }
}

/// For each function in each table; none where in front of one there are no instructions that do nothing.
fn detours(object: &ElfObject<'_>, tables: impl Iterator<Item = Table>) -> Option<Vec<Detour>> {
    let words = tables.flat_map(|table| (table.slot..).step_by(8).zip(table.functions));
    words
        .map(|(slot, function)| {
            let instead = (1..=MOST_FILLING).filter_map(|bytes| function.checked_sub(bytes));
            let instead = instead.into_iter().find(|&svma| {
                object.code_at(svma).is_some_and(|code| does_nothing(code, (function - svma) as usize))
            })?;
            Some(Detour { slot, function, instead })
        })
        .collect()
}

/// The word that has the function's address.
fn slot_of(object: &ElfObject<'_>, call: TableCall) -> Option<u64> {
    match call {
        TableCall::Through(slot) => Some(slot),
        TableCall::Behind { pointer, offset } => object.word_at_start(pointer)?.checked_add(offset),
    }
}
