//! One page for a browser, for someone who was not there: what is outstanding, where the resident memory went, how it
//! grew, the flame graph, every stack, and what to know before trusting it. It needs no network.

use std::borrow::Cow;
use std::io;

use serde::{Serialize, Serializer};

use super::svg::Hue;
use super::text::Facts;
use super::tree::{Node, Tree};
use super::view::{Role, View, alike_as_one};
use super::{FlameOrder, Options, Report, WeightUnit, stack_lines};
use crate::model::{Cause, Kind, Memory, Profile, StackReport, TimelinePoint, Verdict, VerdictSummary};

/// The `.html` report.
pub struct Html;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

impl Report for Html {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let view = View::new(profile, options);
        let merged = alike_as_one(&view.stacks, view.weight);
        let view = View { stacks: merged.iter().map(|stack| &**stack).collect(), ..view };
        let tree = Tree::new(profile, &view);
        let mut rest = PAGE;
        for marker in ["/*STYLE*/", "/*DATA*/", "/*SCRIPT*/"] {
            let (before, after) = rest.split_once(marker).unwrap_or((rest, ""));
            out.write_all(before.as_bytes())?;
            match marker {
                "/*STYLE*/" => out.write_all(STYLE.as_bytes())?,
                "/*SCRIPT*/" => out.write_all(SCRIPT.as_bytes())?,
                _ => serde_json::to_writer(InElement(&mut *out), &data(profile, options, &view, &tree))?,
            }
            rest = after;
        }
        out.write_all(rest.as_bytes())
    }
}

/// Takes JSON in which a `<` could end the element that it is written into.
struct InElement<'a>(&'a mut dyn io::Write);

impl io::Write for InElement<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        match memchr::memchr(b'<', text) {
            Some(0) => self.0.write_all(b"\\u003c").map(|()| 1),
            Some(before) => self.0.write_all(&text[..before]).map(|()| before),
            None => self.0.write_all(text).map(|()| text.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn data<'a>(profile: &'a Profile, options: &Options, view: &View<'a>, tree: &'a Tree<'a>) -> Data<'a> {
    let facts = Facts::new(profile, options);
    let nodes = &tree.nodes;
    Data {
        headline: facts.headline,
        verdict: profile.verdict.as_ref(),
        causes: &profile.causes,
        facts: facts.facts,
        trust: facts.trust,
        footer: format!(
            "Recorded by tracer {}. This page loads nothing from the network.",
            profile.tracer_version
        ),
        memory: profile.memory.as_ref(),
        timeline: &profile.timeline,
        by_objects: options.weight == WeightUnit::Objects,
        icicle: options.order == FlameOrder::Icicle,
        tree: Nodes {
            depth: Column(nodes, |node| node.depth.into()),
            name: Column(nodes, |node| node.name.into()),
            bytes: Column(nodes, |node| node.bytes),
            objects: Column(nodes, |node| node.objects),
            names: tree.names.texts().zip(&tree.names.roles).map(|(text, role)| name(text, role)).collect(),
        },
        stacks: view.stacks.iter().zip(&tree.ends_of_stacks).map(|(stack, &node)| row(stack, node)).collect(),
    }
}

fn name<'a>(text: Cow<'a, str>, role: &Role<'a>) -> Name<'a> {
    let place = match role {
        Role::Frame(frame) => stack_lines::place(frame),
        _ => String::new(),
    };
    Name { text, hue: Hue::of(*role).name(), place }
}

fn row(stack: &StackReport, node: u32) -> Row<'_> {
    Row {
        kind: stack.kind,
        api: &stack.api,
        weight: stack.weight_bytes,
        error: stack.standard_error_bytes,
        objects: stack.outstanding_objects,
        age: stack.oldest_age_ns,
        growth: stack.growth_bytes_per_second,
        history: &stack.history_bytes,
        verdict: stack.verdict,
        node,
    }
}

/// What the page's script draws.
#[derive(Serialize)]
struct Data<'a> {
    headline: String,
    verdict: Option<&'a VerdictSummary>,
    causes: &'a [Cause],
    facts: Vec<String>,
    /// What to know before trusting the figures.
    trust: Vec<String>,
    footer: String,
    memory: Option<&'a Memory>,
    timeline: &'a [TimelinePoint],
    /// Whether widths are blocks at first.
    by_objects: bool,
    /// Whether the flame graph grows down.
    icicle: bool,
    tree: Nodes<'a>,
    stacks: Vec<Row<'a>>,
}

/// The tree, a column a field; depths say which node is whose parent.
#[derive(Serialize)]
struct Nodes<'a> {
    depth: Column<'a>,
    name: Column<'a>,
    bytes: Column<'a>,
    objects: Column<'a>,
    names: Vec<Name<'a>>,
}

/// A figure of every node.
struct Column<'a>(&'a [Node], fn(&Node) -> u64);

impl Serialize for Column<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(self.1))
    }
}

#[derive(Serialize)]
struct Name<'a> {
    text: Cow<'a, str>,
    hue: &'static str,
    place: String,
}

#[derive(Serialize)]
struct Row<'a> {
    kind: Kind,
    api: &'a str,
    weight: u64,
    /// Standard error of the weight, if it is an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<u64>,
    objects: u64,
    age: Option<u64>,
    growth: Option<f64>,
    history: &'a [u64],
    verdict: Option<Verdict>,
    /// Where the stack ends in the tree.
    node: u32,
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::report::fixtures;

    fn render(profile: &Profile) -> String {
        let mut out = Vec::new();
        Html.write(profile, &Options::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn embedded(page: &str) -> Value {
        let (_, data) = page.split_once("id=\"data\">").unwrap();
        serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap()
    }

    #[test]
    fn names_from_the_target_cannot_leave_the_data() {
        let page = render(&fixtures::hostile());
        assert_eq!(page.matches("<script").count(), 2, "the data and the script");
        let data = embedded(&page);
        let names = data["tree"]["names"].as_array().unwrap();
        assert!(names.iter().any(|name| name["text"] == "<script>alert(1)</script>"));
    }

    #[test]
    fn the_page_loads_nothing() {
        let page = render(&fixtures::node());
        for attribute in ["src=", "@import", "url(", "fetch("] {
            assert!(!page.contains(attribute), "{attribute}");
        }
        let addresses: Vec<&str> = page.match_indices("http").map(|(i, _)| &page[i..i + 26]).collect();
        assert!(
            addresses
                .iter()
                .all(|address| *address == "http://www.w3.org/2000/svg" || address.starts_with("http-equiv")),
            "{addresses:?}"
        );
    }

    #[test]
    fn the_data_adds_up() {
        for (name, profile) in fixtures::all() {
            let data = embedded(&render(&profile));
            let sum = |list: &Value, key: &str| {
                list[key].as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).sum::<u64>()
            };
            let total = View::new(&profile, &Options::default()).total;
            assert_eq!(sum(&data["tree"], "bytes"), total, "{name}");
            let rows = data["stacks"].as_array().unwrap();
            assert_eq!(rows.iter().map(|row| row["weight"].as_u64().unwrap()).sum::<u64>(), total, "{name}");
            let nodes = data["tree"]["depth"].as_array().unwrap().len() as u64;
            assert!(rows.iter().all(|row| (1..nodes).contains(&row["node"].as_u64().unwrap())), "{name}");
        }
    }

    #[test]
    fn golden() {
        insta::assert_json_snapshot!("html_incomplete", embedded(&render(&fixtures::incomplete())));
    }
}
