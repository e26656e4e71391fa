//! The allocator functions that tracer knows, as data.
//!
//! A row is a symbol name, what a call does, and where its arguments are. To teach tracer a new allocator, add its
//! prefix to `PREFIXES` when it offers the C interface under other names, or rows to `OWN` when it has functions of
//! its own. Nothing else in the program knows an allocator function by name.

use std::borrow::Cow;
use std::collections::HashMap;
use std::str::FromStr;

use super::api::{Api, ApiId, BY_POINTER, Role, counted, release, resize, resize_counted, sized};

/// The C interface. The order is also the order of preference when several names share an address: the name that
/// today's programs most likely wrote comes first.
const C: &[(&str, Role)] = &[
    ("malloc", sized(0)),
    ("calloc", counted(0, 1)),
    ("realloc", resize(0, 1)),
    ("reallocarray", resize_counted(0, 1, 2)),
    ("posix_memalign", BY_POINTER),
    ("aligned_alloc", sized(1)),
    ("memalign", sized(1)),
    ("valloc", sized(0)),
    ("pvalloc", sized(0)),
    ("free", release(0)),
    ("cfree", release(0)),
    // C23
    ("free_sized", release(0)),
    ("free_aligned_sized", release(0)),
];

/// Prefixes under which allocators offer the C interface beside or instead of the plain names.
const PREFIXES: &[&str] = &[
    "je_",       // jemalloc, as redis links it
    "_rjem_",    // jemalloc, as Rust's tikv-jemallocator links it
    "mi_",       // mimalloc
    "tc_",       // tcmalloc (gperftools)
    "rp",        // rpmalloc
    "scalable_", // oneTBB
    "sn_",       // snmalloc
    "__libc_",   // glibc's and musl's own names; most share an address with the plain one
];

/// jemalloc's extended interface, found under its prefixes too. `xallocx` is missing on purpose: see `UNSUPPORTED`.
const JEMALLOC: &[(&str, Role)] =
    &[("mallocx", sized(0)), ("rallocx", resize(0, 1)), ("dallocx", release(0)), ("sdallocx", release(0))];
const JEMALLOC_PREFIXES: &[&str] = &["", "je_", "_rjem_"];

