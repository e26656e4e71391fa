//! What the kernel says while a recording is under way: new stacks, mappings, code, children.

use std::{collections::BTreeSet, sync::Arc};

use tracer_ebpf::{
    event::{MappingCall, MappingEvent},
    process::ProcessIndex,
    stack::StackId,
    stop::Stop,
};

use super::{
    super::{
        children::ProcessRegistry,
        clock::now_ns,
        process::{TracedProcess, Trampoline},
    },
    Session,
    accounts::Accounts,
};
use crate::drain::Event;

/// Processes whose return trampoline is looked for at one time while they run: their mappings are read for it. A child has what its
/// parent has.
const LOOKS_FOR_TRAMPOLINES: usize = 16;

/// What is known of the return trampolines.
#[derive(Default)]
pub(super) struct Trampolines {
    /// The processes that have it.
    made: BTreeSet<ProcessIndex>,
    /// How often one was looked for.
    looks: usize,
}

/// The processes that have code which nobody knows of.
#[derive(Default)]
pub(super) struct StaleCode {
    processes: BTreeSet<ProcessIndex>,
    /// When it may be looked at again, on the monotonic clock.
    due_ns: u64,
}

impl Session {
    /// Takes what the kernel has to say.
    pub fn take_events(&mut self) {
        self.capture.log_messages();
        let Self {
            drain,
            naming,
            accounts: Accounts { mappings, touched, .. },
            code,
            capture,
            children,
            stale_code,
            progress,
            ..
        } = self;
        let mut changed_code = BTreeSet::new();
        drain.take(|event| match event {
            Event::Stack(stack) => {
                // A walk that came to code which nobody knows of: it may have been compiled, or become executable, just now.
                if matches!(stack.stop, Stop::NotCode | Stop::FramePointerLost | Stop::TableNotReady) {
                    stale_code.processes.insert(stack.process);
                }
                naming.add(stack);
            }
            Event::Mapping(event) => {
                progress.mapping_events += 1;
                mappings.apply(&event);
                if let Some(touched) = touched {
                    touched.take(&event);
                }
                if maps_code(&event) || code.is_released_by(&event) {
                    changed_code.insert(event.process);
                }
            }
            // The gate says so too.
            Event::Exec(_) => {}
            Event::Process(change) => children.announce(change, capture, mappings, naming.worker()),
        });
        self.adopt_children();
        if let Some(touched) = &mut self.accounts.touched {
            touched.pace(&self.processes, &self.capture);
        }
        for process in changed_code {
            self.follow_code(process);
        }
        self.follow_stale_code();
        let Self { code, processes, capture, .. } = self;
        let target =
            |index| processes.iter().find(|process| process.index == index).map(|process| &*process.target);
        code.look_for_python_threads(target, capture);
    }

    /// Looks at children that have come, and no more at processes that have gone.
    fn adopt_children(&mut self) {
        let Self { capture, planner, code, naming, accounts, processes, descriptions, .. } = self;
        let (Some(worker), mappings) = (naming.worker(), &mut accounts.mappings) else { return };
        let planner = planner.as_mut();
        let registry = ProcessRegistry { capture, planner, code, worker, mappings, processes, descriptions };
        for gone in self.children.update(registry) {
            self.stale_code.processes.remove(&gone);
            self.accounts.forget(gone, &self.processes);
        }
    }

    /// Whether children are followed, and nobody is left.
    pub fn everyone_is_gone(&self) -> bool {
        self.config.follow && self.children.everyone_is_gone(&self.capture)
    }

