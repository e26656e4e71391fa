//! Second stage: which functions of an ELF file are probed, and where exactly each probe goes.
//!
//! Pure code: the bytes of a file in, a plan out. Nothing here opens a file, knows a process or talks to the kernel.
//!
//! ```
//! use tracer::plan::{Planner, ProbePlacement};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let elf = std::fs::read("/proc/self/exe")?;
//! let planner = Planner::default();
//! for probe in planner.plan(&elf)?.probes {
//!     let name = planner.catalog.get(probe.api).map_or("?", |api| api.display_name());
//!     println!("{name} {:#x} {}", probe.place.site().file_offset, probe.place.site().instruction);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - [`api`]: allocator functions; [`catalog`]: the table of those that are known.
//! - [`declared`]: the functions that the user names.
//! - `object`: what is read of the file: executable segments and symbols.
//! - [`family`]: which allocator a file's functions are of, and those under prefixes that nobody knows.
//! - [`exits`]: where functions return that must not have a return probe.
//! - `forward`: which functions only call another one that is probed.
//! - [`gate`]: which functions a gate leads aside.
//! - `table`: a plan as text.
//! - [`usdt`]: probes by which a file tells itself what it allocates.
//! - [`python`]: the object allocator of CPython.
//! - [`placement`]: what is known about the place of a probe; `arch` finds it by disassembly.

pub mod api;
mod arch;
pub mod catalog;
pub mod declared;
pub mod exits;
pub mod family;
mod forward;
pub mod gate;
mod object;
pub mod placement;
pub mod python;
mod table;
pub mod usdt;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use tracer_ebpf::probe::Signature;

pub use api::{Api, ApiId, Role};
pub use catalog::{ApiSyntaxError, Catalog, SymbolPrefix};
pub use declared::{Allocator, Declarations};
pub use exits::{Exit, Exits};
pub use family::AllocatorFamily;
pub use placement::{Cost, Obstacle, Reason, ReturnSite, Site};
pub use python::Detour;
pub use table::PlanTable;
pub use usdt::{UsdtEvent, UsdtProbe, UsdtProbes};

use arch::x86_64::{Candidate, Function, Need, long_branches};
use declared::Numbered;
use exits::ExitFinder;
use forward::forwards;
use object::{ElfObject, Named, Symbols};
use placement::Spot;
use python::ObjectAllocator;
use usdt::usdt_probes;

use crate::model::Bytes;
use crate::unwind::unwinds_through;

/// Why a file has no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The bytes are not an ELF file.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file for another architecture than x86_64.
    #[error("not a 64-bit x86 ELF file")]
    Architecture,
    /// The headers or tables of the file contradict themselves.
    #[error("malformed ELF file: {0}")]
    Malformed(#[from] ::object::read::Error),
    /// An executable segment lies outside the file, or the segments together are larger than the file.
    #[error("malformed ELF file: its executable segments do not fit into it")]
    Segment,
    /// The file claims more allocator functions than any real one has.
    #[error("malformed ELF file: it defines more than a thousand allocator functions")]
    TooManyFunctions,
    /// A file has no function of the name that its user declared.
    #[error("{file} has no function {function}{near}")]
    NotDefined {
        /// The file.
        file: String,
        /// The function.
        function: String,
        /// Functions of similar names, for people.
        near: String,
    },
}

/// What is probed in one ELF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectPlan {
    /// By ascending address of the function, one an address.
    pub probes: Vec<PlannedProbe>,
    /// Allocator functions that are not probed.
    pub skipped: Vec<Skipped>,
    /// What the file tells of its blocks itself, where a sample is wanted.
    pub usdt: UsdtProbes,
    /// What is to be in the tables of a process for the probes to see every call.
    pub detours: Vec<Detour>,
    /// Whether it tells of its blocks, be that wanted or not.
    pub samples_itself: bool,
}

