//! V8's sampling heap profile, which Chrome DevTools opens (Memory → Load): the native leak in the tool that Node
//! developers reach for first, and that cannot see it by itself.
//!
//! The shape is `HeapProfiler.SamplingHeapProfile` of the DevTools protocol: a tree of nodes with the bytes of each.

use std::io;

use serde::Serialize;

use super::tree::Tree;
use super::view::{Role, View};
use super::{Options, Report, WeightUnit};
use crate::model::Profile;

/// The `.heapprofile` report. It is always in bytes.
pub struct HeapProfile;

impl Report for HeapProfile {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let view = View::new(profile, &Options { weight: WeightUnit::Bytes, ..options.clone() });
        let tree = Tree::new(profile, &view);
        out.write_all(b"{\"head\":")?;
        write_nodes(&tree, out)?;
        let samples = tree.ends(WeightUnit::Bytes).into_iter().zip(1..);
        let samples: Vec<Sample> =
            samples.map(|((node, size), ordinal)| Sample { size, node_id: node + 1, ordinal }).collect();
        out.write_all(b",\"samples\":")?;
        serde_json::to_writer(&mut *out, &samples)?;
        out.write_all(b"}\n")
    }
}

/// Writes the tree, without recursion: a stack can be deeper than ours is. What is below a node comes right after it.
fn write_nodes(tree: &Tree<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    let totals = tree.totals(WeightUnit::Bytes);
    let names = tree.names.texts().zip(&tree.names.roles);
    let frames: Vec<String> = names
        .map(|(name, role)| serde_json::to_string(&call_frame(&name, role)))
        .collect::<Result<_, _>>()?;
    let root = serde_json::to_string(&CallFrame { function_name: "(root)", ..CallFrame::default() })?;

    // Nodes that are begun; the last one has no children yet exactly if it is the one that was written last.
    let (mut open, mut last) = (0, 0);
    for (i, node) in tree.nodes.iter().enumerate() {
        // A mapping that was never touched weighs nothing.
        if i > 0 && totals[i] == 0 {
            continue;
        }
        while open > node.depth {
            out.write_all(b"]}")?;
            open -= 1;
        }
        if i > 0 && last != node.parent as usize {
            out.write_all(b",")?;
        }
        let frame = if i == 0 { &root } else { &frames[node.name as usize] };
        out.write_all(b"{\"callFrame\":")?;
        out.write_all(frame.as_bytes())?;
        write!(out, ",\"selfSize\":{},\"id\":{},\"children\":[", node.bytes, i + 1)?;
        (open, last) = (node.depth + 1, i);
    }
    (0..open).try_for_each(|_| out.write_all(b"]}"))
}

fn call_frame<'a>(name: &'a str, role: &Role<'a>) -> CallFrame<'a> {
    let (url, line) = match role {
        Role::Frame(frame) => (frame.file.as_deref().or(frame.module.as_deref()), frame.line),
        _ => (None, None),
    };
    // DevTools counts lines from 0, and knows -1 as none.
    let line_number = line.map_or(-1, |line| i64::from(line) - 1);
    CallFrame { function_name: name, url: url.unwrap_or_default(), line_number, ..CallFrame::default() }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallFrame<'a> {
    function_name: &'a str,
    script_id: &'static str,
    url: &'a str,
    line_number: i64,
    column_number: i64,
}

impl Default for CallFrame<'_> {
    fn default() -> Self {
        Self { function_name: "", script_id: "0", url: "", line_number: -1, column_number: -1 }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sample {
    size: u64,
    node_id: usize,
    ordinal: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::report::fixtures;

    fn render(profile: &Profile) -> String {
        let mut out = Vec::new();
        HeapProfile.write(profile, &Options::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn sum(node: &Value) -> u64 {
        assert!(node["callFrame"]["functionName"].is_string() && node["id"].is_u64());
        node["selfSize"].as_u64().unwrap() + node["children"].as_array().unwrap().iter().map(sum).sum::<u64>()
    }

    #[test]
    fn golden() {
        let json: Value = serde_json::from_str(&render(&fixtures::several())).unwrap();
        insta::assert_snapshot!("heapprofile_several", serde_json::to_string_pretty(&json).unwrap());
    }

    #[test]
    fn nodes_and_samples_add_up() {
        // serde_json reads no deeper than 128.
        for (name, profile) in fixtures::all().into_iter().filter(|(name, _)| *name != "deep") {
            let json: Value = serde_json::from_str(&render(&profile)).unwrap();
            let total = View::new(&profile, &Options::default()).total;
            assert_eq!(sum(&json["head"]), total, "{name}");
            let samples = json["samples"].as_array().unwrap();
            assert_eq!(
                samples.iter().map(|sample| sample["size"].as_u64().unwrap()).sum::<u64>(),
                total,
                "{name}"
            );
        }
    }

    #[test]
    fn a_deep_stack_is_written_whole() {
        let mut profile = fixtures::deep();
        let frames = &mut profile.stacks[0].frames;
        *frames = frames.iter().cycle().take(60_000).cloned().collect();
        let json = render(&profile);
        assert_eq!(json.matches("\"selfSize\"").count(), 1 + 60_000 + 1);
        assert_eq!(json.matches(['{', '[']).count(), json.matches(['}', ']']).count());
    }
}