/// What single allocators have beyond the C interface. (name, role, throws)
const OWN: &[(&str, Role, bool)] = &[
    // mimalloc: zero-initialised, aligned, per-heap forms
    ("reallocf", resize(0, 1), false),
    ("vfree", release(0), false),
    ("mi_zalloc", sized(0), false),
    ("mi_malloc_small", sized(0), false),
    ("mi_zalloc_small", sized(0), false),
    ("mi_mallocn", counted(0, 1), false),
    ("mi_malloc_aligned", sized(0), false),
    ("mi_malloc_aligned_at", sized(0), false),
    ("mi_zalloc_aligned", sized(0), false),
    ("mi_zalloc_aligned_at", sized(0), false),
    ("mi_calloc_aligned", counted(0, 1), false),
    ("mi_calloc_aligned_at", counted(0, 1), false),
    ("mi_expand", resize(0, 1), false),
    ("mi_reallocf", resize(0, 1), false),
    ("mi_rezalloc", resize(0, 1), false),
    ("mi_reallocn", resize_counted(0, 1, 2), false),
    ("mi_recalloc", resize_counted(0, 1, 2), false),
    ("mi_realloc_aligned", resize(0, 1), false),
    ("mi_realloc_aligned_at", resize(0, 1), false),
    ("mi_rezalloc_aligned", resize(0, 1), false),
    ("mi_rezalloc_aligned_at", resize(0, 1), false),
    ("mi_recalloc_aligned", resize_counted(0, 1, 2), false),
    ("mi_recalloc_aligned_at", resize_counted(0, 1, 2), false),
    ("mi_heap_malloc", sized(1), false),
    ("mi_heap_zalloc", sized(1), false),
    ("mi_heap_malloc_small", sized(1), false),
    ("mi_heap_calloc", counted(1, 2), false),
    ("mi_heap_mallocn", counted(1, 2), false),
    ("mi_heap_malloc_aligned", sized(1), false),
    ("mi_heap_malloc_aligned_at", sized(1), false),
    ("mi_heap_zalloc_aligned", sized(1), false),
    ("mi_heap_zalloc_aligned_at", sized(1), false),
    ("mi_heap_calloc_aligned", counted(1, 2), false),
    ("mi_heap_calloc_aligned_at", counted(1, 2), false),
    ("mi_heap_realloc", resize(1, 2), false),
    ("mi_heap_reallocf", resize(1, 2), false),
    ("mi_heap_rezalloc", resize(1, 2), false),
    ("mi_heap_reallocn", resize_counted(1, 2, 3), false),
    ("mi_heap_recalloc", resize_counted(1, 2, 3), false),
    ("mi_heap_realloc_aligned", resize(1, 2), false),
    ("mi_heap_realloc_aligned_at", resize(1, 2), false),
    ("mi_heap_rezalloc_aligned", resize(1, 2), false),
    ("mi_heap_rezalloc_aligned_at", resize(1, 2), false),
    ("mi_heap_recalloc_aligned", resize_counted(1, 2, 3), false),
    ("mi_heap_recalloc_aligned_at", resize_counted(1, 2, 3), false),
    ("mi_aligned_recalloc", resize_counted(0, 1, 2), false),
    ("mi_aligned_offset_recalloc", resize_counted(0, 1, 2), false),
    // mimalloc 3
    ("mi_heap_zalloc_small", sized(1), false),
    ("mi_theap_malloc", sized(1), false),
    ("mi_theap_malloc_small", sized(1), false),
    ("mi_theap_malloc_aligned", sized(1), false),
    ("mi_theap_zalloc", sized(1), false),
    ("mi_theap_zalloc_small", sized(1), false),
    ("mi_theap_calloc", counted(1, 2), false),
    ("mi_theap_realloc", resize(1, 2), false),
    ("mi_umalloc", sized(0), false),
    ("mi_umalloc_small", sized(0), false),
    ("mi_umalloc_aligned", sized(0), false),
    ("mi_uzalloc_small", sized(0), false),
    ("mi_uzalloc_aligned", sized(0), false),
    ("mi_ucalloc", counted(0, 1), false),
    ("mi_urealloc", resize(0, 1), false),
    ("mi_ufree", release(0), false),
    ("mi_free_small", release(0), false),
    ("mi_free_size", release(0), false),
    ("mi_free_aligned", release(0), false),
    ("mi_free_size_aligned", release(0), false),
    ("mi_new", sized(0), true),
    ("mi_new_aligned", sized(0), true),
    ("mi_new_n", counted(0, 1), true),
    ("mi_new_realloc", resize(0, 1), true),
    ("mi_new_reallocn", resize_counted(0, 1, 2), true),
    ("mi_heap_alloc_new", sized(1), true),
    ("mi_heap_alloc_new_n", counted(1, 2), true),
    ("mi_new_nothrow", sized(0), false),
    ("mi_new_aligned_nothrow", sized(0), false),
    // tcmalloc
    ("tc_malloc_skip_new_handler", sized(0), false),
    ("tc_new", sized(0), true),
    ("tc_newarray", sized(0), true),
    ("tc_new_aligned", sized(0), true),
    ("tc_newarray_aligned", sized(0), true),
    ("tc_new_nothrow", sized(0), false),
    ("tc_newarray_nothrow", sized(0), false),
    ("tc_new_aligned_nothrow", sized(0), false),
    ("tc_newarray_aligned_nothrow", sized(0), false),
    ("tc_delete", release(0), false),
    ("tc_deletearray", release(0), false),
    ("tc_delete_nothrow", release(0), false),
    ("tc_deletearray_nothrow", release(0), false),
    ("tc_delete_sized", release(0), false),
    ("tc_deletearray_sized", release(0), false),
    ("tc_delete_aligned", release(0), false),
    ("tc_deletearray_aligned", release(0), false),
    ("tc_delete_aligned_nothrow", release(0), false),
    ("tc_deletearray_aligned_nothrow", release(0), false),
    ("tc_delete_sized_aligned", release(0), false),
    ("tc_deletearray_sized_aligned", release(0), false),
    // oneTBB
    ("scalable_aligned_malloc", sized(0), false),
    ("scalable_aligned_realloc", resize(0, 1), false),
    ("scalable_aligned_free", release(0), false),
    // rpmalloc
    ("rpaligned_calloc", counted(1, 2), false),
    ("rpaligned_realloc", resize(0, 2), false),
    // snmalloc, as Rust's snmalloc-rs links it
    ("sn_rust_alloc", sized(1), false),
    ("sn_rust_alloc_zeroed", sized(1), false),
    ("sn_rust_realloc", resize(0, 3), false),
    ("sn_rust_dealloc", release(0), false),
];

