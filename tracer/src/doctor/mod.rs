//! `tracer doctor`: what this kernel and this user offer, and what to do about the rest.
//!
//! [`check`] looks, each check by itself; what it concludes is pure code over what it read, and [`render`] only writes it
//! down.

mod perf;

use std::fs;
use std::io;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use rustix::thread::{CapabilitySet, capabilities};

use crate::attach::{tracefs::Tracefs, uprobe_multi};

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do about it, when there is something to do.
    pub remedy: Option<&'static str>,
}

/// Whether a thing is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is.
    Good,
    /// Tracing works without it, with less.
    Limited,
    /// Tracing does not work without it.
    Missing,
}

impl Check {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Good, detail: detail.into(), remedy: None }
    }

    fn limited(name: &'static str, detail: impl Into<String>, remedy: &'static str) -> Self {
        Self { name, state: State::Limited, detail: detail.into(), remedy: Some(remedy) }
    }

    fn missing(name: &'static str, detail: impl Into<String>, remedy: &'static str) -> Self {
        Self { name, state: State::Missing, detail: detail.into(), remedy: Some(remedy) }
    }
}

/// Whether tracing will work with this.
#[must_use]
pub fn can_trace(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.state != State::Missing)
}

/// One line a check, and a last one that says whether tracing will work.
#[must_use]
pub fn render(checks: &[Check], color: bool) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Check { name, state, detail, remedy } in checks {
        let (mark, sgr) = match state {
            State::Good => ("ok     ", "32"),
            State::Limited => ("limited", "33"),
            State::Missing => ("MISSING", "31"),
        };
        let mark = if color { format!("\x1b[{sgr}m{mark}\x1b[0m") } else { mark.to_owned() };
        let remedy = remedy.map(|remedy| format!(": {remedy}")).unwrap_or_default();
        text += &format!("{mark}  {name:width$}  {detail}{remedy}\n");
    }
    let verdict = if can_trace(checks) {
        "Tracing will work here."
    } else {
        "Tracing will not work here: see what is MISSING."
    };
    text + verdict + "\n"
}

