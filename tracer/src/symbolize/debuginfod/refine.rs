//! Names the frames of modules without debug information by their debug files.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    sync::{Arc, PoisonError},
};

use super::{
    Debuginfod,
    cache::Kept,
    fetch::{Failure, Fetcher, Watcher},
};
use crate::{
    model::{Frame, Profile},
    symbolize::object_file::{DebugFile, Function},
};

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Files that were wanted.
    pub wanted: usize,
    /// Files that were had, from servers or the cache.
    pub had: usize,
    /// Why others were not, the first reason; that no server has one is none.
    pub failure: Option<String>,
    /// Whether the time was over, or the user did without the rest.
    pub ended_early: bool,
    /// What functions were called that had no name (`libpool.so+0x1a40`), and what they are called now: the module, and the function.
    pub named: BTreeMap<String, (String, String)>,
}

impl Outcome {
    /// Says what went wrong.
    pub fn warn(&self) {
        if let Some(why) = &self.failure {
            log::warn!("debuginfod: {why}");
        }
        if self.ended_early {
            log::warn!("debuginfod: stopped waiting for servers; files that have arrived are kept");
        }
    }
}

/// What came of frames. Stacks share them: each is looked up once, and what comes of it is shared as well.
pub(super) type Renamed = HashMap<Arc<Frame>, Vec<Arc<Frame>>>;

impl Debuginfod {
    /// Names the frames of stacks anew whose modules have no debug information. The modules of most stacks come first.
    pub fn refine<'a>(
        &self,
        stacks: impl Iterator<Item = &'a mut Vec<Arc<Frame>>>,
        watcher: &mut dyn Watcher,
    ) -> Outcome {
        let mut stacks: Vec<_> = stacks.collect();
        let modules = modules_without_debug_information(stacks.iter().map(|frames| &***frames));
        let mut outcome = Outcome { wanted: modules.len(), ..Outcome::default() };
        if modules.iter().any(|(build_id, _)| matches!(self.cache.find(build_id), Kept::Unknown)) {
            watcher.begin(&self.servers, modules.len());
        }
        let mut fetcher = Fetcher::new(self);
        let mut files: HashMap<String, DebugFile> = HashMap::new();
        for (build_id, module) in modules {
            match fetcher.debug_file(&build_id, &module, watcher) {
                Ok(file) => outcome.had += usize::from(add(&mut files, build_id, &file)),
                Err(Failure::Missing) => {}
                Err(Failure::Error(why)) => outcome.failure = outcome.failure.or(Some(why)),
                Err(Failure::Ended) => {
                    outcome.ended_early = true;
                    break;
                }
            }
        }
        let mut renamed = Renamed::new();
        rename(&mut stacks, &files, &mut renamed);
        outcome.named = renamed.iter().filter_map(|(frame, better)| new_name(frame, better)).collect();
        outcome
    }

    /// The same of a recording that was saved, in what was said of it, too.
    pub fn refine_saved(&self, profile: &mut Profile, watcher: &mut dyn Watcher) -> Outcome {
        let outcome = self.refine(profile.stacks.iter_mut().map(|stack| &mut stack.frames), watcher);
        for cause in &mut profile.causes {
            put_names(&mut cause.place, &outcome.named, true);
            let others = cause.by.iter_mut().chain(&mut cause.below).chain(&mut cause.called_from);
            others.for_each(|text| put_names(text, &outcome.named, false));
        }
        if let Some(verdict) = &mut profile.verdict {
            put_names(&mut verdict.summary, &outcome.named, true);
        }
        outcome
    }

    /// The same by what the cache has already, so that it takes no time: while a recording goes on, nobody is asked.
    pub fn refine_by_cache<'a>(&self, stacks: impl Iterator<Item = &'a mut Vec<Arc<Frame>>>) {
        let mut stacks: Vec<_> = stacks.collect();
        let modules = modules_without_debug_information(stacks.iter().map(|frames| &***frames));
        // A panic in the midst of it leaves names that are all good.
        let renamed = &mut *self.renamed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = HashMap::new();
        for (build_id, _) in modules {
            let is_new = |frame: &Arc<Frame>| {
                frame.build_id.as_deref() == Some(&*build_id) && !renamed.contains_key(frame)
            };
            // A file is opened for new frames alone: that takes a while.
            if stacks.iter().any(|frames| frames.iter().any(is_new))
                && let Kept::File(file) = self.cache.find(&build_id)
            {
                add(&mut files, build_id, &file);
            }
        }
        rename(&mut stacks, &files, renamed);
    }
}

