//! Draws the state: the same state and size give the same cells.
//!
//! From top to bottom, what somebody asks first: how bad is it, where did the memory go, since when, who holds it, and by which
//! calls.

mod causes;
mod memory;
mod stacks;
mod theme;

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Block, BorderType, Clear, Paragraph, Wrap},
};

pub use self::theme::Theme;
use super::{
    keys::HELP,
    state::{Mode, ViewState},
};
use crate::report::{
    human::{Count, shorten},
    status::{clock, rate},
};

/// Below this there is no room for anything to be read.
const SMALLEST: (u16, u16) = (50, 14);

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &ViewState, theme: Theme) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        frame.render_widget(
            Paragraph::new("the terminal is too small: 80 x 24 is enough").wrap(Wrap { trim: true }),
            area,
        );
        return;
    }
    let graphs = if area.height >= 32 { 3 } else { 2 };
    let [title, verdict, causes, memory, timeline, table, frames, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(causes::lines(state, area.height)),
        Constraint::Length(3),
        Constraint::Length(2 * graphs),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_title(frame, title, state, theme);
    memory::draw_verdict(frame, verdict, state, theme);
    causes::draw(frame, causes, state, theme);
    memory::draw_parts(frame, memory, state, theme);
    memory::draw_timeline(frame, timeline, state, theme);
    stacks::draw_table(frame, table, state, theme);
    stacks::draw_frames(frame, frames, state, theme);
    draw_footer(frame, footer, state, theme);
    if state.mode == Mode::Help {
        draw_help(frame, area, theme);
    }
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, state: &ViewState, theme: Theme) {
    let vitals = &state.vitals;
    let mut right = Vec::new();
    if vitals.lost > 0 {
        right.push(Span::styled(format!("lost {}  ", Count(vitals.lost)), theme.bad()));
    }
    right.push(Span::styled(format!("{} events/s  ", rate(vitals.events_per_second)), theme.dim()));
    right.push(if state.paused {
        Span::styled("‖ paused ", theme.warn())
    } else {
        Span::styled("● ", theme.bad())
    });
    right.push(Span::styled(format!("{} ", clock(vitals.elapsed)), theme.bold()));
    let right = Line::from(right);
    let room = usize::from(area.width).saturating_sub(right.width() + 10);
    let left = Line::from(vec![
        Span::styled(" tracer ", theme.title()),
        Span::styled(format!(" {}", shorten(&state.target, room)), theme.bold()),
    ]);
    frame.render_widget(Paragraph::new(left), area);
    frame.render_widget(Paragraph::new(right).alignment(Alignment::Right), area);
}

fn draw_footer(frame: &mut Frame<'_>, area: Rect, state: &ViewState, theme: Theme) {
    let line = match (state.mode, state.message()) {
        (Mode::Filter, _) => Line::from(vec![
            Span::styled(" /", theme.accent()),
            Span::raw(state.filter.clone()),
            Span::styled("▏", theme.accent()),
            Span::styled("  Enter keeps it, Esc takes it away", theme.dim()),
        ]),
        (_, Some(message)) => Line::from(Span::styled(format!(" {message}"), theme.accent())),
        _ => {
            let keys = [
                ("q", "end"),
                ("s", "snapshot"),
                ("m", "mark"),
                ("/", "filter"),
                ("o g a b", "order"),
                ("p", "pause"),
                ("?", "help"),
            ];
            let keys = keys.iter().flat_map(|(key, does)| {
                [
                    Span::styled(format!(" {key}"), theme.accent()),
                    Span::styled(format!(" {does} "), theme.dim()),
                ]
            });
            Line::from(keys.collect::<Vec<_>>())
        }
    };
    frame.render_widget(Paragraph::new(line), area);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect, theme: Theme) {
    let width = 76.min(area.width);
    let height = (HELP.len() as u16 + 2).min(area.height);
    let area =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let lines = HELP.iter().map(|(key, does)| {
        Line::from(vec![Span::styled(format!(" {key:>14}  "), theme.accent()), Span::raw(*does)])
    });
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(theme.dim())
        .title(Span::styled(" keys ", theme.bold()));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), area);
}

/// A line across, with a title in it.
fn rule(title: Vec<Span<'_>>, width: u16, theme: Theme) -> Line<'_> {
    let mut spans = vec![Span::styled("── ", theme.dim())];
    spans.extend(title);
    let line = Line::from(spans);
    let rest = usize::from(width).saturating_sub(line.width() + 1);
    let mut line = line;
    line.push_span(Span::styled(format!(" {}", "─".repeat(rest)), theme.dim()));
    line
}

#[cfg(test)]
mod tests;
