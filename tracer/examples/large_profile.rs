//! Writes a made-up recording of a size that real ones seldom have, to measure and test reports with:
//! `cargo run --release --example large_profile -- 100000 60 large.json.gz`
//!
//! Stacks share their outer callers, as those of a program do, and the functions of a large code base lie behind them.
//! Equal arguments give equal files.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracer::model::*;
use tracer::report::Options;
use tracer::report::destination::Destination;

/// Places in the code, each a frame that stacks have in common.
const PLACES: usize = 50_000;

const SECOND: u64 = 1_000_000_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [stacks, frames, output] = &arguments[..] else {
        anyhow::bail!("usage: large_profile STACKS FRAMES OUTPUT")
    };
    let stacks = stacks.parse().context("STACKS is a number")?;
    let frames = frames.parse().context("FRAMES is a number")?;
    let output = Destination::parse(Path::new(output), None)?;
    output.write(&profile(stacks, frames), &Options::default())?;
    Ok(())
}

fn profile(number: usize, depth: usize) -> Profile {
    let mut dice = Dice(7);
    let places: Vec<Arc<Frame>> = (0..PLACES).map(|place| Arc::new(frame(place, &mut dice))).collect();
    let mut stacks: Vec<StackReport> = Vec::with_capacity(number);
    for _ in 0..number {
        // Outermost first: some callers of an earlier stack, then a way of its own.
        let shared = match stacks.is_empty() {
            true => Vec::new(),
            false => {
                let other = &stacks[dice.below(stacks.len())].frames;
                let kept = depth / 3 + dice.below(depth - depth / 3);
                other.iter().rev().take(kept).cloned().collect()
            }
        };
        let mut frames = shared;
        frames.resize_with(depth, || Arc::clone(&places[dice.below(PLACES)]));
        frames.reverse();
        stacks.push(stack(frames, &mut dice));
    }
    stacks.sort_by_key(|stack| std::cmp::Reverse(stack.weight_bytes));
    let totals = Totals::of(&stacks);
    Profile {
        schema: SCHEMA.into(),
        tracer_version: env!("CARGO_PKG_VERSION").into(),
        target: Process {
            pid: Pid(4242),
            comm: "service".into(),
            exe: Some("/srv/service".into()),
            command: vec!["/srv/service".into()],
            from: None,
            end: None,
        },
        not_probed: vec![],
        processes: vec![],
        window: Window {
            started_at: "2026-11-22T13:05:12Z".into(),
            duration_ns: 600 * SECOND,
            end: Some(End::Interrupted),
        },
        settings: Settings {
            mode: Mode::Allocations,
            sample_bytes: 0,
            min_age_ns: 0,
            min_size: None,
            max_size: None,
            max_live: 1 << 24,
        },
        overhead: None,
        events: Events {
            allocations: totals.allocated_objects,
            frees: totals.freed_objects,
            ..Events::default()
        },
        memory: Some(Memory {
            rss_before_bytes: Some(1 << 30),
            rss_after_bytes: Some((1 << 30) + totals.weight_bytes),
            parts: vec![],
            allocators: Vec::new(),
        }),
        timeline: (0..=600)
            .map(|i| TimelinePoint {
                t_ns: i * SECOND,
                rss_bytes: (1 << 30) + totals.weight_bytes / 600 * i,
                outstanding_bytes: totals.weight_bytes / 600 * i,
                managed_bytes: None,
            })
            .collect(),
        totals,
        stacks,
        verdict: None,
        causes: Vec::new(),
    }
}

fn stack(frames: Vec<Arc<Frame>>, dice: &mut Dice) -> StackReport {
    let (size, objects) = (16 + dice.below(4096) as u64, 1 + dice.below(200) as u64);
    StackReport {
        pid: None,
        process: None,
        standard_error_bytes: None,
        kind: Kind::Native,
        api: ["malloc", "calloc", "realloc"][dice.below(3)].into(),
        weight_bytes: size * objects,
        outstanding_bytes: size * objects,
        outstanding_objects: objects,
        allocated_bytes: 3 * size * objects,
        allocated_objects: 3 * objects,
        freed_bytes: 2 * size * objects,
        freed_objects: 2 * objects,
        resident_bytes: None,
        oldest_age_ns: Some(dice.below(600) as u64 * SECOND),
        median_age_ns: None,
        reason: None,
        growth_bytes_per_second: Some((size * objects) as f64 / 600.0),
        history_bytes: (0..24).map(|i| size * objects * i / 23).collect(),
        verdict: Some(Verdict::Growing),
        complete: true,
        stop: None,
        frames,
    }
}

fn frame(place: usize, dice: &mut Dice) -> Frame {
    let offset = 0x1000 + 16 * place as u64;
    let function = place / 4;
    let has_source = function.is_multiple_of(4);
    Frame {
        ip: Address(0x5555_5555_0000 + offset),
        function: Some(format!(
            "service::module_{}::Worker<std::string>::handle_{function}(std::vector<int> const&)",
            function % 200
        )),
        module: Some("service".into()),
        build_id: Some("0123456789abcdef0123456789abcdef01234567".into()),
        offset: Some(format!("{offset:#x}")),
        function_offset: None,
        // Most libraries come without debug information.
        file: has_source
            .then(|| format!("/build/service/src/module_{}/worker_{}.cc", function % 200, function % 3_000)),
        line: has_source.then(|| 1 + dice.below(3_000) as u32),
        inlined: false,
        language: has_source.then(|| "c++".into()),
    }
}

/// The generator of Numerical Recipes: what it gives need not be good, only the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end.max(1)
    }
}
