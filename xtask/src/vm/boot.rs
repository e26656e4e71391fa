//! Starts a machine, and judges what it said.

use std::{
    fmt,
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    kernels::Kernel,
    machines::{MACHINES, Machine},
};
use crate::command;

/// A machine that takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(45 * 60);

/// One processor of the machine after the other: when they are translated at once, one can run into a breakpoint that the kernel
/// has just taken out of its own code for another, and the kernel panics (seen on 6.12 in `syscall_trace_enter`).
const TRANSLATION: &str = "tcg,thread=single";

/// What came of a machine.
pub struct Outcome {
    /// The machine's name.
    pub name: &'static str,
    release: String,
    /// Tests that passed.
    pub passed: usize,
    /// What was wrong, a line each.
    faults: Vec<String>,
    took: Duration,
    /// The last lines that the machine printed.
    tail: String,
}

/// Starts a machine, and waits until it turns itself off.
///
/// # Errors
/// When it cannot be started.
pub fn run(
    workspace: &Path,
    machine: &'static Machine,
    kernel: &Kernel,
    image: &Path,
    kvm: bool,
) -> Result<Outcome> {
    let number =
        MACHINES.iter().position(|other| other.name == machine.name).context("it is in the table")?;
    let log = workspace.join(format!("target/vm/machine-{number}.log"));
    command::step(&format!(
        "starting a machine: {} ({}); its words go to {}",
        machine.name,
        kernel.release,
        log.display()
    ));
    let output = File::create(&log)?;
    let mut qemu = Command::new("qemu-system-x86_64");
    let cpu = if kvm { "host" } else { machine.cpu };
    qemu.args(["-accel", if kvm { "kvm" } else { TRANSLATION }, "-cpu", cpu, "-smp", machine.processors]);
    qemu.args(["-m", "3072", "-nographic", "-no-reboot", "-nic", "none", "-kernel"]).arg(&kernel.image);
    qemu.arg("-initrd").arg(image);
    qemu.arg("-append").arg(format!(
        "console=ttyS0 panic=-1 oops=panic no_timer_check quiet machine={number} {}",
        machine.parameters
    ));
    qemu.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let began = Instant::now();
    let mut child = qemu.spawn().context("cannot start qemu")?;
    while child.try_wait()?.is_none() {
        if began.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let text = String::from_utf8_lossy(&fs::read(&log)?).replace('\r', "");
    let (passed, faults) = judge(machine, &text);
    let lines: Vec<_> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(60)..].join("\n");
    Ok(Outcome {
        name: machine.name,
        release: kernel.release.clone(),
        passed,
        faults,
        took: began.elapsed(),
        tail,
    })
}

/// How many tests passed, and what was wrong.
fn judge(machine: &Machine, text: &str) -> (usize, Vec<String>) {
    let (mut passed, mut faults) = (0, Vec::new());
    let mut binaries = 0;
    for line in text.lines() {
        if line.starts_with("test ") && line.ends_with(" ... ok") {
            passed += 1;
        } else if line.starts_with("test ") && (line.ends_with("FAILED") || line.ends_with("ignored")) {
            faults.push(line.to_owned());
        } else if let Some(rest) = line.strip_prefix("vm: status ") {
            binaries += 1;
            if !rest.starts_with("0 ") {
                faults.push(line.to_owned());
            }
        } else if COMPLAINTS.iter().any(|complaint| line.contains(complaint)) {
            faults.push(line.to_owned());
        }
    }
    if binaries != machine.tests.len() || passed < binaries {
        faults
            .push(format!("{binaries} of {} test binaries ran, {passed} tests passed", machine.tests.len()));
    }
    let unsaid = machine.says.iter().filter(|says| !text.contains(**says));
    faults.extend(unsaid.map(|says| format!("it did not say {says:?}")));
    if !text.lines().any(|line| line == "vm: end") {
        faults.push("the machine did not come to its end".to_owned());
    }
    (passed, faults)
}

/// How a kernel complains.
const COMPLAINTS: [&str; 9] = [
    "BUG:",
    "WARNING:",
    "Oops",
    "general protection fault",
    "unable to handle",
    "Kernel panic",
    "rcu: INFO:",
    "blocked for more than",
    "Call Trace:",
];

impl Outcome {
    /// Whether nothing was wrong.
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
    }

    /// What was wrong.
    pub fn complaints(&self) -> String {
        format!("--- {self}\n{}\n...\n{}", self.faults.join("\n"), self.tail)
    }

    /// A row of the table in docs/kernels.md.
    pub fn row(&self) -> String {
        let Self { name, release, passed, faults, .. } = self;
        let result = if faults.is_empty() { "all exact".to_owned() } else { faults.join("; ") };
        format!("| {name} | {release} | {passed} | {result} |")
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, release, passed, faults, took, .. } = self;
        let verdict = if faults.is_empty() { "good" } else { "FAILED" };
        write!(f, "{name} ({release}): {verdict}, {passed} tests passed in {:.0} s", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
vm: begin 6.1
vm: run growth
test every_page ... ok
test result: ok. 1 passed
vm: status 0 of growth
vm: kernel log
vm: end
";

    fn machine() -> Machine {
        let [.., machine] = MACHINES else { panic!("there are machines") };
        Machine { tests: &[("growth", &[])], says: &[], ..*machine }
    }

    #[test]
    fn a_machine_on_which_all_passed_is_good() {
        assert_eq!(judge(&machine(), GOOD), (1, Vec::new()));
    }

    #[test]
    fn whatever_is_wrong_is_found() {
        for (from, to) in [
            ("... ok", "... FAILED"),
            ("status 0", "status 101"),
            ("vm: end\n", ""),
            ("vm: kernel log", "[ 1.0] WARNING: CPU: 0"),
            ("vm: status 0 of growth\n", ""),
            ("test every_page ... ok\n", ""),
        ] {
            let (_, faults) = judge(&machine(), &GOOD.replace(from, to));
            assert!(!faults.is_empty(), "{from} -> {to}");
        }
        let says = Machine { says: &["begin 6.1", "too old"], ..machine() };
        assert_eq!(judge(&says, GOOD).1.len(), 1);
    }
}