/// Looks at everything that tracing needs or can use.
#[must_use]
pub fn check() -> Vec<Check> {
    let mut checks = vec![kernel(rustix::system::uname().release().to_string_lossy().as_ref())];
    checks.extend(capability_checks(effective_capabilities()));
    checks.extend([
        user_namespace(&read("/proc/self/uid_map").unwrap_or_default()),
        pid_namespace(&link("/proc/self/ns/pid")),
        lockdown(read("/sys/kernel/security/lockdown").ok().as_deref()),
        unprivileged_bpf(read("/proc/sys/kernel/unprivileged_bpf_disabled").ok().as_deref()),
        bpf_programs(),
        bpf_feature(
            "ring buffer",
            is_map_supported(MapType::RingBuf).map_err(|error| error.to_string()),
            "needs Linux 5.8",
        ),
        bpf_feature(
            "bpf_loop",
            is_helper_supported(ProgramType::KProbe, BpfHelper::BPF_FUNC_loop)
                .map_err(|error| error.to_string()),
            "needs Linux 5.17",
        ),
        jit(read("/proc/sys/net/core/bpf_jit_enable")),
        btf(Path::new("/sys/kernel/btf/vmlinux").exists()),
        uprobes(uprobe_multi::is_available(), uprobe_event_type().map(perf::may_make_uprobes)),
        tracepoints(),
        perf_event_paranoid(read("/proc/sys/kernel/perf_event_paranoid").ok().as_deref()),
        ptrace_scope(read("/proc/sys/kernel/yama/ptrace_scope").ok().as_deref()),
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

/// The capabilities that tracing needs and this process does not have, by name. Full root is not needed.
#[must_use]
pub fn required_capabilities_missing() -> Vec<&'static str> {
    let mut missing = required_missing(effective_capabilities());
    if uprobe_multi::is_available() {
        return missing;
    }
    let uprobes = uprobe_event_type().map(perf::may_make_uprobes);
    let refused = matches!(uprobes, Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied);
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

/// The oldest kernel with all that tracing needs (`bpf_loop`).
const OLDEST_KERNEL: (u32, u32) = (5, 17);

fn kernel(release: &str) -> Check {
    const NAME: &str = "kernel";
    let mut numbers =
        release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST_KERNEL => Check::good(NAME, release),
        _ => Check::missing(NAME, release, "needs Linux 5.17 or newer"),
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
    match modes {
        Some(modes) if modes.contains("[confidentiality]") => Check::missing(
            NAME,
            "confidentiality: the kernel lets no BPF program read memory",
            "boot with lockdown=integrity or without Secure Boot",
        ),
        Some(modes) if modes.contains("[integrity]") => Check::good(NAME, "integrity, which allows tracing"),
        _ => Check::good(NAME, "off"),
    }
}

fn unprivileged_bpf(value: Option<&str>) -> Check {
    const NAME: &str = "unprivileged_bpf_disabled";
    Check::good(NAME, format!("{} (CAP_BPF is needed in any case)", value.unwrap_or("unknown")))
}

fn bpf_programs() -> Check {
    const NAME: &str = "BPF programs";
    let remedy = "run as root (sudo); in a container, allow bpf(2) in its seccomp profile";
    match is_program_supported(ProgramType::KProbe) {
        Ok(true) => Check::good(NAME, "can be loaded"),
        Ok(false) => Check::missing(
            NAME,
            "probe programs are refused",
            "needs CONFIG_BPF_SYSCALL and CONFIG_BPF_EVENTS",
        ),
        Err(error) => Check::missing(NAME, one_line(&error.to_string()), remedy),
    }
}

fn bpf_feature(name: &'static str, supported: Result<bool, String>, remedy: &'static str) -> Check {
    match supported {
        Ok(true) => Check::good(name, "available"),
        Ok(false) => Check::missing(name, "not available", remedy),
        Err(error) => Check::missing(name, one_line(&error), "see BPF programs above"),
    }
}

/// The verifier's log can have thousands of lines.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
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

fn btf(exists: bool) -> Check {
    const NAME: &str = "BTF";
    match exists {
        true => Check::good(NAME, "/sys/kernel/btf/vmlinux"),
        false => {
            Check::missing(NAME, "no /sys/kernel/btf/vmlinux", "needs a kernel with CONFIG_DEBUG_INFO_BTF")
        }
    }
}

/// The type of uprobe events, as perf numbers it here.
fn uprobe_event_type() -> Option<u32> {
    read("/sys/bus/event_source/devices/uprobe/type").ok()?.parse().ok()
}

fn uprobes(many_in_a_link: bool, may_make: Option<io::Result<()>>) -> Check {
    const NAME: &str = "uprobes";
    if many_in_a_link {
        return Check::good(NAME, "can be made, many in one link");
    }
    match may_make {
        Some(Ok(())) => Check::good(NAME, "can be made"),
        Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Check::missing(
            NAME,
            "this user may make none",
            "run as root (sudo) or with CAP_SYS_ADMIN; CAP_PERFMON is enough on kernels without the fix of CVE-2025-38466",
        ),
        Some(Err(error)) => {
            Check::missing(NAME, error.to_string(), "needs perf_event_open(2); a container can forbid it")
        }
        None => Check::missing(
            NAME,
            "no uprobe events in perf",
            "needs a kernel with CONFIG_UPROBE_EVENTS, and /sys mounted",
        ),
    }
}

fn tracepoints() -> Check {
    const NAME: &str = "system-call tracepoints";
    let id = Tracefs::open().and_then(|tracefs| tracefs.tracepoint_id("syscalls", "sys_enter_mmap"));
    match id {
        Ok(_) => Check::good(NAME, "available"),
        Err(error) => Check::limited(
            NAME,
            error.to_string(),
            "until then tracing looks at every system call, not only at those that change mappings",
        ),
    }
}

fn perf_event_paranoid(value: Option<&str>) -> Check {
    const NAME: &str = "perf_event_paranoid";
    match value {
        Some(value) => Check::good(NAME, format!("{value} (CAP_PERFMON is needed in any case)")),
        None => Check::missing(NAME, "no perf events", "needs a kernel with CONFIG_PERF_EVENTS"),
    }
}

/// Only launching a command uses ptrace; attaching to a process does not.
fn ptrace_scope(value: Option<&str>) -> Check {
    const NAME: &str = "ptrace_scope";
    match value {
        Some("3") => Check::limited(
            NAME,
            "3: no command can be held at its start (`tracer -- COMMAND`)",
            "attach with --pid; only a reboot lifts it",
        ),
        Some(value) => Check::good(NAME, value),
        None => Check::good(NAME, "unrestricted (no Yama)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_bpf_loop_are_too_old() {
        for (release, state) in [
            ("6.18.44-fc-v769", State::Good),
            ("5.17", State::Good),
            ("5.17.0-rc1", State::Good),
            ("5.16.20-generic", State::Missing),
            ("4.19.0", State::Missing),
            ("10.0", State::Good),
            ("next", State::Missing),
        ] {
            assert_eq!(kernel(release).state, state, "{release}");
        }
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
        assert_eq!(lockdown(None).state, State::Good);
        assert_eq!(lockdown(Some("[none] integrity confidentiality")).state, State::Good);
        assert_eq!(lockdown(Some("none [integrity] confidentiality")).state, State::Good);
        assert_eq!(lockdown(Some("none integrity [confidentiality]")).state, State::Missing);
        assert_eq!(user_namespace("         0          0 4294967295").state, State::Good);
        assert_eq!(user_namespace("         0       1000          1").state, State::Missing);
        assert_eq!(pid_namespace("pid:[4026532000]").state, State::Limited);
        assert_eq!(ptrace_scope(Some("1")).state, State::Good);
        assert_eq!(ptrace_scope(Some("3")).state, State::Limited);
        assert_eq!(jit(Ok("0".into())).state, State::Limited);
        assert_eq!(uprobes(false, None).state, State::Missing);
        assert_eq!(uprobes(true, None).state, State::Good);
        assert_eq!(uprobes(false, Some(Err(io::ErrorKind::PermissionDenied.into()))).state, State::Missing);
        assert_eq!(uprobes(false, Some(Ok(()))).state, State::Good);
        assert_eq!(btf(false).state, State::Missing);
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
Tracing will not work here: see what is MISSING.
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
        let thread = std::thread::spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may become another user");
            (check(), required_capabilities_missing())
        });
        let (checks, missing) = thread.join().expect("no panic");
        assert!(!can_trace(&checks));
        assert_eq!(missing, ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]);
        let programs = checks.iter().find(|check| check.name == "BPF programs").expect("it was checked");
        assert_eq!(programs.state, State::Missing);
    }
}
