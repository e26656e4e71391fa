//! One traced process: its identity, the files it has mapped, and the probes in them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    os::unix::fs::FileExt as _,
    rc::Rc,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use tracer_ebpf::probe::{Cookie, WayOut};

use super::{address_space::last_page, found::Found};
use crate::{
    analyze::mappings::InitialMappings,
    attach::{Capture, ProbedEvent, Site},
    model::{Address, Mode, NotProbed, Pid},
    plan::{
        Catalog, Cost, Declarations, Exits, ObjectPlan, Omission, Place, PlanError, PlanTable, PlannedProbe,
        Planner, Skipped,
    },
    report::human::{counted, printable},
    target::{FileId, Object, Target},
};

/// What has been probed. Where a probe is everybody's all processes have this in common.
pub type Probed = Rc<RefCell<ProbedFiles>>;

/// The files that have been probed.
#[derive(Default)]
pub struct ProbedFiles {
    /// How many functions in each.
    functions: HashMap<FileId, usize>,
    /// Functions whose calls are not seen.
    pub not_probed: Vec<NotProbed>,
    /// The offsets of the probes in each, where probes are everybody's.
    places: HashSet<Vec<u64>>,
}

/// A process that is traced.
pub struct TracedProcess {
    /// Its place in the tables.
    pub index: u16,
    /// The process itself.
    pub target: Arc<Target>,
    probed: Probed,
    probes: usize,
    found: Found,
}

impl TracedProcess {
    /// Opens a process.
    ///
    /// # Errors
    /// When it cannot be traced.
    pub fn open(pid: Pid) -> Result<Self> {
        Ok(Self::new(0, Target::open(pid)?, Probed::default()))
    }

    /// A process with this place in the tables. The files in `probed` have their probes.
    pub fn new(index: u16, target: Target, probed: Probed) -> Self {
        Self { index, target: Arc::new(target), probed, probes: 0, found: Found::default() }
    }

    /// From now on the files that have been probed are these, for others too.
    pub fn share(&mut self, probed: &Probed) {
        self.probed = Rc::clone(probed);
    }

    /// How many functions are probed.
    pub fn probes(&self) -> usize {
        self.probes
    }

    /// The functions whose calls are not seen.
    pub fn not_probed(&self) -> Vec<NotProbed> {
        self.probed.borrow().not_probed.clone()
    }

    /// What was looked at for allocators.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Probes the allocator functions of every mapped file that has not been looked at yet.
    ///
    /// # Errors
    /// When the process is gone, or the kernel refuses a probe.
    pub fn attach(&mut self, capture: &mut Capture, planner: &Planner) -> Result<()> {
        if planner.catalog.is_empty() {
            return Ok(());
        }
        let (known, mut probes) = (Rc::clone(&self.probed), 0);
        let is_new = |id| known.borrow().functions.get(&id).map(|functions| probes += functions).is_none();
        let objects = self.target.objects_where(is_new).with_context(|| self.unreadable())?;
        self.probes = probes;
        for unopened in &objects.unopened {
            self.probed.borrow_mut().functions.insert(unopened.id, 0);
            log::warn!("{}: cannot look for allocators in {}", self.name(), unopened.path.display());
        }
        objects.opened.iter().try_for_each(|object| self.attach_new(object, capture, planner))
    }

    /// As [`TracedProcess::attach`], for one file.
    ///
    /// # Errors
    /// As [`TracedProcess::attach`].
    pub fn attach_new(&mut self, object: &Object, capture: &mut Capture, planner: &Planner) -> Result<()> {
        let is_known = || self.probed.borrow_mut().functions.insert(object.id, 0).is_some();
        if planner.catalog.is_empty() || is_known() {
            return Ok(());
        }
        let functions = self.attach_object(object, capture, planner)?;
        self.probed.borrow_mut().functions.insert(object.id, functions);
        self.probes += functions;
        Ok(())
    }

