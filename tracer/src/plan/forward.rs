//! Releasing functions that only pass the block on.
//!
//! C++'s `operator delete` calls `free`, mimalloc's sized forms call `mi_free`: a probe on both would count each block
//! twice, once as a release and once as a release of an unknown block. The inner function is probed, so the outer one
//! need not be. (Allocating functions that pass the call on are probed all the same: the outermost call names the
//! allocation.)

use std::collections::{BTreeMap, HashMap};

use super::api::{ApiId, Catalog, Role};
use super::arch::x86_64::{Function, Target};
use super::object::{Object, Symbols};

/// Longer chains of functions that call each other are not followed.
const MAX_CHAIN: usize = 8;

/// A function that a releasing function calls with the block it was given.
#[derive(Clone, Copy)]
struct Callee {
    api: ApiId,
    /// None when another file defines it.
    svma: Option<u64>,
}

/// The functions that need no probe: address → the probed function that gets every block of theirs.
pub(super) fn forwards(object: &Object<'_>, symbols: &Symbols, catalog: &Catalog) -> BTreeMap<u64, ApiId> {
    let imports = object.imports(catalog);
    let callees: BTreeMap<u64, Callee> = symbols
        .functions
        .keys()
        .filter_map(|&svma| Some((svma, callee(object, symbols, catalog, &imports, svma)?)))
        .collect();
    callees.keys().filter_map(|&svma| Some((svma, last_callee(&callees, svma)?))).collect()
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
    object: &Object<'_>,
    symbols: &Symbols,
    catalog: &Catalog,
    imports: &HashMap<u64, ApiId>,
    svma: u64,
) -> Option<Callee> {
    let named = symbols.functions.get(&svma)?;
    let (_, api) = named.canonical(catalog)?;
    let Role::Release(signature) = api.role else { return None };
    let function = Function { svma, code: object.code_at(svma)?, size: named.size };
    let (target, block) = function.passes_block_on(signature)?;
    let callee = resolve(object, symbols, imports, target)?;
    match catalog.get(callee.api)?.role {
        Role::Release(signature) if signature.old == Some(block) => Some(callee),
        Role::Release(_) | Role::Allocate(_) => None,
    }
}

fn resolve(
    object: &Object<'_>,
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
