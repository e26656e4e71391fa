//! The `.html` report in a real browser: it shows what the recording says, does what its buttons say, takes names from the target
//! for text, and fits a telephone.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    process::Command,
    sync::LazyLock,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tracer_tests::{Browser, Program, Report, Stack, Tracer, tracer_binary};

/// A name that would do harm where it is taken for markup.
const SCRIPT: &str = "<script>alert(1)</script>";

static PAGES: LazyLock<Pages> = LazyLock::new(Pages::make);

/// Recordings, and pages of them.
struct Pages {
    directory: TempDir,
    report: Report,
}

impl Pages {
    /// Records a program, and renames one of its functions.
    fn make() -> Self {
        let directory = TempDir::new().expect("the directory for temporary files is writable");
        let mut program = Program::new("malloc_family.c").start();
        let recording = Tracer::new().options(["--interval", "10ms"]).pid(program.pid()).start();
        program.work();
        let finished = recording.interrupt();
        let json =
            finished.json.as_deref().expect("there is a report").replace("leak_grown_in_kernel", SCRIPT);
        let pages = Self { directory, report: Report::parse(&json) };
        pages.draw("leak", &json);
        pages
    }

    fn page(&self, name: &str) -> PathBuf {
        self.directory.path().join(name).with_extension("html")
    }

