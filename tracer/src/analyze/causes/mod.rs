//! Who is to blame for what is held: causes instead of stacks.
//!
//! One reason to hold memory shows as many stacks: a function that makes an object of twenty parts, a parser that calls itself, code
//! that is compiled anew, the workers of a service. None of them may say enough, or anything. What they have in common is a function:
//! the *cause* is the one nearest to the allocator through which nearly all goes that leaks together, and that allocates for nobody
//! else.
//!
//! 1. Each stack is entered at the function that *asked* (`callers`): what allocates for others is passed over.
//! 2. Of all functions from there outwards, the one whose stacks together leak most says how much there is to explain, and of those
//!    through which nearly all of that goes the nearest to the allocator is the cause.
//! 3. Where that function only calls several that leak, each at a pace of its own, these are causes instead.
//! 4. Its stacks are explained; the same again with the rest, until nothing leaks. What is left is put together by who asked for it.

mod callers;
mod roles;
mod together;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use tracer_ebpf::event::MappingCall;

use self::{
    callers::{FunctionId, Way, Ways},
    roles::Role,
};
use super::{
    growth::{self, Judgement},
    history::History,
    jit::{self, Judged, judge_as_one},
};
use crate::model::{Cause, Frame, Kind, Process, StackReport, Verdict};

pub use self::callers::place_name;

/// What goes through a function is nearly all if it is so much, in percent.
const NEARLY_ALL: u64 = 90;

/// So many causes that leak are looked for; what leaks besides is put together by who asked.
const MOST_LEAKS: usize = 32;

/// So many functions are judged until one is found that leaks: those that hold most.
const MOST_JUDGED: usize = 256;

/// The causes of what stacks hold, those that leak first, then by weight. Every stack of a kind that counts is in one of them, if it
/// holds anything.
#[must_use]
pub fn find(stacks: &[Judged], history: &History, processes: &[Process]) -> Vec<Cause> {
    let mut left: Vec<usize> = (0..stacks.len()).filter(|&index| holds(&stacks[index].stack)).collect();
    let ways = Ways::of(stacks, history, processes);
    let search = Search { stacks, history, processes, ways: &ways, gone: Gone::among(stacks) };
    let mut causes = Vec::new();
    for program in ways.programs() {
        let mut banned = HashSet::new();
        for _ in 0..MOST_LEAKS {
            let mut own = left.iter().copied().filter(|&index| ways.of_stack(index).program == program);
            let suspects: Vec<usize> =
                own.by_ref().filter(|&index| is_suspect(&stacks[index].stack)).collect();
            let Some((function, explained)) = search.leak(&suspects, &mut banned) else { break };
            causes.push(search.cause(function, &explained));
            let explained: HashSet<usize> = explained.into_iter().collect();
            left.retain(|index| !explained.contains(index));
        }
    }
    let mut rest: BTreeMap<(usize, FunctionId), Vec<usize>> = BTreeMap::new();
    for &index in &left {
        let way = ways.of_stack(index);
        rest.entry((way.program, way.asked())).or_default().push(index);
    }
    causes.extend(rest.into_iter().map(|((_, function), stacks)| search.cause(function, &stacks)));
    causes.sort_by_key(|cause| (cause.verdict != Verdict::Leaking, std::cmp::Reverse(cause.weight_bytes)));
    causes
}

/// Whether two causes leave as many blocks as each other, or one twice as many: it may be one thing that holds both, and one of them says
/// better what that is.
#[must_use]
pub fn go_in_step(a: &Cause, b: &Cause) -> bool {
    let branch = |cause: &Cause| together::Branch {
        weight: cause.weight_bytes,
        objects: cause.outstanding_objects,
        leaks: true,
        error: 0.0,
    };
    let (a_branch, b_branch) = (branch(a), branch(b));
    let is_exact = a.standard_error_bytes.is_none() && b.standard_error_bytes.is_none();
    is_exact && together::show_a_pace(&a_branch, &b_branch) && together::go_in_step(&a_branch, &b_branch)
}

