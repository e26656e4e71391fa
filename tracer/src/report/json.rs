//! The JSON report: the whole profile as it is (`tracer.report/1`), whatever the options leave out of the pictures.

mod read;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

use super::{Options, QuickMap, Report};
use crate::model::{Frame, Profile};

pub use read::{JsonError, read};

/// The `.json` report.
pub struct Json;

impl Report for Json {
    fn write(&self, profile: &Profile, _: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let (head, tail) = around_list(&profile.without_stacks(), "stacks", 0)?;
        let mut frames = WrittenFrames::default();
        out.write_all(head.as_bytes())?;
        for (i, stack) in profile.stacks.iter().enumerate() {
            let (head, tail) = around_list(&stack.without_frames(), "frames", DEPTH_OF_STACKS)?;
            out.write_all(if i == 0 { b"\n    " } else { b",\n    " })?;
            out.write_all(head.as_bytes())?;
            for (i, frame) in stack.frames.iter().enumerate() {
                out.write_all(if i == 0 { b"\n        " } else { b",\n        " })?;
                frames.write(frame, out)?;
            }
            out.write_all(if stack.frames.is_empty() { b"" } else { b"\n      " })?;
            out.write_all(tail.as_bytes())?;
        }
        out.write_all(if profile.stacks.is_empty() { b"" } else { b"\n  " })?;
        out.write_all(tail.as_bytes())?;
        out.write_all(b"\n")
    }
}

/// The text of `value`, which lies so deep, before and after the elements of its empty list `key`.
fn around_list(value: &impl Serialize, key: &str, depth: usize) -> io::Result<(String, String)> {
    let mut text = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut text, Lines::at(depth)?))?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    // No text in it can hold this: its quotes would have backslashes before them.
    let (before, after) = text.split_once(&format!("\"{key}\": []")).unwrap_or((&text, ""));
    Ok((format!("{before}\"{key}\": ["), format!("]{after}")))
}

/// The texts of frames. Stacks share their frames, so most of a report is one of these again.
#[derive(Default)]
struct WrittenFrames {
    by_frame: QuickMap<*const Frame, Range<usize>>,
    texts: Vec<u8>,
}

impl WrittenFrames {
    /// Frames that are not shared would all be kept.
    const MOST: usize = 64 << 20;

    fn write(&mut self, frame: &Arc<Frame>, out: &mut dyn io::Write) -> io::Result<()> {
        let range = match self.by_frame.get(&Arc::as_ptr(frame)) {
            Some(range) => range.clone(),
            None => self.keep(frame)?,
        };
        out.write_all(&self.texts[range])
    }

    fn keep(&mut self, frame: &Arc<Frame>) -> io::Result<Range<usize>> {
        if self.texts.len() > Self::MOST {
            self.by_frame.clear();
            self.texts.clear();
        }
        let start = self.texts.len();
        serde_json::to_writer(&mut self.texts, &**frame)?;
        let range = start..self.texts.len();
        self.by_frame.insert(Arc::as_ptr(frame), range.clone());
        Ok(range)
    }
}

/// Indented JSON with a line for each frame of a stack, so that a stack can be read, and a large report is not mostly
/// spaces.
#[derive(Default)]
struct Lines {
    pretty: PrettyFormatter<'static>,
    compact: CompactFormatter,
    depth: usize,
}

/// The report, its stacks, a stack, its frames: what is deeper stands on one line.
const DEPTH_OF_LINES: usize = 4;

/// Of the report and its list of stacks, a stack is a part.
const DEPTH_OF_STACKS: usize = 2;

impl Lines {
    /// Goes on at some depth.
    fn at(depth: usize) -> io::Result<Self> {
        let mut lines = Self::default();
        (0..depth).try_for_each(|_| lines.begin_array(&mut io::sink()))?;
        Ok(lines)
    }
}

/// Lets the formatter of this depth do it.
macro_rules! format_by_depth {
    ($(fn $name:ident($($argument:ident: $kind:ty)?);)*) => {
        $(fn $name<W: ?Sized + io::Write>(&mut self, out: &mut W $(, $argument: $kind)?) -> io::Result<()> {
            match self.depth > DEPTH_OF_LINES {
                true => self.compact.$name(out $(, $argument)?),
                false => self.pretty.$name(out $(, $argument)?),
            }
        })*
    };
}

impl Formatter for Lines {
    format_by_depth! {
        fn begin_array_value(first: bool);
        fn end_array_value();
        fn begin_object_key(first: bool);
        fn begin_object_value();
        fn end_object_value();
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        if self.depth > DEPTH_OF_LINES { self.compact.begin_array(out) } else { self.pretty.begin_array(out) }
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if self.depth >= DEPTH_OF_LINES { self.compact.end_array(out) } else { self.pretty.end_array(out) }
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        if self.depth > DEPTH_OF_LINES {
            self.compact.begin_object(out)
        } else {
            self.pretty.begin_object(out)
        }
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if self.depth >= DEPTH_OF_LINES { self.compact.end_object(out) } else { self.pretty.end_object(out) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::report::fixtures;

    const JSON_SCHEMA: &str = include_str!("../../../docs/report.schema.json");

    fn render(profile: &Profile) -> Value {
        let mut out = Vec::new();
        Json.write(profile, &Options::default(), &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn every_profile_is_valid_by_the_schema() {
        let schema: Value = serde_json::from_str(JSON_SCHEMA).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for (name, profile) in fixtures::all() {
            let errors: Vec<String> = validator
                .iter_errors(&render(&profile))
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            assert!(errors.is_empty(), "{name}: {errors:#?}");
        }
        let mut broken = render(&fixtures::node());
        broken["stacks"][0]["kind"] = "imaginary".into();
        assert!(!validator.is_valid(&broken), "the schema must be able to refuse");
    }

    #[test]
    fn nothing_is_lost_on_the_way_through_json() {
        for (name, profile) in fixtures::all() {
            let json = render(&profile);
            let read: Profile = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(render(&read), json, "{name}");
        }
    }

    #[test]
    fn golden() {
        let mut json = Vec::new();
        Json.write(&fixtures::several(), &Options::default(), &mut json).unwrap();
        insta::assert_snapshot!("json_several", String::from_utf8(json).unwrap());
    }
}
