//! The upper half: what it all means, where the resident memory went, and since when.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::Style,
    text::{Line, Span},
    widgets::{Paragraph, Wrap},
};

use super::{Theme, theme};
use crate::{
    model::{Bytes, Memory, Part},
    report::{
        human::{Change, Count, per_minute, printable},
        words::part_name,
    },
    tui::state::ViewState,
};

/// Columns of the names on the left and of the sizes on the right.
const LABEL: u16 = 10;
const SIZE: u16 = 11;

pub fn draw_verdict(frame: &mut Frame<'_>, area: Rect, state: &ViewState, theme: Theme) {
    let verdict = state.profile.as_ref().and_then(|profile| profile.verdict.as_ref());
    let (text, style) = match verdict {
        None => ("reading allocations ...".into(), theme.dim()),
        Some(verdict) => {
            let style = match verdict.leaking {
                Some(true) => theme.bad(),
                Some(false) => theme.good(),
                None => theme.warn(),
            };
            (printable(&verdict.summary), style)
        }
    };
    let area = Rect { x: area.x + 1, width: area.width - 2, ..area };
    frame.render_widget(Paragraph::new(Span::styled(text, style)).wrap(Wrap { trim: true }), area);
}

pub fn draw_parts(frame: &mut Frame<'_>, area: Rect, state: &ViewState, theme: Theme) {
    let [resident, bar, legend] = Layout::vertical([Constraint::Length(1); 3]).areas(area);
    frame.render_widget(Paragraph::new(resident_line(state, theme)), resident);
    let memory = state.profile.as_ref().and_then(|profile| profile.memory.as_ref());
    let Some(memory) = memory.filter(|memory| !memory.parts.is_empty()) else { return };
    let growth = growth_by_part(memory);
    let width = bar.width.saturating_sub(LABEL + 2);
    frame.render_widget(Paragraph::new(bar_line(&growth, width.into(), theme)), bar);
    frame.render_widget(Paragraph::new(legend_line(&growth, legend.width.into(), theme)), legend);
}

fn label(text: &str, theme: Theme) -> Span<'static> {
    Span::styled(format!(" {text:<9}"), theme.dim())
}

fn resident_line(state: &ViewState, theme: Theme) -> Line<'static> {
    let mut spans = vec![label("resident", theme)];
    match state.vitals.rss {
        None => spans.push(Span::styled("not known", theme.dim())),
        Some((before, now)) => {
            let change = Change::between(before.0, now.0);
            let seconds = state.vitals.elapsed.as_secs_f64().max(1.0);
            spans.push(Span::raw(format!("{before} → {now}  ")));
            spans.push(Span::styled(change.to_string(), theme.bold()));
            spans.push(Span::raw(format!(" ({})", per_minute(change.0 as f64 / seconds))));
            spans.extend(state.vitals.tracing_percent.map(|percent| {
                // Rates are those of a slowed process.
                Span::styled(format!("  tracing takes {percent:.0} %"), theme.warn())
            }));
        }
    }
    Line::from(spans)
}

/// What changed, largest growth first.
fn growth_by_part(memory: &Memory) -> Vec<(Part, i64)> {
    let change = |part: &crate::model::PartSize| part.after_bytes.saturating_sub(part.before_bytes);
    let mut growth: Vec<_> = memory.parts.iter().map(|part| (part.part, change(part))).collect();
    growth.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    growth
}

/// The parts that grew, by their shares of the growth.
fn bar_line(growth: &[(Part, i64)], width: usize, theme: Theme) -> Line<'static> {
    let mut spans = vec![label("growth", theme)];
    let grown = || growth.iter().filter(|(_, bytes)| *bytes > 0);
    let whole: i64 = grown().map(|(_, bytes)| bytes).sum();
    let mut at = 0;
    let mut sum = 0_i64;
    for &(part, bytes) in grown() {
        sum += bytes;
        let end = (sum as f64 / whole as f64 * width as f64).round() as usize;
        let (style, cell) = theme.part(part);
        spans.push(Span::styled(cell.repeat(end.saturating_sub(at)), style));
        at = at.max(end);
    }
    Line::from(spans)
}

