//! `tracer watch`: its options, and the configuration file, which has a key for each of them.
//!
//! A key's value is read as that of its option, so both are the same by construction. What the command line says goes before the file.

use std::{collections::BTreeMap, error::Error as _, ffi::OsString, fs, path::PathBuf, time::Duration};

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, CommandFactory as _, Parser, ValueEnum, parser::ValueSource,
};
use toml::{Spanned, Value};

use super::{
    config::{Verbosity, WatchConfig},
    heading,
    values::{parse_interval, parse_pid, parse_positive_time, parse_sample, parse_size, parse_time, time},
};
use crate::{
    model::{Bytes, Pid},
    record::CostLimit,
    watch::{
        Config, DEFAULT_CONDITION, Method, PushTarget, Retention,
        condition::{Condition, MIN_GROWTH_LOOKS},
        serve::Listen,
        subject::Selection,
    },
};

/// What the help ends with.
pub(super) const EXAMPLES: &str = "\
Examples:
  sudo tracer watch --check --all                      what would be watched, and whether it may be
  sudo tracer watch --all                              every container and service
  sudo tracer watch --name node --when 'rss > 1GiB'    all processes of a name, together
  sudo tracer watch --config /etc/tracer/watch.toml    as the service of systemd does

The page is at http://127.0.0.1:9497. SIGTERM or Ctrl-C ends it, with a report of what is being recorded.";

/// What `tracer watch` is told.
#[derive(Args, Debug)]
#[group(skip)]
pub(super) struct WatchArguments {
    /// Watch every container and service of the machine.
    #[arg(long, help_heading = heading::TARGET)]
    all: bool,

    /// Watch each container, service or group with processes below this control group (may be repeated).
    #[arg(long = "cgroup", value_name = "PATH", help_heading = heading::TARGET)]
    cgroups: Vec<PathBuf>,

    /// Watch all processes with this name together (may be repeated).
    #[arg(long = "name", value_name = "NAME", help_heading = heading::TARGET)]
    names: Vec<String>,

    /// Watch this process (may be repeated).
    #[arg(short, long = "pid", value_name = "PID", value_parser = parse_pid, help_heading = heading::TARGET)]
    pids: Vec<Pid>,

    /// Record when this holds: `usage > 80% for 5m` (of the limit), `usage > 2GiB`, `growth > 10MiB/min for 10m`, `pressure > 10% for
    /// 1m`; also working_set, anon and rss. May be repeated: any of them counts.
    #[arg(long, value_name = "CONDITION", default_value = DEFAULT_CONDITION, help_heading = heading::WINDOW)]
    when: Vec<Condition>,

    /// How long to record.
    #[arg(long, value_name = "TIME", value_parser = parse_positive_time, default_value = time(Config::default().record), help_heading = heading::WINDOW)]
    record: Duration,

    /// How many recordings may go on at a time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64), default_value_t = 1, help_heading = heading::WINDOW)]
    at_most: u32,

    /// Time between two recordings of one subject.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = time(Config::default().cool_down), help_heading = heading::WINDOW)]
    cool_down: Duration,

    /// Time between two looks at the memory of all subjects.
    #[arg(long, value_name = "TIME", value_parser = parse_interval, default_value = time(Config::default().interval), help_heading = heading::WINDOW)]
    interval: Duration,

    /// What recordings look at: allocations, by probes; growth, which needs none and slows nobody; or auto: allocations where probes take
    /// less than --max-cost, a sample of them where that does, else growth.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = ModeArgument::Auto, help_heading = heading::COUNTED)]
    mode: ModeArgument,

    /// With --mode auto: the most that probes may take of the CPU time of who is recorded. Each way is tried for a tenth of a second, and a
    /// recording in which probes take half as much again later on ends early.
    #[arg(long, value_name = "PERCENT", default_value_t = CostLimit::default(), help_heading = heading::COUNTED)]
    max_cost: CostLimit,

    /// The most that all recordings together may take of the machine's CPU time, over an hour: tracer's own, and what its probes take of
    /// those who are recorded. When it is used up, recordings end early, and the next ones wait.
    #[arg(long, value_name = "PERCENT", default_value_t = Config::default().cpu_budget, help_heading = heading::COUNTED)]
    cpu_budget: CostLimit,

    /// Track only a sample of the allocations, one every SIZE bytes; 0 is all of them.
    #[arg(long, value_name = "SIZE", value_parser = parse_sample, default_value = "0", help_heading = heading::COUNTED)]
    sample: Bytes,