impl ObjectPlan {
    /// The symbols of all functions that it speaks of.
    pub fn names<'a>(&'a self, catalog: &'a Catalog) -> impl Iterator<Item = String> + 'a {
        let probed = self.probes.iter().flat_map(|probe| {
            catalog.get(probe.api).map(|api| api.name.to_string()).into_iter().chain(probe.aliases.clone())
        });
        // A skipped function may have several names.
        let skipped = self.skipped.iter().flat_map(|skipped| skipped.name.split(", ").map(str::to_owned));
        probed.chain(skipped)
    }
}

/// An allocator function, and the probes on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedProbe {
    /// The function; the most canonical one when several names share the address.
    pub api: ApiId,
    /// Its other names, most canonical first.
    pub aliases: Vec<String>,
    /// Where the arguments are at the probe, which is not always where they were at the function's entry.
    pub signature: Signature,
    /// Where the probes go.
    pub place: ProbePlacement,
}

/// Where the probes of a function go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbePlacement {
    /// An allocating function: an entry and a return probe, both at this site.
    EntryAndReturn(ReturnSite),
    /// An allocating function that may leave by an exception, which no return probe would let pass: an entry probe, and one on
    /// each instruction that returns.
    EntryAndExits {
        /// The entry probe's site.
        site: ReturnSite,
        /// How the function is left.
        exits: Exits,
    },
    /// A releasing function: an entry probe.
    Entry {
        /// Its site.
        site: Site,
        /// Bytes between the stack pointer there and the function's return address.
        stack_displacement: u32,
    },
}

impl ProbePlacement {
    /// The instruction under the probe.
    #[must_use]
    pub const fn site(&self) -> &Site {
        match self {
            Self::EntryAndReturn(site) | Self::EntryAndExits { site, .. } => site.site(),
            Self::Entry { site, .. } => site,
        }
    }
}

/// An allocator function that is not probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its symbol.
    pub name: String,
    /// Why.
    pub why: String,
    /// What becomes of its calls.
    pub omission: Omission,
}

/// What becomes of the calls of a function that is not probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Omission {
    /// They go through another function, which is probed.
    SeenElsewhere,
    /// They are not seen: no signature can say what they do.
    Unsupported,
    /// They are not seen: no place is proven to be safe for a probe.
    Unsafe,
}

impl Skipped {
    /// What people call it.
    #[must_use]
    pub fn display_name(&self, catalog: &Catalog) -> String {
        let display = |name: &str| {
            let api = catalog.find(name.as_bytes()).and_then(|id| catalog.get(id));
            api.map_or_else(|| name.to_owned(), |api| api.display_name().to_owned())
        };
        let mut names: Vec<_> = self.name.split(", ").map(display).collect();
        names.dedup();
        names.join(", ")
    }
}

/// Makes plans. What it knows is in its fields; the default knows every allocator of the [`Catalog`].
#[derive(Clone, Debug, Default)]
pub struct Planner {
    /// The functions to look for.
    pub catalog: Catalog,
    /// Mean bytes between samples where a sample is wanted: then what files tell of the blocks that they sample is looked for.
    pub sample: Option<Bytes>,
    pub(crate) declared: Vec<Numbered>,
    /// Where the objects of Python are wanted.
    pub(crate) objects: Option<ObjectAllocator>,
}

/// Plans one ELF file with the default [`Planner`].
///
/// # Errors
/// When the bytes are not a well-formed x86_64 ELF file.
pub fn plan_object(elf: &[u8]) -> Result<ObjectPlan, PlanError> {
    Planner::default().plan(elf)
}

impl Planner {
    /// A planner that knows what its user declares, besides.
    #[must_use]
    pub fn with(mut self, declarations: &Declarations) -> Self {
        for prefix in &declarations.prefixes {
            self.catalog.add_prefix(prefix);
        }
        if declarations.python_objects {
            self.objects = Some(ObjectAllocator::add_to(&mut self.catalog));
        }
        for allocator in &declarations.allocators {
            let functions = allocator.functions.iter().map(|api| {
                let known = self.catalog.find(api.name.as_bytes()).and_then(|id| self.catalog.get(id));
                let throws = api.throws || known.is_some_and(|known| known.throws);
                self.catalog.add_unnamed(Api { throws, ..api.clone() })
            });
            let functions = functions.collect();
            self.declared.push(Numbered { allocator: allocator.clone(), functions });
        }
        self
    }