    /// Brings unwind tables, lists of code and probes up to what the process has mapped now: a library that was loaded during the
    /// window may bring an allocator.
    fn follow_code(&mut self, index: ProcessIndex) {
        self.stale_code.processes.remove(&index);
        let Some(process) = self.processes.iter_mut().find(|process| process.index == index) else { return };
        self.code.read(&process.target);
        let views = self.code.install(index, &process.target, &mut self.capture);
        self.naming.add_code(views);
        // Once the window is closed, only names are still to be found.
        if self.window.end.is_none()
            && let Some(planner) = &mut self.planner
            && let Err(error) = process.attach(&mut self.capture, planner)
            && !process.target.has_exited()
        {
            log::warn!("cannot probe newly loaded code: {error:#}");
        }
        self.naming.name_unnamed(|process| process == index);
    }

    /// Looks again where walks came to unknown code, as soon as this is due: reading mappings takes up to milliseconds, and broken
    /// stacks may come in numbers, so it may take one part in so many of the time.
    pub fn follow_stale_code(&mut self) {
        const PARTS: u64 = 32;
        let began_ns = now_ns();
        if self.stale_code.processes.is_empty() || began_ns < self.stale_code.due_ns {
            return;
        }
        while let Some(&process) = self.stale_code.processes.first() {
            self.follow_code(process);
        }
        let ended_ns = now_ns();
        self.stale_code.due_ns = ended_ns + (ended_ns - began_ns) * PARTS;
    }

    /// Tells the programs where probed functions return to, of a few processes at a time.
    pub fn find_trampolines(&mut self) {
        self.find_trampolines_of(LOOKS_FOR_TRAMPOLINES);
    }

    /// As [`Session::find_trampolines`], of all processes.
    pub(super) fn find_all_trampolines(&mut self) {
        self.find_trampolines_of(usize::MAX);
    }

    /// Tells the programs where probed functions return to, until it is certain; of so many processes at most.
    fn find_trampolines_of(&mut self, most: usize) {
        let Trampolines { made, looks } = &mut self.trampolines;
        let is_unmade = |process: &&TracedProcess| !made.contains(&process.index);
        let unmade: Vec<_> = self.processes.iter().filter(is_unmade).collect();
        // A process that never allocates has none: it must not keep others from their turn.
        let first = if unmade.is_empty() { 0 } else { *looks % unmade.len() };
        let some = unmade[first..].iter().chain(&unmade[..first]).take(most);
        for process in some {
            *looks += 1;
            let (address, is_made) = match process.trampoline() {
                Some(Trampoline::Made(address)) => (address, true),
                Some(Trampoline::Expected(address)) => (address, false),
                None => continue,
            };
            self.capture.set_trampoline(process.index, address);
            if is_made {
                made.insert(process.index);
            }
        }
    }

    /// Gives the places of stacks that hold nothing to others, if the table is filling up.
    pub fn retire_stacks(&mut self) {
        if self.is_being_read() || !self.retirement.is_due(self.capture.tables(), now_ns()) {
            return;
        }
        let holding = self.accounts.mappings.holding_stacks();
        let withdrawn = self.retirement.withdraw(self.capture.tables(), &holding);
        if withdrawn.is_empty() {
            return;
        }
        if let Err(error) = self.capture.wait_for_programs() {
            log::debug!("the places of stacks are not free again: {error}");
            return;
        }
        // Everything that programs have said of them.
        self.take_events();
        let holding = self.accounts.mappings.holding_stacks();
        let gone = Arc::new(self.retirement.vacate(self.capture.tables(), &holding));
        self.accounts.judge_mappings(self.naming.names());
        let Accounts { mappings, managed, .. } = &mut self.accounts;
        mappings.retire(&gone, StackId::RETIRED, |holder| managed.judged(holder));
        managed.forget(|holder| gone.contains(&holder.stack));
        self.progress.history.forget(|source| gone.contains(&source.stack()));
        log::debug!("the places of {} stacks are free again", gone.len());
        self.naming.forget(gone);
    }
}

/// Whether an event maps code.
fn maps_code(event: &MappingEvent) -> bool {
    let call = MappingCall::try_from(event.call);
    event.at_exit == 1 && event.result >= 0 && call.is_ok_and(|call| call.maps_code(event.args))
}
