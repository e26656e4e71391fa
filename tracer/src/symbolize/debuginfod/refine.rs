//! Names the frames of modules without debug information by their debug files.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    sync::Arc,
};

use super::{
    Debuginfod,
    cache::Kept,
    fetch::{Failure, Fetcher, Watcher},
};
use crate::{
    model::Frame,
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
}

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
        rename(&mut stacks, &files);
        outcome
    }
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

fn rename(stacks: &mut [&mut Vec<Arc<Frame>>], files: &HashMap<String, DebugFile>) {
    // Stacks share their frames: each is looked up once, and what comes of it is shared as well.
    let mut renamed: HashMap<Arc<Frame>, Vec<Arc<Frame>>> = HashMap::new();
    for frames in stacks {
        let is_concerned =
            |frame: &Arc<Frame>| frame.build_id.as_ref().is_some_and(|build_id| files.contains_key(build_id));
        if !frames.iter().any(is_concerned) {
            continue;
        }
        let better = frames.iter().flat_map(|frame| {
            if let Some(known) = renamed.get(frame) {
                return known.clone();
            }
            let better = better(frame, files).unwrap_or_else(|| vec![Arc::clone(frame)]);
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
