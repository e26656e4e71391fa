//! `/metrics`: which there are, and what they are called.
//!
//! A series is one subject's, or one of at most [`MOST_CAUSES`] causes of it: their number grows with the machine, not with time.

use std::{collections::BTreeMap, time::UNIX_EPOCH};

use super::{
    exposition::{
        Family,
        Kind::{Counter, Gauge},
    },
    own::Cost,
};
use crate::watch::{
    container::Runtime,
    reading::LimitOwner,
    store::{Entry, State},
    view::{Outcome, REQUEST, SubjectView, View, bounded},
};

/// Causes of one subject.
pub(super) const MOST_CAUSES: usize = 20;

/// Answers by their status.
pub(super) type Answers = BTreeMap<u16, u64>;

/// All of them.
pub(super) fn families(view: &View, cost: &Cost, answers: &Answers) -> Vec<Family> {
    let mut families = of_subjects(&view.subjects, &view.conditions);
    families.push(of_oom_kills(&view.oom_kills));
    families.extend(of_recordings(view));
    families.extend(of_leaks(&view.recordings));
    families.extend(of_the_service(view, cost, answers));
    families
}

fn of_subjects(subjects: &[SubjectView], conditions: &[String]) -> Vec<Family> {
    let each = |name, kind, help, value: fn(&SubjectView) -> Option<f64>| {
        let mut family = Family::new(name, kind, help);
        for subject in subjects {
            if let Some(value) = value(subject) {
                family.add(&[("subject", &subject.name)], value);
            }
        }
        family
    };
    vec![
        info(subjects),
        each(
            "tracer_watch_memory_usage_bytes",
            Gauge,
            "Memory that counts against the limit of a subject, page cache included; of processes by themselves, what is resident.",
            |subject| Some(subject.reading.usage_bytes.0 as f64),
        ),
        each(
            "tracer_watch_memory_working_set_bytes",
            Gauge,
            "Usage without files that were not used for long.",
            |subject| Some(subject.reading.working_set_bytes.0 as f64),
        ),
        each(
            "tracer_watch_memory_limit_bytes",
            Gauge,
            "The nearest limit: the subject's own, that of a group above it, or the machine's memory.",
            |subject| Some(subject.reading.limit.bytes.0 as f64),
        ),
        each(
            "tracer_watch_memory_limit_used_bytes",
            Gauge,
            "Memory that counts against the nearest limit, whoever uses it.",
            |subject| Some(subject.reading.limit.used_bytes.0 as f64),
        ),
        parts(subjects),
        events(subjects),
        pressure(subjects),
        each(
            "tracer_watch_memory_pressure_waiting_seconds",
            Counter,
            "Time in which some task of the subject waited for memory.",
            |subject| subject.reading.pressure.map(|pressure| pressure.some_total_us as f64 / 1e6),
        ),
        each(
            "tracer_watch_resident_memory_bytes",
            Gauge,
            "Resident memory of the processes of a subject.",
            |subject| Some(subject.reading.rss_bytes.0 as f64),
        ),
        each("tracer_watch_processes", Gauge, "Processes of a subject.", |subject| {
            Some(subject.reading.processes as f64)
        }),
        each(
            "tracer_watch_growth_bytes_per_second",
            Gauge,
            "Growth of anonymous memory over the last ten minutes: the median of the slopes between all pairs of looks.",
            |subject| subject.growth,
        ),
        each("tracer_watch_recording", Gauge, "Whether a subject is being recorded.", |subject| {
            Some(f64::from(u8::from(subject.is_recorded)))
        }),
        holding(subjects, conditions),
    ]
}

fn info(subjects: &[SubjectView]) -> Family {
    let mut family = Family::new(
        "tracer_watch_subject_info",
        Gauge,
        "Who a subject is, and whose its limit is. Labels that are not known are empty.",
    );
    for SubjectView { name, identity, reading, .. } in subjects {
        let known = |field: &Option<String>| bounded(field.as_deref().unwrap_or_default());
        let limit = match reading.limit.whose {
            LimitOwner::Own => "own",
            LimitOwner::Above => "above",
            LimitOwner::Machine => "machine",
        };
        let labels = [
            ("subject", name.as_str()),
            ("limit", limit),
            ("runtime", identity.runtime.map_or("", Runtime::name)),
            ("container_id", &known(&identity.container_id)),
            ("pod_uid", &known(&identity.pod_uid)),
            ("namespace", &known(&identity.namespace)),
            ("pod", &known(&identity.pod)),
            ("container", &known(&identity.container)),
        ];
        family.add(&labels, 1.0);
    }
    family
}

