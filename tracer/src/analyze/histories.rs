//! The decision, put to the test: thousands of made-up histories of which it is known what they are, and how often they are taken for
//! something else.
//!
//! The rates stand in docs/analysis.md, and a test compares: with `TRACER_BLESS` set, it writes them there.

use std::{env, fs, path::Path, thread, time::Duration};

use tracer_ebpf::stack::StackId;

use super::{
    causes,
    growth::{Births, Turnover, judge},
    history::{History, Source},
    jit::Judged,
    outcome::tests::bare,
    verdict::{self, Facts},
};
use crate::model::{Bytes, Memory, Part, PartSize, StackReport};

/// Of each kind, exact and sampled.
const HISTORIES: u64 = 10_000;

/// Numbers that are the same in every run.
struct Chance(u64);

impl Chance {
    /// Between 0 and 1 (splitmix64, <https://prng.di.unimi.it/splitmix64.c>).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64
    }

    fn between(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.unit()
    }

    /// As often between 1 and 10 as between 10 and 100.
    fn of_any_scale(&mut self, least: f64, most: f64) -> f64 {
        self.between(least.ln(), most.ln()).exp()
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).max(1e-12).ln()
    }

    fn is(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }
}

/// Born and gone in seconds of the window, gone after its end if it stays.
#[derive(Clone, Copy)]
struct Made {
    born: f64,
    gone: f64,
    bytes: f64,
}

/// What happened, and when blocks from before the window were freed, of how many bytes together.
#[derive(Default)]
struct Story {
    blocks: Vec<Made>,
    older_freed: Vec<f64>,
    older_bytes: f64,
}

const STAYS: f64 = f64::INFINITY;

/// What a history is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Truth {
    Leak,
    SmallLeak,
    RareLeak,
    Cache,
    Sawtooth,
    Queue,
    Turnover,
    RampThatEnds,
}

impl Truth {
    const ALL: [Self; 8] = [
        Self::Leak,
        Self::SmallLeak,
        Self::RareLeak,
        Self::Cache,
        Self::Sawtooth,
        Self::Queue,
        Self::Turnover,
        Self::RampThatEnds,
    ];

    const fn is_leak(self) -> bool {
        matches!(self, Self::Leak | Self::SmallLeak | Self::RareLeak)
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Leak => {
                "leak of 16 to 2,000 blocks, 32 KiB or more, evenly or at random, half of them under turnover, a third beside garbage from before"
            }
            Self::SmallLeak => "the same of less than 32 KiB",
            Self::RareLeak => "leak of 2 to 15 large blocks",
            Self::Cache => {
                "cache that fills within 60 % of the window, evenly or slowing down, and then replaces little"
            }
            Self::Sawtooth => "sawtooth: batches freed 4 to 40 times",
            Self::Queue => "queue of a constant length, blocks live a fiftieth to three times the window",
            Self::Turnover => "turnover, lifetimes of a two-hundredth to a fifth of the window on average",
            Self::RampThatEnds => "ramp that ends after 20 to 70 % of the window",
        }
    }

    fn story(self, window: f64, chance: &mut Chance) -> Story {
        match self {
            Self::Leak => leak(window, chance, false),
            Self::SmallLeak => leak(window, chance, true),
            Self::RareLeak => rare_leak(window, chance),
            Self::Cache => cache(window, chance),
            Self::Sawtooth => sawtooth(window, chance),
            Self::Queue => queue(window, chance),
            Self::Turnover => turnover(window, chance),
            Self::RampThatEnds => ramp(window, chance),
        }
    }
}

/// Sizes around a mean, or all the same.
fn sizes(mean: f64, chance: &mut Chance) -> impl FnMut(&mut Chance) -> f64 + use<> {
    let is_even = chance.is(0.5);
    move |chance| if is_even { mean } else { (mean * chance.between(0.2, 1.8)).max(1.0) }
}

fn evenly_or_at_random(number: usize, from: f64, to: f64, chance: &mut Chance) -> Vec<f64> {
    if chance.is(0.5) {
        let step = (to - from) / number as f64;
        let phase = chance.unit();
        (0..number).map(|index| from + step * (index as f64 + phase)).collect()
    } else {
        (0..number).map(|_| chance.between(from, to)).collect()
    }
}

fn leak(window: f64, chance: &mut Chance, is_small: bool) -> Story {
    const SMALL: f64 = 32768.0;
    loop {
        let story = leak_of_any_size(window, chance);
        let leaked: f64 =
            story.blocks.iter().filter(|block| block.gone == STAYS).map(|block| footprint(block.bytes)).sum();
        if (leaked < SMALL) == is_small {
            return story;
        }
    }
}

