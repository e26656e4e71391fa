//! What `tracer watch` takes while all is well: on a host of many control groups and processes that come and go.

use std::{
    collections::VecDeque,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::overhead::machine;
use crate::{command, privilege, run};

/// What there is, and how much of it is replaced in a second.
const GROUPS: usize = 500;
const PROCESSES_OF_EACH: usize = 4;
const PROCESSES_REPLACED: usize = 20;

/// Time between looks at the clock.
const STEP: Duration = Duration::from_millis(50);

/// Clock ticks a second, in `/proc/PID/stat`.
const TICKS: f64 = 100.0;

/// Watches for so many seconds, and returns what it took.
///
/// # Errors
/// When control groups cannot be made, or the tracer fails.
pub fn measure(workspace: &Path, seconds: u64) -> Result<String> {
    let mut crowd = begin(workspace)?;
    let mut watching = Watching::start(workspace, &crowd, &["--listen", "none"])?;
    command::step(&format!("watching for {seconds} s"));
    // The first look reads everything, and loads what it needs.
    crowd.live(Duration::from_secs(30))?;
    let before = watching.taken()?;
    let began = Instant::now();
    crowd.live(Duration::from_secs(seconds))?;
    let after = watching.taken()?;
    let time = began.elapsed().as_secs_f64();
    let share = |ticks: f64| 100.0 * ticks / TICKS / time;
    let (user, kernel) = (share(after.user - before.user), share(after.kernel - before.kernel));
    Ok(format!(
        "{}\n{GROUPS} control groups with {} processes, of which {PROCESSES_REPLACED} a second end and are replaced, and a group a second \
         with them; a look every 10 s, for {time:.0} s: **{:.2} % of one CPU** ({user:.2} % in user mode, {kernel:.2} % in the kernel), \
         {:.1} MiB resident.\n",
        machine()?,
        GROUPS * PROCESSES_OF_EACH,
        user + kernel,
        after.resident_bytes / f64::from(1 << 20),
    ))
}

/// How many rows the table of a soak has.
const ROWS: u32 = 10;

/// Watches for so many minutes, ten times as often as by default, while one group after the other is recorded and somebody scrapes; returns
/// a table of what it took over them.
///
/// # Errors
/// As [`measure`], and when it does not answer.
pub fn soak(workspace: &Path, minutes: u32) -> Result<String> {
    let mut crowd = begin(workspace)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let options = [
        &["--listen", &address, "--interval", "1s", "--when", "rss > 64KiB", "--record", "1s"][..],
        &["--cool-down", "10m", "--keep", "50", "--cpu-budget", "100%"],
    ];
    let mut watching = Watching::start(workspace, &crowd, &options.concat())?;
    command::step(&format!("watching for {minutes} minutes"));
    let mut text = machine()?;
    text += "\n| minute | CPU | resident | open files | recordings | groups so far | scrapes | slowest |\n|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    let (began, mut before, mut scrapes) = (Instant::now(), watching.taken()?, 0);
    let spacing = Duration::from_secs(60) * minutes / ROWS;
    for row in 1..=ROWS {
        let (mut metrics, mut slowest) = (String::new(), Duration::ZERO);
        while began.elapsed() < spacing * row {
            crowd.live(Duration::from_secs(1))?;
            for path in ["/", "/metrics"] {
                let asked = Instant::now();
                metrics = scrape(&address, path)?;
                slowest = slowest.max(asked.elapsed());
            }
            scrapes += 1;
        }
        let taken = watching.taken()?;
        let cpu = taken.user + taken.kernel - before.user - before.kernel;
        let number = |name: &str| number_of(&metrics, name).with_context(|| format!("there is no {name}"));
        let line = format!(
            "| {:.1} | {:.1} % | {:.1} MiB | {} | {} | {} | {scrapes} | {:.1} s |\n",
            began.elapsed().as_secs_f64() / 60.0,
            100.0 * cpu / TICKS / spacing.as_secs_f64(),
            taken.resident_bytes / f64::from(1 << 20),
            number("process_open_fds ")?,
            number("tracer_watch_recordings_total{trigger=\"rss > 64KiB\",outcome=\"done\"} ")?,
            crowd.made,
            slowest.as_secs_f64(),
        );
        print!("{line}");
        text += &line;
        before = taken;
    }
    Ok(text)
}

/// Starts what is watched.
fn begin(workspace: &Path) -> Result<Crowd> {
    anyhow::ensure!(privilege::is_root(), "measuring makes control groups: run it as root");
    run::build(workspace)?;
    command::step(&format!("starting {} processes in {GROUPS} control groups", GROUPS * PROCESSES_OF_EACH));
    Crowd::start()
}

/// What is at a path.
fn scrape(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    anyhow::ensure!(answer.starts_with("HTTP/1.1 200"), "{}", answer.lines().next().unwrap_or_default());
    Ok(answer)
}

/// The value of a series.
fn number_of(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// Groups in which processes sleep.
struct Crowd {
    directory: PathBuf,
    groups: VecDeque<Group>,
    made: usize,
}

struct Group {
    directory: PathBuf,
    processes: VecDeque<Child>,
}

impl Crowd {
    fn start() -> Result<Self> {
        let roots = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists());
        let directory = root
            .context("control groups are not mounted")?
            .join(format!("tracer-bench-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // Of version 2 groups count memory where that is said above them.
        _ = fs::write(directory.join("cgroup.subtree_control"), "+memory");
        let mut crowd = Self { directory, groups: VecDeque::new(), made: 0 };
        for _ in 0..GROUPS {
            crowd.add()?;
        }
        Ok(crowd)
    }

    fn add(&mut self) -> Result<()> {
        let directory = self.directory.join(format!("group-{}.service", self.made));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        self.made += 1;
        let mut group = Group { directory, processes: VecDeque::new() };
        for _ in 0..PROCESSES_OF_EACH {
            group.add()?;
        }
        self.groups.push_back(group);
        Ok(())
    }

    /// Lets so much time pass in which processes and groups come and go.
    fn live(&mut self, time: Duration) -> Result<()> {
        let (began, mut replaced, mut renewed) = (Instant::now(), 0, 0);
        while began.elapsed() < time {
            thread::sleep(STEP);
            let due = |rate: usize| (began.elapsed().as_secs_f64() * rate as f64).round() as usize;
            // A group that goes takes its processes with it. What takes longer than it should is not made up for without end.
            while renewed < due(1) && began.elapsed() < time {
                self.groups.pop_front();
                self.add()?;
                (renewed, replaced) = (renewed + 1, replaced + PROCESSES_OF_EACH);
            }
            while replaced < due(PROCESSES_REPLACED) && began.elapsed() < time {
                let group = &mut self.groups[replaced % GROUPS];
                group.remove();
                group.add()?;
                replaced += 1;
            }
        }
        Ok(())
    }
}

impl Group {
    fn add(&mut self) -> Result<()> {
        let child = Command::new("sleep").arg("infinity").spawn().context("cannot start sleep")?;
        let id = child.id();
        self.processes.push_back(child);
        fs::write(self.directory.join("cgroup.procs"), id.to_string()).context("cannot move a process")
    }

    fn remove(&mut self) {
        if let Some(mut child) = self.processes.pop_front() {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        while !self.processes.is_empty() {
            self.remove();
        }
        _ = fs::remove_dir(&self.directory);
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.groups.clear();
        _ = fs::remove_dir(&self.directory);
    }
}

/// The service.
struct Watching(Child);

/// What it has taken so far.
struct Taken {
    /// Clock ticks.
    user: f64,
    kernel: f64,
    resident_bytes: f64,
}

impl Watching {
    fn start(workspace: &Path, crowd: &Crowd, options: &[&str]) -> Result<Self> {
        let reports = workspace.join("target/bench/watch");
        if reports.exists() {
            fs::remove_dir_all(&reports)?;
        }
        fs::create_dir_all(&reports)?;
        let mut watching = Command::new(run::binary(workspace));
        watching.arg("watch").args(options).arg("--cgroup").arg(&crowd.directory).arg("--dir").arg(&reports);
        let nothing = || Stdio::null();
        Ok(Self(watching.stdin(nothing()).stdout(nothing()).stderr(nothing()).spawn()?))
    }

    fn taken(&mut self) -> Result<Taken> {
        anyhow::ensure!(self.0.try_wait()?.is_none(), "the service has ended");
        let process = PathBuf::from(format!("/proc/{}", self.0.id()));
        let stat = fs::read_to_string(process.join("stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("not a stat line")?;
        // Fields 14, 15 and 24 of proc(5), the last in pages; the first after the name is field 3.
        let field = |number: usize| -> Result<f64> {
            Ok(fields.split(' ').nth(number - 3).context("a field is missing")?.parse()?)
        };
        Ok(Taken { user: field(14)?, kernel: field(15)?, resident_bytes: field(24)? * 4096.0 })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
