//! Which allocator the functions of a file are of, and families of functions under a prefix that no table has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::catalog::{Catalog, SymbolPrefix};
use super::object::ElfObject;

/// An allocator, by the code that it consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AllocatorFamily {
    /// The GNU C library's.
    Glibc,
    /// musl's.
    Musl,
    /// jemalloc, under whatever prefix.
    Jemalloc,
    /// mimalloc.
    Mimalloc,
    /// tcmalloc.
    Tcmalloc,
    /// That of oneTBB.
    Tbb,
    /// rpmalloc.
    Rpmalloc,
    /// snmalloc.
    Snmalloc,
    /// That of CPython, for objects.
    Python,
    /// Another one.
    Other,
}

impl fmt::Display for AllocatorFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::Jemalloc => "jemalloc",
            Self::Mimalloc => "mimalloc",
            Self::Tcmalloc => "tcmalloc",
            Self::Tbb => "oneTBB's allocator",
            Self::Rpmalloc => "rpmalloc",
            Self::Snmalloc => "snmalloc",
            Self::Python => "Python's object allocator",
            Self::Other => "allocator",
        })
    }
}

/// How the names of files begin that are an allocator, or a C library.
const FILES: &[(&str, AllocatorFamily)] = &[
    ("libc.so", AllocatorFamily::Glibc),
    ("libc-", AllocatorFamily::Glibc),
    ("ld-musl", AllocatorFamily::Musl),
    ("libjemalloc", AllocatorFamily::Jemalloc),
    ("libmimalloc", AllocatorFamily::Mimalloc),
    ("libtcmalloc", AllocatorFamily::Tcmalloc),
    ("libtbbmalloc", AllocatorFamily::Tbb),
    ("librpmalloc", AllocatorFamily::Rpmalloc),
    ("libsnmalloc", AllocatorFamily::Snmalloc),
];

/// How functions begin that only one of them has.
const FUNCTIONS: &[(&str, AllocatorFamily)] = &[
    ("mi_", AllocatorFamily::Mimalloc),
    ("tc_", AllocatorFamily::Tcmalloc),
    ("scalable_", AllocatorFamily::Tbb),
    ("rpmalloc", AllocatorFamily::Rpmalloc),
    ("sn_", AllocatorFamily::Snmalloc),
    ("je_", AllocatorFamily::Jemalloc),
    ("rjem_", AllocatorFamily::Jemalloc),
    ("PyObject_", AllocatorFamily::Python),
    // In a static program.
    ("libc_", AllocatorFamily::Glibc),
];

/// How functions of jemalloc's own interface end.
const JEMALLOC: [&str; 4] = ["mallocx", "rallocx", "dallocx", "sdallocx"];

/// Whether a function is of jemalloc's own interface, under any prefix.
#[must_use]
pub fn is_of_jemalloc(function: &str) -> bool {
    JEMALLOC.iter().any(|ending| function.ends_with(ending))
}

impl AllocatorFamily {
    /// The allocators in a file, each with those of its functions that are given, by the place of their names.
    #[must_use]
    pub fn in_file(file: &str, functions: &[&str]) -> BTreeMap<Self, Vec<usize>> {
        // What is under jemalloc's prefix is jemalloc's; under the empty one anything may be.
        let jemallocs: BTreeSet<&str> = functions
            .iter()
            .flat_map(|function| JEMALLOC.iter().filter_map(|ending| function.strip_suffix(ending)))
            .collect();
        let of_file = FILES.iter().find(|(name, _)| file.starts_with(name)).map(|&(_, family)| family);
        let is_jemallocs = |function: &str| {
            jemallocs.iter().any(|prefix| !prefix.is_empty() && function.starts_with(prefix))
                || is_of_jemalloc(function)
        };
        let of_function = |function: &str| match Self::of_function(function) {
            _ if is_jemallocs(function) => Some(Self::Jemalloc),
            family => family,
        };
        // What has no mark of its own is of the allocator that has.
        let others = of_file.or_else(|| functions.iter().find_map(|function| of_function(function)));
        let mut families: BTreeMap<Self, Vec<usize>> = BTreeMap::new();
        for (place, function) in functions.iter().enumerate() {
            let family = of_function(function).or(others).unwrap_or(Self::Other);
            families.entry(family).or_default().push(place);
        }
        families
    }

