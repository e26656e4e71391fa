//! One traced process: its identity, the files it has mapped, and the probes in them.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context as _, Result, bail};
use tracer_ebpf::probe::{Cookie, WayOut};

use super::allocators::Found;
use crate::{
    analyze::mappings::{AddressRange, Backing, InitialMappings},
    attach::{Capture, Programs, Site},
    model::{Address, Pid},
    plan::{Declarations, Exits, ObjectPlan, Place, PlanError, PlanTable, PlannedProbe, Planner},
    report::human::printable,
    target::{FileId, Mapping, Object, Target},
};

/// A process that is traced.
pub struct TracedProcess {
    /// Its place in the tables.
    pub index: u16,
    /// The process itself.
    pub target: Target,
    probed: HashSet<FileId>,
    probes: usize,
    found: Found,
}

impl TracedProcess {
    /// Opens a process.
    ///
    /// # Errors
    /// When it cannot be traced.
    pub fn open(index: u16, pid: Pid) -> Result<Self> {
        Ok(Self {
            index,
            target: Target::open(pid)?,
            probed: HashSet::new(),
            probes: 0,
            found: Found::default(),
        })
    }

    /// How many functions are probed.
    pub fn probes(&self) -> usize {
        self.probes
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
        let objects = self.target.objects_where(|id| !self.probed.contains(&id));
        let objects = objects.with_context(|| self.unreadable())?;
        for unopened in &objects.unopened {
            self.probed.insert(unopened.id);
            log::warn!("{}: cannot look for allocators in {}", self.name(), unopened.path.display());
        }
        for object in objects.opened {
            self.probed.insert(object.id);
            self.attach_object(&object, capture, planner)?;
        }
        Ok(())
    }

    /// As [`TracedProcess::attach`], for one file.
    ///
    /// # Errors
    /// As [`TracedProcess::attach`].
    pub fn attach_new(&mut self, object: &Object, capture: &mut Capture, planner: &Planner) -> Result<()> {
        if self.probed.insert(object.id) { self.attach_object(object, capture, planner) } else { Ok(()) }
    }

    fn attach_object(&mut self, object: &Object, capture: &mut Capture, planner: &Planner) -> Result<()> {
        self.found.add_file(object.path.clone());
        let plan = match plan(object, planner) {
            Ok(plan) => plan,
            Err(error) if matches!(error.downcast_ref(), Some(PlanError::NotDefined { .. })) => {
                return Err(error);
            }
            Err(error) => {
                log::warn!("{}: {error:#}", self.name());
                return Ok(());
            }
        };
        let mut sites: Vec<Site> =
            plan.probes.iter().map(|probe| self.site(object, planner, probe)).collect();
        sites.extend(self.exits(&plan));
        if let Err(error) = capture.attach_probes(&object.uprobe_path(), &sites, self.target.pid()) {
            if self.target.has_exited() {
                bail!("{} exited while it was being attached to", self.name());
            }
            return Err(error.context(format!("cannot probe {} in {}", self.name(), object.path.display())));
        }
        self.probes += plan.probes.len();
        self.found.add_plan(&plan, &planner.catalog);
        Ok(())
    }

    /// The exits of functions whose return is not probed. Several may have one in common.
    fn exits(&self, plan: &ObjectPlan) -> Vec<Site> {
        let mut sites = BTreeMap::new();
        for probe in &plan.probes {
            let Place::EntryAndExits { exits, .. } = &probe.place else { continue };
            let cookie = self.cookie(probe);
            let site = |offset| Site { offset, cookie, programs: Programs::Exit };
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
            programs: match probe.place {
                Place::EntryAndReturn(_) => Programs::Allocate,
                Place::EntryAndExits { .. } => Programs::AllocateToExits,
                Place::Entry { .. } => Programs::Release,
            },
        }
    }

    /// What it has mapped now.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn initial_mappings(&self) -> Result<InitialMappings> {
        let mappings = self.target.mappings();
        let mappings = mappings.with_context(|| self.unreadable())?;
        let heap_end =
            mappings.iter().filter(|mapping| mapping.name == "[heap]").map(|mapping| mapping.end).max();
        let range = |mapping: &Mapping| AddressRange { start: mapping.start, end: mapping.end };
        Ok(InitialMappings {
            mappings: mappings.iter().map(|mapping| (range(mapping), backing(mapping))).collect(),
            program_break: heap_end,
        })
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
        let vacant =
            !mappings.iter().any(|mapping| mapping.start <= TRAMPOLINE_WISH && TRAMPOLINE_WISH < mapping.end);
        match made {
            Some(mapping) => Some(Trampoline::Made(mapping.start)),
            None => vacant.then_some(Trampoline::Expected(TRAMPOLINE_WISH)),
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

/// The last page of the address space, where the kernel puts the trampoline if it can (`xol_add_vma` in kernel/events/uprobes.c).
const TRAMPOLINE_WISH: Address = Address(0x7fff_ffff_e000);

fn backing(mapping: &Mapping) -> Backing {
    // `/dev/zero (deleted)` is how the kernel shows shared anonymous memory.
    let is_file = mapping.path().is_some_and(|path| path.as_os_str() != "/dev/zero");
    if is_file { Backing::File } else { Backing::Anonymous }
}

/// Where the probes of a process would go, as a table for people.
///
/// # Errors
/// When the process is gone, or one of its files is not what it should be.
pub fn plan_of(target: &Target, declarations: &Declarations) -> Result<String> {
    let planner = planner(declarations);
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

/// A planner that knows what the running kernel does with a probe.
pub fn planner(declarations: &Declarations) -> Planner {
    Planner { nop5_optimised: kernel_is_at_least(6, 18), ..Planner::default() }.with(declarations)
}

fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

fn plan(object: &Object, planner: &Planner) -> Result<ObjectPlan> {
    let plan = || Ok(planner.plan_file(&object.path, &object.bytes()?)?);
    plan().map_err(|error: anyhow::Error| match error.downcast_ref() {
        // It names the file itself.
        Some(PlanError::NotDefined { .. }) => error,
        _ => error.context(format!("cannot look for allocators in {}", object.path.display())),
    })
}
