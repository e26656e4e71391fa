//! What the programs must know of the language runtimes of the traced processes.

use anyhow::Result;
use aya::Ebpf;
use tracer_ebpf::{
    process::ProcessIndex,
    runtime::{
        hotspot::{self, MAX_LAYOUTS, SharedLayout},
        python, v8,
    },
};

use super::{Capture, shared::SharedArray, tables::array};

/// Where things are in the HotSpots of all processes.
pub(super) struct HotSpotLayouts {
    shared: SharedArray<SharedLayout>,
    /// What is written there so far.
    written: Vec<hotspot::Layout>,
}

impl HotSpotLayouts {
    pub(super) fn map(ebpf: &Ebpf) -> Result<Self> {
        Ok(Self { shared: array(ebpf, "HOTSPOT_LAYOUTS", MAX_LAYOUTS)?, written: Vec::new() })
    }

    /// The number of a layout, counted from 1; 0 when there is no room for it.
    fn number(&mut self, layout: &hotspot::Layout) -> u64 {
        // Processes that were forked from each other have the same.
        let known = self.written.iter().position(|written| written == layout);
        let index = known.unwrap_or(self.written.len());
        if known.is_none() {
            let Some(place) = self.shared.elements().get(index) else { return 0 };
            place.store(layout);
            self.written.push(*layout);
        }
        index as u64 + 1
    }
}

impl Capture {
    /// Tells the programs where things are in the V8 of a process.
    pub fn set_v8(&self, process: ProcessIndex, layout: v8::Layout) {
        if let Some(state) = self.tables.processes().get(usize::from(process)) {
            state.v8.store(layout.to_bits());
        }
    }

    /// Tells the programs of the Python of a process.
    pub fn set_python(&self, process: ProcessIndex, interpreter: python::Interpreter) {
        if let Some(state) = self.tables.processes().get(usize::from(process)) {
            let words = interpreter.to_words();
            // The lengths of its code, by which the programs tell that there is one, last.
            for at in [0, 1, 3, 4, 2] {
                state.python[at].store(words[at]);
            }
        }
    }

    /// Tells the programs where things are in the HotSpot of a process.
    pub fn set_hotspot(&mut self, process: ProcessIndex, layout: Option<&hotspot::Layout>) {
        let number = layout.map_or(0, |layout| self.hotspots.number(layout));
        if let Some(state) = self.tables.processes().get(usize::from(process)) {
            state.hotspot.store(number);
        }
    }
}
