//! What the targets have mapped, touched and resident, as user space keeps account of it.

use tracer_ebpf::process::ProcessIndex;

use super::super::{
    growth::Touched,
    process::TracedProcess,
    resident_memory::{ResidentMemory, When},
};
use crate::{
    analyze::{
        managed::ManagedHolders,
        mappings::{LiveRange, MappingAccount},
    },
    attach::Capture,
    model::Kind,
    symbolize::Names,
};

/// The accounts of memory that no block of an allocator is.
pub(super) struct Accounts {
    pub mappings: MappingAccount,
    /// In growth mode.
    pub touched: Option<Touched>,
    pub managed: ManagedHolders,
    pub resident: ResidentMemory,
}

impl Accounts {
    pub fn new(touched: Option<Touched>) -> Self {
        let (managed, resident) = (ManagedHolders::default(), ResidentMemory::default());
        Self { mappings: MappingAccount::new(), touched, managed, resident }
    }

    /// Forgets the window that is over.
    pub fn forget_all(&mut self) {
        self.mappings = MappingAccount::new();
        self.resident = ResidentMemory::default();
    }

    /// Reads what the processes have mapped, once the window is open: calls from before are in it then, and those from since are
    /// replayed over it.
    pub fn read_mappings(&mut self, processes: &[TracedProcess], capture: &Capture) {
        for process in processes {
            // One that is ending has nothing mapped.
            self.mappings.add_process(process.index, process.initial_mappings().unwrap_or_default());
        }
        if let Some(touched) = &mut self.touched {
            touched.forget(processes, capture);
        }
    }

    /// Recognises the heaps of runtimes among the mappings, as far as their stacks have names by now.
    pub fn judge_mappings(&mut self, names: &Names) {
        let Self { managed, mappings, .. } = self;
        managed.learn(mappings.totals(), |stack| names.frames(stack));
    }

    /// Reads how much is resident of what was mapped and touched.
    pub fn look_at_memory(&mut self, processes: &[TracedProcess], when: When) {
        let Self { mappings, touched, managed, resident } = self;
        resident.look_at_mappings(processes, mappings, when);
        if let Some(touched) = touched {
            touched.weigh(processes, mappings, managed, when);
        }
    }

    pub fn forget(&mut self, gone: ProcessIndex, others: &[TracedProcess]) {
        self.resident.forget(gone, others);
    }

    /// What the mappings weigh that count by default, and what was touched.
    pub fn mapping_weight(&self) -> u64 {
        let counted = self.live_of(Kind::counts_by_default);
        let mapped: u64 = counted.filter_map(|live| self.resident.of_range(&live)).map(|bytes| bytes.0).sum();
        mapped + self.touched.as_ref().map_or(0, Touched::weight)
    }

    /// How many mappings of the program's own there are.
    pub fn mapping_count(&self) -> u64 {
        self.live_of(|kind| kind == Kind::Mapping).count() as u64
    }

    fn live_of(&self, wanted: impl Fn(Kind) -> bool) -> impl Iterator<Item = LiveRange> {
        self.mappings.live().filter(move |live| wanted(self.managed.judged(live.holder).kind))
    }
}