/// Leaves it open whether few blocks leak of which nothing was freed, where a collector of garbage (of a runtime that has one) may not
/// have run yet: none does before so much has come. A request that leaves a buffer to Ruby looks like a leak until then.
pub fn leave_open_what_may_be_garbage(causes: &mut [Cause]) {
    const MANY: u64 = 64;
    /// Ruby's `GC_MALLOC_LIMIT_MIN`; V8 and HotSpot wait for more.
    const MUCH: u64 = 16 << 20;

    let is_uncollected = |cause: &&mut Cause| {
        cause.verdict == Verdict::Leaking
            && cause.outstanding_objects < MANY
            && cause.weight_bytes < MUCH
            && cause.freed_objects <= cause.outstanding_objects / 20
    };
    for cause in causes.iter_mut().filter(is_uncollected) {
        cause.verdict = Verdict::Unknown;
        cause.reason = "it is little, and may be garbage that has not been collected yet".to_owned();
    }
}

/// Leaves what a reader looks at: causes of at least a thousandth of what is held, the heaviest ones.
pub fn leave_out_small(causes: &mut Vec<Cause>) {
    const MOST: usize = 64;
    const LEAST: u64 = 1000;

    let all = sum(causes.iter().map(|cause| cause.weight_bytes));
    causes.retain(|cause| cause.weight_bytes > 0 && cause.weight_bytes >= all / LEAST);
    causes.truncate(MOST);
}

fn holds(stack: &StackReport) -> bool {
    stack.kind.counts_by_default() && (stack.weight_bytes > 0 || stack.outstanding_objects > 0)
}

/// Whether what it holds may be a part of a leak: not of a stack that frees what it allocates, nor of one that stopped long ago, which
/// its own blocks are enough to tell.
fn is_suspect(stack: &StackReport) -> bool {
    let is_told = stack.outstanding_objects >= growth::FEWEST_BLOCKS;
    match stack.verdict {
        Some(Verdict::Steady) => false,
        Some(Verdict::OneOff) => !is_told,
        _ => true,
    }
}

struct Search<'a> {
    stacks: &'a [Judged],
    history: &'a History,
    processes: &'a [Process],
    ways: &'a Ways,
    gone: Gone,
}

/// Stacks of which everything was freed, and that differ only in code that was compiled anew from others that hold something.
struct Gone {
    places: Vec<Vec<usize>>,
    /// The place of each of those others.
    of: HashMap<usize, usize>,
}

impl Gone {
    fn among(stacks: &[Judged]) -> Self {
        let (mut places, mut of) = (Vec::new(), HashMap::new());
        for group in jit::alike(stacks) {
            let (gone, others): (Vec<usize>, Vec<usize>) =
                group.into_iter().partition(|&index| jit::is_gone(&stacks[index]));
            if !gone.is_empty() {
                of.extend(others.into_iter().map(|index| (index, places.len())));
                places.push(gone);
            }
        }
        Self { places, of }
    }

    /// Those of the same places as these.
    fn beside(&self, stacks: &[usize]) -> Vec<usize> {
        let places: HashSet<usize> = stacks.iter().filter_map(|index| self.of.get(index).copied()).collect();
        places.into_iter().flat_map(|place| self.places[place].iter().copied()).collect()
    }
}