/// The global C++ operators, by the Itanium ABI's names: `n` is `new`, `d` is `delete`, `w`/`a` the single and the array
/// form, `m` is `size_t`.
const OPERATORS: &[(&str, Role, bool)] = &[
    ("_Znwm", sized(0), true),
    ("_Znam", sized(0), true),
    ("_ZnwmSt11align_val_t", sized(0), true),
    ("_ZnamSt11align_val_t", sized(0), true),
    ("_ZnwmRKSt9nothrow_t", sized(0), false),
    ("_ZnamRKSt9nothrow_t", sized(0), false),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", sized(0), false),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", sized(0), false),
    ("_ZdlPv", release(0), false),
    ("_ZdaPv", release(0), false),
    ("_ZdlPvm", release(0), false),
    ("_ZdaPvm", release(0), false),
    ("_ZdlPvRKSt9nothrow_t", release(0), false),
    ("_ZdaPvRKSt9nothrow_t", release(0), false),
    ("_ZdlPvSt11align_val_t", release(0), false),
    ("_ZdaPvSt11align_val_t", release(0), false),
    ("_ZdlPvmSt11align_val_t", release(0), false),
    ("_ZdaPvmSt11align_val_t", release(0), false),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", release(0), false),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", release(0), false),
];

/// Functions that change what is allocated in a way that no signature can say. They are named in the plan, so that a
/// target that has them is not silently misread.
pub(super) const UNSUPPORTED: &[(&str, &str)] = &[
    ("xallocx", "resizes a block in place and returns a size, not a block"),
    ("je_xallocx", "resizes a block in place and returns a size, not a block"),
    ("_rjem_xallocx", "resizes a block in place and returns a size, not a block"),
    ("reallocarr", "takes the address of the pointer to the block"),
    ("mi_reallocarr", "takes the address of the pointer to the block"),
    ("mi_heap_destroy", "releases every block of a heap at once"),
];

/// The prefix that an allocator's functions have in their symbols (`--symbol-prefix`): `my_` for `my_malloc`, `my_free`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolPrefix(String);

/// Why a text is no symbol prefix or no function of an allocator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiSyntaxError {
    /// A symbol is empty, too long, or has characters that symbols do not have.
    #[error("{0:?} is not a symbol name: letters, digits, `_`, `$` and `.`, at most 200")]
    Symbol(String),
    /// There is no `=` between role and function.
    #[error("{0:?} is not of the form `malloc=my_alloc`")]
    Form(String),
    /// The role is not a function of the C interface.
    #[error(
        "nothing behaves like {0:?}; known are malloc, new (a malloc that throws), calloc, realloc, reallocarray, \
         posix_memalign, aligned_alloc, memalign and free"
    )]
    Role(String),
    /// The arguments, shifted, are not in registers any more.
    #[error("{0:?} has no argument that far back: the first six can be read")]
    Argument(String),
}

impl SymbolPrefix {
    /// The prefix.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SymbolPrefix {
    type Err = ApiSyntaxError;

    fn from_str(text: &str) -> Result<Self, ApiSyntaxError> {
        Ok(Self(symbol(text)?.to_owned()))
    }
}

