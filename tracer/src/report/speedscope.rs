//! What <https://www.speedscope.app> opens: a profile in bytes and one in blocks over the same frames.

use std::borrow::Cow;
use std::io;

use serde::Serialize;

use super::tree::Tree;
use super::view::{Role, View, target_name};
use super::{Options, Report, WeightUnit};
use crate::model::Profile;

/// The `.speedscope.json` report.
pub struct Speedscope;

impl Report for Speedscope {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let view = View::new(profile, options);
        let tree = Tree::new(profile, &view);
        let name = target_name(profile);
        let weights = [WeightUnit::Bytes, WeightUnit::Objects];
        let file = File {
            schema: "https://www.speedscope.app/file-format-schema.json",
            exporter: format!("tracer {}", profile.tracer_version),
            active_profile_index: weights.iter().position(|&weight| weight == options.weight).unwrap_or(0),
            shared: Shared { frames: frames(&tree) },
            profiles: weights.map(|weight| sampled(&name, &tree, weight)),
            name,
        };
        serde_json::to_writer(&mut *out, &file)?;
        out.write_all(b"\n")
    }
}

/// Frames by the numbers of their names.
fn frames<'a>(tree: &Tree<'a>) -> Vec<Frame<'a>> {
    let place = |role: &Role<'a>| match role {
        Role::Frame(frame) => (frame.file.as_deref().or(frame.module.as_deref()), frame.line),
        _ => (None, None),
    };
    let named = tree.names.texts().zip(tree.names.roles.iter().map(place));
    named.map(|(name, (file, line))| Frame { name, file, line }).collect()
}

fn sampled(process: &str, tree: &Tree<'_>, weight: WeightUnit) -> Sampled {
    let (what, unit) = match weight {
        WeightUnit::Bytes => ("outstanding bytes", "bytes"),
        WeightUnit::Objects => ("outstanding blocks", "none"),
    };
    let ends = tree.ends(weight).into_iter();
    let (samples, weights): (Vec<_>, Vec<_>) = ends.map(|(node, weight)| (tree.path(node), weight)).unzip();
    let end_value = weights.iter().fold(0, |sum: u64, &weight| sum.saturating_add(weight));
    let name = format!("{process}: {what}");
    Sampled { kind: "sampled", name, unit, start_value: 0, end_value, samples, weights }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    name: String,
    exporter: String,
    active_profile_index: usize,
    shared: Shared<'a>,
    profiles: [Sampled; 2],
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<Frame<'a>>,
}

#[derive(Serialize)]
struct Frame<'a> {
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    /// Outermost first.
    samples: Vec<Vec<u32>>,
    weights: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures;

    fn render(profile: &Profile) -> serde_json::Value {
        let mut out = Vec::new();
        Speedscope.write(profile, &Options::default(), &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn golden() {
        let json = serde_json::to_string_pretty(&render(&fixtures::several())).unwrap();
        insta::assert_snapshot!("speedscope_several", json);
    }

    #[test]
    fn samples_add_up_and_name_frames_that_are_there() {
        for (name, profile) in fixtures::all() {
            let json = render(&profile);
            let frames = json["shared"]["frames"].as_array().unwrap().len() as u64;
            for sampled in json["profiles"].as_array().unwrap() {
                let sum: u64 = sampled["weights"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|weight| weight.as_u64().unwrap())
                    .sum();
                assert_eq!(sum, sampled["endValue"].as_u64().unwrap(), "{name}");
                let samples = sampled["samples"].as_array().unwrap();
                let mut numbers = samples.iter().flat_map(|sample| sample.as_array().unwrap());
                assert!(numbers.all(|number| number.as_u64().unwrap() < frames), "{name}");
            }
        }
    }
}
