//! Profiles that the golden tests draw.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::*;

/// Every fixture and its name.
pub fn all() -> Vec<(&'static str, Profile)> {
    vec![
        ("node", node()),
        ("empty", empty()),
        ("idle", idle()),
        ("lossy", lossy()),
        ("incomplete", incomplete()),
        ("several", several()),
        ("hostile", hostile()),
        ("deep", deep()),
        ("min_age", min_age()),
        ("sampled", sampled()),
    ]
}

const SECOND: u64 = 1_000_000_000;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn process(pid: u32, comm: &str) -> Process {
    let exe = format!("/usr/bin/{comm}");
    Process {
        pid: Pid(pid),
        comm: comm.into(),
        command: vec![exe.clone(), "server.js".into()],
        from: None,
        end: None,
        exe: Some(exe),
    }
}

fn causes(causes: &[(&str, u64)]) -> BTreeMap<String, u64> {
    causes.iter().map(|&(cause, number)| (cause.to_owned(), number)).collect()
}

/// A profile of these stacks, with totals that agree with them.
fn profile(stacks: Vec<StackReport>) -> Profile {
    let totals = Totals::of(&stacks);
    Profile {
        schema: SCHEMA.into(),
        tracer_version: "0.1.0".into(),
        target: process(1234, "node"),
        processes: vec![],
        window: Window {
            started_at: "2026-11-22T13:05:12Z".into(),
            duration_ns: 62 * SECOND,
            end: Some(End::Interrupted),
        },
        settings: Settings {
            sample_bytes: 0,
            min_age_ns: 0,
            min_size: None,
            max_size: None,
            mode: Mode::Allocations,
            max_live: 4_194_304,
        },
        overhead: None,
        events: Events {
            allocations: totals.allocated_objects,
            frees: totals.freed_objects,
            unmatched_frees: 311,
            failed_allocations: 0,
            lost: causes(&[("live_table_full", 0), ("missed_free", 0)]),
            incomplete_stacks: causes(&[]),
            unnamed_functions: causes(&[]),
        },
        not_probed: vec![],
        totals,
        memory: None,
        timeline: vec![],
        stacks,
        verdict: None,
        causes: vec![],
    }
}

/// A native stack of which `objects` of `size` bytes each are outstanding and as many were freed.
pub(super) fn stack(api: &str, size: u64, objects: u64, frames: Vec<Frame>) -> StackReport {
    StackReport {
        pid: None,
        process: None,
        kind: Kind::Native,
        api: api.into(),
        weight_bytes: size * objects,
        outstanding_bytes: size * objects,
        outstanding_objects: objects,
        allocated_bytes: 2 * size * objects,
        allocated_objects: 2 * objects,
        freed_bytes: size * objects,
        freed_objects: objects,
        resident_bytes: None,
        standard_error_bytes: None,
        oldest_age_ns: (objects > 0).then_some(61 * SECOND),
        median_age_ns: (objects > 0).then_some(30 * SECOND),
        growth_bytes_per_second: None,
        history_bytes: vec![],
        verdict: None,
        reason: None,
        complete: true,
        stop: None,
        frames: frames.into_iter().map(Arc::new).collect(),
    }
}

pub(super) fn frame(ip: u64, function: &str, module: &str) -> Frame {
    Frame {
        ip: Address(0x7f00_0000_0000 + ip),
        function: Some(function.into()),
        module: Some(module.into()),
        build_id: Some("c0ffee".into()),
        offset: Some(format!("{ip:#x}")),
        ..Frame::default()
    }
}

fn at(frame: Frame, file: &str, line: u32) -> Frame {
    Frame { file: Some(file.into()), line: Some(line), language: Some("c++".into()), ..frame }
}

fn inlined(frame: Frame) -> Frame {
    Frame { inlined: true, ..frame }
}

fn nameless(ip: u64, module: &str) -> Frame {
    Frame { function: None, ..frame(ip, "", module) }
}

fn jit(ip: u64, function: &str) -> Frame {
    Frame {
        ip: Address(ip),
        function: Some(function.into()),
        module: Some("[jit]".into()),
        language: Some("jit".into()),
        ..Frame::default()
    }
}

