//! The flame graph: inferno draws it; colours, human units and the page for an empty profile are ours.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::Hasher;
use std::io;

use inferno::flamegraph::color::{self, StrokeColor};
use inferno::flamegraph::{self, Direction, TextTruncateDirection};

use super::human::{Span, counted, moment, printable};
use super::tree::Tree;
use super::view::{Role, View, standard_error, target_name};
use super::words::plus_minus;
use super::{FlameOrder, Options, Report, WeightUnit};
use crate::model::{Bytes, Frame, Kind, Mode, Profile};

/// The `.svg` report.
pub struct Svg;

impl Report for Svg {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let view = View::new(profile, options);
        let (title, subtitle) = (title(profile, &view), subtitle(profile, options));
        if view.total == 0 {
            return out.write_all(empty(&title, &subtitle).as_bytes());
        }
        let mut tree = Tree::new(profile, &view);
        // Of thousands of processes alike each is narrower: those that are as heavy as any are drawn.
        tree.prune(view.weight, (view.total / NARROWEST).min(tree.heaviest(view.weight)));
        let hues = hues(&tree);
        let picture = Picture {
            title,
            legend: legend(&hues, &subtitle),
            palette: Some(palette(&hues)),
            subtitle,
            options,
        };
        let lines: Vec<String> = tree.folded(view.weight, SEMICOLON).collect();
        picture.draw(&lines, out)
    }
}

/// A differential flame graph, from lines of a stack, its weight before and its weight after: as wide as what was after, red what
/// grew, blue what shrank.
pub fn write_diff(
    title: String,
    subtitle: String,
    lines: &[String],
    options: &Options,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    if lines.is_empty() {
        return out.write_all(empty(&title, &subtitle).as_bytes());
    }
    Picture { title, subtitle, legend: String::new(), palette: None, options }.draw(lines, out)
}

/// What is around the boxes of a flame graph.
struct Picture<'a> {
    title: String,
    subtitle: String,
    legend: String,
    /// Colours by name; `None` for those of a differential flame graph.
    palette: Option<color::PaletteMap>,
    options: &'a Options,
}

impl Picture<'_> {
    fn draw(mut self, lines: &[String], out: &mut dyn io::Write) -> io::Result<()> {
        let weight = self.options.weight;
        let mut graph = flamegraph::Options::default();
        graph.title = self.title;
        graph.subtitle = Some(self.subtitle);
        graph.count_name = unit(weight).to_owned();
        graph.name_type = String::new();
        graph.text_truncate_direction = TextTruncateDirection::Right;
        graph.bgcolors = Some(color::BackgroundColor::Flat(color::Color { r: 255, g: 255, b: 255 }));
        graph.direction = match self.options.order {
            FlameOrder::Flame => Direction::Straight,
            FlameOrder::Icicle => Direction::Inverted,
        };
        if self.palette.is_none() {
            // What neither grew nor shrank is as white as the page.
            graph.stroke_color = StrokeColor::Color(color::Color { r: 200, g: 200, b: 200 });
        }
        graph.palette_map = self.palette.as_mut();
        let mut svg = Vec::new();
        flamegraph::from_lines(&mut graph, lines.iter().map(String::as_str), &mut svg)?;

        let svg = String::from_utf8(svg).map_err(io::Error::other)?;
        out.write_all(finish(&svg, weight, &self.legend).as_bytes())
    }
}

/// Stands for `;` on the way through inferno, which reads it as the end of a name. It is private to us (U+E000 to U+F8FF
/// mean nothing in Unicode), and [`finish`] puts the semicolon back.
pub(super) const SEMICOLON: &str = "\u{e000}";

/// How many of the narrowest boxes are as wide as the picture: they take half a pixel. Narrower ones would be nothing but rows that look
/// empty, and take seconds in a large profile.
const NARROWEST: u64 = 2_000;