impl Search<'_> {
    /// The function to blame for the largest leak, and the stacks that this explains.
    fn leak(&self, suspects: &[usize], banned: &mut HashSet<FunctionId>) -> Option<(FunctionId, Vec<usize>)> {
        loop {
            let (_, most) = self.largest_leak(suspects, banned)?;
            let (function, explained) = self.nearest_that_explains(&most, banned);
            if self.is_one_cause(function, &explained) {
                return Some(self.with_what_goes_in_step(function, explained, &most, banned));
            }
            banned.insert(function);
        }
    }

    /// The function whose stacks together leak most.
    fn largest_leak(
        &self,
        suspects: &[usize],
        banned: &HashSet<FunctionId>,
    ) -> Option<(FunctionId, Vec<usize>)> {
        let mut through = self.through(suspects, banned);
        through.sort_by_key(|(function, stacks)| (std::cmp::Reverse(self.weight(stacks)), *function));
        through.into_iter().take(MOST_JUDGED).find(|(_, stacks)| self.leaks(stacks))
    }

    /// Of the functions through which nearly all of these stacks goes, the nearest to the allocator. What is young may be on its way: it
    /// counts only where there is hardly anything else.
    fn nearest_that_explains(&self, all: &[usize], banned: &HashSet<FunctionId>) -> (FunctionId, Vec<usize>) {
        const HARDLY_ANYTHING: u64 = 10;
        let is_young = self.old_weight(all) < self.weight(all) / HARDLY_ANYTHING;
        let weight = |stacks: &[usize]| if is_young { self.weight(stacks) } else { self.old_weight(stacks) };
        let enough = weight(all) / 100 * NEARLY_ALL;
        let through = self.through(all, banned).into_iter();
        let explaining = through.filter(|(_, stacks)| weight(stacks) >= enough && self.leaks(stacks));
        let nearest = explaining.min_by(|a, b| {
            let distance = |(function, stacks): &(FunctionId, Vec<usize>)| self.distance(*function, stacks);
            distance(a).total_cmp(&distance(b)).then(a.0.cmp(&b.0))
        });
        nearest.unwrap_or_else(|| (self.ways.of_stack(all[0]).asked(), all.to_vec()))
    }

    /// The nearest function through which more goes, if that leaks in step with what goes through this one: it makes both.
    fn with_what_goes_in_step(
        &self,
        function: FunctionId,
        explained: Vec<usize>,
        all: &[usize],
        banned: &HashSet<FunctionId>,
    ) -> (FunctionId, Vec<usize>) {
        let is_explained: HashSet<usize> = explained.iter().copied().collect();
        let branch = self.branch(&explained);
        let more = self.through(all, banned).into_iter().filter(|(_, stacks)| {
            let others: Vec<usize> =
                stacks.iter().copied().filter(|index| !is_explained.contains(index)).collect();
            let rest = self.branch(&others);
            !others.is_empty()
                && others.len() + explained.len() == stacks.len()
                && together::show_a_pace(&branch, &rest)
                && together::go_in_step(&branch, &rest)
        });
        let nearest = more
            .min_by(|a, b| self.distance(a.0, &a.1).total_cmp(&self.distance(b.0, &b.1)).then(a.0.cmp(&b.0)));
        nearest.unwrap_or((function, explained))
    }

    /// Every function that may be blamed, and the stacks through it.
    fn through(&self, stacks: &[usize], banned: &HashSet<FunctionId>) -> Vec<(FunctionId, Vec<usize>)> {
        let mut through: HashMap<FunctionId, Vec<usize>> = HashMap::new();
        for &index in stacks {
            for &(function, _) in &self.ways.of_stack(index).blamable {
                if !banned.contains(&function) {
                    through.entry(function).or_default().push(index);
                }
            }
        }
        through.into_iter().collect()
    }

    /// How far from who asked a function is, in frames, on average over what its stacks weigh.
    fn distance(&self, function: FunctionId, stacks: &[usize]) -> f64 {
        let far = |&index: &usize| {
            let weight = self.stacks[index].stack.weight_bytes.max(1) as f64;
            let at = self.ways.of_stack(index).distance(function).unwrap_or(0);
            (weight * at as f64, weight)
        };
        let (far, weight) =
            stacks.iter().map(far).fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        far / weight
    }

    /// Whether what leaks through a function leaks together, and not in several functions that it calls, each at a pace of its own.
    fn is_one_cause(&self, function: FunctionId, stacks: &[usize]) -> bool {
        let mut branches: BTreeMap<Option<FunctionId>, Vec<usize>> = BTreeMap::new();
        for &index in stacks {
            branches.entry(self.ways.of_stack(index).callee_of(function)).or_default().push(index);
        }
        let branches: Vec<together::Branch> =
            branches.into_values().map(|stacks| self.branch(&stacks)).collect();
        together::is_one(&branches)
    }

    fn branch(&self, stacks: &[usize]) -> together::Branch {
        together::Branch {
            weight: self.weight(stacks),
            objects: stacks
                .iter()
                .map(|&index| self.stacks[index].stack.outstanding_objects)
                .max()
                .unwrap_or(0),
            leaks: self.leaks(stacks),
            error: self.error(stacks),
        }
    }

    fn weight(&self, stacks: &[usize]) -> u64 {
        sum(stacks.iter().map(|&index| self.stacks[index].stack.weight_bytes))
    }

    /// What of it is left of the first half of the window.
    fn old_weight(&self, stacks: &[usize]) -> u64 {
        sum(stacks.iter().map(|&index| self.stacks[index].births.bytes_of_first_half()))
    }

    fn objects(&self, stacks: &[usize]) -> u64 {
        sum(stacks.iter().map(|&index| self.stacks[index].stack.outstanding_objects))
    }

    /// How far numbers of blocks may be off, as a part of them: where they are estimated from a sample, by as many as were kept.
    fn error(&self, stacks: &[usize]) -> f64 {
        let is_sampled = stacks.iter().any(|&index| self.stacks[index].variance > 0.0);
        let kept = stacks.iter().map(|&index| self.stacks[index].births.blocks()).max().unwrap_or(0);
        if is_sampled { 1.0 / (kept.max(1) as f64).sqrt() } else { 0.0 }
    }

    fn leaks(&self, stacks: &[usize]) -> bool {
        self.judge(stacks).0 == Verdict::Leaking
    }

    /// What stacks say together; of a single one, what it says itself.
    fn judge(&self, stacks: &[usize]) -> (Verdict, String) {
        if let [index] = *stacks
            && let StackReport { verdict: Some(verdict), reason: Some(reason), .. } =
                &self.stacks[index].stack
        {
            return (*verdict, reason.clone());
        }
        let Judgement { verdict, reason } = self.judge_as_one(stacks);
        if verdict == Verdict::Leaking && !self.leaks_within_a_process(stacks) {
            return (
                Verdict::Unknown,
                "it comes with new processes, and none of them leaks by itself".to_owned(),
            );
        }
        (verdict, reason.to_owned())
    }

    fn judge_as_one(&self, stacks: &[usize]) -> Judgement {
        let gone = self.gone.beside(stacks);
        judge_as_one(stacks.iter().chain(&gone).map(|&index| &self.stacks[index]), self.history)
    }

    /// Whether what leaks does so in processes that were there from the start, or in one that came: what each new one needs to begin with
    /// adds up like a leak as workers are replaced.
    fn leaks_within_a_process(&self, stacks: &[usize]) -> bool {
        let mut by_process: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
        for &index in stacks {
            by_process.entry(self.new_process(index)).or_default().push(index);
        }
        by_process.keys().all(Option::is_none)
            || by_process.values().any(|stacks| self.judge_as_one(stacks).verdict == Verdict::Leaking)
    }

    /// The process of a stack, if it came during the window.
    fn new_process(&self, stack: usize) -> Option<u32> {
        let process = self.stacks[stack].stack.process?;
        self.processes.get(process as usize)?.from.map(|_| process)
    }

    fn cause(&self, function: FunctionId, stacks: &[usize]) -> Cause {
        let (verdict, reason) = self.judge(stacks);
        let history = self.history.sum_of(stacks.iter().map(|&index| self.stacks[index].source));
        let variance: f64 = stacks.iter().map(|&index| self.stacks[index].variance).sum();
        let ways: Vec<(&Way, u64)> = stacks
            .iter()
            .map(|&index| (self.ways.of_stack(index), self.stacks[index].stack.weight_bytes))
            .collect();
        let heaviest = stacks.iter().max_by_key(|&&index| self.stacks[index].stack.weight_bytes);
        let place = self.ways.place(function);
        Cause {
            by: self.ways.by(function, &ways),
            below: self.ways.caller(function, &ways),
            called_from: heaviest
                .map(|&index| &self.stacks[index].stack.frames)
                // Where such a function is blamed itself, nobody else is to be named.
                .filter(|frames| frames.iter().all(|frame| frame.function.as_ref() != Some(&place)))
                .and_then(|frames| runtime_caller(frames)),
            place,
            first_touch: heaviest
                .is_some_and(|&index| self.stacks[index].stack.api == MappingCall::PageFault.name()),
            kind: heaviest.map_or(Kind::Native, |&index| self.stacks[index].stack.kind),
            verdict,
            reason,
            weight_bytes: self.weight(stacks),
            outstanding_objects: self.objects(stacks),
            freed_objects: sum(stacks.iter().map(|&index| self.stacks[index].stack.freed_objects)),
            objects_of_new_processes: self.objects(
                &stacks
                    .iter()
                    .copied()
                    .filter(|&index| self.new_process(index).is_some())
                    .collect::<Vec<_>>(),
            ),
            standard_error_bytes: (variance > 0.0).then(|| variance.sqrt().round() as u64),
            growth_bytes_per_second: growth::rate(&history),
            history_bytes: super::outcome::evenly_spaced(&history),
            stacks: stacks.len() as u64,
            processes: stacks
                .iter()
                .map(|&index| self.stacks[index].stack.process)
                .collect::<HashSet<_>>()
                .len() as u64,
        }
    }
}

