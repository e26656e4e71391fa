//! One traced process: its identity, the files it has mapped, and the probes in them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    io,
    os::unix::fs::FileExt as _,
    rc::Rc,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use tracer_ebpf::{
    probe::{Cookie, ReturnProbe},
    process::ProcessIndex,
    usdt::UsdtCookie,
};

use super::{
    address_space::last_page,
    detours::{Detours, Taker},
    found::{Found, allocators_in},
};
use crate::{
    analyze::{allocators::FileAllocator, mappings::InitialMappings},
    attach::{Capture, ProbedEvent, Site},
    model::{Address, Bytes, NotProbed, Pid},
    plan::{
        Api, Catalog, Cost, Declarations, Exits, ObjectPlan, Omission, PlanError, PlanTable, PlannedProbe,
        Planner, ProbePlacement, Skipped, UsdtEvent, UsdtProbe, UsdtProbes,
    },
    report::human::{counted, printable},
    target::{FileId, MappedObject, Target},
};

/// What has been probed. Where a probe is everybody's all processes have this in common.
pub type Probed = Rc<RefCell<ProbedFiles>>;

/// The files that have been probed.
#[derive(Default)]
pub struct ProbedFiles {
    files: HashMap<FileId, ProbedFile>,
    /// Functions whose calls are not seen.
    pub not_probed: Vec<NotProbed>,
    /// The allocators in them.
    allocators: Vec<FileAllocator>,
    /// The offsets of the probes in each, where probes are everybody's.
    places: HashSet<Vec<u64>>,
}

/// A file that has been looked at.
#[derive(Clone, Copy, Default)]
struct ProbedFile {
    /// How many functions are probed.
    functions: usize,
    /// Whether it reports blocks.
    has_usdt: bool,
    /// Whether each process that has mapped it is to take detours.
    has_detours: bool,
    /// Whether functions were left out because the process reports their blocks. Another process may not.
    left_out: bool,
}

pub struct TracedProcess {
    /// Its place in the tables.
    pub index: ProcessIndex,
    /// The process itself.
    pub target: Arc<Target>,
    is_child: bool,
    probed: Probed,
    probes: usize,
    /// Where its sampler has the word that says how many bytes are between samples.
    mean: Option<Address>,
    /// How many USDT probes it has by which it reports its blocks itself, and the files that they are in.
    usdt_probes: usize,
    usdt_files: HashSet<FileId>,
    /// Whether one of them is a gate's, which stands in front of the program's own functions, too.
    has_gate: bool,
    /// What leads to its functions by another way, and the files that those are in.
    detours: Detours,
    detour_files: HashSet<FileId>,
    /// Whether it reports its blocks, be that wanted or not.
    samples_itself: bool,
    found: Found,
}

impl TracedProcess {
    /// Opens a process.
    ///
    /// # Errors
    /// When it cannot be traced.
    pub fn open(pid: Pid) -> Result<Self> {
        let target = Target::open(pid)?;
        Ok(Self { is_child: false, ..Self::new(ProcessIndex::default(), target, Probed::default()) })
    }

    /// A child of another one, with this place in the tables. The files in `probed` have their probes.
    pub fn new(index: ProcessIndex, target: Target, probed: Probed) -> Self {
        let target = Arc::new(target);
        Self {
            index,
            target,
            is_child: true,
            probed,
            probes: 0,
            mean: None,
            usdt_probes: 0,
            usdt_files: HashSet::new(),
            has_gate: false,
            detours: Detours::default(),
            detour_files: HashSet::new(),
            samples_itself: false,
            found: Found::default(),
        }
    }

    /// From now on the files that have been probed are these, for others too.
    pub fn share(&mut self, probed: &Probed) {
        self.probed = Rc::clone(probed);
    }

    /// How many functions are probed.
    pub fn probes(&self) -> usize {
        self.probes
    }

    /// How many probes it has by which it reports the blocks that it samples.
    pub fn usdt_probes(&self) -> usize {
        self.usdt_probes
    }

    /// Whether it reports the blocks that it samples, to whoever wants a sample.
    pub fn samples_itself(&self) -> bool {
        self.samples_itself
    }

    /// The functions whose calls are not seen.
    pub fn not_probed(&self) -> Vec<NotProbed> {
        self.probed.borrow().not_probed.clone()
    }

    /// The allocators in the files that have been probed; where probes are everybody's, in all of them.
    pub fn allocators(&self) -> Vec<FileAllocator> {
        self.probed.borrow().allocators.clone()
    }