const fn unit(weight: WeightUnit) -> &'static str {
    match weight {
        WeightUnit::Bytes => "bytes",
        WeightUnit::Objects => "blocks",
    }
}

fn title(profile: &Profile, view: &View<'_>) -> String {
    let process = match profile.processes.len() {
        0 | 1 => printable(&profile.target.comm).into_owned(),
        several => format!("{} and {} more", target_name(profile), several - 1),
    };
    if profile.settings.mode == Mode::Growth {
        return format!("{process}: {} became resident", Bytes(view.bytes()));
    }
    let error = plus_minus(standard_error(view.stacks.iter().copied()));
    format!("{process}: {}{error} outstanding in {}", Bytes(view.bytes()), counted(view.objects(), "block"))
}

fn subtitle(profile: &Profile, options: &Options) -> String {
    let window = &profile.window;
    let mut text = format!(
        "pid {} · {} from {}",
        profile.target.pid,
        Span(window.duration_ns),
        printable(&moment(&window.started_at))
    );
    match profile.events.lost_total() {
        0 => text += " · nothing lost",
        lost => _ = write!(text, " · {} lost", counted(lost, "event")),
    }
    let incomplete = profile.events.incomplete_total();
    if incomplete > 0 {
        _ = write!(text, " · {} without all callers", counted(incomplete, "allocation"));
    }
    if options.includes(Kind::Allocator) {
        text += " · native blocks count twice: they lie in the allocator's memory";
    }
    text
}

/// What inferno has no option for: human units before the exact number of every tooltip, a name on the box of everything,
/// a legend, and semicolons in names.
fn finish(svg: &str, weight: WeightUnit, legend: &str) -> String {
    const OPEN: &str = "<title>";
    const CLOSE: &str = "</title>";
    let mut text = String::with_capacity(svg.len() * 9 / 8 + legend.len());
    let mut rest = svg;
    if let Some((before, after)) = svg.split_once("<text id=\"details\"") {
        text.extend([before, legend, "<text id=\"details\""]);
        rest = after;
    }
    while let Some((before, title)) = rest.split_once(OPEN) {
        let Some((title, after)) = title.split_once(CLOSE) else { break };
        text.extend([before, OPEN, &with_human_units(title, weight), CLOSE]);
        rest = after;
        if title.starts_with("all (")
            && let Some((before, after)) = rest.split_once("></text>")
        {
            text.extend([before, ">all</text>"]);
            rest = after;
        }
    }
    text += rest;
    text.replace(SEMICOLON, ";")
}

/// `name (4,404,019 bytes, 12.34%)` → `name (4.2 MiB = 4,404,019 bytes, 12.34%)`
fn with_human_units(title: &str, weight: WeightUnit) -> String {
    let human = || {
        let (name, amount) = title.rsplit_once(" (")?;
        let (number, _) = amount.split_once(" bytes")?;
        let bytes: u64 = number.replace(',', "").parse().ok()?;
        (bytes >= 1024).then(|| format!("{name} ({} = {amount}", Bytes(bytes)))
    };
    match weight {
        WeightUnit::Bytes => human().unwrap_or_else(|| title.to_owned()),
        WeightUnit::Objects => title.to_owned(),
    }
}

/// The colour family of every name. A name that stands for several things has that of the heaviest.
fn hues(tree: &Tree<'_>) -> HashMap<String, Hue> {
    let hues = tree.names.roles.iter().map(|&role| Hue::of(role));
    tree.names.texts().map(Cow::into_owned).zip(hues).collect()
}

fn palette(hues: &HashMap<String, Hue>) -> color::PaletteMap {
    let mut palette = color::PaletteMap::default();
    // inferno asks for the box of everything by an empty name.
    palette.insert("", Hue::Outside.shade(""));
    for (name, hue) in hues {
        palette.insert(name.replace(';', SEMICOLON), hue.shade(name));
    }
    palette
}