impl Api {
    /// Whether other files call it by this name, so that a library in front of the allocator gets the calls.
    #[must_use]
    pub fn is_interposable(&self) -> bool {
        self.is_operator() || C.iter().any(|(name, _)| *name == self.name)
    }
}

impl FromStr for Api {
    type Err = ApiSyntaxError;

    /// Reads `LIKE=SYMBOL` or `LIKE+N=SYMBOL`: the function with this symbol takes its arguments and returns as the
    /// function `LIKE` of the C interface does, with `N` other arguments in front (a pool, an arena):
    /// `malloc+1=pool_alloc`, `free+1=pool_free`. `new` is a `malloc` that throws instead of returning NULL.
    fn from_str(text: &str) -> Result<Self, ApiSyntaxError> {
        let (like, name) = text.split_once('=').ok_or_else(|| ApiSyntaxError::Form(text.to_owned()))?;
        let (like, shift) = match like.split_once('+') {
            Some((like, shift)) => {
                (like, shift.parse().map_err(|_| ApiSyntaxError::Argument(text.to_owned()))?)
            }
            None => (like, 0),
        };
        let throws = like == "new";
        let like = if throws { "malloc" } else { like };
        let known = C.iter().find(|(name, _)| *name == like);
        let (_, role) = known.ok_or_else(|| ApiSyntaxError::Role(like.to_owned()))?;
        let role = role.shifted(shift).ok_or_else(|| ApiSyntaxError::Argument(text.to_owned()))?;
        Ok(Self { name: symbol(name)?.to_owned().into(), role, throws })
    }
}

fn symbol(text: &str) -> Result<&str, ApiSyntaxError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_$.".contains(&byte);
    let valid = (1..=200).contains(&text.len()) && text.bytes().all(allowed);
    valid.then_some(text).ok_or_else(|| ApiSyntaxError::Symbol(text.to_owned()))
}

/// The known allocator functions: a table and an index over its names.
#[derive(Clone, Debug)]
pub struct Catalog {
    apis: Vec<Api>,
    by_name: HashMap<Cow<'static, str>, ApiId>,
    longest_name: usize,
}

impl Default for Catalog {
    /// Every function that tracer knows by itself.
    fn default() -> Self {
        let mut catalog = Self { apis: Vec::new(), by_name: HashMap::new(), longest_name: 0 };
        let mut add = |name: Cow<'static, str>, role, throws| {
            catalog.add(Api { name, role, throws });
        };
        for &(name, role) in C {
            add(Cow::Borrowed(name), role, false);
        }
        for &(name, role, throws) in OPERATORS.iter().chain(OWN) {
            add(Cow::Borrowed(name), role, throws);
        }
        for (prefixes, functions) in [(JEMALLOC_PREFIXES, JEMALLOC), (PREFIXES, C)] {
            for prefix in prefixes {
                for &(name, role) in functions {
                    add(format!("{prefix}{name}").into(), role, false);
                }
            }
        }
        catalog
    }
}

impl Catalog {
    /// Adds a function, behind the known ones. A name that is known already keeps its row.
    ///
    /// # Panics
    /// When the table holds 65,536 functions already.
    pub fn add(&mut self, api: Api) -> ApiId {
        if let Some(&known) = self.by_name.get(&api.name) {
            return known;
        }
        let id = self.add_unnamed(api);
        self.name(id);
        id
    }

    /// Adds a function of single files, which is found under its symbol only where [`Catalog::name`] says so.
    ///
    /// # Panics
    /// As [`Catalog::add`].
    pub(super) fn add_unnamed(&mut self, api: Api) -> ApiId {
        let id = ApiId(u16::try_from(self.apis.len()).expect("a catalog has at most 65,536 functions"));
        self.apis.push(api);
        id
    }

    /// From now on the symbol of this function means it, whatever it meant before.
    pub(super) fn name(&mut self, id: ApiId) {
        let Some(api) = self.apis.get(usize::from(id.0)) else { return };
        self.longest_name = self.longest_name.max(api.name.len());
        self.by_name.insert(api.name.clone(), id);
    }

