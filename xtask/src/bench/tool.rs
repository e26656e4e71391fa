//! The tools that are compared, each attached to a running process and taken away again.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::Bed;
use crate::command;

/// What a workload runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// Nothing.
    Untraced,
    /// Nothing, with the sampler's library loaded.
    SamplerIdle,
    /// The tracer, listening to the library, which samples one per 512 KiB.
    Sampler,
    /// The tracer, with a gate: one per 512 KiB.
    Gate,
    /// Empty probes where the tracer puts its own.
    EmptyPlanned,
    /// Empty probes at the entries of the same functions.
    EmptyEntries,
    /// The tracer, tracking every allocation.
    Tracer,
    /// The tracer, tracking a sample of one per 512 KiB.
    Sampled,
    /// The tracer in growth mode.
    Growth,
    /// `bpftrace` with the usual script.
    Bpftrace,
    /// `heaptrack`, which is preloaded and not attached.
    Heaptrack,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untraced => "untraced",
            Self::SamplerIdle => "sampler loaded, nobody listens",
            Self::Sampler => "tracer, sampled within at 512 KiB",
            Self::Gate => "tracer, by a gate at 512 KiB",
            Self::EmptyPlanned => "empty probes, tracer's sites",
            Self::EmptyEntries => "empty probes, function entries",
            Self::Tracer => "tracer, exact",
            Self::Sampled => "tracer, sampled by probes at 512 KiB",
            Self::Growth => "tracer, growth mode",
            Self::Bpftrace => "bpftrace script",
            Self::Heaptrack => "heaptrack",
        })
    }
}

/// The script that everybody writes: the size at entry, the stack at return, forgotten at `free`.
const SCRIPT: &str = "
uprobe:LIB:malloc { @size[tid] = arg0; }
uretprobe:LIB:malloc /@size[tid]/ { @live[retval] = (@size[tid], ustack); delete(@size[tid]); }
uprobe:LIB:free { delete(@live[arg0]); }
interval:ms:200 /!@ready/ { @ready = 1; printf(\"ready\\n\"); }
END { clear(@live); clear(@size); clear(@ready); }";

/// After so long the tracer has read what it reads once.
const SETTLED: Duration = Duration::from_secs(3);

/// A tool at work.
pub struct Attached {
    child: Option<Child>,
    ending: Ending,
}

/// How a tool is told to take its probes out.
pub enum Ending {
    /// Its input ends.
    EndOfInput,
    /// Ctrl-C.
    Interrupt,
}

impl Tool {
    /// Attaches to a process. `library` is the file that has the allocator.
    ///
    /// # Errors
    /// When the tool is not there or does not start.
    pub fn attach(self, bed: &Bed, pid: u32, library: &str) -> Result<Attached> {
        let pid = pid.to_string();
        match self {
            // Heaptrack has been there since the process began.
            Self::Untraced | Self::SamplerIdle | Self::Heaptrack => {
                Ok(Attached { child: None, ending: Ending::EndOfInput })
            }
            Self::EmptyPlanned | Self::EmptyEntries => {
                let sites = if self == Self::EmptyPlanned { "planned" } else { "entries" };
                let mut probes = Command::new(&bed.empty_probes);
                probes.args([&pid, sites]).stdin(Stdio::piped()).stdout(Stdio::piped());
                Attached::start(&mut probes, "ready", Ending::EndOfInput)
            }
            Self::Tracer | Self::Sampled | Self::Sampler | Self::Gate | Self::Growth => {
                let mut tracer = tracer(bed, Some(&pid));
                match self {
                    Self::Sampled | Self::Sampler => _ = tracer.args(["--sample", "512KiB"]),
                    Self::Gate => _ = tracer.arg("--gate"),
                    Self::Growth => _ = tracer.args(["--mode", "growth"]),
                    _ => {}
                }
                let attached = Attached::start(&mut tracer, "recording ", Ending::Interrupt)?;
                // What it reads at the beginning (files, symbols, what a hit costs) is told apart, in docs/overhead.md.
                thread::sleep(SETTLED);
                Ok(attached)
            }
            Self::Bpftrace => {
                let mut bpftrace = Command::new("bpftrace");
                bpftrace.args(["-p", &pid, "-e", &SCRIPT.replace("LIB", library)]).stdout(Stdio::piped());
                bpftrace.env("BPFTRACE_MAP_KEYS_MAX", "1000000").stderr(Stdio::null());
                Attached::start(&mut bpftrace, "ready", Ending::Interrupt)
            }
        }
    }

    /// The words that a command starts with under this tool.
    #[must_use]
    pub fn launcher(self, bed: &Bed) -> Vec<String> {
        match self {
            Self::Heaptrack => {
                let output = bed.scratch.join("heaptrack");
                ["heaptrack", "--raw", "-o", &output.to_string_lossy()].map(str::to_owned).into()
            }
            Self::SamplerIdle | Self::Sampler => {
                vec!["env".to_owned(), format!("LD_PRELOAD={}", bed.sampler.display())]
            }
            _ => Vec::new(),
        }
    }
}

/// The tracer on a process, or on those that are still to be named, until it is interrupted.
pub fn tracer(bed: &Bed, pid: Option<&str>) -> Command {
    let mut tracer = Command::new(&bed.tracer);
    tracer
        .args(["--no-progress", "--output"])
        .arg(bed.scratch.join("report.json"))
        .args(pid.iter().flat_map(|pid| ["--pid", pid]))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    tracer
}

impl Attached {
    /// Starts a tool and waits for the line that says it is attached.
    ///
    /// # Errors
    /// When it cannot be run, or ends before it is.
    pub fn start(command: &mut Command, says: &str, ending: Ending) -> Result<Self> {
        let mut child =
            command.spawn().with_context(|| format!("cannot run `{}`", command::line(command)))?;
        let out: Box<dyn Read + Send> = match (child.stdout.take(), child.stderr.take()) {
            (Some(out), _) => Box::new(out),
            (None, Some(out)) => Box::new(out),
            (None, None) => bail!("it has no output to wait for"),
        };
        let attached = Self { child: Some(child), ending };
        let mut lines = BufReader::new(out).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line?;
            if line.starts_with(says) {
                // What else it says is read, so that it never waits for us.
                thread::spawn(move || lines.for_each(drop));
                return Ok(attached);
            }
            said = line;
        }
        bail!("`{}` did not attach: {said}", command::line(command))
    }

    /// The tool's process.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Tells the tool to end and waits for it; how long that took.
    ///
    /// # Errors
    /// When it failed.
    pub fn detach(mut self) -> Result<Duration> {
        let began = Instant::now();
        let Some(mut child) = self.child.take() else { return Ok(Duration::ZERO) };
        match self.ending {
            Ending::EndOfInput => drop(child.stdin.take()),
            Ending::Interrupt => interrupt(child.id())?,
        }
        let status = child.wait()?;
        ensure!(status.success(), "a tool failed: {status}");
        Ok(began.elapsed())
    }
}

fn interrupt(pid: u32) -> Result<()> {
    ensure!(command::succeeds(Command::new("kill").args(["-INT", &pid.to_string()])), "{pid} is gone");
    Ok(())
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Nothing can be done about a failure.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
