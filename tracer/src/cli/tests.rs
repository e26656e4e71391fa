//! What can be said on the command line, and what is refused.

use std::collections::BTreeSet;
use std::time::Duration;

use super::config::Drawing;
use super::*;
use crate::model::{Bytes, Kind, Mode, Verdict};
use crate::plan::Declarations;
use crate::record;
use crate::report::destination::OutputPlace;
use crate::report::{FlameOrder, WeightUnit};
use crate::symbolize::Wish;
use crate::target::{CommandLine, Subject, choice::Choice};

fn parse(arguments: &str) -> Result<Action, clap::Error> {
    let words = std::iter::once("tracer").chain(arguments.split_whitespace());
    parse_from(words.map(OsString::from))
}

fn parsed(arguments: &str) -> RecordConfig {
    match parse(arguments) {
        Ok(Action::Record(config)) => *config,
        other => panic!("{arguments}: {other:?}"),
    }
}

fn refused(arguments: &str) -> String {
    let error = parse(arguments).expect_err(arguments);
    assert_eq!(error.exit_code(), 2, "{arguments}");
    error.to_string()
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn without_options_everything_has_its_default() {
    let subject = Subject::Processes(vec![Pid(42)]);
    let recording = record::Config { subject, ..record::Config::default() };
    assert_eq!(parsed("--pid 42"), RecordConfig { recording, ..RecordConfig::default() });
}

#[test]
fn servers_of_debug_files_need_no_url() {
    for line in ["--debuginfod --pid 42", "--pid 42 --debuginfod"] {
        assert_eq!(parsed(line).recording.debuginfod, Wish::Servers(String::new()), "{line}");
    }
}

#[test]
fn every_option_arrives() {
    let config = parsed(
        "-p 1 --pid 2 --follow -d 1m30s -o a.svg -o - --format folded --min-age 500ms --min-size 4096 --max-size 1MiB \
         --include file,managed --only leaking --top 3 --weight objects --flame-order icicle --fail-on 1.5KiB --sample 512KiB \
         --max-live 1000 --interval 2s --mark-after 5s --tui --native-frames -vv --color never --symbol-prefix my_ --objects python \
         --allocator lib.so:malloc=get,free=put --debuginfod https://debug.test",
    );
    let recording = record::Config {
        subject: Subject::Processes(vec![Pid(1), Pid(2)]),
        follow: true,
        native_frames: true,
        duration: Some(Duration::from_secs(90)),
        min_age: Duration::from_millis(500),
        min_size: Some(Bytes(4096)),
        max_size: Some(Bytes(1 << 20)),
        sample: Bytes(512 << 10),
        sampler: None,
        max_live: Some(1000),
        interval: Duration::from_secs(2),
        declarations: Declarations {
            prefixes: vec!["my_".parse().unwrap()],
            allocators: vec!["lib.so:malloc=get,free=put".parse().unwrap()],
            python_objects: true,
        },
        mode: Mode::Allocations,
        max_cost: None,
        max_cpu: None,
        mark_after: Some(Duration::from_secs(5)),
        command_output: None,
        debuginfod: Wish::Servers("https://debug.test".to_owned()),
    };
    let expected = RecordConfig {
        recording,
        outputs: vec![
            Destination { format: Format::Svg, place: OutputPlace::Path("a.svg".into()) },
            Destination { format: Format::Folded, place: OutputPlace::Stdout },
        ],
        include: BTreeSet::from([Kind::File, Kind::Managed]),
        only: vec![Verdict::Leaking],
        top: 3,
        drawing: Drawing { weight: WeightUnit::Objects, flame_order: FlameOrder::Icicle },
        dies_with: None,
        gate: false,
        fail_on: Some(Bytes(1536)),
        tui: true,
        verbosity: Verbosity::Debug,
        color: ColorChoice::Never,
        progress: true,
    };
    assert_eq!(config, expected);
    assert!(!parsed("-q --pid 1").progress && !parsed("--no-progress --pid 1").progress);
}

#[test]
fn processes_are_chosen_by_what_they_are() {
    let choice = Choice {
        pids: vec![Pid(1)],
        names: vec!["node".into(), "nginx".into()],
        cgroups: vec!["system.slice/a.service".into()],
    };
    let config = parsed("--name node --name nginx --cgroup system.slice/a.service --pid 1 --follow");
    assert_eq!((config.recording.subject, config.recording.follow), (Subject::Chosen(choice), true));
}

#[test]
fn a_command_keeps_its_own_options() {
    let command = CommandLine {
        program: "node".into(),
        arguments: vec!["--pid".into(), "0".into(), "--".into(), "doctor".into()],
        as_root: true,
    };
    assert_eq!(
        parsed("--as-root -d 1s -- node --pid 0 -- doctor").recording.subject,
        Subject::Command(command)
    );
}

#[test]
fn other_commands_are_told_apart() {
    assert_eq!(parse("doctor").ok(), Some(Action::Doctor { color: ColorChoice::Auto }));
    let plan = PlanConfig {
        pid: Pid(7),
        gate: false,
        declarations: Declarations::default(),
        color: ColorChoice::Always,
    };
    assert_eq!(parse("plan --pid 7 --color always").ok(), Some(Action::Plan(plan)));
}

#[test]
fn wrong_usage_says_what_is_wrong() {
    let cases = [
        ("", "--pid"),
        ("--pid 0", "begin at 1"),
        ("--pid node", "pgrep"),
        ("--pid -5", "-5"),
        ("--pid 4294967296", "pgrep"),
        ("--pid 4194305", "end at 4194304"),
        ("--pid 1 --pid 1", "--pid 1 is given twice"),
        ("--pid 1 -- ls", "cannot be used with"),
        ("--pid 1 --as-root", "cannot be used with"),
        ("--as-root", "COMMAND"),
        ("--pid 1 doctor", "doctor"),
        ("plan", "--pid"),
        ("plan --pid 0", "begin at 1"),
        ("--pid 1 -d 0s", "more than nothing"),
        ("--pid 1 -d 30", "30s"),
        ("--pid 1 -d -30s", "-3"),
        ("--pid 1 --interval 1ms", "at least 10ms"),
        ("--pid 1 -d 5s --mark-after 5s", "nothing would be left"),
        ("--pid 1 --tui -q", "cannot be used with"),
        ("--pid 1 --min-size many", "512KiB"),
        ("--pid 1 --min-size 2KiB --max-size 1KiB", "nothing can be both"),
        ("--pid 1 --max-live 0", "1.."),
        ("--pid 1 --include native", "managed"),
        ("--pid 1 -o leak.png", "leak.png"),
        ("--pid 1 -o -", "--format"),
        ("--pid 1 -o a.svg -o a.svg", "given twice"),
        ("--pid 1 --format svg", "--output"),
        ("--pid 1 --format png -o -", "png"),
        ("--pid 1 -q -v", "cannot be used with"),
        ("--name node -- node", "cannot be used with"),
        ("--cgroup a -- node", "cannot be used with"),
        ("--pid 1 --sample 2GiB", "at most 1.0 GiB"),
        ("--pid 1 --sample often", "512KiB"),
        ("--pid 1 --mode growth --min-size 4096", "--min-size is about allocations"),
        ("--pid 1 --mode leaks", "growth"),
        ("--pid 1 --max-overhead 5%", "unexpected argument '--max-overhead'"),
        ("--pid 1 --allocator lib.so", "libpool.so:malloc="),
        ("--pid 1 --allocator lib.so:get=put", "known are malloc"),
        ("--pid 1 --symbol-prefix my-", "not a symbol"),
    ];
    for (arguments, reason) in cases {
        let message = refused(arguments);
        assert!(message.contains(reason), "{arguments:?}: {message}");
    }
}

#[test]
fn defaults_stand_in_the_help() {
    let help = Cli::command().render_long_help().to_string();
    for expected in
        ["[default: 10]", "[default: 0s]", "[default: 1s]", "[default: one for every", "-- <COMMAND>"]
    {
        assert!(help.contains(expected), "{expected}: {help}");
    }
}

#[test]
fn a_process_does_not_choose_the_directory_of_its_report() {
    assert_eq!(default_output("node", Pid(4)), PathBuf::from("tracer-node-4.svg"));
    assert_eq!(default_output("../a b/c\n", Pid(4)), PathBuf::from("tracer-.._a_b_c_-4.svg"));
}