    /// What was looked at for allocators.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Probes the allocator functions of every mapped file that has not been looked at yet.
    ///
    /// # Errors
    /// When the process is gone, or the kernel refuses a probe.
    pub fn attach(&mut self, capture: &mut Capture, planner: &mut Planner) -> Result<()> {
        self.attach_held(capture, planner)?;
        self.take_detours(if self.is_child { Taker::Child } else { Taker::Running })
    }

    /// As [`TracedProcess::attach`], of a launched command that is held and has not come to its entry point: its detours are still to
    /// be taken.
    ///
    /// # Errors
    /// As [`TracedProcess::attach`].
    pub fn attach_held(&mut self, capture: &mut Capture, planner: &mut Planner) -> Result<()> {
        let (known, mut probes) = (Rc::clone(&self.probed), 0);
        let is_new = |id| {
            known.borrow().files.get(&id).is_none_or(|file| {
                probes += file.functions;
                // Where probes are everybody's, they are in it already. It is told its rate all the same.
                file.has_usdt && !self.usdt_files.contains(&id)
                    || file.has_detours && !self.detour_files.contains(&id)
            })
        };
        let mut objects = self.target.objects_where(is_new).with_context(|| self.unreadable())?;
        // Nobody calls what a gate has left that is closed. In another process that has the same file it may be open.
        if !self.target.has_open_gate() {
            objects.opened.retain(|object| !object.is_gate());
        }
        self.probes = probes;
        for unopened in &objects.unopened {
            self.probed.borrow_mut().files.insert(unopened.id, ProbedFile::default());
            log::warn!("{}: cannot look for allocators in {}", self.name(), unopened.path.display());
        }
        let plans: Vec<_> =
            objects.opened.iter().map(|object| self.plan(object, &mut *planner)).collect::<Result<_>>()?;
        // Where one file reports the blocks of all, the functions of those before it are not to be probed either.
        objects.opened.iter().zip(&plans).for_each(|(object, plan)| self.listen_to(object, plan.as_ref()));
        for (object, plan) in objects.opened.iter().zip(plans) {
            self.attach_planned(object, plan, capture, planner)?;
        }
        self.attach_left_out(capture, planner)
    }

    /// Whether a gate by which it is recorded is not open any more: its blocks are freed unseen.
    pub fn has_lost_gate(&self) -> bool {
        self.has_gate && self.target.has_closed_gate()
    }

    /// From now on all calls of its functions go where the probes are.
    ///
    /// # Errors
    /// When its memory cannot be changed.
    pub fn take_detours(&mut self, taker: Taker) -> Result<()> {
        let name = self.name();
        self.detours.take(&self.target, taker).context(name)
    }

    /// Probes what was left out for another process, which reports its blocks as this one does not.
    fn attach_left_out(&mut self, capture: &mut Capture, planner: &mut Planner) -> Result<()> {
        let files = Rc::clone(&self.probed);
        let is_left_out = |id| files.borrow().files.get(&id).is_some_and(|file| file.left_out);
        if self.usdt_probes > 0 || !files.borrow().files.values().any(|file| file.left_out) {
            return Ok(());
        }
        for object in self.target.objects_where(is_left_out).with_context(|| self.unreadable())?.opened {
            let plan = self.plan(&object, planner)?;
            self.attach_planned(&object, plan, capture, planner)?;
        }
        Ok(())
    }

    /// From now on its blocks are those that a file reports, if it does.
    fn listen_to(&mut self, object: &MappedObject, plan: Option<&ObjectPlan>) {
        let probes = plan.map_or(0, |plan| complete_usdt(plan).len());
        self.samples_itself |= plan.is_some_and(|plan| plan.samples_itself);
        if probes > 0 && self.usdt_files.insert(object.id) {
            self.usdt_probes += probes;
            self.has_gate |= object.is_gate();
        }
    }

    /// As [`TracedProcess::attach`], for one file.
    ///
    /// # Errors
    /// As [`TracedProcess::attach`].
    pub fn attach_new(
        &mut self,
        object: &MappedObject,
        capture: &mut Capture,
        planner: &mut Planner,
    ) -> Result<()> {
        let is_closed_gate = object.is_gate() && !self.target.has_open_gate();
        if is_closed_gate || self.probed.borrow().files.contains_key(&object.id) {
            return Ok(());
        }
        let plan = self.plan(object, planner)?;
        self.listen_to(object, plan.as_ref());
        self.attach_planned(object, plan, capture, planner)
    }

    /// What is to be probed in a file; none where that cannot be told, which is a warning.
    fn plan(&self, object: &MappedObject, planner: &mut Planner) -> Result<Option<ObjectPlan>> {
        if object.is_gate() && planner.sample.is_none() {
            let pid = self.target.pid();
            log::warn!(
                "{}: a gate is in its code, so its blocks are not seen without --sample; `tracer gate --remove --pid {pid}` closes it",
                self.name()
            );
        }
        match plan(object, planner) {
            Ok(plan) => Ok(Some(plan)),
            Err(error) if matches!(error.downcast_ref(), Some(PlanError::NotDefined { .. })) => Err(error),
            Err(error) => {
                log::warn!("{}: {error:#}", self.name());
                Ok(None)
            }
        }
    }

