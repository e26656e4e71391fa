//! `tracer doctor`: what this kernel and this user offer, and what to do about the rest.
//!
//! [`check`] tries, each check by itself: it loads the programs, makes a uprobe that cannot be, holds a command. What it concludes is
//! pure code over what came of that, and [`render`] only writes it down.

use std::{ffi::OsStr, fs, io};

use anyhow::{Result, bail, ensure};
use rustix::thread::{CapabilitySet, capabilities};

use crate::{
    attach::{
        Capture, Settings, check_following, check_tracepoints, may_call_bpf,
        uprobes::{At, PerfPlace, UprobeLinks, open_perf_event, perf_event_type},
    },
    kernel,
    model::Pid,
    target::launch::{LaunchError, Launched},
};

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub state: CheckState,
    /// What was found.
    pub detail: String,
    /// What to do about it, when there is something to do.
    pub remedy: Option<&'static str>,
}

/// Whether a thing is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckState {
    /// It is.
    Good,
    /// Tracing works without it, with less.
    Limited,
    /// Tracing does not work without it.
    Missing,
}

impl Check {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: CheckState::Good, detail: detail.into(), remedy: None }
    }

    fn limited(name: &'static str, detail: impl Into<String>, remedy: &'static str) -> Self {
        Self { name, state: CheckState::Limited, detail: detail.into(), remedy: Some(remedy) }
    }

    fn missing(name: &'static str, detail: impl Into<String>, remedy: &'static str) -> Self {
        Self { name, state: CheckState::Missing, detail: detail.into(), remedy: Some(remedy) }
    }
}

/// Whether tracing will work with this.
#[must_use]
pub fn can_trace(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.state != CheckState::Missing)
}

/// One line a check, and a last one that says whether tracing will work.
#[must_use]
pub fn render(checks: &[Check], color: bool) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Check { name, state, detail, remedy } in checks {
        let (mark, sgr) = match state {
            CheckState::Good => ("ok     ", "32"),
            CheckState::Limited => ("limited", "33"),
            CheckState::Missing => ("MISSING", "31"),
        };
        let mark = if color { format!("\x1b[{sgr}m{mark}\x1b[0m") } else { mark.to_owned() };
        let remedy = remedy.map(|remedy| format!(": {remedy}")).unwrap_or_default();
        text += &format!("{mark}  {name:width$}  {detail}{remedy}\n");
    }
    let verdict = if can_trace(checks) {
        "Tracing will work here."
    } else {
        "Tracing will not work here: see the lines marked MISSING."
    };
    text + verdict + "\n"
}

/// Looks at everything that tracing needs or can use.
#[must_use]
pub fn check() -> Vec<Check> {
    let mut checks = vec![kernel_release(&kernel::release())];
    checks.extend(capability_checks(effective_capabilities()));
    checks.extend([
        user_namespace(&read("/proc/self/uid_map").unwrap_or_default()),
        pid_namespace(&link("/proc/self/ns/pid")),
        lockdown(kernel::lockdown().as_deref()),
        confinement(kernel::profile().as_deref(), || fs::read_link("/proc/1/exe").is_ok()),
        bpf_call(may_call_bpf()),
        programs(load_programs()),
        jit(read("/proc/sys/net/core/bpf_jit_enable")),
        uprobes(UprobeLinks::of_this_kernel(), may_make_uprobes),
        tracepoints(check_tracepoints()),
        following(check_following()),
        launching(hold_a_command()),
    ]);
    checks
}

