//! The traced processes as the programs know them: their indexes, their windows, and the children that join them.
//!
//! Where children are followed, a probe is not one process' but everybody's who has the file mapped: only so is it there when a child,
//! or the program that a child executes, runs its first instruction. Where many processes are traced it is, too: the kernel looks at
//! every process that has the file mapped to attach a link, and again to let it go, and at every link when a probe is hit. The programs
//! leave at once when the current process is not traced. What that costs the others is in docs/overhead.md.

use anyhow::{Context as _, Result, bail};
use aya::maps::HashMap;
use tracer_ebpf::process::{MAX_PROCESSES, Origin, ProcessIndex, ProcessState, ProcessWindow};

use super::{Capture, Settings, kernel_types::TaskOffsets, uprobes::UprobeLinks};
use crate::model::{Address, Pid};

/// What the programs that follow children must know of the kernel. `namespace` is the tracer's pid namespace, 0 for the machine's.
pub(super) fn task_offsets(namespace: (u64, u64)) -> Result<TaskOffsets> {
    if namespace != (0, 0) {
        bail!(
            "--follow needs the pids of the machine: run tracer outside of the container, or with its --pid=host"
        );
    }
    TaskOffsets::of_this_kernel().context("children cannot be followed")
}

/// Whether probes are everybody's, and what the programs must know of the kernel. `namespace` as for [`task_offsets`].
pub(super) fn sharing(
    settings: &Settings,
    links: UprobeLinks,
    namespace: (u64, u64),
) -> Result<(bool, TaskOffsets)> {
    if settings.follow {
        return Ok((true, task_offsets(namespace)?));
    }
    if settings.alike <= links.most_apart() {
        return Ok((false, TaskOffsets::default()));
    }
    // A pid must be forgotten before it is given to somebody else, whose calls these probes see, too.
    match TaskOffsets::of_this_kernel() {
        Ok(offsets) => Ok((true, offsets)),
        Err(error) => {
            log::warn!("each process gets probes of its own, which takes time: {error:#}");
            Ok((false, TaskOffsets::default()))
        }
    }
}

impl Capture {
    /// Gives a process the next index, under which the programs know it from now on.
    ///
    /// # Errors
    /// When there is none left, or the kernel refuses.
    pub fn add_process(&mut self, pid: Pid) -> Result<ProcessIndex> {
        let index = self
            .next_index()
            .with_context(|| format!("{MAX_PROCESSES} processes at most can be traced at once"))?;
        if let Some(state) = self.state(index) {
            state.from.store(Origin { index, executed: false }.to_bits());
            state.tgid.store(if self.follows { pid.0.into() } else { 0 });
        }
        let map = self.ebpf.map_mut("PROCESS_INDEX").context("no map PROCESS_INDEX")?;
        HashMap::<_, u32, u32>::try_from(map)?.insert(pid.0, u32::from(index), 0)?;
        Ok(index)
    }

    /// An index that nobody has. The programs take indexes, too.
    fn next_index(&self) -> Option<ProcessIndex> {
        let taken = self.tables.process_count();
        loop {
            let index = taken.load();
            if index >= u64::from(MAX_PROCESSES) {
                return None;
            }
            if taken.compare_exchange(index, index + 1) == index {
                return u16::try_from(index).ok().map(ProcessIndex::new);
            }
        }
    }

    /// Lets the children of traced processes join them from now on, where they are followed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch_processes(&mut self) -> Result<()> {
        if self.follows {
            self.attach_raw_tracepoint("process_fork", c"task_newtask")?;
        }
        Ok(())
    }

    /// Whether children are followed.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// Whether probes are everybody's who has the file mapped.
    #[must_use]
    pub fn shares_probes(&self) -> bool {
        self.shares_probes
    }

    /// The states of all processes that have an index.
    #[must_use]
    pub fn processes(&self) -> &[ProcessState] {
        let states = self.tables.processes();
        let count = usize::try_from(self.tables.process_count().load()).unwrap_or(0);
        &states[..count.min(states.len())]
    }

    /// The indexes of all of them.
    pub fn indexes(&self) -> impl Iterator<Item = ProcessIndex> + use<> {
        (0..).take(self.processes().len()).map(ProcessIndex::new)
    }

    fn state(&self, index: ProcessIndex) -> Option<&ProcessState> {
        self.tables.processes().get(usize::from(index))
    }

    /// Whether a process is over: it has exited, or executed another program. Where children are not followed only the latter is told.
    #[must_use]
    pub fn is_over(&self, index: ProcessIndex) -> bool {
        self.state(index).is_some_and(|state| {
            let window = state.window.load();
            window == ProcessWindow::Exec as u64 || window == ProcessWindow::Exited as u64
        })
    }

    /// A process has exited before that could be told.
    pub fn has_exited(&self, index: ProcessIndex) {
        if let Some(state) = self.state(index).filter(|_| self.follows) {
            state.window.store(ProcessWindow::Exited as u64);
        }
    }

    /// Opens the windows of all processes: from now on their events count.
    pub fn open_windows(&self, now_ns: u64) {
        // A child that is being made just now copies its parent's state: it is looked at again until there is no new one.
        self.windows_are_open.set(true);
        let mut opened = 0;
        while opened < self.processes().len() {
            let states = self.processes();
            for state in states {
                state.opened_ns.store(now_ns);
                state.window.compare_exchange(ProcessWindow::Closed as u64, ProcessWindow::Open as u64);
            }
            opened = states.len();
        }
    }

    /// Opens the window of a process that was forked while the others were being opened.
    pub fn open_late_window(&self, index: ProcessIndex) {
        if let Some(state) = self.state(index).filter(|_| self.windows_are_open.get()) {
            state.window.compare_exchange(ProcessWindow::Closed as u64, ProcessWindow::Open as u64);
        }
    }

    /// Tells the programs where a process returns to from probed functions.
    pub fn set_trampoline(&self, process: ProcessIndex, trampoline: Address) {
        if let Some(state) = self.state(process) {
            state.trampoline.store(trampoline.0);
        }
    }

    /// Has one of so many page faults of a process reported; a power of two.
    pub fn set_fault_period(&self, process: ProcessIndex, period: u64) {
        if let Some(state) = self.state(process) {
            state.fault_period.store(period);
        }
    }

    /// Closes every window that is open: calls that begin from now on do not count.
    pub fn close_windows(&self) {
        self.windows_are_open.set(false);
        for state in self.tables.processes() {
            state.window.compare_exchange(ProcessWindow::Open as u64, ProcessWindow::Closed as u64);
        }
    }
}
