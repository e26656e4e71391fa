//! CPython's object allocator, which serves blocks of up to 512 bytes from pools of its own (`Objects/obmalloc.c`): where its functions
//! are in a file that has the interpreter.
//!
//! `PyObject_Malloc` and its like jump through a table in memory (`_PyObject`, from 3.12 on a part of `_PyRuntime`) to functions with one
//! more argument in front, which do the work and are what is probed. Where the symbol table has these (`_PyObject_Malloc`), they are
//! found by it. Else the table is found by the jump, and the functions by what the file, or the loader, writes into the table.
//!
//! A compiler that knows from a test run where the jumps lead puts the functions' code into their callers (Debian's `python3` has it at
//! 263 places, of which 52 release). Probes on the functions would see blocks of which they never see the end: such a file is refused.

use super::api::{Api, ApiId, Role, counted, release, resize, sized};
use super::arch::x86_64::{Function, TableCall};
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

/// Why objects cannot be followed.
const INLINED: &str = "it is compiled into its callers; start the program with PYTHONMALLOC=malloc, and trace it without --objects";

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

    /// Finds its functions in a file, which `symbols` has by their names already if the file names them. An error says why they cannot
    /// be followed; they are taken out then.
    pub(super) fn find(&self, object: &ElfObject<'_>, symbols: &mut Symbols) -> Result<(), &'static str> {
        let wanted: Vec<&str> = FUNCTIONS.iter().map(|(name, ..)| *name).chain(INLINING).collect();
        let exported = object.functions_named(&wanted);
        let function = |name: &str| {
            let &(svma, size) = exported.get(name)?;
            Some(Function { svma, code: object.code_at(svma)?, size })
        };
        let Some(first) = function("PyObject_Malloc") else { return Ok(()) };
        // Of another file that only has a function of this name.
        let Some(_) = first.calls_through_table() else { return Ok(()) };
        if INLINING.iter().filter_map(|name| function(name)).any(|function| function.compares_with_callee()) {
            symbols.forget(&self.0);
            return Err(INLINED);
        }
        for ((name, _, _), api) in FUNCTIONS.iter().zip(self.0) {
            if symbols.address_of(api).is_some() {
                continue;
            }
            let call = function(name).and_then(|function| function.calls_through_table());
            let target = call.and_then(|call| object.word_at_start(slot_of(object, call)?));
            match target.filter(|&svma| object.code_at(svma).is_some()) {
                Some(svma) => symbols.add(svma, api),
                None => {
                    symbols.forget(&self.0);
                    return Err("its table is not where its functions look for it");
                }
            }
        }
        Ok(())
    }
}

/// The word that has the function's address.
fn slot_of(object: &ElfObject<'_>, call: TableCall) -> Option<u64> {
    match call {
        TableCall::Through(slot) => Some(slot),
        TableCall::Behind { pointer, offset } => object.word_at_start(pointer)?.checked_add(offset),
    }
}
