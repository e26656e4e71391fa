//! The Python of the traced processes: where it is, and where its threads have their state, which is not before the first of them runs.

use std::{collections::HashMap, sync::Arc};

use tracer_ebpf::{process::ProcessIndex, runtime::python::Interpreter};

use super::clock::now_ns;
use crate::{
    attach::Capture,
    runtime::{MemoryFile, python},
    target::Target,
};

/// What a warning ends with.
pub(super) const NO_PYTHON_NAMES: &str =
    "Python functions have no names; stacks are whole, and native functions have theirs";

/// The interpreters of the processes.
#[derive(Default)]
pub(super) struct Pythons {
    by_process: HashMap<ProcessIndex, LocatedPython>,
    /// When those that have no thread yet are looked at again.
    due_ns: u64,
}

struct LocatedPython {
    located: Arc<python::Located>,
    threads: PythonThreads,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PythonThreads {
    /// There were none in so many looks.
    Awaited(u32),
    /// They have their state there.
    At(i16),
    /// They are not where they should be.
    Misfit,
}

impl Pythons {
    /// A list of threads may change while it is read, but not every time.
    const LOOKS_BEFORE_MISFIT: u32 = 5;

    pub(super) fn of(&self, process: ProcessIndex) -> Option<Arc<python::Located>> {
        self.by_process.get(&process).map(|python| Arc::clone(&python.located))
    }

    /// Tells the programs of the Python of a process, or that it has none.
    pub(super) fn see(
        &mut self,
        process: ProcessIndex,
        located: Option<python::Located>,
        target: &Target,
        capture: &Capture,
    ) {
        let Some(located) = located else {
            if self.by_process.remove(&process).is_some() {
                capture.set_python(process, Interpreter::default());
            }
            return;
        };
        let known = self.by_process.get(&process);
        if !known.is_some_and(|known| *known.located == located) {
            let located = Arc::new(located);
            let threads = PythonThreads::Awaited(0);
            self.by_process.insert(process, LocatedPython { located, threads });
            self.due_ns = 0;
        }
        self.look_at(process, target, capture);
    }

    /// Looks at those of which no thread has run Python yet.
    pub(super) fn look<'a>(
        &mut self,
        target: impl Fn(ProcessIndex) -> Option<&'a Target>,
        capture: &Capture,
    ) {
        /// At first a thread may come any time; a program that has Python and does not run it is not looked at for long.
        const SHORTEST_NS: u64 = 2_000_000;
        const LONGEST_NS: u64 = 1_000_000_000;
        let is_awaited = |python: &LocatedPython| matches!(python.threads, PythonThreads::Awaited(_));
        if !self.by_process.values().any(is_awaited) {
            return;
        }
        let now_ns = now_ns();
        if now_ns < self.due_ns {
            return;
        }
        let awaited = self.by_process.iter().filter(|(_, python)| is_awaited(python));
        let awaited: Vec<ProcessIndex> = awaited.map(|(&process, _)| process).collect();
        let mut looks = u32::MAX;
        for process in awaited {
            match target(process) {
                Some(target) => self.look_at(process, target, capture),
                None => drop(self.by_process.remove(&process)),
            }
            if let Some(PythonThreads::Awaited(so_many)) =
                self.by_process.get(&process).map(|python| python.threads)
            {
                looks = looks.min(so_many);
            }
        }
        self.due_ns = now_ns + (SHORTEST_NS << (looks / 8).min(16)).min(LONGEST_NS);
    }

    fn look_at(&mut self, process: ProcessIndex, target: &Target, capture: &Capture) {
        let Some(python) = self.by_process.get_mut(&process) else { return };
        let PythonThreads::Awaited(looks) = python.threads else { return };
        let Ok(memory) = target.open_file("mem") else { return };
        python.threads = match python::thread_state(&python.located, &MemoryFile(memory)) {
            Ok(Some(place)) => PythonThreads::At(place),
            Ok(None) => PythonThreads::Awaited(looks + 1),
            Err(_) if looks < Self::LOOKS_BEFORE_MISFIT => PythonThreads::Awaited(looks + 1),
            Err(error) => {
                log::warn!("Python {}: {error}: {NO_PYTHON_NAMES}", python.located.build.version);
                PythonThreads::Misfit
            }
        };
        let interpreter = match python.threads {
            PythonThreads::Awaited(_) => python.located.interpreter(None),
            PythonThreads::At(place) => python.located.interpreter(Some(place)),
            PythonThreads::Misfit => Interpreter::default(),
        };
        capture.set_python(process, interpreter);
    }
}