fn leak_of_any_size(window: f64, chance: &mut Chance) -> Story {
    let number = chance.of_any_scale(16.0, 2000.0) as usize;
    let mean = chance.of_any_scale(16.0, 65536.0);
    let mut size = sizes(mean, chance);
    let mut blocks: Vec<Made> = evenly_or_at_random(number, 0.0, window, chance)
        .into_iter()
        .map(|born| Made { born, gone: STAYS, bytes: size(chance) })
        .collect();
    if chance.is(0.5) {
        // As many blocks on their way at most as are leaked.
        let life = window * chance.of_any_scale(0.002, 0.05);
        let on_their_way = (number as f64 * chance.unit()).max(1.0);
        blocks.extend(traffic(window, on_their_way / life, life, mean, chance));
    }
    let (older_freed, older_bytes) =
        if chance.is(0.3) { garbage(window, mean, chance) } else { Default::default() };
    Story { blocks, older_freed, older_bytes }
}

/// What was garbage when the window opened, and is collected in one to three goes: when, and of how many bytes.
fn garbage(window: f64, mean: f64, chance: &mut Chance) -> (Vec<f64>, f64) {
    let goes = chance.between(1.0, 3.999) as usize;
    let times: Vec<f64> = (0..goes)
        .flat_map(|_| {
            let number = chance.of_any_scale(10.0, 4000.0) as usize;
            vec![chance.between(0.0, window); number]
        })
        .collect();
    let bytes = mean * times.len() as f64;
    (times, bytes)
}

fn rare_leak(window: f64, chance: &mut Chance) -> Story {
    let number = chance.between(2.0, 16.0) as usize;
    let mut size = sizes(chance.of_any_scale(65536.0, 33_554_432.0), chance);
    let blocks = evenly_or_at_random(number, 0.0, window, chance)
        .into_iter()
        .map(|born| Made { born, gone: STAYS, bytes: size(chance) })
        .collect();
    Story { blocks, ..Story::default() }
}

/// Blocks that come at random and live for a while.
fn traffic(window: f64, per_second: f64, life: f64, mean: f64, chance: &mut Chance) -> Vec<Made> {
    const MOST: usize = 4000;
    let mut size = sizes(mean, chance);
    let (mut blocks, mut born) = (Vec::new(), 0.0);
    let per_second = per_second.min(MOST as f64 / window);
    loop {
        born += chance.exponential(1.0 / per_second);
        if born >= window {
            return blocks;
        }
        blocks.push(Made { born, gone: born + chance.exponential(life), bytes: size(chance) });
    }
}

fn cache(window: f64, chance: &mut Chance) -> Story {
    let number = chance.of_any_scale(8.0, 2000.0) as usize;
    let from = window * chance.between(0.0, 0.15);
    let to = window * chance.between(0.16, 0.6);
    let mean = chance.of_any_scale(16.0, 65536.0);
    let mut size = sizes(mean, chance);
    let slows_down = chance.is(0.5);
    let mut blocks: Vec<Made> = evenly_or_at_random(number, from, to, chance)
        .into_iter()
        .map(|at| {
            // Three in four of what is left to fill in each quarter of the time.
            let part = (at - from) / (to - from);
            let born = if slows_down { from + (to - from) * part * part } else { at };
            Made { born, gone: STAYS, bytes: size(chance) }
        })
        .collect();
    if chance.is(0.3) {
        blocks.extend(traffic(window, chance.between(1.0, 20.0) / window, window / 100.0, mean, chance));
    }
    Story { blocks, ..Story::default() }
}

fn sawtooth(window: f64, chance: &mut Chance) -> Story {
    let period = window / chance.between(4.0, 40.0);
    let number = chance.of_any_scale(4.0, 100.0) as usize;
    let mut size = sizes(chance.of_any_scale(16.0, 65536.0), chance);
    let phase = chance.between(0.0, period);
    let mut blocks = Vec::new();
    let mut begin = -phase;
    while begin < window {
        for index in 0..number {
            let born = begin + period * (index as f64 + chance.unit()) / number as f64;
            if (0.0..window).contains(&born) {
                blocks.push(Made { born, gone: begin + period, bytes: size(chance) });
            }
        }
        begin += period;
    }
    let before = (number as f64 * phase / period) as usize;
    Story { blocks, older_freed: vec![period - phase; before], ..Story::default() }
}

