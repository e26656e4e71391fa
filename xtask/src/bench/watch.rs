//! What `tracer watch` takes while all is well: on a host of many control groups and processes that come and go.

use std::{
    collections::VecDeque,
    fs,
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
    anyhow::ensure!(privilege::is_root(), "measuring makes control groups: run it as root");
    run::build(workspace)?;
    command::step(&format!("starting {} processes in {GROUPS} control groups", GROUPS * PROCESSES_OF_EACH));
    let mut crowd = Crowd::start()?;
    let reports = workspace.join("target/bench/watch");
    fs::create_dir_all(&reports)?;
    let mut watching = Command::new(run::binary(workspace));
    watching.args(["watch", "--listen", "none", "--cgroup"]).arg(&crowd.directory).arg("--dir").arg(&reports);
    let mut watching =
        Watching(watching.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
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
            let due = |rate: usize| (began.elapsed().as_secs_f64() * rate as f64) as usize;
            // A group that goes takes its processes with it.
            while renewed < due(1) {
                self.groups.pop_front();
                self.add()?;
                (renewed, replaced) = (renewed + 1, replaced + PROCESSES_OF_EACH);
            }
            while replaced < due(PROCESSES_REPLACED) {
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
