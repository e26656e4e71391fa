//! Who is to blame: a line for each cause, where there is room for them.

use ratatui::{
    Frame,
    layout::Rect,
    text::{Line, Span},
    widgets::Paragraph,
};

use super::Theme;
use crate::{
    model::{Bytes, Cause},
    report::{
        cause_lines::{growth, shown_causes, whole},
        human::{counted, fit_name, printable, share},
    },
    tui::state::ViewState,
};

/// So many lines are theirs, of so many.
pub fn lines(state: &ViewState, height: u16) -> u16 {
    let most = match height {
        // The verdict names the largest, and the stacks need the room.
        ..30 => 0,
        30..36 => 1,
        _ => 3,
    };
    let causes = state.profile.as_ref().map_or(0, |profile| shown_causes(profile).len());
    most.min(u16::try_from(causes).unwrap_or(most))
}

pub fn draw(frame: &mut Frame<'_>, area: Rect, state: &ViewState, theme: Theme) {
    let Some(profile) = &state.profile else { return };
    let whole = whole(profile);
    let causes = shown_causes(profile).into_iter().take(area.height.into());
    let lines: Vec<_> = causes.map(|cause| line(cause, whole, area.width, theme)).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn line(cause: &Cause, whole: u64, width: u16, theme: Theme) -> Line<'static> {
    let mut spans = vec![
        Span::raw(format!(" {:>7} ", share(cause.weight_bytes, whole))),
        Span::styled(format!("{:<8}", cause.verdict.name().replace('_', " ")), theme.verdict(cause.verdict)),
        Span::styled(format!("{:>11}", Bytes(cause.weight_bytes).to_string()), theme.bold()),
        Span::raw(format!("{:>13}/min ", growth(cause))),
        Span::styled(format!("{:>10} ", counted(cause.stacks, "stack")), theme.dim()),
    ];
    let used: usize = spans.iter().map(Span::width).sum();
    spans.push(Span::raw(
        fit_name(&printable(&cause.place), usize::from(width).saturating_sub(used)).into_owned(),
    ));
    Line::from(spans)
}
