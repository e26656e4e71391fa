//! A stack as lines for the terminal, and the colours of the terminal.

use std::fmt;
use std::sync::Arc;

use super::Options;
use super::human::{Count, counted, fit_name, printable, shorten};
use super::view::{frame_label, stop_name};
use crate::model::{Frame, StackReport, Stop};

/// What frames are indented by: below the figures of their stack.
const INDENT: &str = "         ";

/// The frames, leaf first, and why callers are missing if any are.
pub(super) fn stack_lines(stack: &StackReport, options: &Options) -> Vec<String> {
    let page = Page { options, paint: Paint::new(options) };
    let missing = stop_name(stack).map(|name| {
        let why = Stop::ALL.iter().find(|stop| stop.name() == name).map_or(&*name, |stop| stop.description());
        page.paint.dim(&format!("… callers missing: {why}"))
    });
    page.frames(&stack.frames).into_iter().chain(missing).map(|line| format!("{INDENT}{line}")).collect()
}

struct Page<'a> {
    options: &'a Options,
    paint: Paint,
}

impl Page<'_> {
    /// The frames, leaf first; a recursion is one line, and of many lines the first ones and the last two are shown.
    fn frames(&self, frames: &[Arc<Frame>]) -> Vec<String> {
        const OUTER: usize = 2;
        let runs: Vec<&[Arc<Frame>]> = frames.chunk_by(|a, b| same_place(a, b)).collect();
        let lines = |runs: &[&[Arc<Frame>]]| {
            runs.iter().map(|run| self.frame(&run[0], run.len())).collect::<Vec<_>>()
        };
        let most = self.options.frames.max(OUTER + 2);
        if runs.len() <= most {
            return lines(&runs);
        }
        let (inner, rest) = runs.split_at(most - OUTER - 1);
        let (left_out, outer) = rest.split_at(rest.len() - OUTER);
        let left_out: usize = left_out.iter().map(|run| run.len()).sum();
        let gap = self.paint.dim(&format!("… {} …", counted(left_out as u64, "more frame")));
        [lines(inner), vec![gap], lines(outer)].concat()
    }

    /// `function (module, file:line)`; when the line is too long, the name gives way up to half of it.
    fn frame(&self, frame: &Frame, times: usize) -> String {
        let times = if times > 1 { format!(" × {}", Count(times as u64)) } else { String::new() };
        let room = self.options.width.saturating_sub(INDENT.len());
        let name = frame_label(frame);
        let room_of_place = room_beside(&name, room).saturating_sub(times.chars().count() + " ()".len());
        let place = match place_within(frame, room_of_place) {
            place if place.is_empty() => times,
            place => format!(" ({place}){times}"),
        };
        let name = fit_name(&name, room.saturating_sub(place.chars().count()));
        format!("{name}{}", self.paint.dim(&place))
    }
}

/// Room for the place of a frame, in a line for both: what a short name leaves, half of it at least.
pub(crate) fn room_beside(name: &str, room: usize) -> usize {
    room.saturating_sub(name.chars().count()).max(room / 2)
}

/// The place of a frame in so many characters: without the source's directory where there is no room for it.
pub(crate) fn place_within(frame: &Frame, width: usize) -> String {
    let whole = place(frame);
    if whole.chars().count() <= width {
        return whole;
    }
    shorten(&place_with(frame, 1), width).into_owned()
}

/// Where a frame is: `module, file:line`, and whether it is inlined. A name made of the module says that already; code compiled just
/// in time is in none.
pub(crate) fn place(frame: &Frame) -> String {
    place_with(frame, 2)
}

fn place_with(frame: &Frame, parts: usize) -> String {
    let module = frame.function.as_ref().and(frame.module.as_deref());
    let module = match frame.language.as_deref() {
        Some("jit") if module.is_some() => Some("JIT".to_owned()),
        _ => module.map(|module| printable(module).into_owned()),
    };
    let source = frame.file.as_deref().map(|file| source(file, frame.line, parts));
    let inlined = frame.inlined.then(|| "inlined".to_owned());
    [module, source, inlined].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The last parts of the path, and the line: `src/session.cc:42`.
fn source(file: &str, line: Option<u32>, parts: usize) -> String {
    let file = printable(file);
    let start = file.rmatch_indices('/').nth(parts - 1).map_or(0, |(slash, _)| slash + 1);
    match line {
        Some(line) => format!("{}:{line}", &file[start..]),
        None => file[start..].to_owned(),
    }
}

/// Whether two frames read the same: a recursion's do, though the addresses may differ.
fn same_place(a: &Frame, b: &Frame) -> bool {
    let place = |frame: &Frame| (frame.line, frame.inlined);
    place(a) == place(b)
        && a.function == b.function
        && a.module == b.module
        && a.file == b.file
        && a.function.is_some()
}

/// Colours, or none.
#[derive(Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    pub fn new(options: &Options) -> Self {
        Self(options.color)
    }

    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// What the eye should find first.
    pub fn strong(self, text: &str) -> String {
        self.with("1;31", text)
    }

    pub fn warn(self, text: &str) -> String {
        self.with("1;33", text)
    }

    fn with(self, code: impl fmt::Display, text: &str) -> String {
        match self.0 && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}