/// The outer frames of everything that JavaScript calls.
fn under_node(mut inner: Vec<Frame>) -> Vec<Frame> {
    inner.extend([
        frame(0x1000, "v8impl::(anonymous namespace)::FunctionCallbackWrapper::Invoke(v8::FunctionCallbackInfo<v8::Value> const&)", "node"),
        frame(0x1100, "v8::internal::Builtin_HandleApiCall(int, unsigned long*, v8::internal::Isolate*)", "node"),
        jit(0x3e80_0010, "LazyCompile:*handle /srv/app/server.js:18"),
        jit(0x3e80_0200, "Function:~onRequest /srv/app/server.js:7"),
        frame(0x1200, "Builtins_JSEntry", "node"),
        frame(0x1300, "node::InternalMakeCallback(node::Environment*, v8::Local<v8::Object>, v8::Local<v8::Object>, v8::Local<v8::Function>, int, v8::Local<v8::Value>*, node::async_context)", "node"),
        frame(0x1400, "uv__io_poll", "node"),
        frame(0x1500, "uv_run", "node"),
        frame(0x1600, "node::SpinEventLoop(node::Environment*)", "node"),
        frame(0x1700, "main", "node"),
        frame(0x1800, "__libc_start_main", "libc.so.6"),
        nameless(0x1900, "node"),
    ]);
    inner
}

