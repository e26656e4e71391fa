//! Colours, or none: then bold and reversed text says what matters.

use ratatui::style::{Color, Modifier, Style};

use crate::model::{Part, Verdict};

/// How things look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    color: bool,
}

impl Theme {
    /// With or without colour.
    #[must_use]
    pub const fn new(color: bool) -> Self {
        Self { color }
    }

    fn colored(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    /// What the eye should find first.
    pub fn bad(self) -> Style {
        self.colored(Color::LightRed).add_modifier(Modifier::BOLD)
    }

    /// What needs a second look.
    pub fn warn(self) -> Style {
        self.colored(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// What is well.
    pub fn good(self) -> Style {
        self.colored(Color::Green).add_modifier(Modifier::BOLD)
    }

    /// Keys, and what answers them.
    pub fn accent(self) -> Style {
        self.colored(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// What is read first of a line.
    pub fn bold(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What is there for those who look for it.
    pub fn dim(self) -> Style {
        if self.color { Style::new().fg(Color::Gray).add_modifier(Modifier::DIM) } else { Style::new() }
    }

    /// The name of the tool.
    pub fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED)
    }

    /// The selected row.
    pub fn selected(self) -> Style {
        if self.color {
            Style::new().bg(Color::Indexed(238))
        } else {
            Style::new().add_modifier(Modifier::REVERSED)
        }
    }

    /// The graph of the resident memory.
    pub fn resident(self) -> Style {
        self.colored(Color::Blue)
    }

    /// The graph of what is outstanding.
    pub fn outstanding(self) -> Style {
        self.colored(Color::LightRed)
    }

    pub fn verdict(self, verdict: Verdict) -> Style {
        match verdict {
            Verdict::Leaking => self.bad(),
            Verdict::Growing => self.warn(),
            Verdict::Steady | Verdict::OneOff => self.colored(Color::Green),
            Verdict::Unknown => self.dim(),
        }
    }

    /// The colour of a part of the resident memory, and what draws it where there is no colour.
    pub fn part(self, part: Part) -> (Style, &'static str) {
        let (color, plain) = match part {
            Part::Native => (Color::LightRed, "█"),
            Part::Mapping => (Color::Magenta, "▓"),
            Part::Managed => (Color::Blue, "▒"),
            Part::Allocator => (Color::Yellow, "░"),
            Part::File => (Color::Green, "▚"),
            Part::Stack => (Color::Cyan, "▞"),
            Part::Unexplained => (Color::DarkGray, "·"),
        };
        (self.colored(color), if self.color { "█" } else { plain })
    }
}
