//! Finds the HotSpot of a process: where its things are is said by tables in the memory of the process, which are not ready at once.

use std::{collections::HashMap, sync::Arc};

use tracer_ebpf::process::ProcessIndex;

use crate::runtime::{
    MemoryFile,
    hotspot::{Layout, Symbols, VmStructs},
};

/// The HotSpots of the traced processes, by their indexes.
#[derive(Default)]
pub(super) struct HotSpots(HashMap<ProcessIndex, HotSpot>);

/// A file that HotSpot is in, as a process has it mapped.
#[derive(Clone, Copy)]
pub(super) struct MappedFile<'a> {
    /// Its number: no other file has it.
    pub(super) number: u32,
    /// What the loader added to its addresses.
    pub(super) bias: u64,
    /// Where in there the tables are.
    pub(super) symbols: &'a Symbols,
}

struct HotSpot {
    file: u32,
    bias: u64,
    state: State,
}

enum State {
    /// Its tables could not be read yet.
    Unread,
    /// It is not ready.
    Starting(Box<VmStructs>),
    Known(Arc<Layout>),
    Unsupported,
}

impl HotSpots {
    /// Looks at a process that has such a file mapped.
    pub(super) fn look(
        &mut self,
        process: ProcessIndex,
        file: Option<MappedFile<'_>>,
        memory: Option<&MemoryFile>,
    ) {
        let (Some(file), Some(memory)) = (file, memory) else { return };
        let MappedFile { number, bias, symbols } = file;
        let hotspot = self.0.entry(process).or_insert(HotSpot { file: number, bias, state: State::Unread });
        if (hotspot.file, hotspot.bias) != (number, bias) {
            *hotspot = HotSpot { file: number, bias, state: State::Unread };
        }
        if matches!(hotspot.state, State::Unread)
            && let Some(structs) = VmStructs::read(symbols, bias, memory)
        {
            hotspot.state = State::Starting(Box::new(structs));
        }
        if let State::Starting(structs) = &hotspot.state {
            match Layout::of(structs, memory) {
                Ok(Some(layout)) => hotspot.state = State::Known(Arc::new(layout)),
                Ok(None) => {}
                Err(error) => {
                    log::warn!(
                        "{error}: Java methods have no names, and stacks through compiled ones may lose their callers; native functions \
                         have their names"
                    );
                    hotspot.state = State::Unsupported;
                }
            }
        }
    }

    /// Where things are in the one of a process, as far as it is known.
    pub(super) fn layout(&self, process: ProcessIndex) -> Option<&Arc<Layout>> {
        match &self.0.get(&process)?.state {
            State::Known(layout) => Some(layout),
            State::Unread | State::Starting(_) | State::Unsupported => None,
        }
    }
}