/// A service whose addon leaks, with some mappings beside it and the memory split up.
pub fn node() -> Profile {
    let leak = StackReport {
        growth_bytes_per_second: Some(742_000.0),
        history_bytes: (0..=6).map(|i| i * 7 * MIB).collect(),
        verdict: Some(Verdict::Leaking),
        reason: Some("it grows steadily, and its old blocks are never freed".to_owned()),
        ..stack(
            "malloc",
            64 * KIB,
            702,
            under_node(vec![
                inlined(at(
                    frame(0x500, "(anonymous namespace)::Buffer::Reserve(unsigned long)", "addon.node"),
                    "/srv/app/addon/src/buffer.h",
                    31,
                )),
                at(
                    frame(
                        0x500,
                        "Session::Open(std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > const&)",
                        "addon.node",
                    ),
                    "/srv/app/addon/src/session.cc",
                    42,
                ),
                at(
                    frame(0x600, "OpenSession(napi_env__*, napi_callback_info__*)", "addon.node"),
                    "/srv/app/addon/src/module.cc",
                    17,
                ),
            ]),
        )
    };
    let mapping = StackReport {
        kind: Kind::Mapping,
        weight_bytes: 3 * MIB,
        outstanding_bytes: 64 * MIB,
        resident_bytes: Some(3 * MIB),
        standard_error_bytes: None,
        oldest_age_ns: Some(4 * SECOND),
        ..stack(
            "mmap",
            64 * MIB,
            1,
            vec![frame(0x2000, "node::NewArena()", "node"), frame(0x1700, "main", "node")],
        )
    };
    let reserved = StackReport {
        kind: Kind::Mapping,
        weight_bytes: 0,
        resident_bytes: Some(0),
        ..stack("mmap", MIB << 20, 1, vec![frame(0x1700, "main", "node")])
    };
    let managed = StackReport {
        kind: Kind::Managed,
        ..stack(
            "mmap",
            256 * KIB,
            12,
            vec![frame(
                0x2200,
                "v8::base::OS::Allocate(void*, unsigned long, unsigned long, v8::base::OS::MemoryPermission)",
                "node",
            )],
        )
    };
    let small = stack(
        "operator new(unsigned long)",
        72,
        1_024,
        under_node(vec![frame(
            0x700,
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "addon.node",
        )]),
    );
    let strdup = stack(
        "malloc",
        17,
        1,
        vec![
            frame(0x800, "strdup", "libc.so.6"),
            nameless(0x900, "addon.node"),
            frame(0x1700, "main", "node"),
        ],
    );
    let freed = stack("calloc", 512, 0, under_node(vec![]));
    let part = |part, before: i64, after: i64, note: Option<&str>| PartSize {
        part,
        before_bytes: before,
        after_bytes: after,
        runtime: (part == Part::Managed).then(|| "V8".to_owned()),
        estimated: false,
        note: note.map(str::to_owned),
    };
    Profile {
        memory: Some(Memory {
            rss_before_bytes: Some(88 * MIB),
            rss_after_bytes: Some(88 * MIB + 47 * MIB),
            parts: vec![
                part(Part::Native, 12 << 20, 56 << 20, None),
                part(Part::Mapping, 0, 3 << 20, None),
                part(Part::Managed, 40 << 20, 41 << 20, Some("V8")),
                part(Part::Allocator, 6 << 20, 5 << 20, Some("freed by the program, kept by glibc")),
                part(Part::File, 30 << 20, 30 << 20, None),
            ],
            allocators: vec![AllocatorMemory {
                name: Some("glibc".into()),
                file: "libc.so.6".into(),
                resident_bytes: 61 << 20,
                kept_before_bytes: 6 << 20,
                kept_after_bytes: 5 << 20,
                trimmable_bytes: Some(3 << 20),
                is_whole_file: true,
            }],
        }),
        timeline: (0..=6)
            .map(|i| TimelinePoint {
                t_ns: i * 10 * SECOND,
                rss_bytes: 88 * MIB + i * 8 * MIB,
                outstanding_bytes: i * 7 * MIB,
                managed_bytes: Some(40 * MIB + i % 3 * MIB),
            })
            .collect(),
        verdict: Some(VerdictSummary {
            summary: "leaking 42.5 MiB/min in `addon.node: Session::Open` below `OpenSession` (by `g_strdup` → `g_malloc`), in 37 stacks (93 % of the growth)"
                .into(),
            leaking: Some(true),
            growth_bytes_per_second: Some(742_000.0),
        }),
        causes: vec![
            Cause {
                place: "addon.node: Session::Open".into(),
                by: vec!["g_strdup".into(), "g_malloc".into()],
                below: Some("OpenSession".into()),
                called_from: None,
                first_touch: false,
                kind: Kind::Native,
                verdict: Verdict::Leaking,
                reason: "it grows steadily, and its old blocks are never freed".to_owned(),
                weight_bytes: 44 * MIB,
                outstanding_objects: 702,
                freed_objects: 0,
                objects_of_new_processes: 0,
                standard_error_bytes: None,
                growth_bytes_per_second: Some(742_000.0),
                history_bytes: (0..=6).map(|i| i * 7 * MIB).collect(),
                stacks: 37,
                processes: 1,
            },
            Cause {
                place: "node: node::NewArena".into(),
                by: vec![],
                below: None,
                called_from: None,
                first_touch: false,
                kind: Kind::Mapping,
                verdict: Verdict::Unknown,
                reason: "it was not watched long enough".to_owned(),
                weight_bytes: 3 * MIB,
                outstanding_objects: 1,
                freed_objects: 0,
                objects_of_new_processes: 0,
                standard_error_bytes: None,
                growth_bytes_per_second: None,
                history_bytes: vec![],
                stacks: 1,
                processes: 1,
            },
        ],
        ..profile(vec![leak, managed, mapping, small, strdup, freed, reserved])
    }
}

/// Everything was freed.
pub fn empty() -> Profile {
    profile(vec![StackReport {
        allocated_objects: 1_200,
        freed_objects: 1_200,
        ..stack("malloc", 48, 0, under_node(vec![]))
    }])
}

/// The target made no allocator call.
pub fn idle() -> Profile {
    let mut profile = profile(vec![]);
    profile.events.unmatched_frees = 0;
    profile.window.end = Some(End::Duration);
    profile
}

/// The live table was too small, and another cause that this version does not know.
pub fn lossy() -> Profile {
    let mut profile = profile(vec![stack(
        "malloc",
        100,
        1_000,
        vec![frame(0x10, "leak", "leaky"), frame(0x20, "main", "leaky")],
    )]);
    profile.target = process(99, "leaky");
    profile.window.end = Some(End::TargetExited);
    profile.events.allocations = 20_000;
    profile.events.lost = causes(&[("live_table_full", 12_345), ("missed_free", 0), ("solar_flare", 1)]);
    profile
}