    /// Attaches the probes of a file, and tells how many functions they are in.
    fn attach_object(&mut self, object: &Object, capture: &mut Capture, planner: &Planner) -> Result<usize> {
        self.found.add_file(object.path.clone());
        let plan = match plan(object, planner) {
            Ok(plan) => plan,
            Err(error) if matches!(error.downcast_ref(), Some(PlanError::NotDefined { .. })) => {
                return Err(error);
            }
            Err(error) => {
                log::warn!("{}: {error:#}", self.name());
                return Ok(0);
            }
        };
        let mut sites: Vec<Site> =
            plan.probes.iter().map(|probe| self.site(object, planner, probe)).collect();
        sites.extend(self.exits(&plan));
        if capture.shares_probes() && self.is_probed_elsewhere(object, &sites) {
            log::debug!(
                "{} is a file that has been probed already, under another name",
                object.path.display()
            );
            self.found.add_plan(&plan, &planner.catalog);
            return Ok(plan.probes.len());
        }
        if let Err(error) = capture.attach_probes(&object.uprobe_path(), &sites, self.target.pid()) {
            if self.target.has_exited() {
                bail!("{} exited while it was being attached to", self.name());
            }
            return Err(error.context(format!("cannot probe {} in {}", self.name(), object.path.display())));
        }
        self.found.add_plan(&plan, &planner.catalog);
        self.tell_of_plan(object, &plan, &planner.catalog);
        Ok(plan.probes.len())
    }

    /// Says what is probed in a file and what could not be.
    fn tell_of_plan(&self, object: &Object, plan: &ObjectPlan, catalog: &Catalog) {
        let path = object.path.display().to_string();
        let (file, probes) = (printable(&path), plan.probes.len());
        if probes > 0 {
            log::info!("{}: {} probed in {file}", self.name(), counted(probes as u64, "allocator function"));
        }
        for skipped in plan.skipped.iter().filter(|skipped| skipped.omission != Omission::SeenElsewhere) {
            let Skipped { why, omission, .. } = skipped;
            let function = skipped.display_name(catalog);
            if *omission == Omission::Unsafe {
                log::warn!("{}: calls of {function} in {file} are not seen: {why}", self.name());
            }
            let missing = NotProbed { module: object.name(), function, why: why.clone() };
            self.probed.borrow_mut().not_probed.push(missing);
        }
    }

    /// Whether probes that are everybody's are in this file already. Two overlays of one image show one file under two identities: then
    /// its code in memory has been changed at every place where another file just like it was probed.
    fn is_probed_elsewhere(&self, object: &Object, sites: &[Site]) -> bool {
        let places = sites.iter().map(|site| site.offset).collect();
        if sites.is_empty() || self.probed.borrow_mut().places.insert(places) {
            return false;
        }
        let Ok(memory) = self.target.open_file("mem") else { return false };
        sites.iter().all(|site| {
            let (mut in_file, mut in_memory) = ([0], [0]);
            let address = object.address_of(site.offset);
            address.is_some_and(|address| memory.read_exact_at(&mut in_memory, address.0).is_ok())
                && object.file.read_exact_at(&mut in_file, site.offset).is_ok()
                && in_file != in_memory
        })
    }

    /// The exits of functions whose return is not probed. Several may have one in common.
    fn exits(&self, plan: &ObjectPlan) -> Vec<Site> {
        let mut sites = BTreeMap::new();
        for probe in &plan.probes {
            let Place::EntryAndExits { exits, .. } = &probe.place else { continue };
            let cookie = self.cookie(probe);
            let site = |offset| Site { offset, cookie, event: ProbedEvent::Exit, cost: Cost::SingleStepped };
            sites.extend(exits.known.iter().map(|exit| (exit.file_offset, site(exit.file_offset))));
        }
        sites.into_values().collect()
    }

    fn cookie(&self, probe: &PlannedProbe) -> Cookie {
        let way_out = match probe.place {
            Place::EntryAndExits { exits: Exits { unknown: 0, .. }, .. } => WayOut::Exits,
            Place::EntryAndExits { .. } => WayOut::SomeExits,
            Place::EntryAndReturn(_) | Place::Entry { .. } => WayOut::Trampoline,
        };
        Cookie { process: self.index, api: probe.api.0, signature: probe.signature, way_out }
    }