/// `handle (service.js:36)`, of the innermost function that is written in a language with a runtime and is not the runtime's own; of one
/// that belongs to no installed package, if there is one.
fn runtime_caller(frames: &[Arc<Frame>]) -> Option<String> {
    let file = |frame: &&Arc<Frame>| frame.file.clone().unwrap_or_default();
    let is_installed = |frame: &&Arc<Frame>| PACKAGES.iter().any(|place| file(frame).contains(place));
    let is_the_programs = |frame: &&Arc<Frame>| match frame.language.as_deref() {
        Some("javascript") => frame.file.is_some() && !file(frame).starts_with("node:"),
        Some("python") => frame.file.is_some() && (is_installed(frame) || !is_pythons_own(&file(frame))),
        Some("java") => frame.line.is_some() && Role::of(frame) == Role::Own,
        _ => false,
    };
    let mut own = frames.iter().filter(is_the_programs);
    let frame = own.clone().find(|frame| !is_installed(frame)).or_else(|| own.next())?;
    let file = frame.file.as_deref().map(|file| file.rsplit('/').next().unwrap_or(file))?;
    let line = frame.line.map_or_else(String::new, |line| format!(":{line}"));
    Some(format!("{} ({file}{line})", frame.label()))
}

/// Where packages are installed.
const PACKAGES: [&str; 3] = ["/node_modules/", "/site-packages/", "/dist-packages/"];

/// Whether a file is of Python's standard library: in `lib/python3.11`, or in the interpreter itself.
fn is_pythons_own(file: &str) -> bool {
    let in_library = file.split_once("/lib/python3").is_some_and(|(_, rest)| {
        rest.split('/').next().is_some_and(|version| version.starts_with('.') || version.is_empty())
    });
    in_library || file.starts_with("<frozen ")
}

fn sum(figures: impl Iterator<Item = u64>) -> u64 {
    figures.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests;
