//! The lower half: the table of stacks, and the calls of the one that is selected.

use ratatui::{
    Frame,
    layout::Rect,
    text::{Line, Span},
    widgets::Paragraph,
};

use super::{Theme, memory::number, rule};
use crate::{
    analyze::causes::place_name,
    model::{Bytes, Kind, StackReport, Stop, Verdict},
    report::{
        human::{Change, Span as TimeSpan, counted, fit_name, printable, share, shorten},
        stack_lines::{place_within, room_beside},
        view::{api_name, frame_label, stop_name},
    },
    tui::state::{Order, ViewState},
};

pub fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &ViewState, theme: Theme) {
    let mut lines =
        vec![rule(table_title(state, theme), area.width, theme), header(area.width, state, theme)];
    let room = usize::from(area.height).saturating_sub(lines.len());
    let Some(profile) = &state.profile else {
        lines.push(Line::from(Span::styled("   the first look comes in a moment", theme.dim())));
        frame.render_widget(Paragraph::new(lines), area);
        return;
    };
    if state.rows.is_empty() {
        let text = match &*state.filter {
            "" => "   nothing that was allocated in this window is outstanding".to_owned(),
            filter => format!("   no stack says {filter:?}; Esc shows all"),
        };
        lines.push(Line::from(Span::styled(text, theme.dim())));
    }
    let whole: u64 = profile.stacks.iter().map(|stack| stack.weight_bytes).fold(0, u64::saturating_add);
    // The selected row is always among those that are shown.
    let first = (state.selected + 1).saturating_sub(room);
    let selected = Rect { y: area.y + (lines.len() + state.selected - first) as u16, height: 1, ..area };
    for &index in state.rows.iter().skip(first).take(room) {
        lines.push(row_line(&profile.stacks[index], whole, area.width, theme));
    }
    frame.render_widget(Paragraph::new(lines), area);
    if !state.rows.is_empty() {
        frame.buffer_mut().set_style(selected.intersection(area), theme.selected());
    }
}

fn table_title(state: &ViewState, theme: Theme) -> Vec<Span<'static>> {
    let all = state.profile.as_ref().map_or(0, |profile| profile.stacks.len());
    let vitals = &state.vitals;
    let held = format!("{} outstanding", vitals.outstanding);
    let of = format!(" in {} of {}", counted(vitals.objects, "block"), counted(all as u64, "stack"));
    let mut title = vec![Span::styled(held, theme.bold()), Span::raw(of)];
    if !state.filter.is_empty() {
        title.push(Span::styled(format!(", {} with {:?}", state.rows.len(), state.filter), theme.accent()));
    }
    title
}

/// Columns of figures; the name has the rest.
const FIGURES: [(&str, usize, Option<Order>); 5] = [
    ("OUTSTANDING", 12, Some(Order::Outstanding)),
    ("GROWTH/MIN", 12, Some(Order::Growth)),
    ("OLDEST", 8, Some(Order::Age)),
    ("BLOCKS", 10, Some(Order::Blocks)),
    ("", 1, None),
];

/// With less room there is no column of shares.
const WIDE: u16 = 100;

fn header(width: u16, state: &ViewState, theme: Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for (name, columns, order) in FIGURES {
        let (name, style) = if order == Some(state.order) {
            (format!("▼{name}"), theme.bold())
        } else {
            (name.to_owned(), theme.dim())
        };
        spans.push(Span::styled(format!("{name:>columns$}"), style));
        if order == Some(Order::Outstanding) && width >= WIDE {
            spans.push(Span::styled(format!("{:>8}", "SHARE"), theme.dim()));
        }
    }
    spans.push(Span::styled(format!(" {:<8} {}", "VERDICT", "ALLOCATED BY"), theme.dim()));
    Line::from(spans)
}