/// Walks that stopped early.
pub fn incomplete() -> Profile {
    let cut = |stop: &str, frames| StackReport {
        complete: false,
        stop: Some(stop.into()),
        ..stack("malloc", 4_096, 30, frames)
    };
    let mut profile = profile(vec![
        cut(
            "frame_pointer_lost",
            vec![frame(0x10, "BIO_new", "libcrypto.so.3"), nameless(0x20, "libcrypto.so.3")],
        ),
        cut("not_delivered", vec![]),
        StackReport { stop: None, ..cut("", vec![frame(0x30, "g_malloc", "libglib-2.0.so.0")]) },
    ]);
    profile.events.incomplete_stacks =
        causes(&[("frame_pointer_lost", 30), ("not_delivered", 30), ("too_deep", 0), ("cosmic", 1)]);
    profile
}

/// A program that forks.
pub fn several() -> Profile {
    let of = |pid, stack| StackReport { pid: Some(Pid(pid)), ..stack };
    let frames = |inner: &str| vec![frame(0x10, inner, "nginx"), frame(0x20, "main", "nginx")];
    Profile {
        target: process(10, "nginx"),
        processes: vec![process(10, "nginx"), process(11, "nginx"), process(12, "cgi")],
        ..profile(vec![
            of(11, stack("posix_memalign", 16 * KIB, 64, frames("ngx_create_pool"))),
            of(12, stack("malloc", 1_000, 3, frames("ngx_alloc"))),
            of(10, stack("malloc", 1_000, 2, frames("ngx_alloc"))),
            of(77, stack("malloc", 1_000, 1, vec![])),
        ])
    }
}

/// Names made to break what shows them.
pub fn hostile() -> Profile {
    let names = [
        "<script>alert(1)</script>",
        "core::array::<[u8; 8]>::new",
        "\u{1b}[2J\u{1b}]0;owned\u{7}",
        "two\nlines\r\n",
        "nul\0 \u{fffe} \u{202e}desrever",
        "ends like a count 12 34",
        "",
        "   ",
        "\"quotes\" & 'ampersands' &amp; ]]> --> <!-- (and (nested (parentheses",
        "f_[k]",
        "größe::日本語",
    ];
    let mut frames: Vec<_> = names
        .iter()
        .zip(1..)
        .map(|(name, ip)| at(frame(ip, name, "lib\u{1b}[31m.so"), "a;b\n<c>.cc", 7))
        .collect();
    frames.push(frame(0xff, &"Outer<".repeat(400), "lib.so"));
    let mut profile = profile(vec![stack("my alloc 12\n", 5_000, 3, frames)]);
    profile.target.comm = "<b>\u{1b}[1m;x".into();
    profile.target.command = vec!["a\0b".into()];
    profile.not_probed = vec![NotProbed {
        module: "lib\u{1b}[31m.so".into(),
        function: "operator new".into(),
        why: "it can return from too many places".into(),
    }];
    profile
}

/// A recursion of a thousand frames.
pub fn deep() -> Profile {
    let mut frames: Vec<_> = (0..1_000).map(|i| at(frame(i, "descend(int)", "deep"), "deep.cc", 3)).collect();
    frames.push(frame(0x2000, "main", "deep"));
    profile(vec![stack("malloc", 128, 10, frames)])
}

/// Only what is old counts, and settings that are not the usual ones.
pub fn min_age() -> Profile {
    let mut profile = node();
    profile.memory = None;
    profile.verdict = None;
    profile.settings.min_age_ns = 30 * SECOND;
    profile.settings.sample_bytes = 512 * KIB;
    profile.settings.min_size = Some(Bytes(16));
    profile.window.end = Some(End::TargetExec);
    profile.overhead = Some(Overhead::new(60e9, 1.86e9));
    profile
}

/// Estimated from a sample: one stack that many samples tell, and one of a single sample.
pub fn sampled() -> Profile {
    let estimated = |size, objects, error, function| StackReport {
        standard_error_bytes: Some(error),
        ..stack(
            "malloc",
            size,
            objects,
            vec![frame(0x700, function, "service"), frame(0x1700, "main", "service")],
        )
    };
    let mut profile = profile(vec![
        estimated(64 * KIB, 1_600, 5 * MIB, "Session::Open"),
        estimated(512 * KIB, 1, 512 * KIB, "Log::Write"),
    ]);
    profile.settings.sample_bytes = 512 * KIB;
    profile
}
