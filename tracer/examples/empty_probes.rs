//! Puts probes that do nothing where the tracer would put its own, or at the entries of the same functions: the floor that
//! `cargo xtask bench overhead` measures the tracer against.
//!
//! `empty_probes PID planned|entries` says `ready` when they are in, and takes them out when its input ends.

use std::{
    io::{self, Read as _},
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result, bail};
use tracer::{
    attach::uprobes::{At, ProbeLink, ProbeSites, UprobeLinks, load_empty_program},
    model::Pid,
    plan::{Planner, ProbePlacement},
    target::Target,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pid, at] = &arguments[..] else { bail!("usage: empty_probes PID planned|entries") };
    let pid = Pid(pid.parse().context("PID is a number")?);
    let at_entries = match at.as_str() {
        "planned" => false,
        "entries" => true,
        other => bail!("`{other}` is neither `planned` nor `entries`"),
    };
    let probes = attach(&Target::open(pid)?, at_entries)?;
    println!("ready {} probes", probes.len());
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Attaches to every function that the tracer would probe, a perf event each.
fn attach(target: &Target, at_entries: bool) -> Result<Vec<ProbeLink>> {
    let program = load_empty_program(0).context("cannot load an empty program")?;
    let mut probes = Vec::new();
    for object in target.objects()?.opened {
        let mut bytes = Vec::new();
        (&object.file).read_to_end(&mut bytes)?;
        let path = object.uprobe_path();
        for probe in Planner::default().plan(&bytes)?.probes {
            let site = probe.place.site();
            let moved_by = if at_entries { u64::from(site.offset_in_function) } else { 0 };
            let place = ProbeSites::from_iter([(site.file_offset - moved_by, 0, None)]);
            let moments: &[At] = match probe.place {
                ProbePlacement::EntryAndReturn(_) => &[At::Entry, At::Return],
                ProbePlacement::Entry { .. } | ProbePlacement::EntryAndExits { .. } => &[At::Entry],
            };
            for &at in moments {
                let scope = Some(target.pid());
                probes.extend(UprobeLinks::PerfEvents.attach(program.as_fd(), &path, &place, at, scope)?);
            }
        }
    }
    Ok(probes)
}
