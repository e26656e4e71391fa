//! Following: which processes have joined the targets and which are gone, and what is to be done about it.
//!
//! The programs in the kernel give each child a place before it runs, and each new program of a process another one, with its account
//! open. Here that place is looked at as soon as may be: it gets the names, the code and the probes that are its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
};

use anyhow::Result;
use tracer_ebpf::{
    event::ProcessChange,
    process::{Origin, ProcessIndex, ProcessState, ProcessWindow},
};

use super::{
    code::CodeFiles,
    process::{Probed, TracedProcess},
};
use crate::{
    analyze::mappings::{InitialMappings, MappingAccount},
    attach::Capture,
    drain::Change,
    model::{NotProbed, Pid, Process, ProcessEnd},
    plan::Planner,
    symbolize::Worker,
    target::Target,
};

/// The processes that have joined the targets.
#[derive(Default)]
pub struct Children {
    probed: Probed,
    /// Those that events have told of.
    announced: BTreeSet<ProcessIndex>,
    /// Those that no event had told of the last time. It may have been on its way; what it says is better than what can be found out.
    unannounced: BTreeSet<ProcessIndex>,
    gone: BTreeSet<ProcessIndex>,
}

/// What a new process is registered with.
pub struct ProcessRegistry<'a> {
    pub capture: &'a mut Capture,
    /// None in growth mode, which has no probes.
    pub planner: Option<&'a mut Planner>,
    pub code: &'a mut CodeFiles,
    pub worker: &'a Worker,
    pub mappings: &'a mut MappingAccount,
    pub processes: &'a mut Vec<TracedProcess>,
    /// Of every process that was looked at, by index.
    pub descriptions: &'a mut BTreeMap<ProcessIndex, Process>,
}

impl Children {
    /// From now on children join, where they are followed. Those that the processes have already are added to them.
    ///
    /// # Errors
    /// When the kernel refuses, or there are too many.
    pub fn join(
        capture: &mut Capture,
        processes: &mut Vec<TracedProcess>,
        code: &mut CodeFiles,
    ) -> Result<Self> {
        let children = Self::default();
        capture.watch_processes()?;
        if capture.shares_probes() {
            processes.iter_mut().for_each(|process| process.share(&children.probed));
        }
        if !capture.follows() {
            return Ok(children);
        }
        // A child that was forked before that, and that of a child.
        let mut next = 0;
        while let Some(process) = processes.get(next) {
            next += 1;
            for child in children_of(&process.target) {
                let known: HashSet<u64> = capture.processes().iter().map(|state| state.tgid.load()).collect();
                // A child that has ended meanwhile is nobody's loss.
                let Ok(target) = Target::open(child) else { continue };
                if !known.contains(&child.0.into()) {
                    code.read(&target);
                    let index = capture.add_process(child)?;
                    processes.push(TracedProcess::new(index, target, children.probed.clone()));
                }
            }
        }
        Ok(children)
    }

    /// An event tells of a process, between the events of mappings before and after.
    pub fn announce(
        &mut self,
        change: Change,
        capture: &Capture,
        mappings: &mut MappingAccount,
        worker: Option<&Worker>,
    ) {
        let Change { change, process, from } = change;
        let pid = capture.processes().get(usize::from(process)).map(pid);
        let (Some(pid), Some(worker), true) = (pid, worker, change != ProcessChange::Exited) else { return };
        self.announced.insert(process);
        match change {
            ProcessChange::Forked => {
                mappings.fork(from, process);
                worker.fork_process(from, process, pid);
            }
            ProcessChange::Executed | ProcessChange::Exited => worker.add_process(process, pid),
        }
    }

    /// Looks at processes that have come since the last time, and no more at those that have gone, whose indexes it returns.
    pub fn update(&mut self, mut registry: ProcessRegistry<'_>) -> Vec<ProcessIndex> {
        if !registry.capture.follows() {
            return Vec::new();
        }
        let unannounced =
            registry.ready().into_iter().filter(|index| !self.announced.contains(index)).collect();
        let late = std::mem::replace(&mut self.unannounced, unannounced);
        let can_be_met = |index: &ProcessIndex| self.announced.contains(index) || late.contains(index);
        while let Some(index) = registry.ready().into_iter().find(can_be_met) {
            let target = registry.describe(index);
            if !self.announced.contains(&index) {
                registry.register(index, target.as_ref());
            }
            if let Some(target) = target {
                registry.attach(TracedProcess::new(index, target, self.probed.clone()));
            }
        }
        let over: Vec<ProcessIndex> =
            registry.descriptions.keys().copied().filter(|&index| registry.capture.is_over(index)).collect();
        let gone: Vec<ProcessIndex> = over.into_iter().filter(|&index| self.gone.insert(index)).collect();
        for &index in &gone {
            registry.remove(index);
        }
        gone
    }

