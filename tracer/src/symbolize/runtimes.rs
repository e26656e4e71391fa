//! Functions of language runtimes, read out of the process as soon as a stack is first seen.
//!
//! What is known of a function is in the memory of the process, which runs on: compiled code is given up, functions are moved. So this
//! has a thread of its own before the one that reads files, which may take seconds for a large one.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tracer_ebpf::process::ProcessIndex;

use super::CodeView;
use crate::drain::{RuntimeFrame, WalkedFrame};
use crate::model::Pid;
use crate::runtime::{
    Function, MemoryFile, Unread,
    v8::{Layout, V8, WalkedFunction},
};
use crate::target::Target;

/// A frame of a stack, and what its runtime says of it.
#[derive(Clone, Debug)]
pub(super) struct SeenFrame {
    pub(super) walked: WalkedFrame,
    /// The functions that it is in, innermost first, or why they could not be told; none when it is of no runtime.
    pub(super) functions: Option<Result<Arc<[Function]>, Unread>>,
}

impl From<WalkedFrame> for SeenFrame {
    fn from(walked: WalkedFrame) -> Self {
        Self { walked, functions: None }
    }
}

/// Reads the functions of every traced process.
#[derive(Default)]
pub(super) struct RuntimeReader {
    processes: HashMap<ProcessIndex, Process>,
    /// Why functions could not be told, and in how many frames, since it was last asked.
    pub(super) unread: BTreeMap<Unread, u64>,
}

struct Process {
    pid: Pid,
    javascript: Option<JavaScript>,
}

impl RuntimeReader {
    pub(super) fn add_process(&mut self, index: ProcessIndex, pid: Pid) {
        self.processes.insert(index, Process { pid, javascript: None });
    }

    /// A child that has its parent's code.
    pub(super) fn fork(&mut self, parent: ProcessIndex, child: ProcessIndex, pid: Pid) {
        let parent = self.processes.get(&parent).and_then(|parent| parent.javascript.as_ref());
        let javascript = parent.map(|javascript| JavaScript::new(&javascript.layout));
        self.processes.insert(child, Process { pid, javascript });
    }

    /// Learns which runtimes a process has.
    pub(super) fn add_code(&mut self, view: &CodeView) {
        let Some(process) = self.processes.get_mut(&view.process) else { return };
        let Some(layout) = &view.v8 else { return };
        let is_known = |javascript: &JavaScript| Arc::ptr_eq(&javascript.layout, layout);
        if !process.javascript.as_ref().is_some_and(is_known) {
            process.javascript = Some(JavaScript::new(layout));
        }
    }

    /// What the frames of a stack of a process are to its runtimes.
    pub(super) fn see(&mut self, process: ProcessIndex, frames: &[WalkedFrame]) -> Vec<SeenFrame> {
        let mut process = self.processes.get_mut(&process);
        let mut see = |&walked: &WalkedFrame| {
            let functions = process.as_deref_mut().and_then(|process| process.functions(walked));
            if let Some(Err(error)) = functions {
                *self.unread.entry(error).or_default() += 1;
            }
            SeenFrame { walked, functions }
        };
        frames.iter().map(&mut see).collect()
    }
}

impl Process {
    fn functions(&mut self, walked: WalkedFrame) -> Option<Result<Arc<[Function]>, Unread>> {
        match (walked.runtime, &mut self.javascript) {
            (RuntimeFrame::Native, _) | (RuntimeFrame::V8Internal(_), None) => None,
            (RuntimeFrame::V8Internal(number), Some(javascript)) => {
                javascript.v8.internal(number).map(|function| Ok([function].into()))
            }
            (RuntimeFrame::JavaScript(_), None) => Some(Err(Unread::Unknown)),
            (RuntimeFrame::JavaScript(function), Some(javascript)) => {
                Some(javascript.functions(function, walked, self.pid))
            }
        }
    }
}

/// The V8 of a process.
struct JavaScript {
    layout: Arc<Layout>,
    v8: V8,
    /// Opened when it is first needed; none when it cannot be.
    memory: OnceCell<Option<MemoryFile>>,
    /// What was told: by the function, not by its address alone, so it holds when that has been moved.
    known: HashMap<WalkedFrame, Arc<[Function]>>,
    tried: u32,
    told: u32,
}

impl JavaScript {
    /// So many frames, none of which could be told, and the objects are not as they are thought to be.
    const ENOUGH: u32 = 200;
    /// Frames that are kept. They take some 200 bytes each.
    const KEPT: usize = 64 << 10;

    fn new(layout: &Arc<Layout>) -> Self {
        Self {
            layout: Arc::clone(layout),
            v8: V8::new(Layout::clone(layout)),
            memory: OnceCell::new(),
            known: HashMap::new(),
            tried: 0,
            told: 0,
        }
    }

    fn functions(
        &mut self,
        function: WalkedFunction,
        frame: WalkedFrame,
        pid: Pid,
    ) -> Result<Arc<[Function]>, Unread> {
        if let Some(functions) = self.known.get(&frame) {
            return Ok(Arc::clone(functions));
        }
        if self.is_given_up() {
            return Err(Unread::Unknown);
        }
        let functions: Arc<[Function]> = self.read(function, frame, pid)?.into();
        if self.known.len() >= Self::KEPT {
            self.known.clear();
        }
        self.known.insert(frame, Arc::clone(&functions));
        Ok(functions)
    }

    fn read(
        &mut self,
        function: WalkedFunction,
        frame: WalkedFrame,
        pid: Pid,
    ) -> Result<Vec<Function>, Unread> {
        let open = || Target::open(pid).ok()?.open_file("mem").ok().map(MemoryFile);
        let memory = self.memory.get_or_init(open).as_ref().ok_or(Unread::Gone)?;
        let functions = self.v8.functions(function, frame.address.0, memory);
        match &functions {
            Ok(_) => (self.tried, self.told) = (self.tried + 1, self.told + 1),
            Err(Unread::Moved | Unread::Unknown) => self.tried += 1,
            Err(Unread::NotCaptured | Unread::Gone) => {}
        }
        if self.is_given_up() {
            let (major, minor) = self.layout.version;
            log::warn!(
                "the objects of V8 {major}.{minor} are not as they are in the versions that are known: JavaScript functions have no \
                 names; stacks are whole, and native functions have theirs"
            );
        }
        functions
    }

    fn is_given_up(&self) -> bool {
        self.tried >= Self::ENOUGH && self.told == 0
    }
}
