//! How the recording goes: what is held and resident, over time.

use std::{collections::BTreeMap, time::Duration};

use tracer_ebpf::{counter::Counter, process::ProcessIndex, stack::StackTotals};

use super::{
    super::{
        clock::{nanos, now_ns},
        cost_limit::TrialCost,
        growth::Touched,
        process::TracedProcess,
        resident_memory::{Readings, When},
    },
    Session,
    accounts::Accounts,
};
use crate::{
    analyze::{
        growth,
        history::{History, Source},
    },
    model::{Bytes, Kind, Mode, Overhead, Pid, TimelinePoint},
    plan::ApiId,
    report::status::{Status, Vitals},
    target::ThreadTimes,
};

/// Between the first sizes of every stack, of which a verdict takes a dozen: a little less than the time between looks, so that
/// each look is due.
const HISTORY_SPACING_NS: u64 = 180_000_000;

/// Snapshots kept; when there are more, every second one goes.
const MAX_TIMELINE: usize = 2000;

/// What takes less than probes.
const CHEAPER: &str = "cheaper are `--mode growth`, now, and at its next start the sampler that comes with tracer: \
                       LD_PRELOAD=/usr/lib/tracer/libtracer_sampler.so, and tracer with --sample 512KiB (docs/sampler.md)";

impl Session {
    /// Adds a point to the timeline.
    pub fn snapshot(&mut self, when: When) {
        let reading = self.accounts.resident.read(&self.processes, when);
        self.add_to_timeline(when, reading);
    }

    /// Adds a point to the timeline, with what was just read of resident memory.
    pub(super) fn add_to_timeline(&mut self, when: When, reading: Option<Readings>) {
        let t_ns = now_ns().saturating_sub(self.window.opened_ns);
        self.accounts.judge_mappings(self.naming.names());
        self.accounts.look_at_memory(&self.processes, when);
        let held = self.native_by_function();
        let was_read = reading.is_some();
        let rss = match &reading {
            // One that was made beside is of a moment ago.
            Some(reading) if when == When::Now => Some(reading.rss()),
            _ => self.accounts.resident.rss(&self.processes, when),
        };
        let Accounts { mappings, managed, resident, .. } = &mut self.accounts;
        if let Some(reading) = reading {
            resident.keep(reading, &self.processes, mappings, &held);
            let (capture, stacks) = (&self.capture, self.naming.stacks());
            let function = |stack| stacks.get(&stack).map(|stack| ApiId(stack.api));
            resident.look_at_blocks(|| capture.tables().live_blocks(), function, when);
        }
        let Some(rss) = rss else { return };
        self.window.rss_after = Some(rss);
        let managed_bytes = was_read.then(|| resident.managed_bytes(managed)).flatten();
        self.progress.add(TimelinePoint {
            t_ns,
            rss_bytes: rss.0,
            outstanding_bytes: held.values().sum::<u64>() + self.accounts.mapping_weight(),
            managed_bytes,
        });
    }

    /// Notes what every stack holds, from time to time.
    pub fn note_sizes(&mut self, when: When) {
        let t_ns = now_ns().saturating_sub(self.window.opened_ns);
        if when == When::Affordable && !self.progress.history.is_due(t_ns) {
            return;
        }
        self.accounts.look_at_memory(&self.processes, When::Affordable);
        let Accounts { mappings, touched, resident, .. } = &self.accounts;
        let mut mapped: BTreeMap<Source, Bytes> = BTreeMap::new();
        for live in mappings.live().filter(|live| live.holder.kind == Kind::Mapping) {
            let Bytes(size) = resident.of_range(&live).unwrap_or_default();
            mapped.entry(Source::Mapping(live.holder)).or_default().0 += size;
        }
        let native = self.capture.tables().stacks().filter_map(|(stack, totals)| {
            let bytes = totals.outstanding().bytes;
            (bytes > 0).then_some((Source::Native(stack), Bytes(bytes)))
        });
        let touched = touched.iter().flat_map(Touched::sizes);
        self.progress.history.push(t_ns, native.chain(mapped).chain(touched));
        if let Some(freed) = self.sampler.older_frees_so_far(self.capture.tables()) {
            self.progress.history.note_older_frees(freed);
        }
    }