    /// Learns the families of allocator functions in an ELF file that have a prefix which no table has. What is no ELF file has none.
    pub fn learn(&mut self, elf: &[u8]) {
        let Ok(object) = ElfObject::parse(elf) else { return };
        for prefix in family::unknown_prefixes(&object, &self.catalog) {
            self.catalog.add_prefix(&prefix);
        }
    }

    /// Plans the ELF file that a target has mapped from this path, with what is declared for it.
    ///
    /// # Errors
    /// When the bytes are not a well-formed x86_64 ELF file, or it has not the functions that are declared.
    pub fn plan_file(&self, path: &Path, elf: &[u8]) -> Result<ObjectPlan, PlanError> {
        let declared: Vec<&Numbered> =
            self.declared.iter().filter(|numbered| numbered.allocator.is_in(path)).collect();
        if declared.is_empty() {
            return self.plan(elf);
        }
        let mut planner = self.clone();
        let functions = declared.iter().flat_map(|numbered| &numbered.functions);
        functions.clone().for_each(|&id| planner.catalog.name(id));
        let object = ElfObject::parse(elf)?;
        let symbols = object.allocator_symbols(&planner.catalog)?;
        match functions.clone().find(|&&id| !symbols.has(&planner.catalog, id)) {
            Some(&id) => Err(not_defined(&object, path, planner.symbol(id))),
            None => planner.plan(elf),
        }
    }

    /// Plans one ELF file. A file without allocator functions has an empty plan.
    ///
    /// # Errors
    /// When the bytes are not a well-formed x86_64 ELF file.
    pub fn plan(&self, elf: &[u8]) -> Result<ObjectPlan, PlanError> {
        let object = ElfObject::parse(elf)?;
        let mut symbols = object.allocator_symbols(&self.catalog)?;
        let objects = self.objects.map_or(Ok(Vec::new()), |objects| objects.find(&object, &mut symbols));
        let skip = |name: String, why: String, omission| Skipped { name, why, omission };
        let unusable = symbols.unusable.iter();
        let mut skipped: Vec<Skipped> = unusable
            .map(|(name, why)| skip(name.clone(), (*why).to_owned(), Omission::Unsupported))
            .collect();
        let detours = objects.unwrap_or_else(|why| {
            skipped.push(skip(python::OBJECTS.to_owned(), why.to_owned(), Omission::Unsupported));
            Vec::new()
        });
        let scope = Scope {
            object: &object,
            defines_allocator: self.defines_allocator(&symbols),
            forwards: forwards(&object, &symbols, &self.catalog),
            exits: OnceCell::new(),
        };
        let (mut usdt, unusable) = usdt_probes(&object, &symbols);
        if self.sample.is_some() {
            skipped.extend(unusable);
        }
        let is_sampler = usdt.is_sampler();
        let samples_itself = usdt.is_complete();
        if self.sample.is_none() {
            usdt = UsdtProbes::default();
        }
        if is_sampler {
            let names: Vec<_> = symbols.functions.values().flat_map(|named| self.names(named)).collect();
            let why = "it passes every call on to the allocator behind it".to_owned();
            skipped.push(skip(names.join(", "), why, Omission::SeenElsewhere));
            return Ok(ObjectPlan { probes: Vec::new(), skipped, usdt, detours: Vec::new(), samples_itself });
        }
        let mut drafts = Vec::new();
        for (&svma, named) in &symbols.functions {
            match self.draft(&scope, svma, named) {
                Ok(draft) => drafts.push(draft),
                Err((omission, why)) => skipped.push(skip(self.names(named).join(", "), why, omission)),
            }
        }
        forbid_entered_windows(&object, &mut drafts);
        let mut probes = Vec::new();
        for draft in drafts {
            match settle(&object, draft) {
                Ok(probe) => probes.push(probe),
                Err((api, why)) => {
                    skipped.push(skip(self.symbol(api).to_owned(), why.to_owned(), Omission::Unsafe))
                }
            }
        }
        Ok(ObjectPlan { probes, skipped, usdt, detours, samples_itself })
    }

