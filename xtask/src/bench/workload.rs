//! The programs whose speed is measured. Each says `ready PID`, answers a line `DEPTH MILLISECONDS` with the nanoseconds that one
//! operation took, and ends with its input.

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use super::Bed;
use crate::command;

/// A program with an operation to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// malloc and free in a loop.
    Pairs,
    /// The same in eight threads.
    Pairs8,
    /// redis-server, setting keys for redis-benchmark.
    Redis,
    /// A node HTTP server.
    Node,
    /// python3, parsing JSON.
    Python,
}

impl Kind {
    /// The name of its section in the document.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::Pairs8 => "pairs8",
            Self::Redis => "redis",
            Self::Node => "node",
            Self::Python => "python",
        }
    }

    /// What one operation is.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Pairs => "malloc + free, 1 thread (CPU time of a pair)",
            Self::Pairs8 => "malloc + free, 8 threads (CPU time of a pair)",
            Self::Redis => "redis-server under `redis-benchmark -t set` (time of a request)",
            Self::Node => "node HTTP server (time of a request, 16 connections)",
            Self::Python => "python3 parsing JSON (CPU time of a document)",
        }
    }

    /// Starts it, behind the words of a launcher.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(self, bed: &Bed, launcher: &[String]) -> Result<Running> {
        match self {
            Self::Pairs | Self::Pairs8 => {
                let threads = if self == Self::Pairs { "1" } else { "8" };
                Running::start(words(launcher, bed.program("pairs").to_string_lossy()).arg(threads), &[])
            }
            Self::Python => {
                let python = python()?;
                Running::start(words(launcher, &*python).arg(bed.sources.join("parse_json.py")), &[])
            }
            Self::Node => Running::start(
                words(launcher, "node").arg(bed.sources.join("http_server.js")),
                &["node", &bed.sources.join("http_load.js").to_string_lossy()],
            ),
            Self::Redis => Running::start_redis(bed, launcher),
        }
    }
}

/// The interpreter itself: what `python3` in `PATH` starts may be a script.
fn python() -> Result<String> {
    let path = command::output(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]))?;
    Ok(path.trim().to_owned())
}

fn words(launcher: &[String], program: impl AsRef<str>) -> Command {
    let mut words = launcher.iter().map(String::as_str).chain([program.as_ref()]);
    let mut command = Command::new(words.next().expect("there is at least the program"));
    command.args(words);
    command
}

/// What one measurement says.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Nanoseconds an operation.
    pub ns: f64,
    /// 99th percentile of an operation's latency, where it is known.
    pub p99_ns: Option<f64>,
}

/// A workload that runs.
pub struct Running {
    server: Dialogue,
    driver: Driver,
    /// The process to trace.
    pub pid: u32,
}

/// What makes the workload work.
enum Driver {
    /// Its own input.
    Itself,
    /// Another process that sends it requests.
    Load(Dialogue),
    /// redis-benchmark, through this socket.
    RedisBenchmark(PathBuf),
}

impl Running {
    /// Starts a server and, unless `load` is empty, what sends it requests, with the port that the server says.
    fn start(command: &mut Command, load: &[&str]) -> Result<Self> {
        let mut server = Dialogue::start(command)?;
        let ready = server.line_with("ready ")?;
        let mut said = ready.split(' ').skip(1);
        let pid = said.next().context("it did not say its pid")?.parse()?;
        let driver = match (load, said.next()) {
            ([program, arguments @ ..], Some(port)) => {
                let mut load = Dialogue::start(Command::new(program).args(arguments).arg(port))?;
                load.line_with("ready ")?;
                Driver::Load(load)
            }
            _ => Driver::Itself,
        };
        Ok(Self { server, driver, pid })
    }