    /// Writes a recording, and the page of it.
    #[track_caller]
    fn draw(&self, name: &str, json: &str) {
        let recording = self.directory.path().join(name).with_extension("json");
        std::fs::write(&recording, json).expect("the directory is writable");
        let mut report = Command::new(tracer_binary());
        report.arg("report").arg(&recording).arg("-o").arg(self.page(name));
        let output = report.output().expect("the tracer runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A browser that shows a page.
fn opened(name: &str) -> Browser {
    let mut browser = Browser::start();
    browser.look(1280, 800, false);
    browser.open(&PAGES.page(name));
    browser.wait_for("document.querySelector('#graph div')");
    browser
}

/// The box of the flame graph that says `name`.
fn flame_box(name: &str) -> String {
    format!("[...document.querySelectorAll('#graph div')].find(box => box.ariaLabel.startsWith({name:?}))")
}

/// The first cell of each line of the table, and what it was allocated by.
fn rows(browser: &mut Browser) -> Vec<(String, String)> {
    let rows = browser.evaluate(
        "[...document.querySelectorAll('#stacks tbody tr.row')].map(row => [row.cells[0].innerText, row.lastElementChild.innerText])",
    );
    serde_json::from_value(rows).expect("pairs of texts")
}

/// What a stack says beside figures: nobody reads addresses where there is a name.
fn reading(stack: &Stack) -> (&str, &str, Vec<(&str, Option<u32>)>) {
    let frames = stack
        .frames
        .iter()
        .map(|frame| (frame.function.as_deref().or(frame.offset.as_deref()).unwrap_or_default(), frame.line));
    (&stack.kind, &stack.api, frames.collect())
}

#[test]
fn it_opens_without_a_complaint_and_says_what_the_report_says() {
    let mut browser = opened("leak");
    let totals = &PAGES.report.totals;
    let all = browser.text(&format!("{}.ariaLabel", flame_box("all")));
    let digits = |number: u64| {
        let text = number.to_string();
        let groups: Vec<_> =
            text.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group)).collect();
        groups.join(",")
    };
    assert!(all.contains(&format!("{} bytes", digits(totals.weight_bytes))), "{all}");
    let headline = browser.text("document.querySelector('#headline').innerText");
    assert!(headline.contains(&format!("{} blocks", digits(totals.outstanding_objects))), "{headline}");
    let held = PAGES.report.stacks.iter().filter(|stack| {
        matches!(&*stack.kind, "native" | "mapping")
            && (stack.weight_bytes > 0 || stack.outstanding_objects > 0)
    });
    // Stacks that read the same are one line.
    let readings: BTreeSet<_> = held.map(reading).collect();
    assert_eq!(rows(&mut browser).len(), readings.len());
    assert!(
        browser.evaluate("!document.querySelector('#timeline').hidden") == json!(true),
        "there is a plot"
    );
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_name_is_text_whatever_it_says() {
    let mut browser = opened("leak");
    assert!(rows(&mut browser).iter().any(|(_, place)| place.contains(SCRIPT)), "the name is shown as it is");
    assert_eq!(
        browser.number("document.querySelectorAll('script').length"),
        2.0,
        "the data and the page's own"
    );
    browser.click(&flame_box(SCRIPT));
    assert!(browser.text("document.querySelector('#details').innerText").starts_with(SCRIPT));
    // A dialog would be one.
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_click_zooms_and_escape_goes_back() {
    let mut browser = opened("leak");
    let width = |browser: &mut Browser| browser.number(&format!("{}.offsetWidth", flame_box("leak_large")));
    let before = width(&mut browser);
    browser.click(&flame_box("leak_large"));
    assert!(width(&mut browser) > before, "it is as wide as the graph");
    assert_eq!(browser.evaluate("document.querySelector('#reset').disabled"), json!(false));
    browser.press("Escape");
    assert_eq!(width(&mut browser), before);
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn the_search_marks_boxes_and_narrows_the_table() {
    let mut browser = opened("leak");
    let all = rows(&mut browser).len();
    browser.evaluate("document.querySelector('#search').focus()");
    browser.type_text("leak_gr[o]wn");
    browser.wait_for("document.querySelector('#matched').innerText.startsWith('matched')");
    let found = rows(&mut browser);
    assert!(found.len() < all && found.iter().all(|(_, place)| place.contains("leak_grown")), "{found:?}");
    assert!(browser.number("document.querySelectorAll('#graph .match').length") > 0.0);
    browser.type_text("(");
    browser.wait_for("document.querySelector('#matched').innerText.includes('not a regular expression')");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn columns_sort_the_table() {
    let mut browser = opened("leak");
    let heaviest = rows(&mut browser);
    let header = |name: &str| {
        format!(
            "[...document.querySelectorAll('#stacks th button')].find(button => button.innerText === {name:?})"
        )
    };
    browser.click(&header("Weight"));
    let lightest = rows(&mut browser);
    assert_eq!(heaviest.first(), lightest.last());
    assert_ne!(heaviest, lightest);
    assert_eq!(browser.text("document.querySelector('th[data-key=weight]').ariaSort"), "ascending");
    browser.click(&header("Api"));
    let apis = browser.evaluate(
        "[...document.querySelectorAll('#stacks tbody tr.row')].map(row => row.cells[row.cells.length - 2].innerText)",
    );
    let apis: Vec<String> = serde_json::from_value(apis).expect("texts");
    assert!(apis.is_sorted(), "{apis:?}");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn widths_are_bytes_or_blocks() {
    let mut browser = opened("leak");
    browser.click("document.querySelector('input[value=objects]')");
    let all = browser.text(&format!("{}.ariaLabel", flame_box("all")));
    assert!(all.contains(&format!("{} blocks", PAGES.report.totals.outstanding_objects)), "{all}");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_line_of_the_table_opens_its_frames() {
    let mut browser = opened("leak");
    browser.click("document.querySelector('#stacks tbody tr.row')");
    let frames = browser.text("document.querySelector('tr.frames ol').innerText");
    let heaviest =
        PAGES.report.stacks.iter().max_by_key(|stack| stack.weight_bytes).expect("there are stacks");
    for frame in heaviest.frames.iter().filter_map(|frame| frame.function.as_deref()) {
        assert!(frames.contains(frame), "{frame}: {frames}");
    }
}

#[test]
fn the_keyboard_reaches_everything() {
    let mut browser = opened("leak");
    browser.evaluate("document.querySelector('#search').focus()");
    browser.press("Tab");
    browser.wait_for("document.activeElement.closest('#graph')");
    for key in ["ArrowUp", "ArrowUp", "Enter"] {
        browser.press(key);
    }
    assert_eq!(browser.evaluate("document.querySelector('#reset').disabled"), json!(false), "Enter zooms");
    assert!(
        browser.evaluate("Boolean(document.activeElement.closest('#graph'))") == json!(true),
        "and stays there"
    );
    browser.press("Tab");
    browser.wait_for("document.activeElement.closest('#stacks th')");
    browser.evaluate("document.querySelector('#stacks td.where button').focus()");
    browser.press("Enter");
    browser.wait_for("document.querySelector('tr.frames')");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn it_fits_a_desk_and_a_telephone_by_day_and_by_night() {
    let mut browser = opened("leak");
    for (width, dark) in [(1280, false), (1280, true), (400, false), (400, true)] {
        browser.look(width, 800, dark);
        browser.wait_for(&format!("innerWidth === {width}"));
        let overflow = browser.number("document.documentElement.scrollWidth - innerWidth");
        assert!(overflow <= 0.0, "{overflow} pixels are out of sight at {width}");
        let color = |property: &str| {
            format!(
                "getComputedStyle(document.body).{property}.match(/\\d+/g).slice(0, 3).reduce((sum, n) => sum + Number(n), 0)"
            )
        };
        let (text, page) = (browser.number(&color("color")), browser.number(&color("backgroundColor")));
        assert_eq!(text > page, dark, "text {text}, page {page}");
        assert!((text - page).abs() > 400.0, "it can be read");
    }
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn twenty_thousand_stacks_open() {
    const STACKS: usize = 20_000;
    let json = serde_json::to_string(&large(STACKS)).expect("it is JSON");
    PAGES.draw("large", &json);
    let mut browser = opened("large");
    let left = browser.text("document.querySelector('#more').innerText");
    assert!(left.contains("19,900"), "{left}");
    browser.click("document.querySelector('#more')");
    assert_eq!(rows(&mut browser).len(), 200);
    assert_eq!(browser.complaints(), [""; 0]);
}

/// A recording like the real one, with as many stacks.
fn large(stacks: usize) -> Value {
    let text = std::fs::read_to_string(PAGES.directory.path().join("leak.json")).expect("it was written");
    let mut report: Value = serde_json::from_str(&text).expect("it is JSON");
    let pattern = report["stacks"][0].clone();
    let mut table = Vec::new();
    let mut indexes = HashMap::new();
    let mut index = |depth: usize, shared: usize| {
        *indexes.entry((depth, shared)).or_insert_with(|| {
            let ip = format!("{:#x}", depth << 32 | shared);
            table.push(json!({ "ip": ip, "function": format!("at_{depth}_{shared}"), "module": "large" }));
            table.len() - 1
        })
    };
    let stack = |number: usize| {
        let shared = |depth: usize| if depth < 20 { number } else { number >> (depth - 20).min(14) };
        let mut stack = pattern.clone();
        stack["weight_bytes"] = json!(1_000_000 - number);
        stack["frames"] = (0..60).map(|depth| json!(index(depth, shared(depth)))).collect();
        stack
    };
    report["stacks"] = (0..stacks).map(stack).collect();
    report["frames"] = table.into();
    report
}
