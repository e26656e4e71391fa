//! Judges stacks together that differ only in code that was compiled as the program ran.
//!
//! A runtime compiles a function again as it gets hot, and from then on what it allocates has another stack: the old one
//! stops, and the new one is too young to be judged. What they have in common is the native code that is called from the
//! compiled: a stack that stopped, or has just begun, is judged as the sum of those that have the same. So is one that seems to leak
//! beside others of which everything was freed: what it holds may only not have been collected yet.

use std::collections::HashMap;
use std::sync::Arc;

use super::growth::{self, Births, Judgement, Turnover};
use super::history::{History, Source};
use super::housekeeping::is_housekeeping;
use crate::model::{Bytes, Frame, StackReport, Verdict};

/// A stack that was judged by itself, and what by.
#[derive(Clone, Debug)]
pub struct Judged {
    pub stack: StackReport,
    /// Where its history is.
    pub source: Source,
    /// When what it holds was allocated.
    pub births: Births,
    /// Of the bytes that it holds, in bytes squared, when they are estimated.
    pub variance: f64,
}

/// Gives stacks through compiled code the verdict of all that differ in it alone, where their own says too little.
pub fn judge_together(stacks: &mut [Judged], history: &History) {
    for group in alike(stacks).into_iter().filter(|group| group.len() > 1) {
        let is_any_gone = group.iter().any(|&index| is_gone(&stacks[index]));
        let is_open = |judged: &Judged| {
            says_little(judged) || (is_any_gone && judged.stack.verdict == Some(Verdict::Leaking))
        };
        if !group.iter().any(|&index| is_open(&stacks[index])) {
            continue;
        }
        let judgement = judge_as_one(group.iter().map(|&index| &stacks[index]), history);
        for index in group {
            let judged = &mut stacks[index];
            if is_open(judged) && judged.stack.weight_bytes > 0 {
                judged.stack.verdict = Some(judgement.verdict);
                judged.stack.reason = Some(judgement.reason.to_owned());
            }
        }
    }
}

/// The stacks that differ only in compiled code, by their places.
pub(super) fn alike(stacks: &[Judged]) -> Vec<Vec<usize>> {
    let mut alike: HashMap<Vec<String>, Vec<usize>> = HashMap::new();
    for (index, judged) in stacks.iter().enumerate() {
        if let (true, Some(key)) = (judged.stack.kind.counts_by_default(), key(&judged.stack)) {
            alike.entry(key).or_default().push(index);
        }
    }
    alike.into_values().collect()
}

/// Whether everything was freed.
pub(super) const fn is_gone(judged: &Judged) -> bool {
    judged.stack.weight_bytes == 0 && judged.stack.outstanding_objects == 0 && judged.stack.freed_objects > 0
}

fn says_little(judged: &Judged) -> bool {
    matches!(judged.stack.verdict, Some(Verdict::Unknown | Verdict::OneOff))
}

/// What stacks say together that were judged each by itself. Those of a runtime's own threads are no evidence of a leak in others.
pub(super) fn judge_as_one<'a>(
    stacks: impl Iterator<Item = &'a Judged> + Clone,
    history: &History,
) -> Judgement {
    let others = stacks.clone().filter(|judged| !is_housekeeping(&judged.stack.frames));
    let are_all_others = others.clone().count() == stacks.clone().count();
    let judgement = judge_sum(stacks.clone(), history, false);
    if judgement.verdict != Verdict::Leaking
        || are_all_others
        || judge_sum(others, history, false).verdict == Verdict::Leaking
    {
        return judgement;
    }
    judge_sum(stacks, history, true)
}

fn judge_sum<'a>(
    stacks: impl Iterator<Item = &'a Judged> + Clone,
    history: &History,
    is_housekeeping: bool,
) -> Judgement {
    let figure = |figure: fn(&StackReport) -> u64| {
        stacks.clone().map(|judged| figure(&judged.stack)).fold(0, u64::saturating_add)
    };
    let births = stacks.clone().map(|judged| judged.births).reduce(Births::and);
    let variance: f64 = stacks.clone().map(|judged| judged.variance).sum();
    let turnover = Turnover {
        allocated_objects: figure(|stack| stack.allocated_objects),
        freed_objects: figure(|stack| stack.freed_objects),
        births: births.unwrap_or(Births::new(0, 0)),
        standard_error: Bytes(variance.sqrt() as u64),
        times: stacks.clone().map(|judged| judged.births.blocks()).max().unwrap_or(0),
        is_one_in_use: false,
        is_housekeeping,
    };
    growth::judge(&history.sum_of(stacks.map(|judged| judged.source)), &turnover)
}

/// What stacks have in common that differ only in compiled code: what is called from there, and by which function. `None`
/// for one that has no such code.
fn key(stack: &StackReport) -> Option<Vec<String>> {
    let caller = stack.frames.iter().position(is_compiled)?;
    let way = stack.frames[..caller].iter().rev().take_while(|frame| is_way_to_native(frame)).count();
    let place = [format!("{:?} {:?} {}", stack.pid, stack.kind, stack.api)];
    Some(place.into_iter().chain(stack.frames[..caller - way].iter().map(|frame| frame.label())).collect())
}

/// Whether it is a function of V8 by which its interpreter comes to functions of C++; optimised code calls them itself.
fn is_way_to_native(frame: &Arc<Frame>) -> bool {
    const WAY: [&str; 3] = ["FunctionCallbackArguments::Call", "HandleApiCall", "InvokeApiFunction"];
    frame
        .function
        .as_deref()
        .is_some_and(|name| name.contains("v8::internal::") && WAY.iter().any(|way| name.contains(way)))
}

