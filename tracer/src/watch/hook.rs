//! The command that is run after each recording: what came of it is in its environment.
//!
//! One runs at a time, the others wait for their turn; nothing waits for them.

use std::{io, os::fd::AsFd as _, path::Path, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::{
    process::Command,
    sync::mpsc::{Sender, channel},
    task::JoinHandle,
    time::timeout,
};

use super::store::Entry;
use crate::report::{Format, human::printable};

/// How long one may run.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How many may wait.
const WAITING: usize = 100;

/// Runs the command.
#[derive(Debug)]
pub struct Hook {
    command: String,
    queue: Sender<Variables>,
    worker: JoinHandle<()>,
}

/// Of its environment.
type Variables = Vec<(&'static str, String)>;

impl Hook {
    /// What runs this command, each time so long at the most.
    #[must_use]
    pub fn new(command: &str, limit: Duration) -> Self {
        let (queue, mut waiting) = channel::<Variables>(WAITING);
        let words = command.to_owned();
        let worker = tokio::spawn(async move {
            let mut failure = LastFailure::default();
            while let Some(variables) = waiting.recv().await {
                let came = run(&words, variables, limit).await;
                if let Some(why) = failure.news(came.err()) {
                    log::error!("--exec: {why}");
                }
            }
        });
        Self { command: command.to_owned(), queue, worker }
    }

    /// The command.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// A recording has ended, whose files are in this directory.
    pub fn recorded(&self, entry: &Entry, directory: &Path) {
        if self.queue.try_send(variables(entry, directory)).is_err() {
            log::error!("--exec: it is not run for {}, since {WAITING} runs wait", entry.name);
        }
    }

    /// Waits until it has run for all recordings, but so long at the most.
    pub async fn finish(self, limit: Duration) {
        let Self { queue, mut worker, .. } = self;
        drop(queue);
        if timeout(limit, &mut worker).await.is_err() {
            log::error!("--exec: it has not ended in time");
            worker.abort();
        }
    }
}

/// What went wrong is told once, and again when it is something else or went well in between.
#[derive(Debug, Default)]
struct LastFailure(Option<String>);

impl LastFailure {
    fn news(&mut self, why: Option<String>) -> Option<String> {
        let is_new = why != self.0;
        self.0.clone_from(&why);
        why.filter(|_| is_new)
    }
}

fn variables(entry: &Entry, directory: &Path) -> Variables {
    let digest = entry.digest.as_ref();
    let file = |format: Format| {
        let name = entry.files.iter().find(|file| file.ends_with(format.ending()));
        name.map(|name| directory.join(name).display().to_string()).unwrap_or_default()
    };
    let text = |text: Option<&str>| printable(text.unwrap_or_default()).to_string();
    let leaking = digest.and_then(|digest| digest.leaking);
    vec![
        ("TRACER_RECORDING", entry.name.clone()),
        ("TRACER_SUBJECT", text(Some(&entry.subject))),
        ("TRACER_CONDITION", text(Some(&entry.trigger))),
        ("TRACER_STATE", word(entry.state)),
        ("TRACER_VERDICT", text(digest.and_then(|digest| digest.verdict.as_deref()))),
        ("TRACER_LEAKING", leaking.map(|leaking| leaking.to_string()).unwrap_or_default()),
        ("TRACER_END", digest.and_then(|digest| digest.end).map(word).unwrap_or_default()),
        ("TRACER_OOM_KILLS", entry.oom_kills.to_string()),
        ("TRACER_NOTE", text(entry.note.as_deref())),
        ("TRACER_ERROR", text(entry.error.as_deref())),
        ("TRACER_REPORT", file(Format::Html)),
        ("TRACER_REPORT_JSON", file(Format::JsonGz)),
        ("TRACER_REPORT_PPROF", file(Format::Pprof)),
    ]
}

/// As the index says it.
fn word(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Runs it. What it says goes to this process' standard error.
async fn run(command: &str, variables: Variables, limit: Duration) -> Result<(), String> {
    let output = || io::stderr().as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from);
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).envs(variables);
    shell.stdin(Stdio::null()).stdout(output()).stderr(output());
    // Of its own group, so that all that it has started can be ended with it.
    shell.process_group(0).kill_on_drop(true);
    let mut child = shell.spawn().map_err(|error| format!("/bin/sh cannot be started: {error}"))?;
    let mut group = ProcessGroup(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let Ok(status) = timeout(limit, child.wait()).await else {
        drop(group);
        _ = child.wait().await;
        return Err(format!("it did not end within {}", humantime::format_duration(limit)));
    };
    // What it has left running on purpose may go on.
    group.0 = None;
    let status = status.map_err(|error| format!("it cannot be waited for: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("it failed ({status})")) }
}

/// The processes of a command, which are killed with this.
struct ProcessGroup(Option<Pid>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::watch::store::{State, tests::entry};

    const LONG: Duration = Duration::from_secs(600);

    fn done() -> Entry {
        let files = ["html", "json.gz", "pb.gz"].map(|ending| format!("web-1.{ending}")).to_vec();
        Entry { name: "web-1".into(), files, oom_kills: 2, ..entry("shop/web\n", 0, 0, State::Done) }
    }

    fn block_on(task: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task);
    }

    #[test]
    fn the_command_is_told_what_came_of_the_recording() {
        let directory = tempfile::tempdir().unwrap();
        let told = directory.path().join("told");
        let command = format!(
            "printf '%s|%s|%s|%s|%s' \"$TRACER_SUBJECT\" \"$TRACER_STATE\" \"$TRACER_REPORT\" \"$TRACER_OOM_KILLS\" \
             \"$TRACER_VERDICT\" > {}",
            told.display()
        );
        block_on(async {
            let hook = Hook::new(&command, LONG);
            hook.recorded(&done(), Path::new("/srv"));
            hook.finish(LONG).await;
        });
        assert_eq!(fs::read_to_string(told).unwrap(), "shop/web\\n|done|/srv/web-1.html|2|");
    }

    #[test]
    fn one_that_hangs_is_ended_with_all_that_it_has_started_and_the_next_one_runs() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let command = format!(
            "if [ -e {0} ]; then echo > {0}.next; else sleep 1000 & echo $! > {0}; wait; fi",
            pid.display()
        );
        block_on(async {
            let hook = Hook::new(&command, Duration::from_secs(1));
            // On a busy machine one may be ended before it has done anything.
            for _ in 0..20 {
                hook.recorded(&done(), Path::new("/"));
            }
            hook.finish(LONG).await;
        });
        assert!(pid.with_extension("next").exists());
        let sleeper = fs::read_to_string(&pid).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", sleeper.trim())).unwrap_or_default();
        // Who is its parent now may not have waited for it yet.
        assert!(!status.contains("Name:\tsleep") || status.contains("State:\tZ"), "{status}");
    }

    #[test]
    fn more_than_can_wait_are_not_waited_for() {
        block_on(async {
            let hook = Hook::new("exec sleep 1000", LONG);
            for _ in 0..2 * WAITING {
                hook.recorded(&done(), Path::new("/"));
            }
            hook.finish(Duration::from_millis(10)).await;
        });
    }

    #[test]
    fn a_failure_is_told_once() {
        let mut failure = LastFailure::default();
        let mut told = |why: Option<&str>| failure.news(why.map(str::to_owned)).is_some();
        let course = [Some("a"), Some("a"), None, Some("a"), Some("b"), None, None];
        assert_eq!(course.map(&mut told), [true, false, false, true, true, false, false]);
    }
}