    /// Where the reports and their index go; it is made where it is missing.
    #[arg(long = "dir", value_name = "DIRECTORY", default_value_os_t = Config::default().directory, help_heading = heading::REPORTS)]
    directory: PathBuf,

    /// After each recording, run this command by the shell, for a minute at the most. TRACER_REPORT, TRACER_SUBJECT, TRACER_CONDITION and
    /// TRACER_VERDICT in its environment say what came of it.
    #[arg(long = "exec", value_name = "COMMAND", help_heading = heading::REPORTS)]
    command: Option<String>,

    /// Send the profile of each recording there: `pyroscope=URL`, or `otlp=URL` of an OpenTelemetry collector (may be repeated). A URL may
    /// have a user and a password.
    #[arg(long, value_name = "PROTOCOL=URL", help_heading = heading::REPORTS)]
    push: Vec<PushTarget>,

    /// How many recordings to keep. The last one of each subject always is.
    #[arg(long, value_name = "N", default_value_t = Config::default().retention.count, help_heading = heading::REPORTS)]
    keep: usize,

    /// How long to keep them.
    #[arg(long, value_name = "TIME", value_parser = parse_positive_time, default_value = time(Config::default().retention.age), help_heading = heading::REPORTS)]
    keep_for: Duration,

    /// How large their files may be together.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "2GiB", help_heading = heading::REPORTS)]
    keep_size: Bytes,

    /// Where to serve metrics, a page, reports and profiles: an address and port, `unix:` and a path, or `none`.
    #[arg(long, value_name = "WHERE", default_value_t = Config::default().listen, help_heading = heading::SERVED)]
    listen: Listen,

    /// A file with the token that requests must give (bearer, or the password of any user). Required where other machines can connect.
    #[arg(long, value_name = "FILE", help_heading = heading::SERVED)]
    token_file: Option<PathBuf>,

    /// Read options from a TOML file, with their names as keys: `when = ["usage > 80% for 5m"]`. Read again at SIGHUP.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Check options, privileges and paths, and show what would be watched.
    #[arg(long)]
    check: bool,

    /// Say what tracer does (-vv: everything).
    #[arg(short, long, action = ArgAction::Count, help_heading = heading::TERMINAL)]
    verbose: u8,
}

/// What `--mode` says.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArgument {
    /// Allocations where that costs little, all or a sample; else growth.
    Auto,
    /// Every allocation, and what is not freed.
    Allocations,
    /// What makes the memory grow.
    Growth,
}

/// Options that a file cannot set.
const NOT_IN_FILES: [&str; 4] = ["config", "check", "help", "color"];

/// The options by themselves, as a file gives them.
#[derive(Debug, Parser)]
struct Alone {
    #[command(flatten)]
    _arguments: WatchArguments,
}

/// What the command is called.
pub(super) const NAME: &str = "watch";

impl WatchArguments {
    /// The command line with what the file says in it, where one is named. `words` are the command line, `matches` what it has for this
    /// command.
    pub(super) fn with_file(
        &self,
        matches: &ArgMatches,
        words: &[OsString],
    ) -> Result<Option<Vec<OsString>>, String> {
        let Some(path) = &self.config else { return Ok(None) };
        let read = fs::read_to_string(path).map_err(|error| format!("cannot read it: {error}"));
        let options = read.and_then(|text| options_of(&text));
        let options = options.map_err(|message| format!("--config {}: {message}", path.display()))?;
        Ok(Some(merged(words, options, matches)))
    }

    /// The whole configuration.
    pub(super) fn complete(self) -> Result<WatchConfig, String> {
        let verbosity = match self.verbose {
            0 => Verbosity::Normal,
            1 => Verbosity::Verbose,
            _ => Verbosity::Debug,
        };
        Ok(WatchConfig { check: self.check, verbosity, service: self.service()? })
    }

    fn service(self) -> Result<Config, String> {
        let selection =
            Selection { all: self.all, cgroups: self.cgroups, names: self.names, pids: self.pids };
        if selection.is_empty() {
            return Err("nothing to watch: give --all, --cgroup, --name or --pid".into());
        }
        if let Some(condition) = self.when.iter().find(|condition| !condition.can_hold_at(self.interval)) {
            return Err(format!(
                "--when '{condition}': growth is measured over at least {MIN_GROWTH_LOOKS} looks, which take {} at this --interval",
                humantime::format_duration(self.interval * MIN_GROWTH_LOOKS)
            ));
        }
        Ok(Config {
            selection,
            conditions: self.when,
            record: self.record,
            at_most: self.at_most as usize,
            cool_down: self.cool_down,
            interval: self.interval,
            sample: self.sample,
            mode: match self.mode {
                ModeArgument::Auto => Method::Auto(self.max_cost),
                ModeArgument::Allocations => Method::Allocations,
                ModeArgument::Growth => Method::Growth,
            },
            cpu_budget: self.cpu_budget,
            command: self.command,
            push: self.push,
            directory: self.directory,
            retention: Retention { count: self.keep, age: self.keep_for, bytes: self.keep_size.0 },
            listen: self.listen,
            token_file: self.token_file,
        })
    }
}