    /// Whether the file has an allocator of its own, beside operators that call one.
    fn defines_allocator(&self, symbols: &Symbols) -> bool {
        let apis = symbols.functions.values().flat_map(|named| &named.apis);
        apis.filter_map(|&id| self.catalog.get(id))
            .any(|api| !api.is_operator() && matches!(api.role, Role::Allocate(_)))
    }

    fn symbol(&self, api: ApiId) -> &str {
        self.catalog.get(api).map_or("?", |api| &api.name)
    }

    fn names(&self, named: &Named) -> Vec<String> {
        named.apis.iter().filter_map(|&id| self.catalog.get(id)).map(|api| api.name.to_string()).collect()
    }

    /// What the function's own code says about the place of its probe.
    fn draft<'data>(
        &self,
        scope: &Scope<'_, 'data>,
        svma: u64,
        named: &Named,
    ) -> Result<Draft<'data>, (Omission, String)> {
        let elsewhere = |why: String| (Omission::SeenElsewhere, why);
        let unsafe_since = |why: &str| (Omission::Unsafe, why.to_owned());
        let canonical = named.canonical(&self.catalog);
        let (api, Api { role, .. }) = canonical.ok_or_else(|| unsafe_since("it is not in the catalog"))?;
        let apis = || named.apis.iter().filter_map(|&id| self.catalog.get(id));
        if apis().all(Api::is_operator) && !scope.defines_allocator {
            return Err(elsewhere(
                "it calls malloc or free of another file, which are probed there".to_owned(),
            ));
        }
        if let Some(to) = scope.forwards.get(&svma).and_then(|&to| self.catalog.get(to)) {
            return Err(elsewhere(format!("it passes every block on to {}, which is probed", to.name)));
        }
        let mut exits = None;
        // An exception thrown while a return probe is pending ends the target, so the exits are probed instead. Where there is
        // nothing to unwind by, it ends there anyway.
        if apis().any(|api| api.throws) && unwinds_through(scope.object.data(), svma) {
            let finder = scope.exits.get_or_init(|| ExitFinder::new(scope.object));
            let lost =
                |why| unsafe_since(&format!("an exception could not pass its return probe, and {why}"));
            exits = Some(finder.of(svma).map_err(lost)?);
        }
        let code = scope.object.code_at(svma);
        let code = code.ok_or_else(|| unsafe_since("its address is not in an executable segment"))?;
        let need = Need { signature: role.signature(), return_probe: matches!(role, Role::Allocate(_)) };
        let function = Function { svma, code, size: named.size };
        let entry = function.entry(need);
        let entry = entry.ok_or_else(|| unsafe_since("its first instruction cannot be decoded"))?;
        let moved = match entry.cost {
            Cost::SingleStepped => function.first_cheap(need),
            Cost::Emulated => Ok(entry.clone()),
        };
        let aliases = self.names(named).split_off(1);
        Ok(Draft { api, aliases, role: *role, function, exits, entry, moved })
    }
}

fn not_defined(object: &ElfObject<'_>, path: &Path, function: &str) -> PlanError {
    PlanError::NotDefined {
        file: path.display().to_string(),
        function: function.to_owned(),
        near: declared::suggestion(&declared::near(function, object.function_names())),
    }
}