/// As many parts as there is room for.
fn legend_line(growth: &[(Part, i64)], width: usize, theme: Theme) -> Line<'static> {
    /// Less than that is every program's wavering.
    const WORTH_A_WORD: u64 = 64 << 10;
    let mut line = Line::from(label("", theme));
    for &(part, bytes) in growth.iter().filter(|(_, bytes)| bytes.unsigned_abs() >= WORTH_A_WORD) {
        let (style, cell) = theme.part(part);
        let text = format!(" {} {}  ", short_name(part), Change(bytes));
        if line.width() + 1 + text.chars().count() > width {
            break;
        }
        line.push_span(Span::styled(cell, style));
        line.push_span(Span::raw(text));
    }
    line
}

const fn short_name(part: Part) -> &'static str {
    match part {
        Part::Native => "native",
        Part::Allocator => "allocator",
        _ => part_name(part),
    }
}

pub fn draw_timeline(frame: &mut Frame<'_>, area: Rect, state: &ViewState, theme: Theme) {
    let [resident, outstanding] = Layout::vertical([Constraint::Fill(1); 2]).areas(area);
    let width = area.width.saturating_sub(LABEL + SIZE + 2);
    let columns = state.series.columns(width.into());
    let rss: Vec<u64> = columns.iter().map(|&(rss, _)| rss).collect();
    let held: Vec<u64> = columns.iter().map(|&(_, held)| held).collect();
    let marks = state.series.marked_columns(width.into());
    let least = rss.iter().copied().min().unwrap_or(0);
    let graph = |label, style, sizes, least| Graph { label, style, sizes, least, marks: &marks };
    graph("RSS", theme.resident(), &rss, least).draw(frame, resident, theme);
    graph("held", theme.outstanding(), &held, 0).draw(frame, outstanding, theme);
}

/// Sizes over time, from `least` up to the largest.
struct Graph<'a> {
    label: &'static str,
    style: Style,
    sizes: &'a [u64],
    least: u64,
    marks: &'a [usize],
}

impl Graph<'_> {
    fn draw(&self, frame: &mut Frame<'_>, area: Rect, theme: theme::Theme) {
        let most = self.sizes.iter().copied().max().unwrap_or(0);
        let rows = usize::from(area.height);
        for row in 0..rows {
            let mut spans = vec![label(if row == 0 { self.label } else { "" }, theme)];
            spans.extend(self.sizes.iter().enumerate().map(|(column, &size)| {
                if self.marks.contains(&column) {
                    return Span::styled("┊", theme.accent());
                }
                Span::styled(self.cell(size, most, rows, row), self.style)
            }));
            let line = Rect { y: area.y + row as u16, height: 1, ..area };
            frame.render_widget(Paragraph::new(Line::from(spans)), line);
            let scale = match row {
                0 => Bytes(most).to_string(),
                row if row + 1 == rows => Bytes(self.least).to_string(),
                _ => String::new(),
            };
            let scale = Paragraph::new(Span::styled(format!("{scale} "), theme.dim()));
            frame.render_widget(scale.alignment(Alignment::Right), line);
        }
    }

    /// What of a column is in a row; the row at the bottom is the last.
    fn cell(&self, size: u64, most: u64, rows: usize, row: usize) -> &'static str {
        const EIGHTHS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
        let range = most.saturating_sub(self.least).max(1) as f64;
        let height = (size.saturating_sub(self.least) as f64 / range * (8 * rows) as f64).round() as usize;
        // A size of nothing is seen, too.
        let height = height.max(usize::from(size > 0));
        EIGHTHS[height.saturating_sub(8 * (rows - 1 - row)).min(8)]
    }
}

/// `1,024`, for figures in columns.
pub fn number(count: u64) -> String {
    Count(count).to_string()
}
