//! The last stage: what a recording says, written down. One file a format behind one trait.
//!
//! Every report is a pure view of a [`Profile`]: [`text`] for the terminal, [`svg`] the flame graph, [`folded`] for other
//! flame graph tools, [`json`] the whole profile. [`destination`] turns `-o` into files, [`status`] is the line that is
//! shown while recording.

pub(crate) mod cause_lines;
pub mod destination;
pub mod diff;
pub mod filter;
pub mod folded;
pub mod heapprofile;
pub mod html;
pub mod human;
pub mod json;
pub mod pprof;
mod processes;
pub mod saved;
pub mod snapshot;
pub mod speedscope;
pub mod status;
pub mod svg;
pub mod text;

mod read_limit;
pub(crate) mod stack_lines;
mod tree;
pub(crate) mod view;
pub mod words;

#[cfg(test)]
pub(crate) mod fixtures;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::path::Path;

pub use read_limit::TooLarge;

use crate::model::{Kind, Profile, StackReport};

/// Maps that are asked millions of times for one report: the usual hash takes longer than all else. This one is seeded at
/// random, too, so no file can be made to have all its keys collide.
type QuickMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A way to write a profile down.
pub trait Report {
    /// Writes the whole report. Equal profiles and options give equal bytes.
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()>;
}

/// What a reader wants to see. The recording is not changed by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Kinds that are drawn besides `native` and `mapping`.
    pub include: BTreeSet<Kind>,
    /// What order, shares and the width of a frame mean.
    pub weight: WeightUnit,
    /// Which way a flame graph grows.
    pub order: FlameOrder,
    /// Number of stacks in the text summary.
    pub top: usize,
    /// How many frames of a stack the text summary shows; of a deeper one it leaves out the middle.
    pub frames: usize,
    /// Columns of the text summary.
    pub width: usize,
    /// Whether the text summary uses colour.
    pub color: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            include: BTreeSet::new(),
            weight: WeightUnit::Bytes,
            order: FlameOrder::Flame,
            top: 10,
            frames: 16,
            width: 100,
            color: false,
        }
    }
}

impl Options {
    /// Whether memory of this kind is drawn.
    #[must_use]
    pub fn includes(&self, kind: Kind) -> bool {
        kind.counts_by_default() || self.include.contains(&kind)
    }
}

/// What makes a stack large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightUnit {
    /// Outstanding bytes of native memory, resident bytes of mappings.
    Bytes,
    /// Outstanding blocks and mappings.
    Objects,
}

impl WeightUnit {
    /// The weight of one stack.
    #[must_use]
    pub fn of(self, stack: &StackReport) -> u64 {
        match self {
            WeightUnit::Bytes => stack.weight_bytes,
            WeightUnit::Objects => stack.outstanding_objects,
        }
    }

    /// One of the two figures.
    const fn of_amount(self, amount: diff::Amount) -> u64 {
        match self {
            WeightUnit::Bytes => amount.bytes,
            WeightUnit::Objects => amount.objects,
        }
    }
}

/// Which way a flame graph grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlameOrder {
    /// From the bottom, callers below callees.
    Flame,
    /// From the top, callers above callees.
    Icicle,
}

/// A file format, chosen by the ending of the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// A flame graph for a browser.
    Svg,
    /// One line a stack, for other flame graph tools.
    Folded,
    /// The whole profile (`tracer.report/2`).
    Json,
    /// The same, compressed.
    JsonGz,
    /// For pprof's tools.
    Pprof,
    /// For speedscope.
    Speedscope,
    /// For Chrome DevTools.
    HeapProfile,
    /// A page for a browser.
    Html,
}

impl Format {
    /// Every format.
    pub const ALL: &'static [Format] = &[
        Format::Svg,
        Format::Folded,
        Format::Json,
        Format::JsonGz,
        Format::Pprof,
        Format::Speedscope,
        Format::HeapProfile,
        Format::Html,
    ];

    /// The ending of its files, with the dot.
    #[must_use]
    pub const fn ending(self) -> &'static str {
        match self {
            Format::Svg => ".svg",
            Format::Folded => ".folded",
            Format::Json => ".json",
            Format::JsonGz => ".json.gz",
            Format::Pprof => ".pb.gz",
            Format::Speedscope => ".speedscope.json",
            Format::HeapProfile => ".heapprofile",
            Format::Html => ".html",
        }
    }

    /// What `--format` calls it: the ending without the dot.
    #[must_use]
    pub fn name(self) -> &'static str {
        &self.ending()[1..]
    }

    /// The format with this [`name`](Self::name).
    pub fn from_name(name: &str) -> Result<Self, UnknownFormat> {
        let find = |format: &&Format| format.name() == name;
        Self::ALL.iter().find(find).copied().ok_or_else(|| UnknownFormat(name.to_owned()))
    }

    /// The format of a file with this name. The longest ending wins, so that `.speedscope.json` is not `.json`.
    pub fn from_path(path: &Path) -> Result<Self, UnknownEnding> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::ALL
            .iter()
            .filter(|format| name.len() > format.ending().len() && name.ends_with(format.ending()))
            .max_by_key(|format| format.ending().len())
            .copied()
            .ok_or_else(|| UnknownEnding(path.display().to_string()))
    }

    /// What writes it.
    #[must_use]
    pub fn report(self) -> &'static dyn Report {
        match self {
            Format::Svg => &svg::Svg,
            Format::Folded => &folded::Folded,
            Format::Json => &json::Json,
            Format::JsonGz => &json::JsonGz,
            Format::Pprof => &pprof::Pprof,
            Format::Speedscope => &speedscope::Speedscope,
            Format::HeapProfile => &heapprofile::HeapProfile,
            Format::Html => &html::Html,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No format has the ending of this file's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot determine the format of {0:?} from its name; it must end with {endings}", endings = list(Format::ending))]
pub struct UnknownEnding(String);

/// No format has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown format {0:?}; the formats are {names}", names = list(Format::name))]
pub struct UnknownFormat(String);

/// `a, b or c`
fn list(word: fn(Format) -> &'static str) -> String {
    let words: Vec<_> = Format::ALL.iter().map(|&format| word(format)).collect();
    match words.split_last() {
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_decides() {
        for &format in Format::ALL {
            let path = format!("some.dir/leak.of.node{}", format.ending());
            assert_eq!(Format::from_path(Path::new(&path)), Ok(format));
            assert_eq!(Format::from_name(format.name()), Ok(format));
        }
    }

    #[test]
    fn an_unknown_ending_names_the_known_ones() {
        for name in ["leak", "leak.txt", ".svg", "dir.svg/leak", "leak.SVG", ""] {
            let error = Format::from_path(Path::new(name)).unwrap_err().to_string();
            assert!(error.contains(".svg") && error.contains(&format!("{name:?}")), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
        assert!(Format::from_name("png").unwrap_err().to_string().contains("svg"));
    }
}