/// An option as a file gives it.
struct Given {
    key: String,
    /// What it would be on the command line.
    words: Vec<OsString>,
}

/// The options of a file. An error says the line.
fn options_of(text: &str) -> Result<Vec<Given>, String> {
    let table: BTreeMap<Spanned<String>, Spanned<Value>> = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        format!("line {line}: {}", error.message())
    })?;
    let command = Alone::command();
    let mut options = Vec::new();
    for (key, value) in table {
        let line = line_of(text, key.span().start);
        let key = key.into_inner();
        let words = words_of(&command, &key, value.into_inner())
            .and_then(|words| check_alone(&words).map(|()| words))
            .map_err(|message| format!("line {line}: {key}: {message}"))?;
        options.push(Given { key, words });
    }
    Ok(options)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1
}

/// What a key and its value are on the command line.
fn words_of(command: &Command, key: &str, value: Value) -> Result<Vec<OsString>, String> {
    let named = |option| Some((Arg::get_long(option)?, option));
    let options = command.get_arguments().filter_map(named);
    let options: BTreeMap<&str, &Arg> = options.filter(|(name, _)| !NOT_IN_FILES.contains(name)).collect();
    let Some(option) = options.get(key) else {
        let names: Vec<&str> = options.into_keys().collect();
        return Err(format!("there is no such option; there are {}", names.join(", ")));
    };
    let word = |value: Value| -> Result<OsString, String> {
        let text = match value {
            Value::String(text) => text,
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            other => return Err(format!("{} is no value for it", other.type_str())),
        };
        Ok(format!("--{key}={text}").into())
    };
    match (option.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(true)) => Ok(vec![format!("--{key}").into()]),
        (ArgAction::SetTrue, Value::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err("it is true or false".into()),
        (ArgAction::Append, Value::Array(values)) => values.into_iter().map(word).collect(),
        (_, value) => word(value).map(|word| vec![word]),
    }
}

/// An error of one option is told with its line.
fn check_alone(words: &[OsString]) -> Result<(), String> {
    let parsed = Alone::try_parse_from([OsString::from(NAME)].iter().chain(words));
    parsed.map(drop).map_err(|error| match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string().lines().next().unwrap_or_default().to_owned(),
    })
}