    fn site(&self, object: &Object, planner: &Planner, probe: &PlannedProbe) -> Site {
        let site = probe.place.site();
        log::debug!(
            "{}: {} at {:#x} ({}, {})",
            object.name(),
            planner.catalog.get(probe.api).map_or("?", |api| api.display_name()),
            site.svma(),
            site.instruction,
            site.cost
        );
        Site {
            offset: site.file_offset,
            cookie: self.cookie(probe),
            event: match probe.place {
                Place::EntryAndReturn(_) => ProbedEvent::Allocate,
                Place::EntryAndExits { .. } => ProbedEvent::AllocateToExits,
                Place::Entry { .. } => ProbedEvent::Release,
            },
            cost: site.cost,
        }
    }

    /// What it has mapped now.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn initial_mappings(&self) -> Result<InitialMappings> {
        let mappings = self.target.mappings().with_context(|| self.unreadable())?;
        Ok(InitialMappings::of(&mappings))
    }

    /// Why its mappings cannot be read.
    fn unreadable(&self) -> String {
        if self.target.has_exited() {
            format!("{} exited while it was being attached to", self.name())
        } else {
            format!("cannot read the mappings of {}", self.name())
        }
    }

    /// Where probed functions return to.
    pub fn trampoline(&self) -> Option<Trampoline> {
        let mappings = self.target.mappings().ok()?;
        let made = mappings.iter().find(|mapping| mapping.name == "[uprobes]");
        let wish = last_page();
        let vacant = !mappings.iter().any(|mapping| mapping.start <= wish && wish < mapping.end);
        match made {
            Some(mapping) => Some(Trampoline::Made(mapping.start)),
            None => vacant.then_some(Trampoline::Expected(wish)),
        }
    }

    /// How messages call it.
    pub fn name(&self) -> String {
        format!("{} ({})", printable(self.target.comm()), self.target.pid())
    }
}

/// Where the kernel's return trampoline is in a process. The kernel makes it when a probed function is first called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trampoline {
    /// It is there.
    Made(Address),
    /// It will be there, unless something else is mapped there first.
    Expected(Address),
}

/// Where the probes of a process would go, as a table for people.
///
/// # Errors
/// When the process is gone, or one of its files is not what it should be.
pub fn plan_of(target: &Target, declarations: &Declarations) -> Result<String> {
    let planner = planner(declarations, Mode::Allocations);
    let mut text = String::new();
    let mut found = Found::default();
    for object in target.objects()?.opened {
        found.add_file(object.path.clone());
        let plan = plan(&object, &planner)?;
        found.add_plan(&plan, &planner.catalog);
        if !plan.probes.is_empty() || !plan.skipped.is_empty() {
            let separator = if text.is_empty() { "" } else { "\n" };
            text += &format!("{separator}{}\n", object.path.display());
            text += &PlanTable { plan: &plan, catalog: &planner.catalog }.to_string();
        }
    }
    if let Some(lack) = found.lacks(declarations) {
        bail!("{} ({}) has no {lack}", printable(target.comm()), target.pid());
    }
    if text.is_empty() {
        text = format!("{} ({}) has no allocator that tracer knows\n", target.comm(), target.pid());
    }
    Ok(text)
}

/// What plans the probes; of growth mode it knows no allocator.
pub fn planner(declarations: &Declarations, mode: Mode) -> Planner {
    if mode == Mode::Growth {
        return Planner { catalog: Catalog::empty(), ..Planner::default() };
    }
    Planner::default().with(declarations)
}

fn plan(object: &Object, planner: &Planner) -> Result<ObjectPlan> {
    let plan = || Ok(planner.plan_file(&object.path, &object.bytes()?)?);
    plan().map_err(|error: anyhow::Error| match error.downcast_ref() {
        // It names the file itself.
        Some(PlanError::NotDefined { .. }) => error,
        _ => error.context(format!("cannot look for allocators in {}", object.path.display())),
    })
}
