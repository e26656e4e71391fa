//! How the recording goes: what is held and resident, over time.

use std::{collections::BTreeMap, time::Duration};

use tracer_ebpf::{counter::Counter, process::ProcessIndex, stack::StackTotals};

use super::{
    super::{
        clock::now_ns,
        growth::Touched,
        resident_memory::{Readings, When},
    },
    Session,
    events::LOOKS_FOR_TRAMPOLINES,
};
use crate::{
    analyze::history::Source,
    model::{Bytes, Kind, Mode, Overhead, Pid, TimelinePoint},
    report::status::Status,
};

/// Snapshots kept; when there are more, every second one goes.
const MAX_TIMELINE: usize = 2000;

/// What takes less than probes.
const CHEAPER: &str = "cheaper are `--mode growth`, now, and at its next start the sampler that comes with tracer: \
                       LD_PRELOAD=/usr/lib/tracer/libtracer_sampler.so, and tracer with --sample 512KiB (docs/sampler.md)";

impl Session {
    /// Adds a point to the timeline.
    pub fn snapshot(&mut self, when: When) {
        let reading = self.resident.read(&self.processes, when);
        self.add_to_timeline(when, reading);
    }

    /// Adds a point to the timeline, with what was just read of resident memory.
    pub(super) fn add_to_timeline(&mut self, when: When, reading: Option<Readings>) {
        let t_ns = now_ns().saturating_sub(self.window.opened_ns);
        self.judge_mappings();
        self.look_at_memory(when);
        let by_process = self.native_by_process();
        let was_read = reading.is_some();
        let rss = match &reading {
            Some(reading) => Some(reading.rss()),
            None => self.resident.rss(&self.processes, when),
        };
        if let Some(reading) = reading {
            self.resident.keep(reading, &self.mappings, &by_process);
        }
        let Some(rss) = rss else { return };
        self.window.rss_after = Some(rss);
        self.timeline.push(TimelinePoint {
            t_ns,
            rss_bytes: rss.0,
            outstanding_bytes: by_process.values().sum::<u64>() + self.mapping_weight(),
            managed_bytes: was_read.then(|| self.resident.managed_bytes(&self.managed)).flatten(),
        });
        if self.timeline.len() > MAX_TIMELINE {
            let mut index = 0;
            self.timeline.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }

    /// Notes what every stack holds, from time to time.
    pub fn note_sizes(&mut self, when: When) {
        let t_ns = now_ns().saturating_sub(self.window.opened_ns);
        if when == When::Affordable && !self.history.is_due(t_ns) {
            return;
        }
        self.look_at_memory(When::Affordable);
        let mut mapped: BTreeMap<Source, Bytes> = BTreeMap::new();
        for live in self.mappings.live().filter(|live| live.holder.kind == Kind::Mapping) {
            let Bytes(resident) = self.resident.of_range(&live).unwrap_or_default();
            mapped.entry(Source::Mapping(live.holder)).or_default().0 += resident;
        }
        let native = self.capture.tables().stacks().filter_map(|(stack, totals)| {
            let bytes = totals.outstanding().bytes;
            (bytes > 0).then_some((Source::Native(stack), Bytes(bytes)))
        });
        let touched = self.touched.iter().flat_map(Touched::sizes);
        self.history.push(t_ns, native.chain(mapped).chain(touched));
    }

    /// Tells the heaps of runtimes among the mappings, as far as their stacks have names by now.
    pub(super) fn judge_mappings(&mut self) {
        let Self { managed, mappings, names, .. } = self;
        managed.learn(mappings.totals(), |stack| names.frames(stack));
    }

    /// Reads how much is resident of what was mapped and touched.
    fn look_at_memory(&mut self, when: When) {
        self.resident.look_at_mappings(&self.processes, &self.mappings, when);
        if let Some(touched) = &mut self.touched {
            touched.weigh(&self.processes, &self.mappings, &self.managed, when);
        }
    }

    fn mapping_weight(&self) -> u64 {
        let counted =
            self.mappings.live().filter(|live| self.managed.judged(live.holder).kind.counts_by_default());
        let mapped: u64 = counted.filter_map(|live| self.resident.of_range(&live)).map(|bytes| bytes.0).sum();
        mapped + self.touched.as_ref().map_or(0, Touched::weight)
    }

    /// Outstanding bytes of the malloc family, by process.
    fn native_by_process(&self) -> BTreeMap<ProcessIndex, u64> {
        let mut sizes = BTreeMap::new();
        for (stack, totals) in self.capture.tables().stacks() {
            let bytes = totals.outstanding().bytes;
            if bytes > 0 {
                let process =
                    self.stacks.get(&stack).map_or_else(ProcessIndex::default, |stack| stack.process);
                *sizes.entry(process).or_default() += bytes;
            }
        }
        sizes
    }

    /// Bytes and blocks of the malloc family that are not freed.
    fn native_outstanding(&self) -> (u64, u64) {
        self.capture
            .tables()
            .totals()
            .iter()
            .map(StackTotals::outstanding)
            .fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.whole_objects()))
    }

    /// What the recording looks like right now.
    pub fn status(&mut self) -> Status<'_> {
        self.find_trampolines(LOOKS_FOR_TRAMPOLINES);
        let now = now_ns();
        let (bytes, objects) = self.native_outstanding();
        let events = self.events_so_far();
        let lost = Counter::ALL.iter().filter(|counter| counter.loss().is_some());
        let lost = lost.map(|&counter| self.capture.tables().count(counter)).sum();
        let rss = self.window.rss_before.zip(self.resident.rss(&self.processes, When::Affordable));
        Status {
            elapsed: Duration::from_nanos(now.saturating_sub(self.window.opened_ns)),
            events_per_second: self.rate.update(now, events),
            outstanding: Bytes(bytes + self.mapping_weight()),
            objects: objects
                + self
                    .mappings
                    .live()
                    .filter(|live| self.managed.judged(live.holder).kind == Kind::Mapping)
                    .count() as u64,
            rss,
            lost,
            tracing_percent: self.overhead().filter(|it| it.is_much()).map(|it| it.percent),
            target: &self.descriptions[&ProcessIndex::default()],
        }
    }

    /// Looks at what tracing takes, and says once what takes less where that is much.
    pub fn look_at_overhead(&mut self) {
        /// Before that it may be the beginning of something else.
        const LEAST_CPU_NS: u64 = 500_000_000;
        if self.config.mode == Mode::Growth {
            return;
        }
        let (pids, calls) = self.traced_now();
        self.meter.look(now_ns(), &self.capture, &pids, calls);
        let is_told_within = self.processes.iter().any(|process| process.telling() > 0);
        let overhead =
            self.overhead().filter(|overhead| overhead.is_much() && overhead.cpu_ns > LEAST_CPU_NS);
        if let Some(overhead) = overhead
            && !std::mem::replace(&mut self.told_of_cheaper_ways, true)
            && !is_told_within
        {
            log::warn!("tracing takes about {:.0} % of the target's CPU time; {CHEAPER}", overhead.percent);
        }
    }

    /// What tracing took; none in growth mode, where nothing is probed.
    pub(super) fn overhead(&self) -> Option<Overhead> {
        if self.config.mode == Mode::Growth { None } else { self.meter.outcome(&self.capture) }
    }

    /// The processes that are traced, and how often their allocators were called.
    pub(super) fn traced_now(&self) -> (Vec<Pid>, u64) {
        let alive = self.processes.iter().filter(|process| !self.capture.is_over(process.index));
        let pids = alive.map(|process| process.target.pid()).collect();
        (pids, self.sampler.calls_of_probes(self.capture.tables()))
    }

    fn events_so_far(&self) -> u64 {
        self.sampler.calls_so_far(self.capture.tables()) + self.mapping_events
    }
}

/// Events a second, over the last second or so.
#[derive(Default)]
pub(super) struct Rate {
    at_ns: u64,
    events: u64,
    per_second: f64,
}

impl Rate {
    pub(super) fn since(at_ns: u64) -> Self {
        Self { at_ns, ..Self::default() }
    }

    fn update(&mut self, now_ns: u64, events: u64) -> f64 {
        let passed = now_ns.saturating_sub(self.at_ns);
        if passed >= 1_000_000_000 || (self.per_second == 0.0 && passed > 100_000_000) {
            self.per_second = events.saturating_sub(self.events) as f64 * 1e9 / passed as f64;
            self.at_ns = now_ns;
            self.events = events;
        }
        self.per_second
    }
}
