//! What was found, so far or at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::Result;
use tracer_ebpf::{stack::mapping_call, usdt::NO_API};

use super::{
    super::{
        clock::{nanos, now_ns},
        findings::Findings,
        growth::Touched,
        process::TracedProcess,
    },
    Session,
    accounts::Accounts,
};
use crate::{
    analyze::outcome::{Counted, KnownStack},
    model::{Events, Memory, NotProbed, Pid, Settings, Window, loss},
    plan::{ApiId, UsdtEvent},
};

impl Session {
    /// Takes the probes out and tells what was found.
    pub fn finish(mut self) -> Result<Findings> {
        self.capture.detach();
        self.take_events();
        self.naming.finish()?;
        Ok(self.findings())
    }

    /// What was found so far. It can be made a profile while the recording goes on.
    pub fn findings(&mut self) -> Findings {
        self.accounts.judge_mappings(self.naming.names());
        let Accounts { managed, resident, .. } = &self.accounts;
        let ended_ns = self.window.end.map_or_else(now_ns, |_| self.window.closed_ns);
        Findings {
            tables: Arc::clone(self.capture.tables()),
            sampler: self.sampler,
            names: self.naming.names().clone(),
            named: self.naming.caught_up(),
            counted: self.counted(ended_ns),
            events: self.events(),
            not_probed: self.not_probed(),
            processes: self.descriptions.values().cloned().collect(),
            window: Window {
                started_at: self.window.started_at.clone(),
                duration_ns: ended_ns.saturating_sub(self.window.opened_ns),
                end: self.window.end,
            },
            settings: Settings {
                sample_bytes: self.config.sample.0,
                min_age_ns: nanos(self.config.min_age),
                min_size: self.config.min_size,
                max_size: self.config.max_size,
                max_live: self.max_live,
                mode: self.config.mode,
            },
            overhead: self.overhead(),
            had_ns: self.window.had_ns.unwrap_or_else(|| self.had_so_far(&self.traced_now().0, ended_ns)),
            memory: self.memory(),
            runtime: resident.runtime(managed),
            allocator: resident.allocator(),
            python_objects: self.config.declarations.python_objects,
            shared_memory: resident.shared_growth(),
            timeline: self.progress.timeline.clone(),
            debug_files: None,
            is_read: false,
        }
    }

    /// The allocator functions whose calls are not seen.
    fn not_probed(&self) -> Vec<NotProbed> {
        let of_processes = self.processes.iter().map(TracedProcess::not_probed);
        let all = of_processes.chain([self.children.not_probed()]).flatten();
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether somebody is reading the tables to make a profile.
    pub fn is_being_read(&self) -> bool {
        Arc::strong_count(self.capture.tables()) > 1
    }

    /// Where the resident memory went.
    fn memory(&self) -> Memory {
        let Accounts { managed, resident, .. } = &self.accounts;
        resident.split(managed).unwrap_or_else(|| Memory {
            rss_before_bytes: self.window.rss_before.map(|bytes| bytes.0),
            rss_after_bytes: self.window.rss_after.map(|bytes| bytes.0),
            ..Memory::default()
        })
    }

    /// Everything that user space knows. What the programs counted comes to it later.
    fn counted(&self, ended_ns: u64) -> Counted {
        let stacks = self.naming.stacks().iter().map(|(&id, stack)| {
            let known = KnownStack {
                process: stack.process,
                api: self.api_name(stack.api),
                stop: stack.stop,
                frames: Vec::new(),
            };
            (id, known)
        });
        let Accounts { mappings, touched, managed, resident } = &self.accounts;
        Counted {
            pids: self.descriptions.values().map(|process| process.pid).collect::<Vec<Pid>>(),
            stacks: stacks.collect(),
            native: BTreeMap::new(),
            held: BTreeMap::new(),
            mappings: mappings.totals().chain(touched.iter().flat_map(Touched::totals)).collect(),
            ranges: mappings
                .live()
                .map(|live| (live, resident.of_range(&live)))
                .chain(touched.iter().flat_map(Touched::ranges))
                .collect(),
            managed: managed.clone(),
            history: self.progress.history.clone(),
            min_age_ns: nanos(self.config.min_age),
            opened_ns: self.window.opened_ns,
            ended_ns,
        }
    }

    fn api_name(&self, api: u16) -> String {
        match mapping_call(api) {
            Some(call) => call.name().to_owned(),
            None if api == NO_API => UsdtEvent::Alloc.name().to_owned(),
            None => {
                let api = self.planner.as_ref().and_then(|planner| planner.catalog.get(ApiId(api)));
                api.map_or("unknown", |api| api.display_name()).to_owned()
            }
        }
    }

    /// Events that user space counted.
    fn events(&self) -> Events {
        let Accounts { mappings, touched, .. } = &self.accounts;
        let (calls, losses) = (mappings.calls(), mappings.losses());
        let missed = self.window.missed_after.clone().unwrap_or_else(|| self.capture.missed_runs());
        let missed = missed.since(&self.window.missed_before);
        if !missed.of_programs.is_empty() {
            log::debug!("programs that the kernel left out, and how often: {missed:?}");
        }
        let malformed = self.drain.malformed() - self.window.malformed_before + losses.malformed;
        let lost = [
            (loss::MISSED_BY_KERNEL, missed.lost()),
            (loss::MALFORMED_EVENT, malformed),
            (loss::MAPPING_TABLE_FULL, losses.table_full + touched.as_ref().map_or(0, Touched::table_full)),
        ];
        let (touched, released) = touched.as_ref().map_or((0, 0), Touched::calls);
        Events {
            allocations: calls.allocations + touched,
            frees: calls.frees + released,
            unmatched_frees: calls.unmatched_frees,
            failed_allocations: calls.failed_allocations,
            lost: lost.into_iter().map(|(cause, number)| (cause.to_owned(), number)).collect(),
            incomplete_stacks: BTreeMap::new(),
            unnamed_functions: BTreeMap::new(),
        }
    }
}