    /// The allocator functions of all of them whose calls are not seen.
    pub fn not_probed(&self) -> Vec<NotProbed> {
        self.probed.borrow().not_probed.clone()
    }

    /// Whether all processes are gone that were ever known.
    pub fn everyone_is_gone(&self, capture: &Capture) -> bool {
        capture.indexes().all(|index| capture.is_over(index))
    }
}

impl ProcessRegistry<'_> {
    /// The indexes that have not been looked at, and can be by now.
    fn ready(&self) -> Vec<ProcessIndex> {
        let states = self.capture.processes();
        if states.len() == self.descriptions.len() {
            return Vec::new();
        }
        let ready = self.capture.indexes().zip(states).filter(|(_, state)| state.tgid.load() != 0);
        ready.map(|(index, _)| index).filter(|index| !self.descriptions.contains_key(index)).collect()
    }

    /// Describes a process, and opens it if it still is what it was.
    fn describe(&mut self, index: ProcessIndex) -> Option<Target> {
        let state = &self.capture.processes()[usize::from(index)];
        let target = Target::open(pid(state));
        // Only a process that has not gone meanwhile has this pid still.
        let target = target.ok().filter(|_| !self.capture.is_over(index));
        let Origin { index: from, executed } = Origin::from_bits(state.from.load());
        // A child that was forked runs the same program.
        let parent = self.descriptions.get(&from).filter(|_| !executed);
        let mut description = match (&target, parent) {
            (Some(target), _) => target.describe(),
            (None, Some(parent)) => Process { pid: pid(state), comm: comm(state), ..parent.clone() },
            (None, None) => Process {
                pid: pid(state),
                comm: comm(state),
                exe: None,
                command: Vec::new(),
                from: None,
                end: None,
            },
        };
        description.from = (from != index).then_some(from.into());
        description.end = None;
        log::info!("following {} ({})", description.comm, description.pid);
        self.descriptions.insert(index, description);
        target
    }

    /// Registers a process that no event announced.
    fn register(&mut self, index: ProcessIndex, target: Option<&Target>) {
        let Some(target) = target else { return };
        self.worker.add_process(index, target.pid());
        match target.mappings() {
            Ok(mappings) => self.mappings.add_process(index, InitialMappings::of(&mappings)),
            Err(error) => log::debug!("cannot read the mappings of {}: {error}", target.comm()),
        }
    }

    /// Gives a process its code and its probes.
    fn attach(&mut self, mut process: TracedProcess) {
        self.capture.open_late_window(process.index);
        self.code.read(&process.target);
        self.worker.add_code(self.code.install(process.index, &process.target, self.capture));
        if let Some(planner) = self.planner.as_deref_mut()
            && let Err(error) = process.attach(self.capture, planner)
            && !process.target.has_exited()
        {
            log::warn!("cannot probe {}: {error:#}", process.name());
        }
        self.processes.push(process);
    }

    /// A process has gone.
    fn remove(&mut self, index: ProcessIndex) {
        self.processes.retain(|process| process.index != index);
        let exited =
            self.capture.processes()[usize::from(index)].window.load() == ProcessWindow::Exited as u64;
        let end = if exited { ProcessEnd::Exited } else { ProcessEnd::Exec };
        if let Some(description) = self.descriptions.get_mut(&index) {
            description.end = Some(end);
        }
    }
}

fn pid(state: &ProcessState) -> Pid {
    Pid(u32::try_from(state.tgid.load()).unwrap_or(0))
}

fn comm(state: &ProcessState) -> String {
    let bytes: Vec<u8> = state.comm.iter().flat_map(|word| word.load().to_ne_bytes()).collect();
    let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// The children that a process has now, whichever of its threads made them.
fn children_of(target: &Target) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{}/task", target.pid())).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid).collect::<Vec<_>>()
        })
        .collect()
}
