//! Files that several processes have mapped: each is read once, whoever's stacks it names. The names of one C library with its debug
//! information take 40 ms and some megabytes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::OsString;
use std::rc::{Rc, Weak};

use super::Module;
use crate::target::{FileId, Mapping, RootId, Target};

/// What names depend on: the file, none for the vDSO of this kernel, what it is called, and the root that its debug file is looked for
/// in.
type Key = (Option<FileId>, OsString, Option<RootId>);

/// The modules of all processes that are files.
#[derive(Clone, Default)]
pub(super) struct SharedModules(Rc<Modules>);

#[derive(Default)]
struct Modules {
    opened: Cell<u64>,
    /// Who uses one keeps it.
    known: RefCell<HashMap<Key, Weak<Module>>>,
}

impl SharedModules {
    /// The module that a mapping of a process shows, which is opened under a number of its own unless a process with the same root has
    /// it already.
    pub(super) fn get_or(
        &self,
        mapping: &Mapping,
        target: Option<&Target>,
        open: impl FnOnce(u64) -> Module,
    ) -> Rc<Module> {
        let Modules { opened, known } = &*self.0;
        let is_shared = mapping.file_id().is_some() || mapping.name == "[vdso]";
        let key =
            is_shared.then(|| (mapping.file_id(), mapping.name.clone(), target.and_then(Target::root_id)));
        let found = key.as_ref().and_then(|key| known.borrow().get(key)?.upgrade());
        found.unwrap_or_else(|| {
            opened.set(opened.get() + 1);
            let module = Rc::new(open(opened.get()));
            // What could not be opened may be, by another process or later.
            if let Some(key) = key.filter(|_| module.object.is_some()) {
                let mut known = known.borrow_mut();
                known.retain(|_, module| module.strong_count() > 0);
                known.insert(key, Rc::downgrade(&module));
            }
            module
        })
    }
}