/// What the colours of this picture mean. The subtitle is right of it; where the window has no room for both, it stands alone.
fn legend(hues: &HashMap<String, Hue>, subtitle: &str) -> String {
    /// A character of the font, in pixels.
    const LETTER: usize = 7;
    let mut text = String::from("<g id=\"legend\">");
    let mut x = 10;
    for hue in Hue::ALL {
        if !hues.values().any(|used| used == hue) {
            continue;
        }
        let name = hue.name();
        let color::Color { r, g, b } = hue.shade("");
        let text_x = x + 13;
        _ = write!(
            text,
            r#"<rect x="{x}" y="39" width="10" height="10" fill="rgb({r},{g},{b})"/><text x="{text_x}" y="48">{name}</text>"#
        );
        x = text_x + LETTER * name.len() + 10;
    }
    let both = x + (LETTER + 1) * subtitle.chars().count() + 20;
    let style = format!(
        "<style type=\"text/css\">@media (max-width: {both}px) {{ #legend {{ display:none }} }} @media (min-width: {}px) {{ \
         #subtitle {{ text-anchor:end; transform:translateX(calc(50vw - 24px)) }} }}</style>",
        both + 1
    );
    style + &text + "</g>"
}

/// The families of colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hue {
    /// Processes, and everything.
    Outside,
    /// The program and its libraries.
    Native,
    /// The C and C++ runtime: seldom where a leak is.
    Runtime,
    /// Code made by a just-in-time compiler.
    Jit,
    /// Functions that a runtime tells by name, however they run.
    Script,
    /// The kernel.
    Kernel,
    /// Code that cannot be named, and callers that are missing.
    Unknown,
    /// The allocator function.
    Api,
}

impl Hue {
    const ALL: &'static [Hue] = &[
        Hue::Native,
        Hue::Runtime,
        Hue::Script,
        Hue::Jit,
        Hue::Kernel,
        Hue::Unknown,
        Hue::Outside,
        Hue::Api,
    ];

    /// How a legend calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Hue::Outside => "process",
            Hue::Native => "native",
            Hue::Runtime => "libc",
            Hue::Jit => "JIT",
            Hue::Script => "JavaScript, Python, Java",
            Hue::Kernel => "kernel",
            Hue::Unknown => "unknown",
            Hue::Api => "allocator",
        }
    }

    pub fn of(role: Role<'_>) -> Self {
        match role {
            Role::Process(_) => Hue::Outside,
            Role::Stop(_) => Hue::Unknown,
            Role::Api(_) => Hue::Api,
            Role::Frame(frame) => Self::of_frame(frame),
        }
    }

    fn of_frame(frame: &Frame) -> Self {
        let module = frame.module.as_deref().unwrap_or_default();
        match frame.language.as_deref() {
            Some("jit") => Hue::Jit,
            Some("javascript" | "wasm" | "java" | "python") => Hue::Script,
            Some("kernel") => Hue::Kernel,
            _ if module.starts_with("[kernel") => Hue::Kernel,
            _ if frame.function.is_none() => Hue::Unknown,
            _ if is_runtime(module) => Hue::Runtime,
            _ => Hue::Native,
        }
    }

    /// Hue in degrees, saturation, and the darkest lightness.
    const fn hsl(self) -> (f64, f64, f64) {
        match self {
            Hue::Outside => (220.0, 0.10, 0.86),
            Hue::Native => (22.0, 0.88, 0.64),
            Hue::Runtime => (46.0, 0.85, 0.68),
            Hue::Jit => (128.0, 0.45, 0.66),
            Hue::Script => (168.0, 0.46, 0.64),
            Hue::Kernel => (280.0, 0.40, 0.74),
            Hue::Unknown => (0.0, 0.00, 0.76),
            Hue::Api => (205.0, 0.70, 0.72),
        }
    }

    /// The family's colour for this name: neighbours differ a little, and the same name is alike in every picture.
    fn shade(self, name: &str) -> color::Color {
        let (hue, saturation, lightness) = self.hsl();
        let hash = stable_hash(name);
        let spread = |bits: u64| (bits & 0xffff) as f64 / 65535.0;
        let turn = if self == Hue::Native { 28.0 } else { 10.0 };
        rgb(hue + turn * (spread(hash) - 0.5), saturation, lightness + 0.10 * spread(hash >> 16))
    }
}