    fn start_redis(bed: &Bed, launcher: &[String]) -> Result<Self> {
        // Several run at a time, and each removes its socket at its end.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let socket = bed.scratch.join(format!("redis-{number}.sock"));
        let _ = fs::remove_file(&socket);
        let mut redis = words(launcher, "redis-server");
        redis.args(["--port", "0", "--save", "", "--daemonize", "no", "--unixsocket"]).arg(&socket);
        let server = Dialogue::start(redis.current_dir(&bed.scratch))?;
        wait_for("redis-server", || redis_cli(&socket, "ping").is_ok_and(|pong| pong.trim() == "PONG"))?;
        let info = redis_cli(&socket, "info")?;
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:"));
        let pid = pid.context("redis did not say its pid")?.trim().parse()?;
        Ok(Self { server, driver: Driver::RedisBenchmark(socket), pid })
    }

    /// The file from which the process takes `malloc`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn allocator(&self) -> Result<String> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let mapped = |name: &str| {
            let line = maps.lines().find(|line| line.contains(name))?;
            Some(line.get(line.find('/')?..)?.to_owned())
        };
        mapped("/libjemalloc.so").or_else(|| mapped("/libc.so")).context("no known allocator is mapped")
    }

    /// Runs it for a while.
    ///
    /// # Errors
    /// When it ended.
    pub fn measure(&mut self, depth: u32, milliseconds: u32) -> Result<Measured> {
        let dialogue = match &mut self.driver {
            Driver::Itself => &mut self.server,
            Driver::Load(load) => load,
            Driver::RedisBenchmark(socket) => return redis_benchmark(socket, milliseconds),
        };
        let answer = dialogue.ask(&format!("{depth} {milliseconds}"))?;
        let mut numbers = answer.split(' ').map(str::parse);
        let ns = numbers.next().context("it answered nothing")??;
        Ok(Measured { ns, p99_ns: numbers.next().transpose()? })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Driver::RedisBenchmark(socket) = &self.driver {
            // It ends without an answer.
            let _ = redis_cli(socket, "shutdown");
        }
    }
}

fn redis_cli(socket: &PathBuf, request: &str) -> Result<String> {
    command::output(Command::new("redis-cli").arg("-s").arg(socket).arg(request))
}

/// Requests that it serves in about `milliseconds`, at the 50,000 a second that it does untraced.
fn redis_benchmark(socket: &PathBuf, milliseconds: u32) -> Result<Measured> {
    let requests = (u64::from(milliseconds) * 50).to_string();
    let mut benchmark = Command::new("redis-benchmark");
    benchmark
        .arg("-s")
        .arg(socket)
        .args(["-t", "set", "-d", "200", "-r", "100000", "--csv", "-n", &requests]);
    let table = command::output(&mut benchmark)?;
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
    let row = table.lines().find_map(|line| line.strip_prefix("\"SET\",")).context("no result for SET")?;
    let numbers: Vec<f64> =
        row.split(',').map(|cell| cell.trim_matches('"').parse()).collect::<Result<_, _>>()?;
    let [rate, _, _, _, _, p99_ms, ..] = numbers[..] else { bail!("not a result: {row}") };
    Ok(Measured { ns: 1e9 / rate, p99_ns: Some(p99_ms * 1e6) })
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let began = Instant::now();
    while !ready() {
        ensure!(began.elapsed() < PATIENCE, "{what} does not answer");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A process that is talked to by lines.
pub struct Dialogue {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Dialogue {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child =
            command.spawn().with_context(|| format!("cannot run `{}`", command::line(command)))?;
        let input = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("its output is a pipe")?).lines();
        Ok(Self { child, input, lines })
    }

    /// The next line that begins with `start`; others are what a launcher says.
    ///
    /// # Errors
    /// When it ends before.
    pub fn line_with(&mut self, start: &str) -> Result<String> {
        for line in self.lines.by_ref() {
            let line = line?;
            if line.starts_with(start) {
                return Ok(line);
            }
        }
        bail!("a program ended before it said `{start}`")
    }

    /// Sends a line.
    ///
    /// # Errors
    /// When it ended.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input has ended")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Sends a line, and returns the next one.
    ///
    /// # Errors
    /// When it ended.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.tell(line)?;
        self.lines.next().context("a program ended early")?.context("it cannot be read")
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        drop(self.input.take());
        // A program that does not listen to its input is ended. Nothing can be done about a failure.
        let began = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if began.elapsed() > Duration::from_secs(10) {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