fn row_line(stack: &StackReport, whole: u64, width: u16, theme: Theme) -> Line<'static> {
    let growth = stack.growth_bytes_per_second.map(|rate| Change((rate * 60.0) as i64).to_string());
    let growth = growth.unwrap_or_else(|| "?".to_owned());
    let age = stack.oldest_age_ns.map_or_else(String::new, |age| TimeSpan(age).to_string());
    let mut spans = vec![Span::raw(" ")];
    spans.push(Span::styled(format!("{:>12}", Bytes(stack.weight_bytes).to_string()), theme.bold()));
    if width >= WIDE {
        spans.push(Span::styled(format!("{:>8}", share(stack.weight_bytes, whole)), theme.dim()));
    }
    spans.push(Span::raw(format!("{growth:>12}{age:>8}{:>10}  ", number(stack.outstanding_objects))));
    let verdict = stack.verdict.unwrap_or(Verdict::Unknown);
    spans.push(Span::styled(format!("{:<8} ", short_verdict(verdict)), theme.verdict(verdict)));
    let used: usize = spans.iter().map(Span::width).sum();
    let room = usize::from(width).saturating_sub(used);
    spans.push(Span::raw(maker(stack, room)));
    Line::from(spans)
}

/// Who allocated: the module where there is room for it.
fn maker(stack: &StackReport, room: usize) -> String {
    let name = place_name(&stack.frames);
    let name = printable(&name);
    let name = match name.split_once(": ") {
        Some((_, function)) if name.chars().count() > room => function,
        _ => &name,
    };
    let name = match stack.kind {
        Kind::Native => name.to_owned(),
        _ => format!("{} {name}", api_name(stack)),
    };
    fit_name(&name, room).into_owned()
}

const fn short_verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Leaking => "leaking",
        Verdict::Growing => "growing",
        Verdict::Steady => "steady",
        Verdict::OneOff => "once",
        Verdict::Unknown => "…",
    }
}

/// Around the name and the place of a frame.
const BLANKS: usize = 6;

pub fn draw_frames(frame: &mut Frame<'_>, area: Rect, state: &ViewState, theme: Theme) {
    let Some(stack) = state.selected_stack() else {
        frame.render_widget(Paragraph::new(rule(Vec::new(), area.width, theme)), area);
        return;
    };
    let mut lines = vec![rule(frames_title(stack, state, theme), area.width, theme)];
    let room = usize::from(area.height).saturating_sub(1);
    let width = usize::from(area.width);
    let missing = stop_name(stack).map(|name| {
        let why = Stop::ALL.iter().find(|stop| stop.name() == name).map_or(&*name, |stop| stop.description());
        Line::from(Span::styled(format!("   … callers missing: {why}"), theme.dim()))
    });
    let frames = stack.frames.iter().map(|frame| {
        let name = frame_label(frame);
        let place = place_within(frame, room_beside(&name, width.saturating_sub(BLANKS)));
        let place = if place.is_empty() { place } else { format!("  {place}") };
        let name = fit_name(&name, width.saturating_sub(4 + place.chars().count())).into_owned();
        Line::from(vec![Span::raw(format!("   {name}")), Span::styled(place, theme.dim())])
    });
    lines.extend(frames.chain(missing).skip(state.scrolled).take(room));
    frame.render_widget(Paragraph::new(lines), area);
}

fn frames_title(stack: &StackReport, state: &ViewState, theme: Theme) -> Vec<Span<'static>> {
    let mut title = vec![
        Span::styled(shorten(&api_name(stack), 24).into_owned(), theme.bold()),
        Span::raw(format!(
            ", {} allocated, {} freed",
            number(stack.allocated_objects),
            number(stack.freed_objects)
        )),
    ];
    if stack.kind == Kind::Mapping {
        title.push(Span::raw(format!(", {} mapped", Bytes(stack.outstanding_bytes))));
    }
    if state.scrolled > 0 {
        title.push(Span::styled(format!(", frame {} on", state.scrolled + 1), theme.accent()));
    }
    title
}
