//! The JSON report: the whole profile as it is (`tracer.report/1`), whatever the options leave out of the pictures.

use std::io;

use serde::Serialize as _;
use serde_json::Serializer;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

use super::{Options, Report};
use crate::model::Profile;

/// The `.json` report.
pub struct Json;

impl Report for Json {
    fn write(&self, profile: &Profile, _: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        profile.serialize(&mut Serializer::with_formatter(&mut *out, Lines::default()))?;
        out.write_all(b"\n")
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
