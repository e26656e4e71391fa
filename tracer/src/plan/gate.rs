//! Which functions of a file a gate leads aside, and at which instruction.
//!
//! A gate is for the whole C interface of an allocator or for nothing: of a `malloc` that is led aside whose `free` is not, blocks
//! would never be seen to leave.

use std::{collections::BTreeSet, fmt};

use super::{
    PlanError,
    arch::x86_64::{
        Function,
        gate_site::{self, GateFunction},
        long_branches,
    },
    catalog::Catalog,
    forward::{calls, forwards},
    object::ElfObject,
    placement::Obstacle,
    usdt::usdt_probes,
};

pub use super::arch::x86_64::gate_site::{GateSite, NoSite};

/// The functions of the C interface, by the names under which the sampler has its own.
const FUNCTIONS: [&str; 9] = [
    "malloc",
    "calloc",
    "realloc",
    "free",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
];

/// Without these there is no gate.
const NECESSARY: [&str; 4] = ["malloc", "calloc", "realloc", "free"];

/// What a gate does in one file.
#[derive(Clone, Debug)]
pub struct GatePlan {
    /// The functions that are led aside.
    pub functions: Vec<GatedFunction>,
    /// Those that are not, so their blocks are not seen, and why.
    pub skipped: Vec<(&'static str, NoSite)>,
    /// Functions that are never led aside: C++ operators that do not call its `malloc` and may leave by an exception, which cannot pass the
    /// sampler's frame, and further ones that release blocks. In a program that uses them much would be seen wrongly.
    pub excluded: Vec<String>,
}

/// A function that is led aside.
#[derive(Clone, Debug)]
pub struct GatedFunction {
    /// Its name.
    pub name: &'static str,
    /// The instruction that is replaced.
    pub site: GateSite,
    /// Where that is in the file.
    pub file_offset: u64,
}

/// Why a file has no gate.
#[derive(Debug, thiserror::Error)]
pub enum NoGate {
    /// It could not be read.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A function that is necessary has no place for it.
    #[error("its {function} has no instruction that a gate can replace: {why}")]
    NoSite {
        /// The function.
        function: &'static str,
        /// Why not.
        why: NoSite,
    },
    /// It samples already.
    #[error("the process has loaded tracer's sampler: --sample is enough, without --gate")]
    Sampler,
}

/// Plans a gate. `None` for a file that defines no allocator: not all of `malloc`, `calloc`, `realloc` and `free`.
///
/// # Errors
/// When it defines one that a gate cannot be in.
pub fn plan_gate(elf: &[u8]) -> Result<Option<GatePlan>, NoGate> {
    let object = ElfObject::parse(elf)?;
    let found = object.functions_named(&FUNCTIONS);
    if !NECESSARY.iter().all(|name| found.contains_key(name)) {
        return Ok(None);
    }
    let catalog = Catalog::default();
    let symbols = object.allocator_symbols(&catalog)?;
    if usdt_probes(&object, &symbols).0.is_sampler() {
        return Err(NoGate::Sampler);
    }
    let forwarded = forwards(&object, &symbols, &catalog);
    let passes_malloc = |function| {
        catalog.find(b"malloc").is_some_and(|malloc| calls(&object, &symbols, &catalog, function, malloc))
    };
    let malloc = found.get("malloc").map(|&(svma, _)| svma);
    let (mut functions, mut skipped, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for name in FUNCTIONS {
        let (Some(&(svma, size)), Some(gated)) = (found.get(name), GateFunction::named(name)) else {
            continue;
        };
        // memalign and aligned_alloc are often one function.
        if !seen.insert(svma) {
            continue;
        }
        let code = object.code_at(svma).ok_or(PlanError::Segment)?;
        let function = Function { svma, code, size };
        let inside = object.symbol_addresses(|symbol| symbol > svma && symbol < svma + MOST_BYTES);
        let site = gate_site::find(function, gated, &inside, malloc).and_then(|site| {
            if !gate_site::calls_out(svma, |svma| object.code_at(svma)) {
                return Err(NoSite::CallsNobody);
            }
            let mut entered = Vec::new();
            for (svma, code) in object.executable() {
                long_branches(code, svma, &[site.closed()], &mut entered);
            }
            // What is no instruction may look like a branch. A real one leads to an instruction.
            match entered.iter().find(|&&svma| site.has_instruction_at(svma)) {
                Some(entered) => {
                    let offset = (entered - site.svma) as u32;
                    Err(NoSite::Entered(Obstacle::EnteredAt { offset }))
                }
                None => Ok(site),
            }
        });
        match site {
            Ok(site) => {
                let file_offset = object.file_offset(site.address()).ok_or(PlanError::Segment)?;
                functions.push(GatedFunction { name, site, file_offset });
            }
            // musl's.
            Err(_) if name == "calloc" && passes_malloc(function) => {}
            Err(why) if NECESSARY.contains(&name) => return Err(NoGate::NoSite { function: name, why }),
            Err(why) => skipped.push((name, why)),
        }
    }
    let is_gated = |svma: &u64| functions.iter().any(|function: &GatedFunction| function.site.svma == *svma);
    let excluded =
        symbols.functions.iter().filter(|(svma, _)| !is_gated(svma) && !forwarded.contains_key(svma));
    let excluded = excluded.flat_map(|(_, named)| &named.apis).filter_map(|&api| catalog.get(api));
    let excluded = excluded.filter(|api| api.throws || api.role.signature().old.is_some());
    // It passes by realloc in every C library.
    let excluded = excluded.map(|api| api.name.to_string()).filter(|name| name != "reallocarray").collect();
    Ok(Some(GatePlan { functions, skipped, excluded }))
}

/// The first of these functions of another file that a file uses, as people call it.
#[must_use]
pub fn uses(elf: &[u8], functions: &[String]) -> Option<String> {
    let catalog = Catalog::default();
    let object = ElfObject::parse(elf).ok()?;
    let imports = object.imports(&catalog);
    let mut used = imports.values().filter_map(|&api| catalog.get(api));
    used.find(|api| functions.iter().any(|name| *name == api.name)).map(|api| api.display_name().to_owned())
}

/// Where in a file the loader writes the address of the `malloc` that all use: of a C library, which calls that by a word of its own.
#[must_use]
pub fn malloc_slot(elf: &[u8]) -> Option<u64> {
    let catalog = Catalog::default();
    let malloc = catalog.find(b"malloc")?;
    let imports = ElfObject::parse(elf).ok()?.imports(&catalog);
    imports.into_iter().find_map(|(slot, api)| (api == malloc).then_some(slot))
}

/// How people call this function, if it may leave by an exception.
#[must_use]
pub fn throwing(name: &str) -> Option<String> {
    let catalog = Catalog::default();
    let api = catalog.get(catalog.find(name.as_bytes())?)?;
    api.throws.then(|| api.display_name().to_owned())
}

/// No site is further behind its function's entry.
const MOST_BYTES: u64 = 256;

impl fmt::Display for GatePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for GatedFunction { name, site, .. } in &self.functions {
            writeln!(f, "{name:<15} {:#x}  +{:<#5x} {}", site.svma, site.offset, site.instruction)?;
        }
        for (name, why) in &self.skipped {
            writeln!(f, "{name:<15} not led aside, its blocks are not seen: {why}")?;
        }
        Ok(())
    }
}