fn queue(window: f64, chance: &mut Chance) -> Story {
    let life = window * chance.of_any_scale(0.02, 3.0);
    let number = chance.of_any_scale(20.0, 2000.0);
    let mut size = sizes(chance.of_any_scale(16.0, 65536.0), chance);
    let step = window / number;
    let mut story = Story::default();
    let mut born = -life + chance.between(0.0, step);
    while born < window {
        let bytes = size(chance);
        let gone = born + life * chance.between(0.95, 1.05);
        if born >= 0.0 {
            story.blocks.push(Made { born, gone, bytes });
        } else if gone < window {
            story.older_freed.push(gone);
            story.older_bytes += bytes;
        }
        born += step;
    }
    story
}

fn turnover(window: f64, chance: &mut Chance) -> Story {
    let life = window * chance.of_any_scale(0.005, 0.2);
    let on_their_way = chance.of_any_scale(2.0, 300.0);
    let mean = chance.of_any_scale(16.0, 65536.0);
    let blocks = traffic(window, on_their_way / life, life, mean, chance);
    // It had begun before, or begins now.
    let before = if chance.is(0.7) { on_their_way as usize } else { 0 };
    let older_freed: Vec<f64> =
        (0..before).map(|_| chance.exponential(life)).filter(|&gone| gone < window).collect();
    let older_bytes = older_freed.len() as f64 * mean;
    Story { blocks, older_freed, older_bytes }
}

fn ramp(window: f64, chance: &mut Chance) -> Story {
    let number = chance.of_any_scale(8.0, 2000.0) as usize;
    let end = window * chance.between(0.2, 0.7);
    let mut size = sizes(chance.of_any_scale(16.0, 65536.0), chance);
    let blocks = evenly_or_at_random(number, 0.0, end, chance)
        .into_iter()
        .map(|born| Made { born, gone: STAYS, bytes: size(chance) })
        .collect();
    Story { blocks, ..Story::default() }
}

/// What the decision makes of a story: `leaking` of the verdict.
fn decide(story: &Story, window: f64, sample_bytes: f64, chance: &mut Chance) -> Option<bool> {
    let window_ns = (window * 1e9) as u64;
    let spacing = spacing_for(window);
    let times = (window / spacing) as usize;
    let mut changes = vec![0.0; times + 2];
    let mut births = Births::new(0, window_ns);
    let (mut allocated, mut freed, mut left, mut variance, mut objects) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let mut held = 0.0;
    for block in &story.blocks {
        let stays = block.gone >= window;
        held += if stays { footprint(block.bytes) } else { 0.0 };
        let kept = if sample_bytes > 0.0 { 1.0 - (-block.bytes / sample_bytes).exp() } else { 1.0 };
        if !chance.is(kept) {
            continue;
        }
        let (bytes, weight) = (block.bytes / kept, 1.0 / kept);
        let at = |second: f64| ((second / spacing).ceil() as usize).min(times + 1);
        changes[at(block.born)] += bytes;
        changes[at(block.gone.min(window + 2.0 * spacing))] -= bytes;
        allocated += weight;
        if stays {
            births.add((block.born * 1e9) as u64, Bytes(bytes as u64));
            left += bytes;
            objects += weight;
            variance += (1.0 - kept) * bytes * bytes;
        } else {
            freed += weight;
        }
    }
    let source = Source::Native(StackId::new(1));
    let mut history = History::new(1);
    let mut size = 0.0;
    for (index, change) in changes.iter().take(times + 1).enumerate() {
        size += change;
        let second = index as f64 * spacing;
        history.push((second * 1e9) as u64, [(source, Bytes(size.max(0.0) as u64))]);
        if sample_bytes == 0.0 {
            history
                .note_older_frees(story.older_freed.iter().filter(|&&freed| freed <= second).count() as u64);
        }
    }
    let turnover = Turnover {
        allocated_objects: allocated as u64,
        freed_objects: freed as u64,
        births,
        standard_error: Bytes(variance.sqrt() as u64),
        times: births.blocks(),
        is_one_in_use: false,
        is_housekeeping: false,
    };
    let judgement = judge(&history.of(source), &turnover);
    let stack = StackReport {
        weight_bytes: left as u64,
        outstanding_bytes: left as u64,
        outstanding_objects: objects as u64,
        allocated_objects: allocated as u64,
        freed_objects: freed as u64,
        freed_bytes: freed as u64,
        verdict: Some(judgement.verdict),
        reason: Some(judgement.reason.to_owned()),
        ..bare()
    };
    let stacks = [Judged { stack, source, births, variance }];
    let causes = causes::find(&stacks, &history, &[]);
    let [Judged { stack, .. }] = stacks;
    // Files are read besides, more or less.
    let part = |part, grown: f64| PartSize {
        part,
        before_bytes: 1 << 24,
        after_bytes: (1 << 24) + grown as i64,
        runtime: None,
        estimated: false,
        note: None,
    };
    let memory = Memory {
        rss_before_bytes: None,
        rss_after_bytes: None,
        parts: vec![
            part(Part::Native, held - story.older_bytes),
            part(Part::Allocator, chance.between(-65536.0, 65536.0)),
            part(Part::File, chance.between(0.0, 524_288.0)),
        ],
        allocators: Vec::new(),
    };
    let freed_older_blocks = story.older_freed.len() as u64;
    let facts = Facts {
        window: Duration::from_nanos(window_ns),
        had: Duration::from_nanos(window_ns),
        memory: Some(&memory),
        stacks: &[stack],
        causes: &causes,
        sample_bytes: sample_bytes as u64,
        freed_older_blocks,
        evenly_freed_older_blocks: history.evenly_freed_older_blocks().unwrap_or(freed_older_blocks),
        shared_memory: 0,
        outstanding: &[],
        runtime: None,
        allocator: Some("glibc"),
        program: "service",
        python_objects: false,
    };
    verdict::of(&facts).leaking
}

