//! The machines: kernels, processors, settings, and the tests for each.

use super::kernels::Source;

/// A machine to start.
pub struct Machine {
    /// What it is called.
    pub name: &'static str,
    /// Its kernel.
    pub kernel: Source,
    /// Its processor, as qemu names it.
    pub cpu: &'static str,
    /// How many processors, as qemu counts them.
    pub processors: &'static str,
    /// More of the kernel's command line.
    pub parameters: &'static str,
    /// Shell commands before the tests.
    pub setup: &'static str,
    /// What runs: test binaries, and the tests of each by parts of their names; all of them without.
    pub tests: &'static [(&'static str, &'static [&'static str])],
    /// What it must print, besides.
    pub says: &'static [&'static str],
    /// Whether CI starts it.
    pub in_ci: bool,
}

const fn cloud(suite: &'static str) -> Source {
    Source { suite, package: "linux-image-cloud-amd64" }
}

const fn real_time(suite: &'static str) -> Source {
    Source { suite, package: "linux-image-rt-amd64" }
}

/// Debian 12; Debian 13; the newest.
const LINUX_6_1: Source = cloud("bookworm");
const LINUX_6_12: Source = cloud("trixie");
const NEWEST: Source = cloud("trixie-backports");

/// Every way of recording, exactly, in as few tests as can be.
const SMOKE: &[(&str, &[&str])] = &[
    ("malloc_family", &[]),
    ("launch", &["its_exit_status", "traced_to_its_end"]),
    ("follow", &["a_family_is_told_apart", "what_a_shell_executes", "without_following"]),
    ("growth", &["every_page"]),
    ("sampling", &["what_is_certain", "left_out_calls"]),
    ("snapshots", &["a_snapshot_tells", "from_a_mark_on"]),
    ("mappings", &["every_way"]),
    ("lifetime", &[]),
    ("private_stack", &[]),
    ("verifier", &[]),
    ("bad_days", &["capabilit", "killed_at_any_moment", "dies_while_we_record"]),
];

/// On Linux 7.x a thread can be preempted in a program on a tracepoint, and until it goes on the kernel leaves the program out on
/// that processor: the more often, the more calls are looked at. In a machine that is translated that is often.
const SMOKE_BUT_RIGHTS: &[(&str, &[&str])] = &[
    SMOKE[0],
    SMOKE[1],
    SMOKE[2],
    SMOKE[3],
    SMOKE[4],
    SMOKE[5],
    SMOKE[6],
    SMOKE[7],
    SMOKE[8],
    SMOKE[9],
    ("bad_days", &["without_", "killed_at_any_moment", "dies_while_we_record"]),
];

/// Whatever needs no other program than the tests' own.
const MORE: &[(&str, &[&str])] = &[
    ("malloc_family", &[]),
    ("launch", &[]),
    ("follow", &[]),
    ("growth", &[]),
    ("sampling", &[]),
    ("snapshots", &[]),
    ("mappings", &[]),
    ("lifetime", &[]),
    ("private_stack", &[]),
    ("verifier", &[]),
    ("bad_days", &[]),
    ("threads", &[]),
    ("harmless", &[]),
    ("unwinding", &[]),
    ("declared_allocators", &[]),
    ("faults", &[]),
    ("output", &["doctor", "given_duration", "interrupt_ends"]),
];

/// Gates: what is mapped in place of what, threads that are led aside, processes that are born, tracers that are killed.
const GATE: &[(&str, &[&str])] = &[(
    "gate",
    &[
        "what_eight_threads",
        "a_gate_that_opens_under_load",
        "gates_open_and_close",
        "a_gate_is_used_again",
        "a_call_that_waits",
        "threads_that_wait_in_calls",
        "signals_interrupt_calls",
        "a_single_thread",
        "restartable",
        "a_child",
        "a_program_that_is_executed",
        "the_keeper",
        "whose_keeper",
        "was_left",
        "a_killed_tracer",
        "a_signal_that_comes",
        "code_in_several",
        "a_thread_of_the_kernel",
        "32_bit",
        "killed_at_any_moment",
        "is_traced",
        "is_stopped",
        "probes_for_everybody",
        "a_filter_that_kills",
    ],
)];