fn parts(subjects: &[SubjectView]) -> Family {
    let mut family = Family::new(
        "tracer_watch_memory_part_bytes",
        Gauge,
        "Parts of the memory of a subject, by their names in memory.stat. They overlap: shmem is a part of file, slab of kernel.",
    );
    for SubjectView { name, reading, .. } in subjects {
        for (part, bytes) in reading.parts.named() {
            family.add(&[("subject", name), ("part", part)], bytes.0 as f64);
        }
    }
    family
}

fn events(subjects: &[SubjectView]) -> Family {
    let mut family = Family::new(
        "tracer_watch_memory_events",
        Counter,
        "What happened to a subject for want of memory, by the names in memory.events. Version 1 of control groups counts max and oom_kill alone.",
    );
    for SubjectView { name, reading, .. } in subjects {
        for (event, count) in reading.events.named() {
            family.add(&[("subject", name), ("event", event)], count as f64);
        }
    }
    family
}

fn of_oom_kills(kills: &BTreeMap<String, u64>) -> Family {
    let mut family = Family::new(
        "tracer_watch_oom_kills",
        Counter,
        "Processes of a subject that the kernel killed for want of memory, since the service was started. Those of a subject that is gone are \
         there for a day.",
    );
    for (subject, kills) in kills {
        family.add(&[("subject", subject)], *kills as f64);
    }
    family
}

fn pressure(subjects: &[SubjectView]) -> Family {
    let mut family = Family::new(
        "tracer_watch_memory_pressure_ratio",
        Gauge,
        "Part of the last 10 seconds in which some or all tasks of a subject waited for memory.",
    );
    for SubjectView { name, reading, .. } in subjects {
        let Some(pressure) = reading.pressure else { continue };
        for (tasks, ratio) in [("some", pressure.some), ("all", pressure.full)] {
            family.add(&[("subject", name), ("tasks", tasks)], ratio);
        }
    }
    family
}

fn holding(subjects: &[SubjectView], conditions: &[String]) -> Family {
    let mut family = Family::new(
        "tracer_watch_condition_holds",
        Gauge,
        "Whether a condition to record a subject has held for its time.",
    );
    // A condition that is given twice is one series.
    let is_first = |index: usize| !conditions[..index].contains(&conditions[index]);
    for SubjectView { name, holding, .. } in subjects {
        let all = conditions.iter().zip(holding).enumerate().filter(|(index, _)| is_first(*index));
        for (_, (condition, holding)) in all {
            let holds = f64::from(u8::from(holding.holds));
            family.add(&[("subject", name), ("condition", &bounded(condition))], holds);
        }
    }
    family
}

fn of_recordings(view: &View) -> Vec<Family> {
    let mut ended = Family::new(
        "tracer_watch_recordings",
        Counter,
        "Recordings that have ended since the start, by what asked for them and what came of them.",
    );
    // What has not happened yet is 0: a first one is an increase.
    let mut counts: BTreeMap<(&str, Outcome), u64> = BTreeMap::new();
    for trigger in view.conditions.iter().map(String::as_str).chain([REQUEST]) {
        counts.extend(Outcome::ALL.map(|outcome| ((trigger, outcome), 0)));
    }
    counts.extend(
        view.tally
            .recordings
            .iter()
            .map(|((trigger, outcome), &count)| ((trigger.as_str(), *outcome), count)),
    );
    for ((trigger, outcome), count) in counts {
        ended.add(&[("trigger", &bounded(trigger)), ("outcome", outcome.name())], count as f64);
    }
    let mut last = Family::new(
        "tracer_watch_last_recording_timestamp_seconds",
        Gauge,
        "When the last recording of a subject began that left a report.",
    );
    for (subject, entry) in last_reports(&view.recordings) {
        last.add(&[("subject", &subject)], entry.started as f64);
    }
    let bytes: u64 = view.recordings.iter().map(|entry| entry.bytes).sum();
    vec![
        ended,
        last,
        Family::new("tracer_watch_recordings_running", Gauge, "Recordings that go on.")
            .with(&[], view.ongoing as f64),
        Family::new("tracer_watch_recordings_limit", Gauge, "Recordings that there may be at a time.")
            .with(&[], view.at_most as f64),
        Family::new(
            "tracer_watch_cpu_budget_seconds",
            Gauge,
            "CPU time that recordings may take in an hour: their own, and that of who is recorded which their probes take.",
        )
        .with(&[], view.cpu_time.an_hour.as_secs_f64()),
        Family::new("tracer_watch_cpu_budget_left_seconds", Gauge, "What is left of that now.")
            .with(&[], view.cpu_time.left.as_secs_f64()),
        Family::new(
            "tracer_watch_cpu_budget_used_up",
            Gauge,
            "Whether somebody should be recorded, and is not, since there is no CPU time left for it.",
        )
        .with(&[], f64::from(u8::from(view.cpu_time.is_waited_for))),
        Family::new("tracer_watch_recordings_kept", Gauge, "Recordings in the directory of the reports.")
            .with(&[], view.recordings.len() as f64),
        Family::new("tracer_watch_reports_bytes", Gauge, "Size of the reports together.")
            .with(&[], bytes as f64),
        Family::new(
            "tracer_watch_lost_events",
            Counter,
            "Events that recordings lost, each of which is counted in its report.",
        )
        .with(&[], view.tally.lost as f64),
    ]
}

