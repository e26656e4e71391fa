//! Runs the tracer as a user does, and judges how it ends.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    leftovers::{self, Holdings},
    lines::Lines,
    process,
    report::Report,
    turn::Turn,
};

/// The binary under test: `TRACER_BIN`, else the release build beside this package.
#[track_caller]
#[must_use]
pub fn tracer_binary() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/tracer");
    let binary = std::env::var_os("TRACER_BIN").map_or_else(default, PathBuf::from);
    assert!(
        binary.is_file(),
        "no tracer at {}: build it with `cargo build --release -p tracer` or set TRACER_BIN",
        binary.display()
    );
    binary
}

/// A command line of the tracer. It writes a JSON report and shows no progress, unless told otherwise.
#[derive(Debug)]
pub struct Tracer {
    wrapper: Vec<OsString>,
    binary: Option<PathBuf>,
    options: Vec<OsString>,
    target: Vec<OsString>,
    target_pid: Option<u32>,
    shares_target: bool,
    alone: bool,
    has_turn: bool,
    output: Option<PathBuf>,
    directory: TempDir,
}

impl Default for Tracer {
    fn default() -> Self {
        Self::new()
    }
}

impl Tracer {
    /// A tracer without a target.
    #[must_use]
    pub fn new() -> Self {
        let directory = TempDir::new().expect("the directory for temporary files is writable");
        Self {
            wrapper: Vec::new(),
            binary: None,
            options: vec!["--no-progress".into()],
            target: Vec::new(),
            target_pid: None,
            shares_target: false,
            alone: false,
            has_turn: false,
            output: Some(directory.path().join("report.json")),
            directory,
        }
    }

    /// One of its other commands (`doctor`), which record nothing.
    #[must_use]
    pub fn command(words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { options: Vec::new(), ..Self::new() }.options(words).without_report()
    }

    /// Another copy of the binary.
    #[must_use]
    pub fn binary(mut self, binary: PathBuf) -> Self {
        self.binary = Some(binary);
        self
    }

    /// Attaches to a running process.
    #[must_use]
    pub fn pid(mut self, pid: u32) -> Self {
        self.target.extend(["--pid".into(), pid.to_string().into()]);
        self.target_pid = Some(pid);
        self
    }

    /// Launches a command.
    #[must_use]
    pub fn launch(mut self, command: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.target.push("--".into());
        self.target.extend(command.into_iter().map(Into::into));
        self
    }

    /// Adds options.
    #[must_use]
    pub fn options(mut self, options: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// Starts the tracer through another command, which must replace itself by it (`setpriv`, `unshare`).
    #[must_use]
    pub fn through(mut self, wrapper: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Writes the report to this file instead of a temporary one.
    #[must_use]
    pub fn output(mut self, file: impl Into<PathBuf>) -> Self {
        self.output = Some(file.into());
        self
    }

    /// Asks for no report; options may ask for others.
    #[must_use]
    pub fn without_report(mut self) -> Self {
        self.output = None;
        self
    }

    /// Says that another tracer is on the same target: its breakpoints stay when this one ends.
    #[must_use]
    pub fn beside_another(mut self) -> Self {
        self.shares_target = true;
        self
    }

    /// Says that it has its probes in everybody's code, as it has for many targets: see `turn.rs`.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Says that the test has this turn, in which it does with several tracers what it likes.
    #[must_use]
    pub fn in_turn(mut self, _turn: &Turn) -> Self {
        self.has_turn = true;
        self
    }

    /// Starts it, and waits until the window is open.
    #[track_caller]
    pub fn start(self) -> Recording {
        let mut recording = self.spawn();
        recording.wait_until_open();
        recording
    }

    /// Starts it and waits for its end, which it finds by itself.
    #[track_caller]
    pub fn run(self) -> Finished {
        self.spawn().wait()
    }

    /// Starts it without waiting for anything.
    #[track_caller]
    pub fn spawn(self) -> Recording {
        let mut words = self.wrapper.clone();
        words.push(self.binary.clone().unwrap_or_else(tracer_binary).into());
        words.extend(self.options.iter().cloned());
        // Tests watch at once, and only one of them could have the address that is listened at by itself.
        let has = |word: &str| self.options.iter().any(|option| option == word);
        if has("watch") && !has("--listen") {
            words.extend(["--listen".into(), "none".into()]);
        }
        if let Some(file) = &self.output {
            words.extend(["-o".into(), file.into()]);
        }
        words.extend(self.target.iter().cloned());
        let is_alone = self.alone || self.options.iter().any(|option| option == "--follow");
        let turn = (!self.has_turn).then(|| Turn::take(is_alone));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.directory.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
        let stdout = Some(Lines::of(child.stdout.take().expect("it is piped")));
        let stderr = Some(Lines::of(child.stderr.take().expect("it is piped")));
        Recording { holdings: None, child, stdout, stderr, tracer: self, _turn: turn }
    }
}

/// A running tracer. Killed when dropped.
#[derive(Debug)]
pub struct Recording {
    child: Child,
    stdout: Option<Lines>,
    stderr: Option<Lines>,
    holdings: Option<Holdings>,
    tracer: Tracer,
    _turn: Option<Turn>,
}

impl Recording {
    /// The tracer's own pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to the standard input that a launched command shares.
    #[track_caller]
    pub fn send_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{line}").expect("it is open");
    }

    /// Waits until every probe is attached.
    #[track_caller]
    pub fn wait_until_open(&mut self) {
        let stderr = self.stderr.as_mut().expect("it is read until the end");
        let opened = stderr.find(|line| line.starts_with("recording ").then_some(()));
        opened.unwrap_or_else(|why| panic!("the tracer says that it is recording: {why}"));
        self.holdings = Some(Holdings::of(self.pid()));
    }

    /// Waits for a line on standard error that contains `text`.
    #[track_caller]
    pub fn wait_for_message(&mut self, text: &str) {
        self.message(text);
    }

    /// Waits for a line on standard error that contains `text`, and returns what follows that.
    #[track_caller]
    pub fn message(&mut self, text: &str) -> String {
        let stderr = self.stderr.as_mut().expect("it is read until the end");
        let found = stderr.find(|line| line.split_once(text).map(|(_, rest)| rest.to_owned()));
        found.unwrap_or_else(|why| panic!("the tracer says {text:?}: {why}"))
    }

    /// Waits for a line on standard output that contains `text`.
    #[track_caller]
    pub fn wait_for_output(&mut self, text: &str) {
        let stdout = self.stdout.as_mut().expect("it is read until the end");
        let found = stdout.find(|line| line.contains(text).then_some(()));
        if let Err(why) = found {
            // It has ended, or hangs and is to be killed: what it said is here in a moment.
            self.child.kill().expect("it is our child");
            let said = self.stderr.take().map(Lines::until_end).unwrap_or_default();
            panic!("the tracer prints {text:?}: {why}; it said: {said:#?}");
        }
    }

    /// A file that it has written into its working directory by now.
    #[track_caller]
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        let path = self.tracer.directory.path().join(name);
        fs::read_to_string(path).unwrap_or_else(|error| panic!("the tracer writes {name}: {error}"))
    }