/// Whether a frame is code of no file, or what stands for it: V8's interpreter and built-in functions, which compiled code
/// takes the place of.
fn is_compiled(frame: &Arc<Frame>) -> bool {
    let is_jit = frame.language.as_deref() == Some("jit");
    let is_built_in = frame.function.as_deref().is_some_and(|function| function.starts_with("Builtins_"));
    let is_in_file =
        frame.module.as_deref().is_some_and(|module| !module.starts_with('[') || module == "[vdso]");
    let is_interpreted = frame.language.as_deref() == Some("python");
    is_jit || is_built_in || !is_in_file && !is_interpreted
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::stack::StackId;

    use super::*;
    use crate::analyze::outcome::tests::bare;

    const SECOND: u64 = 1_000_000_000;

    fn frame(module: &str, function: &str) -> Arc<Frame> {
        Arc::new(Frame {
            module: Some(module.to_owned()),
            function: Some(function.to_owned()),
            ..Frame::default()
        })
    }

    /// A leak of ten bytes a second, which moves from one stack to the other in the fourth second of twelve.
    fn moved(first: &[Arc<Frame>], second: &[Arc<Frame>]) -> Vec<Option<Verdict>> {
        let (from, to) = (StackId::new(2), StackId::new(3));
        let mut history = History::new(SECOND);
        let mut births = [Births::new(0, 12 * SECOND); 2];
        for second in 0..=12_u64 {
            let sizes = [10 * second.min(3), 10 * second.saturating_sub(3)].map(Bytes);
            history.push(second * SECOND, [(Source::Native(from), sizes[0]), (Source::Native(to), sizes[1])]);
            births[usize::from(second >= 3)].add(second * SECOND, Bytes(10));
        }
        let mut stacks: Vec<_> = [(from, first, 3), (to, second, 9)]
            .into_iter()
            .zip(births)
            .map(|((id, frames, objects), births)| Judged {
                stack: StackReport {
                    frames: frames.to_vec(),
                    allocated_objects: objects,
                    weight_bytes: 10 * objects,
                    verdict: Some(if id == from { Verdict::OneOff } else { Verdict::Unknown }),
                    ..bare()
                },
                source: Source::Native(id),
                births,
                variance: 0.0,
            })
            .collect();
        judge_together(&mut stacks, &history);
        stacks.iter().map(|judged| judged.stack.verdict).collect()
    }

    #[test]
    fn a_leak_goes_on_when_its_caller_is_compiled() {
        let open = || frame("addon.node", "Open");
        let interpreted =
            [open(), frame("node", "Builtins_InterpreterEntryTrampoline"), frame("node", "main")];
        let compiled = [open(), frame("[anon]", "JS:*handle"), frame("node", "main")];
        assert_eq!(moved(&interpreted, &compiled), [Some(Verdict::Leaking); 2]);
    }

    /// What a collector frees in the seventh second of twenty, by a stack that is compiled anew then; what came since is not collected yet.
    #[test]
    fn what_was_collected_until_its_caller_was_compiled_anew_does_not_leak() {
        let (old, new) = (StackId::new(2), StackId::new(3));
        let mut history = History::new(SECOND);
        let mut births = Births::new(0, 20 * SECOND);
        for second in 0..=20_u64 {
            let sizes = [if second < 7 { 10 * second } else { 0 }, 10 * second.saturating_sub(7)].map(Bytes);
            history.push(second * SECOND, [(Source::Native(old), sizes[0]), (Source::Native(new), sizes[1])]);
            (second >= 7).then(|| births.add(second * SECOND, Bytes(10)));
        }
        let judged = |id, caller: &str, left: u64, freed, births, verdict| Judged {
            stack: StackReport {
                frames: vec![frame("node", "Session::New"), frame("[anon]", caller)],
                allocated_objects: left + freed,
                freed_objects: freed,
                outstanding_objects: left,
                weight_bytes: 10 * left,
                verdict: Some(verdict),
                ..bare()
            },
            source: Source::Native(id),
            births,
            variance: 0.0,
        };
        let mut stacks = [
            judged(old, "JS:~open", 0, 70, Births::new(0, 20 * SECOND), Verdict::Steady),
            judged(new, "JS:*open", 13, 0, births, Verdict::Leaking),
        ];
        judge_together(&mut stacks, &history);
        let verdicts = stacks.map(|judged| judged.stack.verdict);
        assert_eq!(verdicts, [Some(Verdict::Steady), Some(Verdict::Growing)]);
    }

    #[test]
    fn how_interpreted_code_comes_to_native_code_makes_no_difference() {
        let v8 = |function| frame("node", &format!("v8::internal::{function}"));
        let interpreted = [
            frame("addon.node", "Open"),
            v8("FunctionCallbackArguments::Call(v8::internal::CallHandlerInfo)"),
            v8("(anonymous namespace)::HandleApiCallHelper<false>(v8::internal::Isolate*)"),
            v8("Builtin_HandleApiCall(int, unsigned long*, v8::internal::Isolate*)"),
            frame("node", "Builtins_CEntry_Return1_ArgvOnStack_BuiltinExit"),
        ];
        let compiled = [frame("addon.node", "Open"), frame("node", "Builtins_CallApiCallback")];
        assert_eq!(moved(&interpreted, &compiled), [Some(Verdict::Leaking); 2]);
    }

    #[test]
    fn other_stacks_keep_their_own_verdicts() {
        let own = [Some(Verdict::OneOff), Some(Verdict::Unknown)];
        let js = || frame("[anon]", "JS:*handle");
        assert_eq!(moved(&[frame("a", "f"), js()], &[frame("a", "g"), js()]), own);
        assert_eq!(
            moved(&[frame("a", "f"), frame("a", "main")], &[frame("a", "f"), frame("a", "main")]),
            own
        );
    }
}