/// A recording, a followed family, growth.
const FEW: &[(&str, &[&str])] = &[
    ("malloc_family", &["every_function", "outermost"]),
    ("follow", &["a_family_is_told_apart"]),
    ("growth", &["every_page"]),
    ("output", &["doctor"]),
];

/// As those, and recordings by a user with few rights: what settings can forbid.
const FEW_WITH_RIGHTS: &[(&str, &[&str])] =
    &[FEW[0], FEW[1], FEW[2], FEW[3], ("launch", &["its_exit_status"]), ("bad_days", &["capabilit"])];

/// As [`FEW`], and what has to wait for programs of the processor that it runs on.
const ONE_PROCESSOR: &[(&str, &[&str])] =
    &[FEW[0], FEW[1], FEW[2], FEW[3], ("long_recordings", &["make_room_for_new_ones"])];

/// Tracers that are killed, often enough that it happens at many moments.
const KILLS: &[(&str, &[&str])] = &[("faults", &["a_killed_tracer"])];

/// Has AppArmor keep what runs from here on within [`PROFILE`], as Docker does with containers; says what a tracer in it makes of a
/// process outside, and one outside of a process in it.
const CONFINE: &str = "apparmor_parser --add --skip-cache /machines/profile
confined() { (echo exec container >/proc/self/attr/exec; exec \"$@\"); }
(echo exec container >/proc/self/attr/exec; exec /bin/sleep 600) &
until grep -q container /proc/$!/attr/current; do sleep 0.1; done
$TRACER --mode growth -o /tmp/growth.json --pid $! -d 1s
sleep 600 &
confined $TRACER doctor
confined $TRACER --pid $! -d 1s
within=confined";

/// Forbids what Docker's profile for containers forbids, as far as tracing is concerned: to look into processes that are not under it, to
/// mount, and to write where the kernel is set.
pub const PROFILE: &str = "profile container flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  signal,
  deny mount,
  deny /proc/sys/** w,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/kernel/security/** rwklx,
  ptrace (trace,read,tracedby,readby) peer=container,
}
";

const FOUR_LEVELS: &str = "max,la57=off";
const FIVE_LEVELS: &str = "max";

const MACHINE: Machine = Machine {
    name: "",
    kernel: LINUX_6_1,
    cpu: FOUR_LEVELS,
    processors: "2",
    parameters: "",
    setup: "",
    tests: FEW,
    says: &[],
    in_ci: false,
};

const fn kernel(name: &'static str, kernel: Source, cpu: &'static str) -> Machine {
    Machine { name, kernel, cpu, tests: SMOKE, in_ci: true, ..MACHINE }
}

const fn whole(name: &'static str, kernel: Source, cpu: &'static str) -> Machine {
    Machine { name, kernel, cpu, tests: MORE, ..MACHINE }
}

const fn with(name: &'static str, kernel: Source, parameters: &'static str, setup: &'static str) -> Machine {
    Machine { name, kernel, parameters, setup, ..MACHINE }
}

/// Debian 13's kernel, with a setting.
const fn set(name: &'static str, parameters: &'static str, setup: &'static str) -> Machine {
    Machine { tests: FEW_WITH_RIGHTS, ..with(name, LINUX_6_12, parameters, setup) }
}

/// Every machine.
pub const MACHINES: &[Machine] = &[
    kernel("6.1", LINUX_6_1, FOUR_LEVELS),
    kernel("6.12, 5-level paging", LINUX_6_12, FIVE_LEVELS),
    // One test of a hundred misses a run of a program there: see `SMOKE_BUT_RIGHTS`.
    Machine {
        tests: SMOKE_BUT_RIGHTS,
        in_ci: false,
        ..kernel("newest, 5-level paging", NEWEST, FIVE_LEVELS)
    },
    Machine {
        kernel: cloud("bullseye"),
        tests: &[],
        says: &["is too old: tracer needs Linux 6.1 or later"],
        ..with("5.10 is refused", LINUX_6_1, "", "$TRACER --pid 1 -d 1s")
    },
    whole("6.1, more tests", LINUX_6_1, FOUR_LEVELS),
    whole("6.12, more tests", LINUX_6_12, FOUR_LEVELS),
    whole("newest, more tests", NEWEST, FOUR_LEVELS),
    Machine { tests: SMOKE_BUT_RIGHTS, in_ci: false, ..kernel("7.2", cloud("sid"), FOUR_LEVELS) },
    Machine { in_ci: false, ..kernel("6.1 RT", real_time("bookworm"), FOUR_LEVELS) },
    Machine { in_ci: false, ..kernel("6.12 RT", real_time("trixie"), FOUR_LEVELS) },
    Machine {
        tests: SMOKE_BUT_RIGHTS,
        in_ci: false,
        ..kernel("newest RT", real_time("trixie-backports"), FOUR_LEVELS)
    },
    Machine { cpu: FIVE_LEVELS, ..with("6.1, 5-level paging", LINUX_6_1, "", "") },
    with("6.12, 4-level paging", LINUX_6_12, "", ""),
    Machine { tests: GATE, ..with("6.1, gates", LINUX_6_1, "", "") },
    Machine { tests: GATE, ..with("6.12, gates", LINUX_6_12, "", "") },
    Machine { tests: GATE, ..with("newest, gates", NEWEST, "", "") },
    with("6.12, nokaslr", LINUX_6_12, "nokaslr", ""),
    with("6.12, mitigations=off", LINUX_6_12, "mitigations=off", ""),
    Machine { processors: "1", tests: ONE_PROCESSOR, ..with("6.12, one processor", LINUX_6_12, "", "") },
    Machine { processors: "2,maxcpus=64", ..with("6.12, 62 of 64 processors offline", LINUX_6_12, "", "") },
    set("6.12, lockdown=integrity", "lockdown=integrity", ""),
    Machine {
        tests: &[],
        says: &["tracer: the kernel is locked down (confidentiality)"],
        ..set(
            "6.12, lockdown=confidentiality",
            "lockdown=confidentiality",
            "$TRACER doctor; $TRACER --pid 1 -d 1s",
        )
    },
    set("6.12, cgroup v1", "", "umount /sys/fs/cgroup; mount -t cgroup -o memory none /sys/fs/cgroup"),
    set("6.12, tracefs mounted", "", "mount -t tracefs none /sys/kernel/tracing"),
    set("6.12, no BPF for others", "", "echo 2 >/proc/sys/kernel/unprivileged_bpf_disabled"),
    set("6.12, perf_event_paranoid -1", "", "echo -1 >/proc/sys/kernel/perf_event_paranoid"),
    set("6.12, perf_event_paranoid 0", "", "echo 0 >/proc/sys/kernel/perf_event_paranoid"),
    set("6.12, perf_event_paranoid 1", "", "echo 1 >/proc/sys/kernel/perf_event_paranoid"),
    set("6.12, perf_event_paranoid 2", "", "echo 2 >/proc/sys/kernel/perf_event_paranoid"),
    set("6.12, perf_event_paranoid 4", "", "echo 4 >/proc/sys/kernel/perf_event_paranoid"),
    set("6.12, yama 1", "", "echo 1 >/proc/sys/kernel/yama/ptrace_scope"),
    set("6.12, yama 2", "", "echo 2 >/proc/sys/kernel/yama/ptrace_scope"),
    Machine {
        tests: FEW,
        says: &["limited  launching (ptrace)"],
        ..set("6.12, yama 3", "", "echo 3 >/proc/sys/kernel/yama/ptrace_scope; $TRACER doctor")
    },
    set("6.12, AppArmor", "security=apparmor apparmor=1", ""),
    Machine {
        says: &[
            "page faults and mappings",
            "limited  AppArmor ",
            "tracer runs under AppArmor's profile container, the process does not",
        ],
        ..set("6.12, in a container's profile of AppArmor", "security=apparmor apparmor=1", CONFINE)
    },
    Machine { tests: KILLS, ..with("6.12, tracers are killed", LINUX_6_12, "", "export TRACER_FAULTS=40") },
    with(
        "6.12, processors come and go",
        LINUX_6_12,
        "",
        "while :; do for on in 0 1; do echo $on >/sys/devices/system/cpu/cpu1/online; sleep 0.5; done; done &",
    ),
    with(
        "newest, the clock jumps",
        NEWEST,
        "",
        "while :; do date -s 2031-01-01 >/dev/null; sleep 0.3; date -s 2001-01-01 >/dev/null; sleep 0.3; done &",
    ),
];