    /// Sends the tracer a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        process::send_signal(self.pid(), signal);
    }

    /// Ends the recording as Ctrl-C does, and waits for the reports.
    #[track_caller]
    pub fn interrupt(self) -> Finished {
        self.signal(Signal::INT);
        self.wait()
    }

    /// Kills the tracer, at whatever it is doing.
    #[track_caller]
    pub fn kill(mut self) -> Finished {
        self.holdings = Some(Holdings::of(self.pid()));
        self.signal(Signal::KILL);
        self.wait()
    }

    /// Waits until the tracer ends. Nothing of it may stay behind, in the target or in the kernel.
    #[track_caller]
    pub fn wait(mut self) -> Finished {
        let status = self.wait_for_exit();
        let stdout = self.stdout.take().expect("it is taken once").until_end();
        let stderr = self.stderr.take().expect("it is taken once").until_end();
        if let Some(holdings) = &self.holdings {
            holdings.assert_released();
        }
        if let (Some(target), false) = (self.tracer.target_pid, self.tracer.shares_target) {
            leftovers::assert_text_is_pristine(target);
        }
        let json = self.tracer.output.as_ref().and_then(|file| fs::read_to_string(file).ok());
        let directory = std::mem::replace(&mut self.tracer.directory, TempDir::new().expect("as before"));
        Finished { status, stdout, stderr, json, directory }
    }
}

impl Recording {
    #[track_caller]
    fn wait_for_exit(&mut self) -> ExitStatus {
        let exited = process::within_patience(|| self.child.try_wait().expect("it can be waited for"));
        exited.unwrap_or_else(|| {
            let said = self.stderr.as_mut().map(|lines| lines.so_far().join("\n")).unwrap_or_default();
            panic!("the tracer ends; it hangs, and said:\n{said}")
        })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell about it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a tracer ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// The lines of standard output: the text summary.
    pub stdout: Vec<String>,
    /// The lines of standard error.
    pub stderr: Vec<String>,
    /// The text of the JSON report, when there is one.
    pub json: Option<String>,
    directory: TempDir,
}

impl Finished {
    /// A file that it wrote into its working directory.
    #[track_caller]
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("the tracer writes {name}: {error}\n{self:#?}"))
    }

    /// The report of a recording that succeeded.
    #[track_caller]
    #[must_use]
    pub fn report(&self) -> Report {
        assert!(self.status.success(), "the tracer succeeds: {self:#?}");
        self.report_despite_status()
    }

    /// The report, whatever the exit status was.
    #[track_caller]
    #[must_use]
    pub fn report_despite_status(&self) -> Report {
        let json = self.json.as_ref().unwrap_or_else(|| panic!("the tracer writes its report: {self:#?}"));
        Report::parse(json)
    }

    /// Panics unless the tracer failed with this status and one line on standard error, which has all of `words`
    /// (in any case) and names no source file of the tracer.
    #[track_caller]
    pub fn assert_failed(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(status), "{self:#?}");
        let messages: Vec<_> = self.stderr.iter().filter(|line| !line.starts_with("recording ")).collect();
        let [message] = messages[..] else { panic!("one line says what is wrong: {self:#?}") };
        let lower = message.to_lowercase();
        for word in words {
            assert!(lower.contains(&word.to_lowercase()), "the message says {word:?}: {message}");
        }
        assert!(
            !message.contains("panicked") && !message.contains(".rs:"),
            "a message, not a trace: {message}"
        );
    }
}