/// What glibc needs for a block.
fn footprint(bytes: f64) -> f64 {
    (bytes + 16.0).max(32.0)
}

/// As `History` thins: 200 ms, doubled until at most 64 fit.
fn spacing_for(window: f64) -> f64 {
    let mut spacing = 0.2;
    while window / spacing > (History::CAPACITY - 1) as f64 {
        spacing *= 2.0;
    }
    spacing
}

/// How often so many histories were convicted, acquitted, and left open.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    convicted: u64,
    acquitted: u64,
    open: u64,
}

fn rates(truth: Truth, is_sampled: bool, number: u64) -> Rates {
    let mut rates = Rates::default();
    for index in 0..number {
        let mut chance = Chance(index * 1_000_003 + truth as u64 * 7919 + u64::from(is_sampled));
        let window = chance.of_any_scale(6.4, 600.0);
        let story = truth.story(window, &mut chance);
        let mean =
            if is_sampled { [16384.0, 65536.0, 524_288.0][(chance.unit() * 2.999) as usize] } else { 0.0 };
        match decide(&story, window, mean, &mut chance) {
            Some(true) => rates.convicted += 1,
            Some(false) => rates.acquitted += 1,
            None => rates.open += 1,
        }
    }
    rates
}

fn rates_of_all() -> Vec<(Truth, bool, Rates)> {
    let all = Truth::ALL.iter().flat_map(|&truth| [false, true].map(|is_sampled| (truth, is_sampled)));
    let threads: Vec<_> = all
        .map(|(truth, is_sampled)| {
            thread::spawn(move || (truth, is_sampled, rates(truth, is_sampled, HISTORIES)))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn row((truth, is_sampled, rates): &(Truth, bool, Rates)) -> String {
    let percent = |number: u64| format!("{:.2} %", 100.0 * number as f64 / HISTORIES as f64);
    let data = if *is_sampled { "sampled" } else { "exact" };
    let Rates { convicted, acquitted, open } = *rates;
    let (convicted, acquitted, open) = (percent(convicted), percent(acquitted), percent(open));
    format!("| {} | {data} | {convicted} | {acquitted} | {open} |\n", truth.title())
}

const BEGIN: &str = "<!-- histories: measured -->\n";
const END: &str = "<!-- histories: end -->";

#[test]
fn hardly_a_leak_is_acquitted_hardly_anything_else_convicted_and_the_document_says_how_often() {
    let measured = rates_of_all();
    let rows: String = measured.iter().map(row).collect();
    for (truth, is_sampled, rates) in &measured {
        let (wrong, most) = if truth.is_leak() {
            (rates.acquitted, HISTORIES / 1000)
        } else {
            (rates.convicted, HISTORIES / 200)
        };
        assert!(wrong < most, "{truth:?}, sampled: {is_sampled}: {rates:?}\n{rows}");
    }
    let head = "| history | data | convicted | acquitted | unknown |\n|---|---|--:|--:|--:|\n";
    let table = format!("{head}{rows}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/analysis.md");
    let document = fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("the document has a place for it");
    let (written, after) = rest.split_once(END).expect("the place has an end");
    if env::var_os("TRACER_BLESS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(written, table, "TRACER_BLESS=1 writes it");
    }
}

#[test]
fn ordinary_histories_are_decided() {
    let measured: Vec<_> = [Truth::Leak, Truth::Cache, Truth::Sawtooth, Truth::Turnover]
        .map(|truth| (truth, rates(truth, false, 500)))
        .into();
    for (truth, rates) in measured {
        let right = if truth.is_leak() { rates.convicted } else { rates.acquitted };
        assert!(right >= 250, "{truth:?}: {rates:?}");
    }
}