    /// The allocator that has functions of such a name, if only one has. Those within it count: `_mi_os_alloc`, `je_arena_ralloc`.
    #[must_use]
    pub fn of_function(function: &str) -> Option<Self> {
        let name = function.trim_start_matches('_');
        FUNCTIONS.iter().find(|(beginning, _)| name.starts_with(beginning)).map(|&(_, family)| family)
    }

    /// Whether it comes with the C library.
    #[must_use]
    pub const fn is_of_c_library(self) -> bool {
        matches!(self, Self::Glibc | Self::Musl)
    }

    /// Whether a file is nothing but this allocator, or the C library.
    #[must_use]
    pub fn is_whole(self, file: &str) -> bool {
        FILES.iter().any(|&(name, family)| family == self && file.starts_with(name))
    }
}

/// What every allocator has under its prefix.
const EVERY: [&str; 4] = ["malloc", "calloc", "realloc", "free"];

/// Of these an allocator has at least one, and what only passes its calls on to `malloc` has none: `g_`, `av_`, `fz_`, `uv__`.
const OWN: [&str; 3] = ["posix_memalign", "memalign", "malloc_usable_size"];

/// Prefixes of families whose functions have further arguments in front (memkind's take the kind).
const NOT_ALIKE: [&str; 1] = ["memkind_"];

/// The prefixes of the allocators in a file that no table has: those with jemalloc's own interface beside `malloc` and `free`, and
/// those with the whole C interface.
pub(super) fn unknown_prefixes(object: &ElfObject<'_>, catalog: &Catalog) -> Vec<SymbolPrefix> {
    let is_known = |prefix: &str| catalog.find(format!("{prefix}malloc").as_bytes()).is_some();
    let prefixes = object.function_names().filter_map(|function| function.strip_suffix("malloc"));
    let unknown: BTreeSet<&str> = prefixes
        .filter(|prefix| !prefix.is_empty() && !NOT_ALIKE.contains(prefix) && !is_known(prefix))
        .collect();
    if unknown.is_empty() {
        return Vec::new();
    }
    let endings = || EVERY.iter().chain(&OWN).chain(&JEMALLOC);
    let has_ending = |function: &&str| endings().any(|ending| function.ends_with(ending));
    let functions: BTreeSet<&str> = object.function_names().filter(has_ending).collect();
    let is_family = |prefix: &str| {
        let has = |name: &&str| functions.contains(format!("{prefix}{name}").as_str());
        let has_jemallocs = has(&"mallocx") && has(&"sdallocx") && has(&"free");
        has_jemallocs || (EVERY.iter().all(has) && OWN.iter().any(has))
    };
    unknown.into_iter().filter(|prefix| is_family(prefix)).filter_map(|prefix| prefix.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocator_is_known_by_its_file_or_its_functions() {
        let of = |file, functions: &[&str]| {
            AllocatorFamily::in_file(file, functions).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(of("libc.so.6", &["malloc"]), [(AllocatorFamily::Glibc, vec![0])]);
        assert_eq!(of("libjemalloc.so.2", &["malloc", "mallocx"]), [(AllocatorFamily::Jemalloc, vec![0, 1])]);
        assert_eq!(
            of("libarrow.so.2100", &["mi_malloc", "je_arrow_mallocx", "mi_free", "je_arrow_free"]),
            [(AllocatorFamily::Jemalloc, vec![1, 3]), (AllocatorFamily::Mimalloc, vec![0, 2])]
        );
        assert_eq!(
            of("server", &["free_all", "x_malloc", "x_mallocx"]),
            [(AllocatorFamily::Jemalloc, vec![0, 1, 2])]
        );
        assert_eq!(of("server", &["malloc", "__libc_malloc"]), [(AllocatorFamily::Glibc, vec![0, 1])]);
        assert_eq!(of("server", &["malloc"]), [(AllocatorFamily::Other, vec![0])]);
        assert!(
            AllocatorFamily::Jemalloc.is_whole("libjemalloc.so.2")
                && !AllocatorFamily::Jemalloc.is_whole("redis-server")
        );
    }
}
