//! Recordings, each by a process of its own: this program, started again.
//!
//! A process that dies takes its probes with it, so the kernel is told to kill it when the service dies. What goes wrong in a recording, or
//! what memory it takes, is not the service's.

use std::{
    io,
    ops::AddAssign,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, unix::AsyncFd},
    process::{Child, Command},
    select,
    sync::mpsc::UnboundedSender,
    time::timeout,
};

use crate::{
    model::{Bytes, Pid},
    readable,
    record::{self, CostLimit, PROBES_TOOK},
    target::CpuTimes,
};

/// What to record, and where the reports go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The name of the recording, in the index.
    pub name: String,
    /// Whom.
    pub pids: Vec<Pid>,
    /// How long.
    pub time: Duration,
    /// Mean bytes between sampled allocations; 0 for every one.
    pub sample: Bytes,
    /// What to look at, and how.
    pub mode: Method,
    /// CPU time that it and its probes may take.
    pub max_cpu: Duration,
    /// The reports.
    pub outputs: Vec<PathBuf>,
}

/// How a recording finds out where memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By probes where they take so little, on every allocation or else on a sample; else as [`Method::Growth`].
    Auto(CostLimit),
    /// By probes.
    Allocations,
    /// By page faults and mappings, which slows nobody.
    Growth,
}

/// What became of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordingUpdate {
    /// The probes are in.
    Attached,
    /// Reports were written, and it goes on.
    Wrote,
    /// What a reader of its reports should know.
    Noted(String),
    /// CPU time that it took, besides what was said before.
    Took(Took),
    /// It has ended, well or with this error.
    Ended(Option<String>),
}

/// CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Took {
    /// Of the recording itself.
    pub own: Duration,
    /// Of its targets, by its probes.
    pub probes: Duration,
}

impl Took {
    /// All of it.
    #[must_use]
    pub fn all(self) -> Duration {
        self.own + self.probes
    }
}

impl AddAssign for Took {
    fn add_assign(&mut self, more: Self) {
        self.own += more.own;
        self.probes += more.probes;
    }
}

/// A recording that goes on.
#[derive(Debug)]
pub struct Recording {
    pidfd: OwnedFd,
    is_attached: bool,
}

/// Time that a recording may take beyond its own: for attaching, naming functions and writing.
const GRACE: Duration = Duration::from_secs(180);

/// What it says in lines that begin so is for the readers of its reports.
const NOTES: [&str; 3] = [record::SAMPLED, record::GROWTH, "ended early, since "];

impl Recording {
    /// Begins one. Updates on it come with its name. To be called on the thread that lives as long as this process: the kernel kills the
    /// recording when the thread that started it ends.
    ///
    /// # Errors
    /// When no process can be started.
    pub fn begin(order: &Order, news: UnboundedSender<(String, RecordingUpdate)>) -> Result<Self> {
        let mut child = command(order).spawn().context("cannot start a recording")?;
        let id = child.id().context("the recording ended at once")?;
        let pid = rustix::process::Pid::from_raw(id.cast_signed()).context("it has a pid")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot hold the recording")?;
        let end = pidfd.try_clone().and_then(readable::watch);
        let end = end.context("cannot wait for the recording")?;
        let (name, limit) = (order.name.clone(), order.time + GRACE);
        tokio::spawn(async move {
            let said = |what| _ = news.send((name.clone(), what));
            let is_over = timeout(limit, follow(&mut child, &end, &said)).await;
            // Until it is waited for the kernel knows this of one that has ended, too.
            let own = CpuTimes::of(Pid(id)).map_or(0, |times| times.own_ns);
            said(RecordingUpdate::Took(Took { own: Duration::from_nanos(own), ..Took::default() }));
            said(RecordingUpdate::Ended(match is_over {
                Ok(said_last) => outcome(child.wait().await, said_last),
                Err(_) => {
                    // It is not to be waited for: a process that cannot be killed would hold up the rest.
                    _ = child.start_kill();
                    Some(format!("it did not end within {}", humantime::format_duration(limit)))
                }
            }));
        });
        Ok(Self { pidfd, is_attached: false })
    }

    /// Its probes are in: from now on it listens.
    pub const fn attached(&mut self) {
        self.is_attached = true;
    }

    /// Has it write its reports and go on. Before its probes are in there is nothing to write, and the signal would end it: then this is
    /// `false`.
    pub fn write(&self) -> bool {
        if self.is_attached {
            self.signal(Signal::USR1);
        }
        self.is_attached
    }

    /// Has it end and write its reports.
    pub fn finish(&self) {
        self.signal(Signal::INT);
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal) {
            log::debug!("cannot signal the recording: {error}");
        }
    }
}

fn command(order: &Order) -> Command {
    // The file may have been replaced by another version meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("tracer").args(["--no-progress", "--color", "never"]);
    command.arg("--dies-with").arg(std::process::id().to_string());
    command.arg("--duration").arg(humantime::format_duration(order.time).to_string());
    for pid in &order.pids {
        command.arg("--pid").arg(pid.to_string());
    }
    match order.mode {
        Method::Growth => _ = command.args(["--mode", "growth"]),
        Method::Auto(limit) => _ = command.arg("--max-cost").arg(limit.to_string()),
        Method::Allocations => {}
    }
    command.arg("--max-cpu").arg(format!("{}ms", order.max_cpu.as_millis()));
    if order.mode != Method::Growth && order.sample.0 > 0 {
        command.arg("--sample").arg(order.sample.0.to_string());
    }
    for output in &order.outputs {
        command.arg("--output").arg(output);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Reads what it says until it ends, and gives the last line that is nothing else.
async fn follow(
    child: &mut Child,
    end: &AsyncFd<OwnedFd>,
    said: &impl Fn(RecordingUpdate),
) -> Option<String> {
    let stderr = child.stderr.take()?;
    let mut lines = BufReader::new(stderr).lines();
    let mut last = None;
    loop {
        select! {
            biased;
            line = lines.next_line() => match line {
                Ok(Some(line)) => {
                    log::debug!("{line}");
                    match news(&line) {
                        Some(news) => said(news),
                        None => last = Some(line),
                    }
                }
                _ => {
                    _ = end.readable().await;
                    return last;
                }
            },
            _ = end.readable() => return last,
        }
    }
}

/// What a line says, if it is for the service.
fn news(line: &str) -> Option<RecordingUpdate> {
    if line.starts_with("recording ") {
        Some(RecordingUpdate::Attached)
    } else if line.starts_with("snapshot ") {
        Some(RecordingUpdate::Wrote)
    } else if NOTES.iter().any(|note| line.starts_with(note)) {
        Some(RecordingUpdate::Noted(line.to_owned()))
    } else {
        let seconds = line.strip_prefix(PROBES_TOOK)?.strip_suffix(" s")?.parse().ok()?;
        let probes = Duration::try_from_secs_f64(seconds).ok()?;
        Some(RecordingUpdate::Took(Took { probes, ..Took::default() }))
    }
}

/// What went wrong, if anything.
fn outcome(status: io::Result<ExitStatus>, said_last: Option<String>) -> Option<String> {
    match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(said_last.map_or_else(
            || format!("it ended with {status}"),
            |line| line.strip_prefix("tracer: ").unwrap_or(&line).to_owned(),
        )),
        Err(error) => Some(format!("it cannot be waited for: {error}")),
    }
}