/// The last report of each subject, by a name that no other has.
fn last_reports(recordings: &[Entry]) -> BTreeMap<String, &Entry> {
    let with_report =
        recordings.iter().filter(|entry| entry.digest.is_some() && entry.state != State::Failed);
    with_report.map(|entry| (bounded(&entry.subject), entry)).collect()
}

fn of_leaks(recordings: &[Entry]) -> Vec<Family> {
    let mut leaks = Family::new(
        "tracer_watch_leak_bytes_per_second",
        Gauge,
        "Growth of what leaks, by its cause, in the last report of a subject. No series: it did not leak, or nobody knows.",
    );
    for (subject, entry) in last_reports(recordings) {
        let mut by_cause: BTreeMap<String, f64> = BTreeMap::new();
        let causes = entry.digest.iter().flat_map(|digest| &digest.causes);
        for cause in causes.filter(|cause| cause.bytes_per_second > 0.0).take(MOST_CAUSES) {
            // Causes that read the same are one.
            *by_cause.entry(bounded(&cause.cause)).or_default() += cause.bytes_per_second;
        }
        for (cause, rate) in by_cause {
            leaks.add(&[("subject", &subject), ("cause", &cause)], rate);
        }
    }
    vec![leaks]
}

fn of_the_service(view: &View, cost: &Cost, answers: &Answers) -> Vec<Family> {
    let tally = &view.tally;
    let started = tally.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut answered =
        Family::new("tracer_watch_http_responses", Counter, "Answers to requests by HTTP, by their status.");
    for (code, count) in answers {
        answered.add(&[("code", &code.to_string())], *count as f64);
    }
    vec![
        Family::new(
            "tracer_watch_subjects",
            Gauge,
            "Containers, services, groups and processes that are watched.",
        )
        .with(&[], view.subjects.len() as f64),
        Family::new("tracer_watch_looks", Counter, "Looks at all subjects.").with(&[], tally.looks as f64),
        Family::new("tracer_watch_looking_seconds", Counter, "Time that these looks took.")
            .with(&[], tally.looking.as_secs_f64()),
        answered,
        Family::new(
            "tracer_watch_recordings_cpu_seconds",
            Counter,
            "CPU time of the recordings that have ended.",
        )
        .with(&[], tally.took.own.as_secs_f64()),
        Family::new(
            "tracer_watch_probes_cpu_seconds",
            Counter,
            "CPU time that the probes of these recordings took of those who were recorded.",
        )
        .with(&[], tally.took.probes.as_secs_f64()),
        Family::new("process_cpu_seconds", Counter, "CPU time of the service, without that of recordings.")
            .with(&[], cost.cpu_seconds),
        Family::new("process_resident_memory_bytes", Gauge, "Resident memory of the service.")
            .with(&[], cost.resident.0 as f64),
        Family::new("process_open_fds", Gauge, "Files, sockets and pipes that the service has open.")
            .with(&[], cost.descriptors as f64),
        Family::new("process_start_time_seconds", Gauge, "When the service was started.").with(&[], started),
        Family::new("tracer_build_info", Gauge, "Which tracer this is.")
            .with(&[("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)], 1.0),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{
        super::exposition::{Syntax, text},
        *,
    };
    use crate::watch::fixtures;

    fn emitted() -> Vec<Family> {
        families(&fixtures::view(), &Cost::default(), &Answers::from([(200, 3), (404, 1)]))
    }

    fn sample_of(name: &str, subject: &str) -> Option<f64> {
        let families = emitted();
        let family = families.iter().find(|family| family.sample_name() == name).unwrap();
        let is_of = |labels: &[(&str, String)]| labels.contains(&("subject", subject.to_owned()));
        family.samples.iter().find(|sample| is_of(&sample.labels)).map(|sample| sample.value)
    }

    #[test]
    fn they_say_what_was_read() {
        assert_eq!(sample_of("tracer_watch_memory_usage_bytes", "shop/web-0/node"), Some((180 << 20) as f64));
        assert_eq!(sample_of("tracer_watch_memory_limit_bytes", "shop/web-0/node"), Some((200 << 20) as f64));
        assert_eq!(sample_of("tracer_watch_condition_holds", "shop/web-0/node"), Some(1.0));
        assert_eq!(sample_of("tracer_watch_growth_bytes_per_second", "new.service"), None);
        assert_eq!(sample_of("tracer_watch_leak_bytes_per_second", "shop/web-0/node"), Some(3.5e6));
        assert_eq!(sample_of("tracer_watch_leak_bytes_per_second", "new.service"), None);
        let lasting: Vec<Family> =
            emitted().into_iter().filter(|family| family.name != "tracer_build_info").collect();
        insta::assert_snapshot!(text(&lasting, Syntax::OpenMetrics));
    }

    #[test]
    fn no_series_is_there_twice_and_names_are_as_they_should_be() {
        let mut view = fixtures::view();
        view.conditions.push(view.conditions[0].clone());
        view.recordings.extend(view.recordings.clone());
        let mut names = BTreeSet::new();
        for family in families(&view, &Cost::default(), &Answers::new()) {
            let series: BTreeSet<_> = family.samples.iter().map(|sample| sample.labels.clone()).collect();
            assert_eq!(series.len(), family.samples.len(), "{}", family.name);
            assert!(names.insert(family.name), "{}", family.name);
            assert!(!family.name.ends_with("_total") && family.help.ends_with('.'), "{}", family.name);
        }
    }

    #[test]
    fn causes_of_a_subject_are_bounded_in_number_and_length() {
        let mut view = fixtures::view();
        let digest = view.recordings.last_mut().unwrap().digest.as_mut().unwrap();
        let cause = digest.causes[0].clone();
        digest.causes = (0..1000)
            .map(|number| crate::watch::digest::Blamed {
                cause: format!("{number}{}", "x".repeat(5000)),
                ..cause.clone()
            })
            .collect();
        let [leaks] = &of_leaks(&view.recordings)[..] else { panic!("one family") };
        assert_eq!(leaks.samples.len(), MOST_CAUSES);
        assert!(leaks.samples.iter().all(|sample| sample.labels[1].1.chars().count() <= 200));
    }

    /// Words of a text that are names of metrics, or would be.
    fn named_in(text: &str) -> BTreeSet<&str> {
        let words =
            text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != ':');
        words.filter(|word| ["tracer_", "process_"].iter().any(|start| word.starts_with(start))).collect()
    }

    #[test]
    fn rules_and_dashboard_use_metrics_that_exist() {
        let names: BTreeSet<String> = emitted().iter().map(Family::sample_name).collect();
        let files = [
            ("rules", include_str!("../../../../deploy/prometheus/tracer-watch.rules.yml")),
            ("dashboard", include_str!("../../../../deploy/grafana/tracer-watch.json")),
        ];
        for (file, text) in files {
            let named = named_in(text);
            assert!(!named.is_empty(), "{file}");
            for name in named {
                assert!(names.contains(name), "{file}: there is no {name}");
            }
        }
        // Each is in the document.
        let document = include_str!("../../../../docs/watch.md");
        for name in names {
            assert!(document.contains(&format!("`{name}`")), "docs/watch.md lacks {name}");
        }
    }
}