    /// The function with the given number; none when the number is not one of this catalog's.
    #[must_use]
    pub fn get(&self, id: ApiId) -> Option<&Api> {
        self.apis.get(usize::from(id.0))
    }

    /// The function with the given symbol.
    #[must_use]
    pub fn find(&self, symbol: &[u8]) -> Option<ApiId> {
        if symbol.len() > self.longest_name {
            return None;
        }
        self.by_name.get(str::from_utf8(symbol).ok()?).copied()
    }

    /// Adds the C interface and jemalloc's extension of it under a further prefix.
    pub fn add_prefix(&mut self, prefix: &SymbolPrefix) {
        for &(name, role) in C.iter().chain(JEMALLOC) {
            self.add(Api { name: format!("{}{name}", prefix.0).into(), role, throws: false });
        }
    }

    /// Length of the longest name, in bytes.
    pub(super) fn longest_name(&self) -> usize {
        self.longest_name
    }

    /// Every function with its number, most canonical first.
    pub fn iter(&self) -> impl Iterator<Item = (ApiId, &Api)> {
        (0..).map(ApiId).zip(&self.apis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_under_its_own_number() {
        let catalog = Catalog::default();
        for (id, api) in catalog.iter() {
            assert_eq!(catalog.find(api.name.as_bytes()), Some(id), "{}", api.name);
        }
        assert_eq!(catalog.find(b"not_an_allocator"), None);
        assert_eq!(catalog.find(b"\xff"), None);
        assert_eq!(catalog.get(ApiId(u16::MAX)), None);
    }

    #[test]
    fn releases_say_which_block_and_allocations_which_size() {
        for (_, api) in Catalog::default().iter() {
            match api.role {
                Role::Allocate(signature) => assert!(signature.size.is_some(), "{}", api.name),
                Role::Release(signature) => assert!(signature.old.is_some(), "{}", api.name),
            }
        }
    }

    #[test]
    fn the_plain_c_names_come_before_their_aliases() {
        let catalog = Catalog::default();
        let rank = |name: &str| catalog.find(name.as_bytes()).unwrap();
        assert!(rank("malloc") < rank("__libc_malloc"));
        assert!(rank("aligned_alloc") < rank("memalign"));
        assert!(rank("free") < rank("cfree"));
        assert!(rank("free") < rank("_ZdlPv") && rank("_ZdlPv") < rank("tc_delete"));
    }

    #[test]
    fn a_prefix_and_single_functions_can_be_added() {
        let mut catalog = Catalog::default();
        catalog.add_prefix(&"my_".parse().unwrap());
        let role = |catalog: &Catalog, name: &str| {
            catalog.find(name.as_bytes()).and_then(|id| catalog.get(id)).map(|api| api.role)
        };
        assert_eq!(role(&catalog, "my_calloc"), role(&catalog, "calloc"));

        let like = |text: &str| text.parse::<Api>().map(|api| (api.name.into_owned(), api.role));
        assert_eq!(like("realloc=grow"), Ok(("grow".to_owned(), resize(0, 1))));
        assert_eq!(like("calloc+2=arena.zalloc"), Ok(("arena.zalloc".to_owned(), counted(2, 3))));
        assert_eq!(like("free+1=pool_free"), Ok(("pool_free".to_owned(), release(1))));
    }

    #[test]
    fn what_is_no_function_is_refused() {
        use ApiSyntaxError::*;
        let refused = |text: &str| text.parse::<Api>().unwrap_err();
        assert!(matches!(refused("malloc"), Form(_)));
        assert!(matches!(refused("malloc="), Symbol(_)));
        assert!(matches!(refused("malloc=a b"), Symbol(_)));
        assert!(matches!(refused("alloc=f"), Role(_)));
        assert!(matches!(refused("calloc+5=f"), Argument(_)));
        assert!(matches!(refused("malloc+255=f"), Argument(_)));
        assert!(matches!(refused("malloc+x=f"), Argument(_)));
        assert!(matches!(refused("posix_memalign+1=f"), Argument(_)));
        assert!(matches!("".parse::<SymbolPrefix>(), Err(Symbol(_))));
    }
}
