//! Which allocators a process has.

use std::{collections::BTreeSet, path::PathBuf};

use crate::{
    analyze::allocators,
    plan::{Allocator, AllocatorFamily, Api, Catalog, Declarations, ObjectPlan, Role, declared, python},
    report::human::printable,
};

/// The allocators that a file has: probed functions that are not only the operators of C++.
pub fn allocators_in(file: &str, plan: &ObjectPlan, catalog: &Catalog) -> Vec<allocators::FileAllocator> {
    let probed: Vec<_> =
        plan.probes.iter().filter_map(|probe| Some((probe.api, catalog.get(probe.api)?))).collect();
    let allocates = |api: &Api| !api.is_operator() && matches!(api.role, Role::Allocate(_));
    if !probed.iter().any(|(_, api)| allocates(api)) {
        return Vec::new();
    }
    let names: Vec<&str> = probed.iter().map(|(_, api)| api.name.as_ref()).collect();
    // Objects lie in the pools of the interpreter.
    let families = AllocatorFamily::in_file(file, &names)
        .into_iter()
        .filter(|(family, _)| *family != AllocatorFamily::Python);
    let allocator = |(family, places): (AllocatorFamily, Vec<usize>)| allocators::FileAllocator {
        family,
        file: file.to_owned(),
        functions: places.into_iter().map(|place| probed[place].0).collect(),
    };
    families.map(allocator).collect()
}

/// What was looked at for allocators, and what was found there.
#[derive(Clone, Debug, Default)]
pub struct Found {
    files: BTreeSet<PathBuf>,
    /// Functions, probed or not.
    functions: BTreeSet<String>,
    /// Why the objects of Python cannot be followed.
    objects: Option<String>,
}

impl Found {
    /// A file was looked at.
    pub fn add_file(&mut self, path: PathBuf) {
        self.files.insert(path);
    }

    /// This is to be probed in a file.
    pub fn add_plan(&mut self, plan: &ObjectPlan, catalog: &Catalog) {
        self.functions.extend(plan.names(catalog));
        let skipped = plan.skipped.iter().find(|skipped| skipped.name == python::OBJECTS);
        self.objects = self.objects.take().or_else(|| skipped.map(|skipped| skipped.why.clone()));
    }

    /// Adds what was found in another process.
    pub fn extend(&mut self, other: &Self) {
        self.files.extend(other.files.iter().cloned());
        self.functions.extend(other.functions.iter().cloned());
        self.objects = self.objects.take().or_else(|| other.objects.clone());
    }

    /// What of the declarations was not found, in words that follow "has no".
    #[must_use]
    pub fn lacks(&self, declarations: &Declarations) -> Option<String> {
        if let Some(allocator) = declarations.allocators.iter().find(|allocator| !self.has_file(allocator)) {
            return Some(self.no_file(allocator));
        }
        if declarations.python_objects && !self.functions.iter().any(|name| python::is_of_objects(name)) {
            let why = self.objects.iter().map(|why| format!(" that can be followed: {why}"));
            return Some(format!("object allocator of Python{}", why.collect::<String>()));
        }
        let is_used = |prefix: &str| self.functions.iter().any(|name| name.starts_with(prefix));
        let unused =
            declarations.prefixes.iter().map(|prefix| prefix.as_str()).find(|prefix| !is_used(prefix));
        unused.map(|prefix| format!("function {prefix}malloc, nor another of the family with this prefix"))
    }

    fn has_file(&self, allocator: &Allocator) -> bool {
        self.files.iter().any(|path| allocator.is_in(path))
    }

    fn no_file(&self, allocator: &Allocator) -> String {
        let file = allocator.file.rsplit('/').next().unwrap_or(&allocator.file);
        let names = self.files.iter().filter_map(|path| path.file_name()?.to_str());
        let near = declared::suggestion(&declared::near(file, names));
        format!("mapped file {}{}", printable(&allocator.file), printable(&near))
    }
}