/// Libraries of the C and C++ runtime by the beginning of their names.
fn is_runtime(module: &str) -> bool {
    const RUNTIME: [&str; 10] = [
        "libc.",
        "libc-",
        "ld-",
        "libstdc++",
        "libgcc_s",
        "libpthread",
        "libm.",
        "libdl",
        "libc++",
        "[vdso]",
    ];
    RUNTIME.iter().any(|name| module.starts_with(name))
}

/// FNV-1a, which is the same on every machine and in every version. A collision gives two names one shade, no more.
fn stable_hash(name: &str) -> u64 {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0 ^ self.0 >> 29
        }
        fn write(&mut self, bytes: &[u8]) {
            for &byte in bytes {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// A colour from hue (degrees), saturation and lightness (0 to 1), by the usual formula.
fn rgb(hue: f64, saturation: f64, lightness: f64) -> color::Color {
    let channel = |n: f64| {
        let k = (n + hue / 30.0).rem_euclid(12.0);
        let amplitude = saturation * lightness.min(1.0 - lightness);
        (255.0 * (lightness - amplitude * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0))).round() as u8
    };
    color::Color { r: channel(0.0), g: channel(8.0), b: channel(4.0) }
}

/// The page of a profile with nothing to draw: inferno makes an error of it.
fn empty(title: &str, subtitle: &str) -> String {
    format!(
        r##"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="1200" height="160" viewBox="0 0 1200 160" xmlns="http://www.w3.org/2000/svg">
<style type="text/css">text {{ font-family:monospace; font-size:12px; text-anchor:middle; }} #title {{ font-size:17px; }}</style>
<rect x="0" y="0" width="100%" height="160" fill="#ffffff"/>
<text id="title" x="50%" y="24">{title}</text>
<text id="subtitle" x="50%" y="48">{subtitle}</text>
<text x="50%" y="104">Nothing allocated in this window is still outstanding.</text>
</svg>
"##,
        title = escape(title),
        subtitle = escape(subtitle),
    )
}

/// Text as XML writes it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Pid, Process, StackReport};
    use crate::report::fixtures;

    fn render(profile: &Profile, options: &Options) -> String {
        let mut out = Vec::new();
        Svg.write(profile, options, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// The picture without inferno's script, which is not ours to pin.
    fn picture(profile: &Profile, options: &Options) -> String {
        let svg = render(profile, options);
        match (svg.split_once("<script"), svg.split_once("</script>")) {
            (Some((head, _)), Some((_, tail))) => format!("{head}{tail}").replace("><", ">\n<"),
            _ => svg,
        }
    }

    #[test]
    fn many_processes_alike_are_drawn() {
        let mut profile = fixtures::several();
        let (process, stack) = (profile.processes[0].clone(), profile.stacks[1].clone());
        let pids = || (10..10 + 3 * NARROWEST as u32).map(Pid);
        profile.processes = pids().map(|pid| Process { pid, ..process.clone() }).collect();
        profile.stacks = pids().map(|pid| StackReport { pid: Some(pid), ..stack.clone() }).collect();
        let svg = render(&profile, &Options::default());
        assert_eq!(svg.matches("<title>ngx_alloc").count(), profile.processes.len());
    }

    #[test]
    fn golden() {
        for (name, profile) in fixtures::all().into_iter().filter(|(name, _)| *name != "deep") {
            insta::assert_snapshot!(format!("svg_{name}"), picture(&profile, &Options::default()));
        }
    }

    #[test]
    fn a_deep_recursion_is_a_box_for_each_call_one_above_the_other() {
        // What is around the boxes, and the height of one.
        const MARGIN: usize = 94;
        const BOX: usize = 16;
        let profile = fixtures::deep();
        let picture = picture(&profile, &Options::default());
        let whole = format!("fg:x=\"0\" fg:w=\"{}\"", profile.totals.weight_bytes);
        let value = |line: &str, key: &str| {
            let (_, value) = line.split_once(&format!(" {key}=\""))?;
            value.split_once('"')?.0.parse::<usize>().ok()
        };
        let boxes = picture.lines().filter(|line| line.starts_with("<rect") && line.contains(&whole));
        let tops: Vec<usize> = boxes.map(|line| value(line, "y").unwrap()).collect();
        assert_eq!(picture.matches("<title>descend(int) (").count(), 1_000);
        assert_eq!(tops.len(), 1_000 + ["all", "main", "malloc"].len());
        assert!(tops.windows(2).all(|pair| pair[0] == pair[1] + BOX), "{tops:?}");
        let svg = picture.lines().find(|line| line.starts_with("<svg")).unwrap();
        assert_eq!(value(svg, "height"), Some(tops.len() * BOX + MARGIN));
        assert!(picture.len() < 300 * tops.len(), "{} bytes", picture.len());
    }

    #[test]
    fn icicle_of_objects() {
        let options =
            Options { weight: WeightUnit::Objects, order: FlameOrder::Icicle, ..Options::default() };
        insta::assert_snapshot!("svg_icicle_of_objects", picture(&fixtures::node(), &options));
    }

    #[test]
    fn names_from_the_target_are_text() {
        let svg = render(&fixtures::hostile(), &Options::default());
        assert_eq!(svg.matches("<script").count(), 1, "only inferno's own");
        assert!(svg.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(svg.contains("[u8; 8]"));
        assert!(!svg.contains(['\u{1b}', '\0']) && !svg.contains(SEMICOLON));
    }

    #[test]
    fn tooltips_have_human_and_exact_numbers() {
        let human = |title| with_human_units(title, WeightUnit::Bytes);
        assert_eq!(human("f (4,404,019 bytes, 12.34%)"), "f (4.2 MiB = 4,404,019 bytes, 12.34%)");
        assert_eq!(human("f (char) (17 bytes, 0.01%)"), "f (char) (17 bytes, 0.01%)");
        assert_eq!(human("nonsense"), "nonsense");
        assert_eq!(
            with_human_units("f (2,048 blocks, 1.00%)", WeightUnit::Objects),
            "f (2,048 blocks, 1.00%)"
        );
    }

    #[test]
    fn colours_say_what_kind_of_code_it_is() {
        let frame = |function: Option<&str>, module: &str, language: Option<&str>| Frame {
            function: function.map(str::to_owned),
            module: Some(module.to_owned()),
            language: language.map(str::to_owned),
            ..Frame::default()
        };
        assert_eq!(Hue::of_frame(&frame(Some("f"), "addon.node", Some("c++"))), Hue::Native);
        assert_eq!(Hue::of_frame(&frame(Some("qsort"), "libc.so.6", None)), Hue::Runtime);
        assert_eq!(Hue::of_frame(&frame(Some("f"), "libcrypto.so.3", None)), Hue::Native);
        assert_eq!(Hue::of_frame(&frame(Some("~f"), "[jit]", Some("jit"))), Hue::Jit);
        assert_eq!(Hue::of_frame(&frame(Some("f"), "", Some("javascript"))), Hue::Script);
        assert_eq!(Hue::of_frame(&frame(None, "addon.node", None)), Hue::Unknown);
        let rgb = rgb(0.0, 1.0, 0.5);
        assert_eq!((rgb.r, rgb.g, rgb.b), (255, 0, 0));
    }
}