    fn attach_planned(
        &mut self,
        object: &MappedObject,
        plan: Option<ObjectPlan>,
        capture: &mut Capture,
        planner: &Planner,
    ) -> Result<()> {
        self.found.add_file(object.path.clone());
        let file = match plan {
            Some(plan) => self.attach_object(object, plan, capture, planner)?,
            None => ProbedFile::default(),
        };
        self.probed.borrow_mut().files.insert(object.id, file);
        self.probes += file.functions;
        Ok(())
    }

    /// Attaches the probes of a file.
    fn attach_object(
        &mut self,
        object: &MappedObject,
        mut plan: ObjectPlan,
        capture: &mut Capture,
        planner: &Planner,
    ) -> Result<ProbedFile> {
        self.found.add_plan(&plan, &planner.catalog);
        self.probed.borrow_mut().allocators.extend(allocators_in(&object.name(), &plan, &planner.catalog));
        let left_out = self.usdt_probes > 0 && self.leave_out_reported(object, &mut plan, &planner.catalog);
        let file = ProbedFile {
            functions: plan.probes.len(),
            has_usdt: !complete_usdt(&plan).is_empty(),
            has_detours: !plan.detours.is_empty(),
            left_out,
        };
        let mut sites: Vec<Site> =
            plan.probes.iter().map(|probe| self.site(object, planner, probe)).collect();
        sites.extend(self.exits(&plan));
        for probe in complete_usdt(&plan) {
            sites.push(self.told_site(probe, capture)?);
        }
        if !plan.detours.is_empty() && self.detour_files.insert(object.id) {
            self.detours.add(object, &plan);
        }
        if let Some(address) = mean_of(object, &plan.usdt) {
            self.mean = Some(address);
            self.set_mean(planner);
        }
        if let Some(&known) = self.probed.borrow().files.get(&object.id).filter(|known| !known.left_out) {
            return Ok(known);
        }
        if capture.shares_probes() && self.is_probed_elsewhere(object, &sites) {
            log::debug!(
                "{} is a file that has been probed already, under another name",
                object.path.display()
            );
            return Ok(file);
        }
        if let Err(error) = capture.attach_probes(&object.uprobe_path(), &sites, self.target.pid()) {
            if self.target.has_exited() {
                bail!("{} exited while it was being attached to", self.name());
            }
            return Err(error.context(format!("cannot probe {} in {}", self.name(), object.path.display())));
        }
        self.tell_of_plan(object, &plan, &planner.catalog);
        Ok(file)
    }

    /// Leaves out the functions whose blocks the process reports itself: those of a file that reports them, and those of allocators
    /// that any file could call by the usual names, so that whoever stands in front of them gets the calls. What such an allocator has
    /// under other names is behind the usual ones (mimalloc's `malloc` calls its `mi_malloc`).
    ///
    /// The program comes before everybody when names are looked up: what it defines itself, nobody but a gate reports. Whether there were
    /// such functions.
    fn leave_out_reported(&self, object: &MappedObject, plan: &mut ObjectPlan, catalog: &Catalog) -> bool {
        let is_usual = |probe: &PlannedProbe| catalog.get(probe.api).is_some_and(Api::is_interposable);
        let may_stand_behind = self.has_gate || !self.target.is_program(object);
        let stands_behind = || may_stand_behind && plan.probes.iter().any(is_usual);
        if !plan.usdt.is_complete() && !stands_behind() {
            return false;
        }
        let were_there = !plan.probes.is_empty();
        plan.probes.clear();
        plan.skipped.retain(|skipped| UsdtEvent::is_one(&skipped.name));
        were_there
    }

    /// The site of a probe by which the process reports a block.
    fn told_site(&self, probe: &UsdtProbe, capture: &Capture) -> Result<Site> {
        let arguments = capture.place_of_arguments(&probe.arguments)?;
        let cookie = UsdtCookie { process: self.index, api: probe.api(), arguments };
        Ok(Site {
            offset: probe.file_offset,
            cookie: cookie.to_bits(),
            semaphore: probe.semaphore,
            event: match probe.event {
                UsdtEvent::Alloc => ProbedEvent::UsdtAlloc,
                UsdtEvent::Free => ProbedEvent::UsdtFree,
            },
            cost: Cost::Emulated,
        })
    }

