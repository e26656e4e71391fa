//! What keys do.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::state::{Mode, Order, ViewState};
use crate::record::Request;

/// Every key of the normal mode and what it does, as the help lists them.
pub const HELP: &[(&str, &str)] = &[
    ("q, Ctrl-C", "end the recording and write the reports"),
    ("s", "write the reports now and go on: leak.1.svg, leak.2.svg"),
    ("m", "mark: from now on only new allocations count"),
    ("p, Space", "pause the display; the recording goes on"),
    ("", ""),
    ("up, down, j, k", "select a stack"),
    ("PgUp, PgDn", "scroll the frames of the stack"),
    ("Home, End", "the first stack, the last one"),
    ("o, g, a, b", "order by outstanding, growth, age, blocks"),
    ("Tab", "order by the next column"),
    ("/", "only stacks that say this somewhere; Esc takes it away"),
    ("?", "this help"),
];

impl ViewState {
    /// Does what a key says; what it asks of the recording.
    pub fn press(&mut self, key: KeyEvent) -> Option<Request> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c')).then_some(Request::End);
        }
        self.clear_message();
        match self.mode {
            Mode::Normal => self.command(key.code),
            Mode::Filter => {
                self.edit_filter(key.code);
                None
            }
            Mode::Help => {
                self.mode = Mode::Normal;
                (key.code == KeyCode::Char('q')).then_some(Request::End)
            }
        }
    }

    fn command(&mut self, key: KeyCode) -> Option<Request> {
        const FRAMES: isize = 4;
        match key {
            KeyCode::Char('q') => return Some(Request::End),
            KeyCode::Char('s') => {
                self.say("writing the reports ...");
                return Some(Request::Snapshot);
            }
            KeyCode::Char('m') => return Some(Request::Mark),
            KeyCode::Char('p' | ' ') => self.pause(),
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Esc => self.filter_by(String::new()),
            KeyCode::Char('o') => self.order_by(Order::Outstanding),
            KeyCode::Char('g') => self.order_by(Order::Growth),
            KeyCode::Char('a') => self.order_by(Order::Age),
            KeyCode::Char('b') => self.order_by(Order::Blocks),
            KeyCode::Tab => self.order_by(self.order.next()),
            KeyCode::Down | KeyCode::Char('j') => self.select(self.selected + 1),
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected.saturating_sub(1)),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            KeyCode::PageDown => self.scroll(FRAMES),
            KeyCode::PageUp => self.scroll(-FRAMES),
            _ => {}
        }
        None
    }

    fn edit_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.mode = Mode::Normal,
            KeyCode::Esc => {
                self.mode = Mode::Normal;
                self.filter_by(String::new());
            }
            KeyCode::Backspace => {
                let mut filter = self.filter.clone();
                filter.pop();
                self.filter_by(filter);
            }
            KeyCode::Char(letter) => self.filter_by(format!("{}{letter}", self.filter)),
            KeyCode::Down => self.select(self.selected + 1),
            KeyCode::Up => self.select(self.selected.saturating_sub(1)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(state: &mut ViewState, keys: &str) -> Vec<Request> {
        keys.chars().filter_map(|key| state.press(KeyCode::Char(key).into())).collect()
    }

    #[test]
    fn keys_ask_for_what_the_help_says() {
        let mut state = ViewState::default();
        assert_eq!(press(&mut state, "smq"), [Request::Snapshot, Request::Mark, Request::End]);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(state.press(interrupt), Some(Request::End));
        assert_eq!(press(&mut state, "p"), []);
        assert!(state.paused);
        press(&mut state, "g");
        assert_eq!(state.order, Order::Growth);
        state.press(KeyCode::Tab.into());
        assert_eq!(state.order, Order::Age);
    }

    #[test]
    fn text_of_the_filter_is_no_command() {
        let mut state = ViewState::default();
        assert_eq!(press(&mut state, "/qsm?"), []);
        assert_eq!((state.mode, &*state.filter), (Mode::Filter, "qsm?"));
        state.press(KeyCode::Backspace.into());
        state.press(KeyCode::Enter.into());
        assert_eq!((state.mode, &*state.filter), (Mode::Normal, "qsm"));
        state.press(KeyCode::Esc.into());
        assert_eq!(state.filter, "");
        // Ctrl-C is what it is everywhere.
        press(&mut state, "/");
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(state.press(interrupt), Some(Request::End));
    }

    #[test]
    fn any_key_takes_the_help_away() {
        let mut state = ViewState::default();
        assert_eq!(press(&mut state, "?s"), []);
        assert_eq!(state.mode, Mode::Normal);
        assert_eq!(press(&mut state, "?q"), [Request::End]);
    }
}
