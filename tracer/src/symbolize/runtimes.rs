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
    Function, Layouts, MemoryFile, Runtime, Unread, hotspot::HotSpot, python::Python, v8::V8,
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

/// A process, and its runtimes.
struct Process {
    pid: Pid,
    v8: Option<Reader<V8>>,
    hotspot: Option<Reader<HotSpot>>,
    python: Option<Reader<Python>>,
}

impl RuntimeReader {
    pub(super) fn add_process(&mut self, index: ProcessIndex, pid: Pid) {
        self.processes.insert(index, Process { pid, v8: None, hotspot: None, python: None });
    }

    /// A child that has its parent's code.
    pub(super) fn fork(&mut self, parent: ProcessIndex, child: ProcessIndex, pid: Pid) {
        let layouts = self.processes.get(&parent).map(Process::layouts).unwrap_or_default();
        self.add_process(child, pid);
        self.add_runtimes(child, &layouts);
    }

    /// Learns which runtimes a process has.
    pub(super) fn add_code(&mut self, view: &CodeView) {
        self.add_runtimes(view.process, &view.runtimes);
    }

    fn add_runtimes(&mut self, process: ProcessIndex, Layouts { v8, hotspot, python }: &Layouts) {
        let Some(process) = self.processes.get_mut(&process) else { return };
        Reader::renew(&mut process.v8, v8.as_ref());
        Reader::renew(&mut process.hotspot, hotspot.as_ref());
        Reader::renew(&mut process.python, python.as_ref());
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
    fn layouts(&self) -> Layouts {
        Layouts {
            v8: Reader::layout(self.v8.as_ref()),
            hotspot: Reader::layout(self.hotspot.as_ref()),
            python: Reader::layout(self.python.as_ref()),
        }
    }

    fn functions(&mut self, frame: WalkedFrame) -> Option<Result<Arc<[Function]>, Unread>> {
        match frame.runtime {
            RuntimeFrame::Native | RuntimeFrame::PythonLoop => None,
            RuntimeFrame::V8Internal(number) => {
                self.v8.as_ref()?.runtime.internal(number).map(|function| Ok([function].into()))
            }
            RuntimeFrame::JavaScript(walked) => {
                Some(Reader::functions(self.v8.as_mut(), walked, frame, self.pid))
            }
            RuntimeFrame::Java(walked) => {
                Some(Reader::functions(self.hotspot.as_mut(), walked, frame, self.pid))
            }
            RuntimeFrame::Python(walked) => {
                Some(Reader::functions(self.python.as_mut(), walked, frame, self.pid))
            }
        }
    }
}

/// A runtime of a process, and what it was asked.
struct Reader<R: Runtime> {
    layout: Arc<R::Layout>,
    runtime: R,
    /// Opened when it is first needed; none when it cannot be.
    memory: OnceCell<Option<MemoryFile>>,
    /// What was told: by the function, not by its address alone, so it holds when that has been moved.
    known: HashMap<WalkedFrame, Arc<[Function]>>,
    tried: u32,
    told: u32,
}

impl<R: Runtime> Reader<R> {
    /// So many frames, none of which could be told, and the objects are not as they are thought to be.
    const ENOUGH: u32 = 200;
    /// Frames that are kept. They take some 200 bytes each.
    const KEPT: usize = 64 << 10;

    fn new(layout: &Arc<R::Layout>) -> Self {
        Self {
            layout: Arc::clone(layout),
            runtime: R::new(layout),
            memory: OnceCell::new(),
            known: HashMap::new(),
            tried: 0,
            told: 0,
        }
    }

    /// Begins anew if it is another runtime than before.
    fn renew(reader: &mut Option<Self>, layout: Option<&Arc<R::Layout>>) {
        let Some(layout) = layout else { return };
        if !reader.as_ref().is_some_and(|reader| Arc::ptr_eq(&reader.layout, layout)) {
            *reader = Some(Self::new(layout));
        }
    }

    fn layout(reader: Option<&Self>) -> Option<Arc<R::Layout>> {
        reader.map(|reader| Arc::clone(&reader.layout))
    }

    fn functions(
        reader: Option<&mut Self>,
        walked: R::Walked,
        frame: WalkedFrame,
        pid: Pid,
    ) -> Result<Arc<[Function]>, Unread> {
        let reader = reader.ok_or(Unread::Unknown)?;
        if let Some(functions) = reader.known.get(&frame) {
            return Ok(Arc::clone(functions));
        }
        if reader.is_given_up() {
            return Err(Unread::Unknown);
        }
        let functions: Arc<[Function]> = reader.read(walked, frame, pid)?.into();
        if reader.known.len() >= Self::KEPT {
            reader.known.clear();
        }
        reader.known.insert(frame, Arc::clone(&functions));
        Ok(functions)
    }

    fn read(&mut self, walked: R::Walked, frame: WalkedFrame, pid: Pid) -> Result<Vec<Function>, Unread> {
        let open = || Target::open(pid).ok()?.open_file("mem").ok().map(MemoryFile);
        let memory = self.memory.get_or_init(open).as_ref().ok_or(Unread::Gone)?;
        let functions = self.runtime.settled_functions(walked, frame.address.0, memory);
        match &functions {
            Ok(_) => (self.tried, self.told) = (self.tried + 1, self.told + 1),
            Err(Unread::Moved | Unread::Unknown) => self.tried += 1,
            Err(Unread::NotCaptured | Unread::Gone) => {}
        }
        if self.is_given_up() {
            let (version, language) = self.runtime.version();
            log::warn!(
                "the objects of {version} are not as they are in the versions that are known: {language} functions have no names; \
                 stacks are whole, and native functions have theirs"
            );
        }
        functions
    }

    fn is_given_up(&self) -> bool {
        self.tried >= Self::ENOUGH && self.told == 0
    }
}