    /// Tells its sampler how many bytes are to be between samples. Where that cannot be it goes on with what it had: its weights say
    /// what that is. To be done again when a program has been loaded: the loader puts the library's data over what was there.
    pub fn set_mean(&self, planner: &Planner) {
        let (Some(address), Some(mean)) = (self.mean, planner.sample) else { return };
        match self.target.write_word(address, mean.0) {
            Ok(()) => log::info!("{}: it samples one in {mean}", self.name()),
            // Its memory is gone before it is.
            Err(error) if self.target.has_exited() || is_of_a_gone_process(&error) => {}
            Err(error) => log::warn!("{}: it samples at its own rate: {error}", self.name()),
        }
    }

    /// Says what is probed in a file and what could not be.
    fn tell_of_plan(&self, object: &MappedObject, plan: &ObjectPlan, catalog: &Catalog) {
        let path = object.path.display().to_string();
        let (file, probes) = (printable(&path), plan.probes.len());
        if !complete_usdt(plan).is_empty() {
            let probes = counted(plan.usdt.probes.len() as u64, "USDT probe");
            log::info!("{}: {file} reports the blocks that it samples, by {probes}", self.name());
        }
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
    fn is_probed_elsewhere(&self, object: &MappedObject, sites: &[Site]) -> bool {
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
            let ProbePlacement::EntryAndExits { exits, .. } = &probe.place else { continue };
            let cookie = self.cookie(probe).to_bits();
            let (event, cost) = (ProbedEvent::Exit, Cost::SingleStepped);
            let site = |offset| Site { offset, cookie, semaphore: None, event, cost };
            sites.extend(exits.known.iter().map(|exit| (exit.file_offset, site(exit.file_offset))));
        }
        sites.into_values().collect()
    }

    fn cookie(&self, probe: &PlannedProbe) -> Cookie {
        let return_probe = match probe.place {
            ProbePlacement::EntryAndExits { exits: Exits { unknown: 0, .. }, .. } => ReturnProbe::Exits,
            ProbePlacement::EntryAndExits { .. } => ReturnProbe::SomeExits,
            ProbePlacement::EntryAndReturn(_) | ProbePlacement::Entry { .. } => ReturnProbe::Trampoline,
        };
        Cookie { process: self.index, api: probe.api.0, signature: probe.signature, return_probe }
    }

    fn site(&self, object: &MappedObject, planner: &Planner, probe: &PlannedProbe) -> Site {
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
            cookie: self.cookie(probe).to_bits(),
            semaphore: None,
            event: match probe.place {
                ProbePlacement::EntryAndReturn(_) => ProbedEvent::Allocate,
                ProbePlacement::EntryAndExits { .. } => ProbedEvent::AllocateToExits,
                ProbePlacement::Entry { .. } => ProbedEvent::Release,
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
    let mut planner = planner(declarations, Some(Bytes(0)));
    let mut text = String::new();
    let mut found = Found::default();
    for object in target.objects()?.opened {
        found.add_file(object.path.clone());
        let plan = plan(&object, &mut planner)?;
        found.add_plan(&plan, &planner.catalog);
        if !plan.probes.is_empty() || !plan.skipped.is_empty() || !plan.usdt.probes.is_empty() {
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

/// Whether memory could not be written because there is none any more.
fn is_of_a_gone_process(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH) || error.kind() == io::ErrorKind::WriteZero
}

/// Plans the probes. Where a sample is wanted, blocks that a process samples itself are one.
pub fn planner(declarations: &Declarations, sample: Option<Bytes>) -> Planner {
    Planner { sample, ..Planner::default().with(declarations) }
}

/// Where the sampler in a file has the word that says how many bytes are between samples.
fn mean_of(object: &MappedObject, usdt: &UsdtProbes) -> Option<Address> {
    let (svma, probe) = (usdt.mean_svma?, usdt.probes.first()?);
    let place = object.address_of(probe.file_offset)?;
    Some(Address(place.0.wrapping_sub(probe.svma).wrapping_add(svma)))
}

/// The probes by which a file reports its blocks; none where it does not tell of both what it allocates and what it releases.
fn complete_usdt(plan: &ObjectPlan) -> &[UsdtProbe] {
    if plan.usdt.is_complete() { &plan.usdt.probes } else { &[] }
}

fn plan(object: &MappedObject, planner: &mut Planner) -> Result<ObjectPlan> {
    let mut plan = || {
        let bytes = object.bytes()?;
        planner.learn(&bytes);
        Ok(planner.plan_file(&object.path, &bytes)?)
    };
    plan().map_err(|error: anyhow::Error| match error.downcast_ref() {
        // It names the file itself.
        Some(PlanError::NotDefined { .. }) => error,
        _ => error.context(format!("cannot look for allocators in {}", object.path.display())),
    })
}
