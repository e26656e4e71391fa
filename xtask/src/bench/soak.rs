//! Whether the tracer stays as it is however long it records: its memory and its CPU time over a recording of a server
//! that does the same all the time.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Bed,
    footprint::{MIB, Taken},
    overhead::machine,
    tool::{Attached, Ending, tracer},
    workload::Dialogue,
};
use crate::command;

/// How many rows the table has.
const ROWS: u32 = 10;

/// Records for so many minutes, and returns a table of what the tracer took over them.
///
/// # Errors
/// When the tracer or the target fails.
pub fn measure(bed: &Bed, minutes: u32) -> Result<String> {
    let mut target = Dialogue::start(&mut Command::new(bed.program("soak")))?;
    let ready = target.line_with("ready ")?;
    let pid = ready.trim_start_matches("ready ").to_owned();
    let attached = Attached::start(&mut tracer(bed, Some(&pid)), "recording ", Ending::Interrupt)?;
    command::step(&format!("recording for {minutes} minutes"));
    target.tell("go")?;
    let began = Instant::now();
    let mut before = Taken::by(&attached)?;
    let mut text = machine()?;
    text += "\n| minute | CPU | resident, own | resident, tables | BPF maps |\n|--:|--:|--:|--:|--:|\n";
    let spacing = Duration::from_secs(60) * minutes / ROWS;
    for row in 1..=ROWS {
        thread::sleep((spacing * row).saturating_sub(began.elapsed()));
        let taken = Taken::by(&attached)?;
        let line = format!(
            "| {:.1} | {:.1} % | {:.1} MiB | {:.1} MiB | {:.1} MiB |\n",
            began.elapsed().as_secs_f64() / 60.0,
            100.0 * (taken.cpu_s - before.cpu_s) / spacing.as_secs_f64(),
            taken.own_bytes / MIB,
            taken.shared_bytes / MIB,
            taken.maps.values().sum::<f64>() / MIB,
        );
        print!("{line}");
        text += &line;
        before = taken;
    }
    attached.detach()?;
    let report = std::fs::read_to_string(bed.scratch.join("report.json"))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let events = &report["events"];
    let number = |value: &serde_json::Value| value.as_u64().context("the report has it");
    let lost: u64 =
        events["lost"].as_object().context("the report has it")?.values().filter_map(|n| n.as_u64()).sum();
    text += &format!(
        "\n{} allocations and {} frees; {lost} events lost. Incomplete stacks: {}. It says: “{}”.\n",
        number(&events["allocations"])?,
        number(&events["frees"])?,
        events["incomplete_stacks"],
        report["verdict"]["summary"].as_str().context("the report has it")?,
    );
    Ok(text)
}
