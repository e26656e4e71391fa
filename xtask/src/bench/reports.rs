//! What it takes to draw a large recording in each format, and to read one back.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{median::median, overhead::machine};
use crate::{command, privilege::found_in_path, run};

/// The recording that is drawn.
const STACKS: &str = "100000";
const FRAMES: &str = "60";
/// Stacks of the page that a browser opens.
const STACKS_OF_PAGE: &str = "20000";
/// How often each is measured.
const ROUNDS: usize = 5;

const ENDINGS: [&str; 8] =
    ["svg", "html", "folded", "json", "json.gz", "pb.gz", "speedscope.json", "heapprofile"];

/// Measures, and returns the results as a table.
///
/// # Errors
/// When the tracer does not build or fails.
pub fn measure(workspace: &Path) -> Result<String> {
    let bed = Bed::make(workspace)?;
    let large = bed.recording("large.json.gz", STACKS)?;
    let mut text = machine()?;
    writeln!(text, "\n| | time | CPU time | peak memory | size of the file |\n|---|--:|--:|--:|--:|")?;
    text += &bed.row("only the summary", &large, None)?;
    for ending in ENDINGS {
        text += &bed.row(
            &format!("`.{ending}`"),
            &large,
            Some(&bed.scratch.join("drawn").with_extension(ending)),
        )?;
    }
    text += &bed.row("only the summary, from `.json`", &bed.scratch.join("drawn.json"), None)?;
    text += &bed.page()?;
    Ok(text)
}

struct Bed {
    tracer: PathBuf,
    large_profile: PathBuf,
    scratch: PathBuf,
}

impl Bed {
    fn make(workspace: &Path) -> Result<Self> {
        run::build(workspace)?;
        let mut example = run::cargo(workspace);
        example.args(["build", "--release", "--package", "tracer", "--example", "large_profile"]);
        command::run("building what makes a large recording", &mut example)?;
        let scratch = workspace.join("target/bench");
        fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        Ok(Self {
            tracer: run::binary(workspace),
            large_profile: workspace.join("target/release/examples/large_profile"),
            scratch,
        })
    }

    fn recording(&self, name: &str, stacks: &str) -> Result<PathBuf> {
        let path = self.scratch.join(name);
        let mut make = Command::new(&self.large_profile);
        command::run_quietly("making a large recording", make.args([stacks, FRAMES]).arg(&path))?;
        Ok(path)
    }

    fn report(&self, recording: &Path, output: Option<&Path>) -> Command {
        let mut report = Command::new(&self.tracer);
        report.arg("report").arg(recording).stdout(Stdio::null());
        if let Some(output) = output {
            report.arg("-o").arg(output);
        }
        report
    }

    fn row(&self, name: &str, recording: &Path, output: Option<&Path>) -> Result<String> {
        command::step(&format!("measuring {name}"));
        let runs = (0..ROUNDS).map(|_| Taken::by(&mut self.report(recording, output)));
        let runs: Vec<Taken> = runs.collect::<Result<_>>()?;
        let of = |figure: fn(&Taken) -> f64| {
            median(&runs.iter().map(figure).collect::<Vec<_>>()).unwrap_or(f64::NAN)
        };
        let size =
            output.map(|output| Ok::<_, anyhow::Error>(fs::metadata(output)?.len() as f64)).transpose()?;
        Ok(format!(
            "| {name} | {:.1} s | {:.1} s | {:.0} MiB | {} |\n",
            of(|run| run.seconds),
            of(|run| run.cpu_seconds),
            of(|run| run.peak_mib),
            size.map(|size| format!("{:.0} MiB", size / MIB)).unwrap_or_default()
        ))
    }

    /// What a browser takes to open a page, beyond what it takes to open an empty one.
    fn page(&self) -> Result<String> {
        if !found_in_path("chromium") {
            command::step("the page is not opened: there is no chromium here");
            return Ok(String::new());
        }
        let page = self.scratch.join("page.html");
        let recording = self.recording("page.json.gz", STACKS_OF_PAGE)?;
        command::output(&mut self.report(&recording, Some(&page)))?;
        let empty = self.scratch.join("empty.html");
        fs::write(&empty, "<!doctype html><title>empty</title>")?;
        command::step("opening a page in chromium");
        let open = |page: &Path| {
            let runs = (0..ROUNDS).map(|_| self.open(page)).collect::<Result<Vec<_>>>()?;
            median(&runs).context("there were no rounds")
        };
        let (empty, full) = (open(&empty)?, open(&page)?);
        Ok(format!(
            "\nThe page of {STACKS_OF_PAGE} stacks, {:.0} MiB: chromium loads and draws it in {full:.1} s, of which {empty:.1} s are its own start.\n",
            fs::metadata(&page)?.len() as f64 / MIB
        ))
    }

    /// Seconds until a browser has loaded and drawn a page.
    fn open(&self, page: &Path) -> Result<f64> {
        let mut chromium = Command::new("chromium");
        chromium.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1280,800",
            "--screenshot",
        ]);
        chromium.arg(format!("--user-data-dir={}", self.scratch.join("chromium").display()));
        chromium.arg(format!("file://{}", page.display())).current_dir(&self.scratch);
        let began = Instant::now();
        command::output(&mut chromium)?;
        Ok(began.elapsed().as_secs_f64())
    }
}

const MIB: f64 = (1 << 20) as f64;

/// What a run took.
struct Taken {
    seconds: f64,
    cpu_seconds: f64,
    peak_mib: f64,
}

impl Taken {
    fn by(command: &mut Command) -> Result<Self> {
        /// Short beside a run, long beside what looking takes.
        const PAUSE: Duration = Duration::from_millis(2);
        let began = Instant::now();
        let mut child =
            command.spawn().with_context(|| format!("cannot run `{}`", command::line(command)))?;
        let (mut cpu_seconds, mut peak_mib) = (0.0, 0.0);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            // Both only grow; a process that has ended has neither.
            if let Some((cpu, peak)) = so_far(child.id()) {
                (cpu_seconds, peak_mib) = (cpu, peak);
            }
            thread::sleep(PAUSE);
        };
        ensure!(status.success(), "`{}` failed, {status}", command::line(command));
        Ok(Self { seconds: began.elapsed().as_secs_f64(), cpu_seconds, peak_mib })
    }
}

/// CPU seconds and the highest resident set, in MiB.
fn so_far(pid: u32) -> Option<(f64, f64)> {
    /// Clock ticks a second, in which the kernel counts CPU time for user space.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // utime and stime are fields 14 and 15; the first after the name is field 3.
    let fields = stat.rsplit_once(") ")?.1.split(' ').skip(14 - 3).take(2);
    let ticks: f64 = fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse().ok()?;
    Some((ticks / TICKS, kib / 1024.0))
}
