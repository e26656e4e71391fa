//! The JSON report: the whole profile (`tracer.report/2`), whatever the options leave out of the pictures.
//!
//! Stacks have most of their frames in common, so these are a table, each once, and a stack says their places in it. What is
//! read of this by [`saved`](super::saved) is what is written here.

use std::io;
use std::sync::Arc;

use flate2::{Compression, GzBuilder};
use serde::Serialize;

use super::view::number;
use super::{Options, QuickMap, Report};
use crate::model::{Frame, Profile, StackReport};

/// The `.json` report.
pub struct Json;

impl Report for Json {
    fn write(&self, profile: &Profile, _: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, &Document::of(profile))?;
        out.write_all(b"\n")
    }
}

/// The `.json.gz` report, a tenth as large.
pub struct JsonGz;

impl Report for JsonGz {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        // The time of writing would make equal reports differ.
        let gzip = GzBuilder::new().mtime(0).write(out, Compression::fast());
        // JSON is written in pieces of a few bytes.
        let mut buffer = io::BufWriter::with_capacity(1 << 16, gzip);
        Json.write(profile, options, &mut buffer)?;
        buffer.into_inner()?.finish().map(drop)
    }
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    profile: &'a Profile,
    frames: Vec<&'a Frame>,
    stacks: Vec<Stack<'a>>,
}

#[derive(Serialize)]
struct Stack<'a> {
    #[serde(flatten)]
    stack: &'a StackReport,
    frames: Vec<u32>,
}

impl<'a> Document<'a> {
    fn of(profile: &'a Profile) -> Self {
        let mut table = FrameTable::default();
        let stack = |stack: &'a StackReport| Stack {
            stack,
            frames: stack.frames.iter().map(|frame| table.place(frame)).collect(),
        };
        let stacks = profile.stacks.iter().map(stack).collect();
        Self { profile, frames: table.frames, stacks }
    }
}

/// Frames, each once, in the order in which stacks first have them.
#[derive(Default)]
struct FrameTable<'a> {
    frames: Vec<&'a Frame>,
    places: QuickMap<&'a Frame, u32>,
    /// Stacks share their frames: most are found without a look at what they say.
    places_of_known: QuickMap<*const Frame, u32>,
}

impl<'a> FrameTable<'a> {
    fn place(&mut self, frame: &'a Arc<Frame>) -> u32 {
        let Self { frames, places, places_of_known } = self;
        *places_of_known.entry(Arc::as_ptr(frame)).or_insert_with(|| {
            *places.entry(frame).or_insert_with(|| {
                frames.push(frame);
                number(frames.len() - 1)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;
    use crate::report::fixtures;

    const JSON_SCHEMA: &str = include_str!("../../../docs/report.schema.json");

    fn render(profile: &Profile) -> Value {
        let mut out = Vec::new();
        Json.write(profile, &Options::default(), &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    /// The schema, with every object closed to what it does not name.
    fn strict(schema: &mut Value) {
        match schema {
            Value::Object(keys) => {
                if keys.get("type").is_some_and(|kind| kind == "object") {
                    keys.insert("unevaluatedProperties".into(), false.into());
                }
                keys.values_mut().for_each(strict);
            }
            Value::Array(values) => values.iter_mut().for_each(strict),
            _ => {}
        }
    }

    #[test]
    fn every_profile_is_valid_by_the_schema_which_names_all_that_is_in_it() {
        let mut schema: Value = serde_json::from_str(JSON_SCHEMA).unwrap();
        strict(&mut schema);
        let validator = jsonschema::validator_for(&schema).unwrap();
        for (name, profile) in fixtures::all() {
            let errors: Vec<String> = validator
                .iter_errors(&render(&profile))
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            assert!(errors.is_empty(), "{name}: {errors:#?}");
        }
        let broken: [(&str, Value); 6] = [
            ("/settings", serde_json::json!({"mode": "growth", "sample_bytes": 0, "min_age_ns": 0})),
            ("/schema", "tracer.report/1".into()),
            ("/stacks/0/kind", "imaginary".into()),
            ("/stacks/0/frames/0", (-1).into()),
            ("/frames/0/ip", 7.into()),
            ("/frames/0/function", Value::Null),
        ];
        for (path, value) in broken {
            let mut report = render(&fixtures::node());
            assert!(validator.is_valid(&report));
            *report.pointer_mut(path).unwrap() = value;
            assert!(!validator.is_valid(&report), "{path}");
        }
    }

    #[test]
    fn the_table_has_each_frame_once_and_no_other() {
        for (name, profile) in fixtures::all() {
            let report = render(&profile);
            let frames = report["frames"].as_array().unwrap();
            let texts: HashSet<String> = frames.iter().map(Value::to_string).collect();
            assert_eq!(texts.len(), frames.len(), "{name}");
            let stacks = report["stacks"].as_array().unwrap();
            let used = stacks.iter().flat_map(|stack| stack["frames"].as_array().unwrap());
            let used: HashSet<u64> = used.map(|place| place.as_u64().unwrap()).collect();
            assert_eq!(used, (0..frames.len() as u64).collect(), "{name}");
        }
    }

    #[test]
    fn golden() {
        let profile = fixtures::several();
        let report = serde_json::to_string_pretty(&Document::of(&profile)).unwrap();
        insta::assert_snapshot!("json_several", report);
    }
}