fn read(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

fn link(path: &str) -> String {
    fs::read_link(path).map(|target| target.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A capability, and what it is for.
struct Capability {
    set: CapabilitySet,
    name: &'static str,
    /// Others that the kernel takes for it.
    or: CapabilitySet,
    /// What cannot be done without it; tracing needs it when absent.
    only_for: Option<&'static str>,
    remedy: &'static str,
}

const CAPABILITIES: [Capability; 5] = [
    Capability {
        set: CapabilitySet::BPF,
        name: "CAP_BPF",
        or: CapabilitySet::SYS_ADMIN,
        only_for: None,
        remedy: "loads the programs; run as root (sudo) or grant it",
    },
    Capability {
        set: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        or: CapabilitySet::SYS_ADMIN,
        only_for: None,
        remedy: "attaches the probes; run as root (sudo) or grant it",
    },
    Capability {
        set: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        or: CapabilitySet::empty(),
        only_for: None,
        remedy: "looks into other users' processes; run as root (sudo) or grant it",
    },
    Capability {
        set: CapabilitySet::CHECKPOINT_RESTORE,
        name: "CAP_CHECKPOINT_RESTORE",
        or: CapabilitySet::SYS_ADMIN,
        only_for: Some("libraries that were deleted or replaced on disk cannot be probed"),
        remedy: "run as root (sudo) or grant it",
    },
    Capability {
        set: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        or: CapabilitySet::DAC_OVERRIDE,
        only_for: Some(
            "files that this user may not read, and deleted ones of other users, cannot be probed",
        ),
        remedy: "run as root (sudo) or grant it",
    },
];

fn effective_capabilities() -> CapabilitySet {
    capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// Whether this process may trace.
///
/// # Errors
/// What it lacks, in a line.
pub fn check_rights() -> Result<()> {
    let effective = effective_capabilities();
    if required_missing(effective).is_empty()
        && let Err(error) = may_call_bpf()
    {
        bail!("not permitted: bpf(2) is refused in spite of the capabilities ({error}): {ALLOW_BPF}");
    }
    let missing = required_capabilities_missing();
    ensure!(
        missing.is_empty(),
        "not permitted: {} missing; run it with sudo (`tracer doctor` says more)",
        missing.join(", ")
    );
    Ok(())
}

/// The capabilities that tracing needs and this process does not have, by name. Full root is not needed.
#[must_use]
fn required_capabilities_missing() -> Vec<&'static str> {
    let mut missing = required_missing(effective_capabilities());
    if UprobeLinks::of_this_kernel() > UprobeLinks::PerfEvents {
        return missing;
    }
    let refused = may_make_uprobes().is_err_and(|error| is_refusal(&error));
    // Where CAP_PERFMON is missing it may be all that is.
    if refused && !missing.contains(&"CAP_PERFMON") {
        missing.push("CAP_SYS_ADMIN");
    }
    missing
}

fn required_missing(effective: CapabilitySet) -> Vec<&'static str> {
    let required = CAPABILITIES.iter().filter(|capability| capability.only_for.is_none());
    required.filter(|capability| !capability.is_in(effective)).map(|capability| capability.name).collect()
}

impl Capability {
    fn is_in(&self, effective: CapabilitySet) -> bool {
        effective.contains(self.set) || effective.intersects(self.or)
    }

    fn check(&self, effective: CapabilitySet) -> Check {
        match self.only_for {
            _ if self.is_in(effective) => Check::good(self.name, "effective"),
            Some(lost) => Check::limited(self.name, lost, self.remedy),
            None => Check::missing(self.name, "not effective", self.remedy),
        }
    }
}

fn capability_checks(effective: CapabilitySet) -> impl Iterator<Item = Check> {
    CAPABILITIES.iter().map(move |capability| capability.check(effective))
}

fn kernel_release(release: &str) -> Check {
    const NAME: &str = "kernel";
    match kernel::check(release) {
        Ok(()) => Check::good(NAME, release),
        Err(error) => Check::missing(NAME, release, error.remedy()),
    }
}

/// Capabilities count only in the initial user namespace, which maps every user to itself.
fn user_namespace(uid_map: &str) -> Check {
    const NAME: &str = "user namespace";
    let fields: Vec<&str> = uid_map.split_whitespace().collect();
    match fields[..] {
        // Without user namespaces in the kernel there is no map.
        [] | ["0", "0", "4294967295"] => Check::good(NAME, "the machine's"),
        _ => Check::missing(
            NAME,
            "a container's own: its capabilities do not reach the kernel",
            "run on the host, or in a container without user namespace",
        ),
    }
}

fn pid_namespace(link: &str) -> Check {
    /// `PROC_PID_INIT_INO` of the kernel's `include/linux/proc_ns.h`.
    const INITIAL: &str = "pid:[4026531836]";
    const NAME: &str = "pid namespace";
    match link {
        INITIAL => Check::good(NAME, "the machine's"),
        _ => Check::limited(
            NAME,
            "a container's own: only its processes are seen",
            "run on the host, or start the container with --pid=host",
        ),
    }
}

fn lockdown(modes: Option<&str>) -> Check {
    const NAME: &str = "lockdown";
    match (kernel::check_lockdown(modes), modes) {
        (Err(error), _) => Check::missing(
            NAME,
            "confidentiality: the kernel lets no BPF program read memory",
            error.remedy(),
        ),
        (Ok(()), Some(modes)) if modes.contains("[integrity]") => {
            Check::good(NAME, "integrity, which allows tracing")
        }
        (Ok(()), _) => Check::good(NAME, "off"),
    }
}

/// Whether a profile of AppArmor keeps this from looking into other processes, as the first one. Without the right to do so at all, the
/// capability that is missing has its own line.
fn confinement(profile: Option<&str>, may_look: impl FnOnce() -> bool) -> Check {
    const NAME: &str = "AppArmor";
    match profile {
        None => Check::good(NAME, "no profile keeps this from anything"),
        Some(profile) if may_look() => {
            Check::good(NAME, format!("profile {profile}, which lets other processes be looked into"))
        }
        Some(profile) => Check::limited(
            NAME,
            format!("profile {profile}: only processes under the same one can be traced"),
            "start the container with --security-opt apparmor=unconfined",
        ),
    }
}

/// What to do where a filter refuses `bpf(2)`. Older profiles of Docker and podman do not know `CAP_BPF`.
const ALLOW_BPF: &str =
    "allow it in the container's seccomp profile, or grant CAP_SYS_ADMIN, with which most profiles allow it";

fn bpf_call(called: io::Result<()>) -> Check {
    const NAME: &str = "bpf(2)";
    match called {
        Ok(()) => Check::good(NAME, "no filter keeps it from the kernel"),
        Err(error) => {
            Check::missing(NAME, format!("refused before the kernel looks at it ({error})"), ALLOW_BPF)
        }
    }
}

/// Loads every program, as a recording does, into small tables.
fn load_programs() -> Result<()> {
    Capture::load(&Settings::least())?.load_all_programs()
}

fn programs(loaded: Result<()>) -> Check {
    const NAME: &str = "BPF programs";
    match loaded {
        Ok(()) => Check::good(NAME, "the kernel takes every one"),
        Err(error) => Check::missing(
            NAME,
            format!("{error:#}"),
            "run as root (sudo), or grant the capabilities marked MISSING above",
        ),
    }
}

fn jit(value: io::Result<String>) -> Check {
    const NAME: &str = "BPF JIT";
    match value.as_deref() {
        Ok("0") => {
            Check::limited(NAME, "off: probes cost several times more", "sysctl net.core.bpf_jit_enable=1")
        }
        Ok(_) => Check::good(NAME, "on"),
        Err(error) => Check::good(NAME, format!("setting not readable ({error})")),
    }
}

/// Makes a uprobe in a file that does not exist: the kernel looks at the rights first, so what it says about the file means
/// that the rights are there.
///
/// No capability tells: CAP_PERFMON used to be enough; with the fix of CVE-2025-38466, which stable kernels have too, only
/// CAP_SYS_ADMIN is.
fn may_make_uprobes() -> Result<()> {
    const NOWHERE: PerfPlace<'_> = PerfPlace { path: c"/proc/self/no-such-file", offset: 0, semaphore: 0 };
    let own = Pid(std::process::id());
    match open_perf_event(perf_event_type()?, NOWHERE, At::Entry, Some(own)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether a right is missing.
fn is_refusal(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn uprobes(links: UprobeLinks, may_make: impl FnOnce() -> Result<()>) -> Check {
    const NAME: &str = "uprobes";
    match links {
        UprobeLinks::Sessions => {
            return Check::good(NAME, "many in one link, and programs choose their returns");
        }
        UprobeLinks::Many => return Check::good(NAME, "many in one link"),
        UprobeLinks::PerfEvents => {}
    }
    match may_make() {
        Ok(()) => Check::good(NAME, "a perf event each"),
        Err(error) if is_refusal(&error) => Check::missing(
            NAME,
            "this user may make none",
            "run as root (sudo) or with CAP_SYS_ADMIN; CAP_PERFMON is enough on kernels without the fix of CVE-2025-38466",
        ),
        Err(error) => {
            Check::missing(NAME, format!("{error:#}"), "needs perf_event_open(2); a container can forbid it")
        }
    }
}

fn tracepoints(attached: Result<()>) -> Check {
    const NAME: &str = "system-call tracepoints";
    match attached {
        Ok(()) => Check::good(NAME, "those of single calls"),
        Err(error) => Check::limited(
            NAME,
            format!("{error:#}"),
            "tracing looks at every system call of the machine, not only at those that change mappings",
        ),
    }
}

fn following(known: Result<()>) -> Check {
    const NAME: &str = "--follow";
    match known {
        Ok(()) => Check::good(NAME, "children can be followed"),
        Err(error) => Check::limited(NAME, format!("{error:#}"), "without it all else works"),
    }
}

/// Holds a command at its start, and lets it go by killing it. Only launching a command uses ptrace, and
/// `--objects python` where the interpreter takes a detour; attaching to a process does not.
fn hold_a_command() -> Result<(), LaunchError> {
    let program = OsStr::new("/proc/self/exe");
    Launched::spawn(program, ["--version"], true, None, None).map(drop)
}

fn launching(held: Result<(), LaunchError>) -> Check {
    const NAME: &str = "launching (ptrace)";
    match held {
        Ok(()) => Check::good(NAME, "a command can be held at its start"),
        Err(error) => Check::limited(NAME, error.to_string(), "attach with --pid"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_the_oldest_that_was_tried_are_too_old() {
        assert_eq!(kernel_release("6.1.0-56-amd64").state, CheckState::Good);
        assert_eq!(kernel_release("5.10.0-35-amd64").state, CheckState::Missing);
    }

    #[test]
    fn missing_capabilities_are_named_and_root_is_not_needed() {
        let needed = CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::SYS_PTRACE;
        assert_eq!(required_missing(CapabilitySet::empty()), ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]);
        assert_eq!(required_missing(needed), [""; 0]);
        assert_eq!(required_missing(CapabilitySet::SYS_ADMIN), ["CAP_SYS_PTRACE"]);
        assert!(can_trace(&capability_checks(needed).collect::<Vec<_>>()));
        assert!(!can_trace(&capability_checks(CapabilitySet::BPF).collect::<Vec<_>>()));
    }

    #[test]
    fn restrictions_are_told_apart() {
        assert_eq!(lockdown(None).state, CheckState::Good);
        assert_eq!(lockdown(Some("[none] integrity confidentiality")).state, CheckState::Good);
        assert_eq!(lockdown(Some("none [integrity] confidentiality")).state, CheckState::Good);
        assert_eq!(lockdown(Some("none integrity [confidentiality]")).state, CheckState::Missing);
        assert_eq!(user_namespace("         0          0 4294967295").state, CheckState::Good);
        assert_eq!(user_namespace("         0       1000          1").state, CheckState::Missing);
        assert_eq!(pid_namespace("pid:[4026532000]").state, CheckState::Limited);
        assert_eq!(confinement(None, || false).state, CheckState::Good);
        assert_eq!(confinement(Some("docker-default"), || true).state, CheckState::Good);
        assert_eq!(confinement(Some("docker-default"), || false).state, CheckState::Limited);
        assert_eq!(jit(Ok("0".into())).state, CheckState::Limited);
        let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied).into());
        assert_eq!(uprobes(UprobeLinks::Many, refused).state, CheckState::Good);
        assert_eq!(uprobes(UprobeLinks::PerfEvents, || Ok(())).state, CheckState::Good);
        let check = uprobes(UprobeLinks::PerfEvents, refused);
        assert_eq!((check.state, check.detail.as_str()), (CheckState::Missing, "this user may make none"));
        let check = uprobes(UprobeLinks::PerfEvents, || anyhow::bail!("no uprobes"));
        assert_eq!((check.state, check.detail.as_str()), (CheckState::Missing, "no uprobes"));
        assert_eq!(tracepoints(refused()).state, CheckState::Limited);
        assert_eq!(following(refused()).state, CheckState::Limited);
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let check = launching(Err(LaunchError::NotExecutable { program: "x".into(), source }));
        assert_eq!(
            (check.state, check.detail.as_str()),
            (CheckState::Limited, "cannot start x: permission denied")
        );
        assert_eq!(programs(refused()).state, CheckState::Missing);
        assert_eq!(bpf_call(Err(io::ErrorKind::PermissionDenied.into())).state, CheckState::Missing);
    }

    #[test]
    fn each_check_is_one_line() {
        let checks = [
            Check::good("kernel", "6.18"),
            Check::limited("BPF JIT", "off", "turn it on"),
            Check::missing("BTF", "none", "another kernel"),
        ];
        let expected = "\
ok       kernel   6.18
limited  BPF JIT  off: turn it on
MISSING  BTF      none: another kernel
Tracing will not work here: see the lines marked MISSING.
";
        assert_eq!(render(&checks, false), expected);
        assert!(render(&checks[..2], true).ends_with("Tracing will work here.\n"));
        assert!(render(&checks, true).contains("\x1b[31mMISSING\x1b[0m  BTF"));
    }

    /// The tests run as root on a kernel that can trace.
    #[test]
    fn this_machine_can_trace() {
        let checks = check();
        assert!(can_trace(&checks), "{}", render(&checks, false));
        assert_eq!(required_capabilities_missing(), [""; 0]);
        assert_eq!(render(&checks, false).lines().count(), checks.len() + 1, "one line each");
    }

    #[test]
    fn without_rights_it_says_what_is_missing() {
        // aya asks the kernel once a process what it can do: as this user it would answer "nothing" to all other tests.
        let _ = aya::features();
        let thread = std::thread::spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may become another user");
            (check(), required_capabilities_missing())
        });
        let (checks, missing) = thread.join().expect("no panic");
        assert!(!can_trace(&checks));
        assert_eq!(missing, ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]);
        let programs = checks.iter().find(|check| check.name == "BPF programs").expect("it was checked");
        assert_eq!(programs.state, CheckState::Missing);
    }
}
