//! Recordings, each by a process of its own: this program, started again.
//!
//! A process that dies takes its probes with it, so the kernel is told to kill it when the service dies. What goes wrong in a recording, or
//! what memory it takes, is not the service's.

use std::{os::fd::OwnedFd, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    select,
    sync::mpsc::UnboundedSender,
    time::timeout,
};

use crate::{
    model::{Bytes, Pid},
    record::CostLimit,
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
    /// The reports.
    pub outputs: Vec<PathBuf>,
}

/// How a recording finds out where memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By probes where they take so little, else as [`Method::Growth`].
    Auto(CostLimit),
    /// By probes.
    Allocations,
    /// By page faults and mappings, which slows nobody.
    Growth,
}

/// What became of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The probes are in.
    Attached,
    /// Reports were written, and it goes on.
    Wrote,
    /// What a reader of its reports should know.
    Noted(String),
    /// It has ended, well or with this error.
    Ended(Option<String>),
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
const NOTES: [&str; 2] = ["growth mode, since ", "ended early, since "];

/// Lines that are kept of what it says.
const LINES: usize = 20;

impl Recording {
    /// Begins one. News of it come with its name. To be called on the thread that lives as long as this process: the kernel kills the
    /// recording when the thread that started it ends.
    ///
    /// # Errors
    /// When no process can be started.
    pub fn begin(order: &Order, news: UnboundedSender<(String, News)>) -> Result<Self> {
        let mut child = command(order).spawn().context("cannot start a recording")?;
        let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        let pid = pid.context("the recording ended at once")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot hold the recording")?;
        let (name, limit) = (order.name.clone(), order.time + GRACE);
        tokio::spawn(async move {
            let said = |what| _ = news.send((name.clone(), what));
            let end = match timeout(limit, follow(&mut child, &said)).await {
                Ok(end) => end,
                Err(_) => {
                    // It is not to be waited for: a process that cannot be killed would hold up the rest.
                    _ = child.start_kill();
                    Some(format!("it did not end within {}", humantime::format_duration(limit)))
                }
            };
            said(News::Ended(end));
        });
        Ok(Self { pidfd, is_attached: false })
    }

    /// Its probes are in: from now on it listens.
    pub const fn attached(&mut self) {
        self.is_attached = true;
    }

    /// Has it write its reports and go on. Before its probes are in there is nothing to write, and the signal would end it.
    pub fn write(&self) {
        if self.is_attached {
            self.signal(Signal::USR1);
        }
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
    if order.mode != Method::Growth && order.sample.0 > 0 {
        command.arg("--sample").arg(order.sample.0.to_string());
    }
    for output in &order.outputs {
        command.arg("--output").arg(output);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Reads what it says until it ends; then says what went wrong, if anything.
async fn follow(child: &mut Child, said: &impl Fn(News)) -> Option<String> {
    let stderr = child.stderr.take()?;
    let mut lines = BufReader::new(stderr).lines();
    let mut kept: Vec<String> = Vec::new();
    let status = loop {
        select! {
            biased;
            line = lines.next_line() => match line {
                Ok(Some(line)) => {
                    log::debug!("{line}");
                    if line.starts_with("recording ") {
                        said(News::Attached);
                    } else if line.starts_with("snapshot ") {
                        said(News::Wrote);
                    } else if NOTES.iter().any(|note| line.starts_with(note)) {
                        said(News::Noted(line));
                    } else if kept.len() < LINES {
                        kept.push(line);
                    }
                }
                _ => break child.wait().await,
            },
            status = child.wait() => break status,
        }
    };
    match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(kept.pop().map_or_else(
            || format!("it ended with {status}"),
            |line| line.strip_prefix("tracer: ").unwrap_or(&line).to_owned(),
        )),
        Err(error) => Some(format!("it cannot be waited for: {error}")),
    }
}
