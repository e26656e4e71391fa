//! Functions that only pass on what they are asked.
//!
//! C++'s `operator delete` calls `free`, mimalloc's sized forms call `mi_free`, jemalloc's `sdallocx`: a probe on both would count each block
//! twice, once as a release and once as a release of an unknown block. The inner function is probed, so the outer one
//! need not be. Allocating functions that pass the call on are probed all the same, since the outermost call names the
//! allocation; but not an `operator new` that calls `malloc`, since the probes of a function that throws cost ten times as much: it is seen as
//! the `malloc` in a static program, too.

use std::collections::{BTreeMap, HashMap};

use super::api::{Api, ApiId, Role};
use super::arch::x86_64::{Function, Target};
use super::catalog::Catalog;
use super::object::{ElfObject, Symbols};

/// Longer chains of functions that call each other are not followed.
const MAX_CHAIN: usize = 8;

/// A function that another one passes on to what it is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Callee {
    api: ApiId,
    /// None when another file defines it.
    svma: Option<u64>,
}

/// The functions that need no probe: address → the probed function that gets every block of theirs.
pub(super) fn forwards(object: &ElfObject<'_>, symbols: &Symbols, catalog: &Catalog) -> BTreeMap<u64, ApiId> {
    let imports = object.imports(catalog);
    let callees: BTreeMap<u64, Callee> = symbols
        .functions
        .keys()
        .filter_map(|&svma| Some((svma, callee(object, symbols, catalog, &imports, svma)?)))
        .collect();
    let last = callees.keys().filter_map(|&svma| Some((svma, last_callee(&callees, svma)?)));
    let is_wanted = |api: &Api| matches!(api.role, Role::Release(_)) || api.name == "malloc";
    last.filter(|&(_, api)| catalog.get(api).is_some_and(is_wanted)).collect()
}

/// Whether a function calls this one, directly or by the linkage table.
pub(super) fn calls(
    object: &ElfObject<'_>,
    symbols: &Symbols,
    catalog: &Catalog,
    function: Function<'_>,
    called: ApiId,
) -> bool {
    let imports = object.imports(catalog);
    let callees =
        function.called().into_iter().filter_map(|target| resolve(object, symbols, &imports, target));
    callees.into_iter().any(|callee| callee.api == called)
}

/// The function at the end of the chain; none when the chain is a ring, in which nobody would be probed.
fn last_callee(callees: &BTreeMap<u64, Callee>, svma: u64) -> Option<ApiId> {
    let mut callee = *callees.get(&svma)?;
    for _ in 0..MAX_CHAIN {
        match callee.svma.and_then(|svma| callees.get(&svma)) {
            Some(&next) => callee = next,
            None => return Some(callee.api),
        }
    }
    None
}

fn callee(
    object: &ElfObject<'_>,
    symbols: &Symbols,
    catalog: &Catalog,
    imports: &HashMap<u64, ApiId>,
    svma: u64,
) -> Option<Callee> {
    let named = symbols.functions.get(&svma)?;
    let (_, api) = named.canonical(catalog)?;
    let function = Function { svma, code: object.code_at(svma)?, size: named.size };
    match api.role {
        Role::Release(signature) => {
            let releases = |target| {
                let callee = resolve(object, symbols, imports, target)?;
                let Role::Release(signature) = catalog.get(callee.api)?.role else { return None };
                Some((callee, signature.old?))
            };
            function.passes_block_on(signature, releases)
        }
        Role::Allocate(asked) if api.throws => {
            let callee = resolve(object, symbols, imports, function.calls_first()?)?;
            matches!(catalog.get(callee.api)?.role, Role::Allocate(passed) if passed == asked)
                .then_some(callee)
        }
        Role::Allocate(_) => None,
    }
}

fn resolve(
    object: &ElfObject<'_>,
    symbols: &Symbols,
    imports: &HashMap<u64, ApiId>,
    target: Target,
) -> Option<Callee> {
    let slot = match target {
        Target::Slot(slot) => slot,
        Target::Address(svma) => match symbols.functions.get(&svma) {
            Some(named) => return Some(Callee { api: *named.apis.first()?, svma: Some(svma) }),
            None => Function { svma, code: object.code_at(svma)?, size: 0 }.linkage_slot()?,
        },
    };
    let api = *imports.get(&slot)?;
    Some(Callee { api, svma: symbols.address_of(api) })
}