    /// Outstanding bytes of the malloc family, by process and function.
    fn native_by_function(&self) -> BTreeMap<(ProcessIndex, ApiId), u64> {
        let mut sizes = BTreeMap::new();
        for (stack, totals) in self.capture.tables().stacks() {
            let bytes = totals.outstanding().bytes;
            if bytes > 0 {
                *sizes.entry(self.naming.function_of(stack)).or_default() += bytes;
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
        let now = now_ns();
        let (bytes, objects) = self.native_outstanding();
        let events = self.events_so_far();
        let lost = Counter::ALL.iter().filter(|counter| counter.loss().is_some());
        let lost = lost.map(|&counter| self.capture.tables().count(counter)).sum();
        let rss = self.window.rss_before.zip(self.accounts.resident.rss(&self.processes, When::Affordable));
        let vitals = Vitals {
            elapsed: Duration::from_nanos(now.saturating_sub(self.window.opened_ns)),
            events_per_second: self.progress.rate.update(now, events),
            outstanding: Bytes(bytes + self.accounts.mapping_weight()),
            objects: objects + self.accounts.mapping_count(),
            rss,
            lost,
            tracing_percent: self.overhead().filter(|it| it.is_much()).map(|it| it.percent),
        };
        Status { target: &self.descriptions[&ProcessIndex::default()], vitals }
    }

    /// Whether there is no room for more live blocks, though next to nothing is lost yet, and the window is long enough to be judged.
    pub fn is_out_of_room(&self) -> bool {
        let lost = self.capture.tables().count(Counter::LiveTableFull);
        let seen = self.sampler.calls_so_far(self.capture.tables());
        lost > 0 && lost < seen / 50 && now_ns() >= self.window.opened_ns + nanos(growth::SHORTEST)
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
        let samples_itself = self.processes.iter().any(|process| process.usdt_probes() > 0);
        let overhead =
            self.overhead().filter(|overhead| overhead.is_much() && overhead.cpu_ns > LEAST_CPU_NS);
        if let Some(overhead) = overhead
            && !std::mem::replace(&mut self.told_of_cheaper_ways, true)
            && !samples_itself
        {
            log::warn!("tracing takes about {:.0} % of the target's CPU time; {CHEAPER}", overhead.percent);
        }
    }

    /// What tracing took; none in growth mode, where nothing is probed.
    pub fn overhead(&self) -> Option<Overhead> {
        if self.config.mode == Mode::Growth { None } else { self.meter.outcome(&self.capture) }
    }

    /// What tracing took of a window that opened a moment ago; none where that cannot be told.
    pub fn cost_of_moment(&mut self) -> Option<TrialCost> {
        let (pids, calls) = self.traced_now();
        let (overhead, walks_ns) = self.meter.of_moment(&self.capture, &pids, calls)?;
        let totals = self.capture.tables().totals().iter().map(StackTotals::allocated);
        let (allocations, bytes) = totals
            .fold((0, 0), |(objects, bytes), stack| (objects + stack.whole_objects(), bytes + stack.bytes));
        Some(TrialCost { overhead, walks_ns, allocations, allocated: Bytes(bytes) })
    }

    /// What the threads of the targets have had so far.
    pub fn threads(&self) -> ThreadTimes {
        ThreadTimes::of(&self.traced_now().0)
    }

    /// How long the targets could work in this window, as far as others left them a CPU.
    pub fn time_had(&self) -> Duration {
        Duration::from_nanos(self.had_so_far(&self.traced_now().0, now_ns()))
    }

    /// Whether a target reports the blocks that it samples, to whoever wants a sample.
    pub fn samples_itself(&self) -> bool {
        self.processes.iter().any(TracedProcess::samples_itself)
    }

    /// The processes that are traced, and how often their allocators were called.
    pub(super) fn traced_now(&self) -> (Vec<Pid>, u64) {
        let alive = self.processes.iter().filter(|process| !self.capture.is_over(process.index));
        let pids = alive.map(|process| process.target.pid()).collect();
        (pids, self.sampler.calls_of_probes(self.capture.tables()))
    }

    fn events_so_far(&self) -> u64 {
        self.sampler.calls_so_far(self.capture.tables()) + self.progress.mapping_events
    }
}

/// What the targets held and had resident since the window opened.
pub(super) struct Progress {
    pub history: History,
    pub timeline: Vec<TimelinePoint>,
    pub rate: Rate,
    /// Events of mappings.
    pub mapping_events: u64,
}

impl Progress {
    /// Nothing has happened since that moment.
    pub fn since(at_ns: u64) -> Self {
        let (history, rate) = (History::new(HISTORY_SPACING_NS), Rate { at_ns, ..Rate::default() });
        Self { history, timeline: Vec::new(), rate, mapping_events: 0 }
    }

    fn add(&mut self, point: TimelinePoint) {
        self.timeline.push(point);
        if self.timeline.len() > MAX_TIMELINE {
            let mut index = 0;
            self.timeline.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
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