/// Puts names in the place of what functions without one are called in a sentence: `libpool.so+0x1a40`, but not `libpool.so+0x1a400`.
fn put_names(text: &mut String, named: &BTreeMap<String, (String, String)>, with_module: bool) {
    for (label, (module, function)) in named {
        let mut rest = 0;
        while let Some(at) = text[rest..].find(label.as_str()).map(|at| at + rest) {
            let end = at + label.len();
            let is_whole = !text[end..].starts_with(|next: char| next.is_ascii_hexdigit())
                && !text[..at].ends_with(|last: char| last.is_alphanumeric() || "-_./".contains(last));
            rest = end;
            if is_whole {
                let name = if with_module { format!("{module}: {function}") } else { function.clone() };
                text.replace_range(at..end, &name);
                rest = at + name.len();
            }
        }
    }
}

/// The name of a function that had none, and what it is called now.
fn new_name(frame: &Frame, better: &[Arc<Frame>]) -> Option<(String, (String, String))> {
    let function = better.last().filter(|_| frame.function.is_none())?.function.clone()?;
    Some((frame.label(), (frame.module.clone()?, function)))
}

fn add(files: &mut HashMap<String, DebugFile>, build_id: String, file: &File) -> bool {
    let opened = DebugFile::open(file);
    if opened.is_none() {
        log::debug!("the debug file of {build_id} cannot be read");
    }
    opened.is_some_and(|opened| files.insert(build_id, opened).is_none())
}

/// Build ids and names of the modules of which no frame has a source file, those of most stacks first.
fn modules_without_debug_information<'a>(
    stacks: impl Iterator<Item = &'a [Arc<Frame>]>,
) -> Vec<(String, String)> {
    #[derive(Default)]
    struct Seen<'a> {
        name: &'a str,
        frames: u64,
        has_files: bool,
    }
    let mut modules: BTreeMap<&str, Seen<'_>> = BTreeMap::new();
    for frame in stacks.flatten() {
        let (Some(build_id), Some(_), Some(name)) = (&frame.build_id, &frame.offset, &frame.module) else {
            continue;
        };
        let seen = modules.entry(build_id).or_default();
        seen.name = name;
        seen.frames += 1;
        seen.has_files |= frame.file.is_some();
    }
    let mut modules: Vec<_> = modules.into_iter().filter(|(_, seen)| !seen.has_files).collect();
    modules.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.frames));
    modules.into_iter().map(|(build_id, seen)| (build_id.to_owned(), seen.name.to_owned())).collect()
}

fn rename(stacks: &mut [&mut Vec<Arc<Frame>>], files: &HashMap<String, DebugFile>, renamed: &mut Renamed) {
    for frames in stacks {
        let is_concerned = |frame: &Arc<Frame>| {
            renamed.contains_key(frame)
                || frame.build_id.as_ref().is_some_and(|build_id| files.contains_key(build_id))
        };
        if !frames.iter().any(is_concerned) {
            continue;
        }
        let better = frames.iter().flat_map(|frame| {
            if let Some(known) = renamed.get(frame) {
                return known.clone();
            }
            let kept = vec![Arc::clone(frame)];
            if !frame.build_id.as_ref().is_some_and(|build_id| files.contains_key(build_id)) {
                return kept;
            }
            let better = better(frame, files).unwrap_or(kept);
            renamed.insert(Arc::clone(frame), better.clone());
            better
        });
        **frames = better.collect();
    }
}

/// The frames that a debug file has in place of one.
fn better(frame: &Arc<Frame>, files: &HashMap<String, DebugFile>) -> Option<Vec<Arc<Frame>>> {
    let file = files.get(frame.build_id.as_deref()?)?;
    let offset = u64::from_str_radix(frame.offset.as_deref()?.strip_prefix("0x")?, 16).ok()?;
    let functions = file.functions(offset.checked_sub(1)?);
    let named = |function: Function| {
        let mut better = Frame { function_offset: None, ..Frame::clone(frame) };
        // What the module itself exports is what callers write.
        if function.inlined || frame.function.is_none() {
            better.function = Some(function.name.text);
            better.language = function.name.language.map(str::to_owned);
        }
        better.file = function.file;
        better.line = function.line;
        better.inlined = function.inlined;
        Arc::new(better)
    };
    let better: Vec<_> = functions.into_iter().map(named).collect();
    (!better.is_empty()).then_some(better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_take_the_place_of_whole_offsets() {
        let named = ("libpool.so+0x1a40", "libpool.so", "pool_get");
        let named = BTreeMap::from([(named.0.to_owned(), (named.1.to_owned(), named.2.to_owned()))]);
        let put = |text: &str, with_module| {
            let mut text = text.to_owned();
            put_names(&mut text, &named, with_module);
            text
        };
        assert_eq!(
            put("leaking in `libpool.so+0x1a40` (by `libpool.so+0x1a400`), `mylibpool.so+0x1a40`", true),
            "leaking in `libpool.so: pool_get` (by `libpool.so+0x1a400`), `mylibpool.so+0x1a40`"
        );
        assert_eq!(put("libpool.so+0x1a40", false), "pool_get");
        assert_eq!(put("libpool.so+0x1a40 libpool.so+0x1a40", false), "pool_get pool_get");
    }
}
