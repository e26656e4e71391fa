//! What the tracer itself takes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Bed,
    overhead::machine,
    tool::{Attached, Ending, tracer},
    workload::{Dialogue, Kind},
};
use crate::command;

/// How long the tracer is watched while the target goes on.
const WATCH: Duration = Duration::from_secs(5);
/// Clock ticks a second, in which the kernel counts CPU time for user space.
const TICKS: f64 = 100.0;
/// Bytes of a mebibyte.
pub const MIB: f64 = (1 << 20) as f64;

/// Measures, and returns the results as a table.
///
/// # Errors
/// When the tracer or a target fails.
pub fn measure(bed: &Bed) -> Result<String> {
    let mut text = machine()?;
    text += "\n| target | CPU while it allocates | CPU after | resident, own | resident, tables | BPF maps | a live block | one replaced | attach | end |\n";
    text += "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for blocks in [100_000_u64, 10_000_000] {
        command::step(&format!("tracing a target with {blocks} live blocks"));
        text += &with_blocks(bed, blocks)?;
    }
    command::step("tracing node");
    text += &node(bed)?;
    Ok(text)
}

fn with_blocks(bed: &Bed, blocks: u64) -> Result<String> {
    let mut command = std::process::Command::new(bed.program("blocks"));
    let mut target = Dialogue::start(command.arg(blocks.to_string()))?;
    let ready = target.line_with("ready ")?;
    let pid = ready.trim_start_matches("ready ").to_owned();
    let mut tracer = tracer(bed, Some(&pid));
    // Room for all of them: from outside nobody can tell that a small process will hold five million blocks.
    tracer.args(["--max-live", &blocks.max(1 << 20).to_string()]);
    let began = Instant::now();
    let attached = Attached::start(&mut tracer, "recording ", Ending::Interrupt)?;
    let attach = began.elapsed();
    let before = Taken::by(&attached)?;
    let working = Instant::now();
    target.ask("go")?;
    let worked = working.elapsed();
    let busy = Taken::by(&attached)?;
    thread::sleep(WATCH);
    let after = Taken::by(&attached)?;
    let replaced: f64 = target.ask("replace")?.parse()?;
    let end = attached.detach()?;
    Ok(format!(
        "| {blocks} live blocks | {:.1} % | {:.1} % | {:.1} MiB | {:.1} MiB | {:.1} MiB | {:.0} B | {replaced:.0} ns | {:.0} ms | {:.0} ms |\n",
        100.0 * (busy.cpu_s - before.cpu_s) / worked.as_secs_f64(),
        100.0 * (after.cpu_s - busy.cpu_s) / WATCH.as_secs_f64(),
        after.own_bytes / MIB,
        after.shared_bytes / MIB,
        after.maps.values().sum::<f64>() / MIB,
        after.live_bytes() / blocks as f64,
        attach.as_secs_f64() * 1e3,
        end.as_secs_f64() * 1e3,
    ))
}

fn node(bed: &Bed) -> Result<String> {
    let running = Kind::Node.start(bed, &[])?;
    let began = Instant::now();
    let attached =
        Attached::start(&mut tracer(bed, Some(&running.pid.to_string())), "recording ", Ending::Interrupt)?;
    let attach = began.elapsed();
    let before = Taken::by(&attached)?;
    thread::sleep(WATCH);
    let after = Taken::by(&attached)?;
    let end = attached.detach()?;
    let mut text = format!(
        "| node, idle | | {:.1} % | {:.1} MiB | {:.1} MiB | {:.1} MiB | | | {:.0} ms | {:.0} ms |\n",
        100.0 * (after.cpu_s - before.cpu_s) / WATCH.as_secs_f64(),
        after.own_bytes / MIB,
        after.shared_bytes / MIB,
        after.maps.values().sum::<f64>() / MIB,
        attach.as_secs_f64() * 1e3,
        end.as_secs_f64() * 1e3,
    );
    text += "\nBPF maps of the last: ";
    let mut largest: Vec<_> = after.maps.iter().collect();
    largest.sort_by(|a, b| b.1.total_cmp(a.1));
    let shown: Vec<_> =
        largest.iter().take(5).map(|(name, bytes)| format!("{name} {:.1} MiB", *bytes / MIB)).collect();
    writeln!(text, "{}.", shown.join(", "))?;
    Ok(text)
}

/// What a process has taken so far.
pub struct Taken {
    /// Seconds of CPU time.
    pub cpu_s: f64,
    /// Resident memory of its own.
    pub own_bytes: f64,
    /// Resident memory that it shares: files, BPF maps.
    pub shared_bytes: f64,
    /// Bytes of each BPF map that it holds, by a name made of its type and sizes.
    pub maps: BTreeMap<String, f64>,
}

impl Taken {
    /// Reads it.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn by(attached: &Attached) -> Result<Self> {
        let pid = attached.id().context("it is not a process")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(") ").context("not a stat line")?.1;
        // utime and stime are fields 14 and 15; the first after the name is field 3.
        let ticks = fields.split(' ').skip(14 - 3).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(Self {
            cpu_s: ticks / TICKS,
            own_bytes: kibibytes(&status, "RssAnon:"),
            shared_bytes: kibibytes(&status, "RssFile:") + kibibytes(&status, "RssShmem:"),
            maps: maps(pid)?,
        })
    }

    /// Of the table that has the blocks, which is the largest.
    fn live_bytes(&self) -> f64 {
        self.maps.values().copied().fold(0.0, f64::max)
    }
}

fn kibibytes(status: &str, line: &str) -> f64 {
    let value = status.lines().find_map(|text| text.strip_prefix(line));
    value.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
}

/// What the kernel says that the BPF maps of a process take.
fn maps(pid: u32) -> Result<BTreeMap<String, f64>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            let name = format!(
                "#{id} ({} entries of {} bytes)",
                field("max_entries:").unwrap_or("?"),
                field("value_size:").unwrap_or("?")
            );
            maps.insert(name, bytes.parse()?);
        }
    }
    Ok(maps)
}
