//! What to trace.

use std::ffi::OsString;

use super::choice::Choice;
use crate::model::Pid;

/// What to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Running processes, each once.
    Processes(Vec<Pid>),
    /// Running processes, by what they are.
    Chosen(Choice),
    /// A command to start.
    Command(CommandLine),
}

impl Subject {
    /// Whether it is a command to start.
    #[must_use]
    pub const fn is_command(&self) -> bool {
        matches!(self, Self::Command(_))
    }
}

/// A command to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The program, searched in `PATH` unless it has a slash.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Whether it stays root under sudo.
    pub as_root: bool,
}
