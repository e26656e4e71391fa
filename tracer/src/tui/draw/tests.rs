//! What the terminal shows, cell by cell, at the sizes that people have.

use std::time::Duration;

use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

use super::*;
use crate::{
    model::{Bytes, Profile},
    report::{Options, fixtures, status::Vitals, view::drawn_stacks},
};

fn recording(target: &str) -> ViewState {
    let mut state = ViewState::default();
    state.set_target(target);
    state
}

fn shown(profile: Profile) -> ViewState {
    let mut state = recording("node (1234)");
    for step in 0..40_u64 {
        state.take_vitals(Vitals {
            elapsed: Duration::from_secs(step),
            events_per_second: 12_345.0,
            outstanding: Bytes(step * (47 << 20) / 40),
            objects: 18 * step,
            rss: Some((Bytes(88 << 20), Bytes((88 << 20) + step * (47 << 20) / 40))),
            lost: 0,
            tracing_percent: None,
        });
        if step == 20 {
            state.mark();
        }
    }
    let stacks = drawn_stacks(&profile, &Options::default());
    state.take_profile(Profile { stacks, ..profile });
    state
}

fn cells(state: &ViewState, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, Theme::new(false))).unwrap();
    terminal.backend().to_string()
}

fn press(state: &mut ViewState, keys: &[KeyCode]) {
    for &key in keys {
        state.press(key.into());
    }
}

#[test]
fn a_leak_at_both_sizes() {
    let state = shown(fixtures::node());
    insta::assert_snapshot!("leak_80x24", cells(&state, 80, 24));
    insta::assert_snapshot!("leak_120x40", cells(&state, 120, 40));
}

#[test]
fn before_the_first_look() {
    insta::assert_snapshot!("first_80x24", cells(&recording("node (1234)"), 80, 24));
}

#[test]
fn filter_help_pause_and_messages() {
    let mut state = shown(fixtures::node());
    press(&mut state, &[KeyCode::Char('/'), KeyCode::Char('v'), KeyCode::Char('e'), KeyCode::Char('c')]);
    insta::assert_snapshot!("filter_80x24", cells(&state, 80, 24));
    press(&mut state, &[KeyCode::Esc, KeyCode::Char('?')]);
    insta::assert_snapshot!("help_80x24", cells(&state, 80, 24));
    press(
        &mut state,
        &[KeyCode::Esc, KeyCode::Char('p'), KeyCode::Char('b'), KeyCode::Down, KeyCode::PageDown],
    );
    state.say("snapshot 1, 46.9 MiB outstanding: leak.1.svg");
    state.vitals.lost = 12_345;
    state.vitals.tracing_percent = Some(43.4);
    insta::assert_snapshot!("paused_120x40", cells(&state, 120, 40));
}

#[test]
fn whatever_a_target_is_called_it_draws_no_control_character_and_fits_any_size() {
    for (name, profile) in fixtures::all() {
        let state = shown(profile);
        for (width, height) in [(1, 1), (20, 5), (50, 14), (80, 24), (81, 25), (300, 100)] {
            let text = cells(&state, width, height);
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{name} {width}x{height}");
        }
    }
}

#[test]
fn colour_is_used_only_when_it_is_wanted() {
    let state = shown(fixtures::node());
    let colors = |color| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &state, Theme::new(color))).unwrap();
        let plain = ratatui::style::Color::Reset;
        let cells = terminal.backend().buffer().content();
        cells.iter().filter(|cell| cell.fg != plain || cell.bg != plain).count()
    };
    assert!(colors(true) > 100);
    assert_eq!(colors(false), 0);
}