/// The command line with the file's options in it, but for those that it has itself.
fn merged(words: &[OsString], options: Vec<Given>, matches: &ArgMatches) -> Vec<OsString> {
    let command = Alone::command();
    let is_given = |key: &str| {
        let option = command.get_arguments().find(|option| option.get_long() == Some(key));
        let source = option.and_then(|option| matches.value_source(option.get_id().as_str()));
        source == Some(ValueSource::CommandLine)
    };
    let from_file = options.into_iter().filter(|given| !is_given(&given.key)).flat_map(|given| given.words);
    let place = words.iter().position(|word| word == NAME).map_or(words.len(), |place| place + 1);
    let (before, after) = words.split_at(place);
    before.iter().cloned().chain(from_file).chain(after.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::{
        super::{Action, parse_from},
        *,
    };

    fn parse(words: &[&str]) -> Result<WatchConfig, String> {
        let words = ["tracer", "watch"].iter().chain(words).map(OsString::from);
        match parse_from(words) {
            Ok(Action::Watch(config)) => Ok(*config),
            Ok(other) => panic!("another command: {other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    fn with_file(text: &str, words: &[&str]) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        parse(&[&["--config", path], words].concat()).map(|config| config.service)
    }

    #[test]
    fn every_default_is_that_of_the_service() {
        let service = parse(&["--all"]).unwrap().service;
        let all = Selection { all: true, ..Selection::default() };
        assert_eq!(service, Config { selection: all, ..Config::default() });
        assert!(parse(&[]).unwrap_err().contains("nothing to watch"));
    }

    #[test]
    fn growth_is_looked_at_often_enough_to_be_measured() {
        let error = parse(&["--all", "--when", "growth > 1MiB/min for 59s"]).unwrap_err();
        assert!(error.contains("at least 6 looks, which take 1m at this --interval"), "{error}");
        for options in [["--when", "growth > 1MiB/min for 1m"], ["--when", "usage > 80% for 1s"]] {
            assert!(parse(&[&["--all"], &options[..]].concat()).is_ok(), "{options:?}");
        }
        assert!(parse(&["--all", "--when", "growth > 1MiB/min for 3s", "--interval", "500ms"]).is_ok());
    }

    #[test]
    fn a_mode_is_one_of_three_and_has_a_limit_of_cost() {
        let mode = |words: &[&str]| parse(&[&["--all"], words].concat()).map(|config| config.service.mode);
        assert_eq!(mode(&["--max-cost", "2.5%"]), Ok(Method::Auto("2.5%".parse().unwrap())));
        assert_eq!(mode(&["--mode", "growth"]), Ok(Method::Growth));
        assert_eq!(with_file("all = true\nmode = 'allocations'", &[]).unwrap().mode, Method::Allocations);
        assert!(mode(&["--max-cost", "5"]).unwrap_err().contains("such as 5%"));
        let budget = |text: &str| with_file(text, &["--all"]).map(|config| config.cpu_budget);
        assert_eq!(budget("cpu-budget = '0.5%'"), Ok(CostLimit::of_per_mille(5)));
        assert!(
            budget("cpu-budget = 2")
                .unwrap_err()
                .contains("line 1: cpu-budget: it is a part of the CPU time")
        );
    }

    #[test]
    fn a_condition_that_is_wrong_is_shown_with_its_place() {
        let error = parse(&["--all", "--when", "usage > 80% fro 5m"]).unwrap_err();
        assert!(error.contains("  usage > 80% fro 5m\n              ^"), "{error}");
    }

    #[test]
    fn a_file_says_what_the_command_line_does_not() {
        let text = "all = true\nname = ['node', \"php-fpm\"]\npid = 7\nwhen = ['usage > 2GiB']\nat-most = 3\n\
                    keep-size = '1GiB'\ndir = '/srv/reports'\nlisten = 'unix:/run/x'\ntoken-file = '/y'\n\
                    exec = 'mail root < $TRACER_REPORT'\n\
                    push = ['pyroscope=http://u:secret@p:4040/', 'otlp=https://collector']\n";
        let config = with_file(text, &["--at-most", "5"]).unwrap();
        assert_eq!((config.at_most, config.retention.bytes), (5, 1 << 30));
        assert_eq!(config.command.as_deref(), Some("mail root < $TRACER_REPORT"));
        let push: Vec<_> = config.push.iter().map(ToString::to_string).collect();
        assert_eq!(push, ["pyroscope=http://p:4040", "otlp=https://collector"]);
        assert_eq!(config.selection.names, ["node", "php-fpm"]);
        assert_eq!((config.selection.all, config.selection.pids), (true, vec![Pid(7)]));
        assert_eq!(config.conditions[0].to_string(), "usage > 2GiB");
        assert_eq!((config.listen, config.token_file), (Listen::Unix("/run/x".into()), Some("/y".into())));
        // Conditions of the command line are not added to the file's.
        let config = with_file(text, &["--when", "rss > 1GiB"]).unwrap();
        assert_eq!(config.conditions.iter().map(ToString::to_string).collect::<Vec<_>>(), ["rss > 1GiB"]);
        assert!(!with_file("all = false\npid = 1", &[]).unwrap().selection.all);
    }

    #[test]
    fn a_file_that_is_wrong_says_where() {
        let cases = [
            (
                "all = true\nwehn = 'x'",
                "line 2: wehn: there is no such option; there are all, at-most, cgroup",
            ),
            ("config = 'x'", "line 1: config: there is no such option"),
            ("all = true\n\nwhen = 'usage > 80% fro 5m'", "line 3: when: expected `for` and a time"),
            ("record = '5'", "line 1: record: a time is a number and a unit"),
            ("all = 'yes'", "line 1: all: it is true or false"),
            ("listen = 'localhost'", "line 1: listen: it is an address with a port"),
            ("pid = [[1]]", "line 1: pid: array is no value for it"),
            ("all = true\nall = true", "line 2: duplicate key"),
            ("all = ", "line 1:"),
        ];
        for (text, expected) in cases {
            let error = with_file(text, &[]).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(parse(&["--config", "/no/such/file"]).unwrap_err().contains("cannot read it"));
    }
}
