//! A service that has seen something, for the tests of what is shown of it.

use std::time::{Duration, UNIX_EPOCH};

use super::{
    container::{Identity, Runtime},
    digest::{Blamed, Digest},
    engine::ConditionState,
    reading::{Limit, LimitOwner, MemoryEvents, Parts, Pressure, Reading},
    recorder::Took,
    store::{Entry, State},
    view::{CpuTime, EventTotals, Outcome, SubjectView, View},
};
use crate::model::{Bytes, End, Mode, Verdict};

const MIB: u64 = 1 << 20;

/// A name that would do harm where it is taken for markup.
pub const SCRIPT: &str = "<script>alert(1)</script>";

/// A container that leaks, and a service that has just been started.
pub fn view() -> View {
    let mut tally = EventTotals::begun(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    tally.count("usage > 80% for 5m", Outcome::Done);
    (tally.looks, tally.looking, tally.lost) = (7, Duration::from_millis(12), 3);
    tally.took = Took { own: Duration::from_millis(4250), probes: Duration::from_millis(2500) };
    View {
        subjects: vec![leaking(), begun()],
        conditions: vec!["usage > 80% for 5m".into()],
        recordings: vec![failed(), recorded()],
        directory: "/var/lib/tracer".into(),
        tally,
        oom_kills: [("shop/web-0/node", 1), ("new.service", 0), ("gone", 3)]
            .map(|(name, n)| (name.into(), n))
            .into(),
        ongoing: 1,
        at_most: 1,
        cpu_time: CpuTime {
            left: Duration::from_millis(7500),
            an_hour: Duration::from_secs(144),
            is_waited_for: true,
        },
    }
}

fn leaking() -> SubjectView {
    let identity = Identity {
        name: "shop/web-0/node".into(),
        runtime: Some(Runtime::Containerd),
        container_id: Some("0123456789ab".into()),
        pod_uid: Some("11-22".into()),
        namespace: Some("shop".into()),
        pod: Some("web-0".into()),
        container: Some("node".into()),
    };
    let reading = Reading {
        usage_bytes: Bytes(180 * MIB),
        limit: Limit { bytes: Bytes(200 * MIB), used_bytes: Bytes(180 * MIB), whose: LimitOwner::Own },
        working_set_bytes: Bytes(170 * MIB),
        parts: Parts { anon: Bytes(150 * MIB), file: Bytes(20 * MIB), ..Parts::default() },
        events: MemoryEvents { max: 4, oom_kill: 1, ..MemoryEvents::default() },
        pressure: Some(Pressure { some: 0.125, full: 0.02, some_total_us: 1_500_000 }),
        rss_bytes: Bytes(160 * MIB),
        processes: 2,
    };
    let course = (0..60).rev().map(|look| (Duration::from_secs(10 * look), Bytes((180 - look) * MIB)));
    SubjectView {
        name: identity.name.clone(),
        identity,
        reading,
        growth: Some(1024.0),
        course: course.collect(),
        holding: vec![ConditionState { since: Some(Duration::from_secs(60)), holds: true }],
        is_recorded: true,
    }
}

fn begun() -> SubjectView {
    let identity = Identity { name: "new.service".into(), ..Identity::default() };
    SubjectView {
        name: identity.name.clone(),
        identity,
        reading: Reading { usage_bytes: Bytes(MIB), processes: 1, ..Reading::default() },
        growth: None,
        course: vec![(Duration::ZERO, Bytes(MIB))],
        holding: vec![ConditionState::default()],
        is_recorded: false,
    }
}

fn recorded() -> Entry {
    let digest = Digest {
        end: Some(End::OomKilled),
        seconds: 42.5,
        mode: Mode::Allocations,
        verdict: Some(format!("leaking 200.3 MiB/min in `{SCRIPT}`")),
        leaking: Some(true),
        outstanding_bytes: 100 * MIB,
        rss_growth_bytes: Some(90),
        lost: 3,
        causes: vec![
            Blamed {
                cause: "`forget`".into(),
                verdict: Verdict::Leaking,
                bytes: 90 * MIB,
                bytes_per_second: 3.5e6,
            },
            Blamed { cause: "`main`".into(), verdict: Verdict::Steady, bytes: MIB, bytes_per_second: 0.0 },
        ],
    };
    let name = "shop_web-0_node-20270115T080000Z";
    Entry {
        name: name.into(),
        subject: "shop/web-0/node".into(),
        trigger: "usage > 80% for 5m".into(),
        started: 1_800_000_000,
        state: State::Done,
        processes: vec!["node (7)".into()],
        files: [".html", ".json.gz", ".pb.gz"].map(|ending| format!("{name}{ending}")).to_vec(),
        bytes: 12_345,
        oom_kills: 1,
        cpu_seconds: 4.5,
        note: Some("60 % of it is page cache (file), which no allocator holds".into()),
        error: None,
        digest: Some(digest),
    }
}

fn failed() -> Entry {
    Entry {
        name: "old-20270114T080000Z".into(),
        subject: SCRIPT.into(),
        started: 1_799_900_000,
        state: State::Failed,
        files: Vec::new(),
        bytes: 0,
        oom_kills: 0,
        cpu_seconds: 0.0,
        note: None,
        error: Some("no such process".into()),
        digest: None,
        ..recorded()
    }
}
