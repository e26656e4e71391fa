//! The JSON report: the whole profile as it is (`tracer.report/1`), whatever the options leave out of the pictures.

use std::io;

use super::{Options, Report};
use crate::model::Profile;

/// The `.json` report.
pub struct Json;

impl Report for Json {
    fn write(&self, profile: &Profile, _: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, profile)?;
        out.write_all(b"\n")
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
        let json = serde_json::to_string_pretty(&render(&fixtures::several())).unwrap();
        insta::assert_snapshot!("json_several", json);
    }
}