/// The probe of a draft against which nothing speaks any more. An error would be one of this planner, and is shown
/// rather than a probe put in a wrong place.
fn settle(object: &ElfObject<'_>, draft: Draft<'_>) -> Result<PlannedProbe, (ApiId, &'static str)> {
    let (candidate, reason) = match draft.moved {
        Ok(candidate) if candidate.offset == 0 => (candidate, Reason::Entry),
        Ok(candidate) if candidate.cost == Cost::SingleStepped => (candidate, Reason::BehindNop),
        Ok(candidate) => (candidate, Reason::Moved),
        Err(_) if draft.function.begins_with_long_nop() => {
            let why = "it begins with a long nop, on which a probe can kill forked children, and no other place is safe";
            return Err((draft.api, why));
        }
        Err(obstacle) => (draft.entry, Reason::Stayed(obstacle)),
    };
    let svma = draft.function.svma;
    let file_offset = svma.checked_add(candidate.offset.into()).and_then(|svma| object.file_offset(svma));
    let site = Site {
        function_svma: svma,
        offset_in_function: candidate.offset,
        file_offset: file_offset.ok_or((draft.api, "the place of its probe is not in the file"))?,
        instruction: candidate.instruction,
        cost: candidate.cost,
        reason,
    };
    let Candidate { signature, stack_displacement, .. } = candidate;
    let place = match draft.role {
        Role::Allocate(_) => Spot { site, stack_displacement }
            .into_return_site()
            .map(|site| match draft.exits {
                Some(exits) => ProbePlacement::EntryAndExits { site, exits },
                None => ProbePlacement::EntryAndReturn(site),
            })
            .ok_or((draft.api, "no return probe can be set at the place of its probe"))?,
        Role::Release(_) => ProbePlacement::Entry { site, stack_displacement },
    };
    Ok(PlannedProbe { api: draft.api, aliases: draft.aliases, signature, place })
}

/// What is known about a file as a whole.
struct Scope<'object, 'data> {
    object: &'object ElfObject<'data>,
    defines_allocator: bool,
    forwards: BTreeMap<u64, ApiId>,
    /// Made when it is needed: most files have no function that throws.
    exits: OnceCell<ExitFinder<'object, 'data>>,
}

/// A function whose probe has a place as far as its own straight path tells.
struct Draft<'data> {
    api: ApiId,
    aliases: Vec<String>,
    role: Role,
    function: Function<'data>,
    exits: Option<Exits>,
    entry: Candidate,
    moved: Result<Candidate, Obstacle>,
}

impl Draft<'_> {
    /// The addresses behind the entry at which nothing may enter: up to the moved probe.
    fn window(&self) -> Option<RangeInclusive<u64>> {
        let candidate = self.moved.as_ref().ok().filter(|candidate| candidate.offset > 0)?;
        let svma = self.function.svma;
        Some(svma.checked_add(1)?..=svma.checked_add(candidate.offset.into())?)
    }
}

/// Takes back every moved probe that other code can reach without passing the function's entry: by a branch from
/// anywhere in the file, or through a symbol (which other files may call, and which says that this file does).
fn forbid_entered_windows(object: &ElfObject<'_>, drafts: &mut [Draft<'_>]) {
    let entries: Vec<u64> = drafts.iter().map(|draft| draft.function.svma).collect();
    for draft in &mut *drafts {
        let Some(window) = draft.window() else { continue };
        let own = draft.function.svma;
        let next = entries.get(entries.partition_point(|&entry| entry <= own));
        let entered = match next.filter(|next| window.contains(next)) {
            Some(next) => Some(Obstacle::EnteredAt { offset: (next - own) as u32 }),
            None => draft.function.entered_within(&window),
        };
        if let Some(obstacle) = entered {
            draft.moved = Err(obstacle);
        }
    }
    // Sorted, and apart now that no window reaches into the next function.
    let windows: Vec<_> = drafts.iter().filter_map(Draft::window).collect();
    if windows.is_empty() {
        return;
    }
    let mut entered = object.symbol_addresses(|svma| {
        let at = windows.partition_point(|window| *window.end() < svma);
        windows.get(at).is_some_and(|window| window.contains(&svma))
    });
    for (svma, code) in object.executable() {
        long_branches(code, svma, &windows, &mut entered);
    }
    for draft in drafts {
        let Some(window) = draft.window() else { continue };
        if let Some(svma) = entered.iter().find(|svma| window.contains(svma)) {
            draft.moved = Err(Obstacle::EnteredAt { offset: (svma - draft.function.svma) as u32 });
        }
    }
}

#[cfg(test)]
mod tests;
