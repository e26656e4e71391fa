//! What is printed, and where nobody may be reading.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    os::fd::AsFd,
};

use clap::ColorChoice;

use crate::report::Options;

/// Whoever closed the pipe has read what there was to read, and a terminal that is gone has nobody before it.
pub(super) fn unless_nobody_reads(printed: io::Result<()>) -> io::Result<()> {
    match printed {
        Err(error)
            if error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(libc::EIO) =>
        {
            Ok(())
        }
        printed => printed,
    }
}

/// The options for text that goes to `out`.
pub(super) fn on_terminal<T: IsTerminal + AsFd>(options: Options, color: ColorChoice, out: &T) -> Options {
    let width = if out.is_terminal() {
        rustix::termios::tcgetwinsize(out).map_or(options.width, |size| usize::from(size.ws_col).max(40))
    } else {
        options.width
    };
    Options { color: is_colored(color, out), width, ..options }
}

/// Whether what is printed there has colours.
pub(super) fn is_colored(color: ColorChoice, out: &impl IsTerminal) -> bool {
    match color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => out.is_terminal() && can_be_colored(|name| std::env::var_os(name)),
    }
}

/// Whether nobody said that a terminal is to have no colours, or has none: see <https://no-color.org>.
fn can_be_colored(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable("NO_COLOR").is_none_or(|value| value.is_empty())
        && variable("TERM").is_none_or(|terminal| terminal != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_without_colours_gets_none() {
        let with = |name: &'static str, value: &'static str| {
            can_be_colored(|variable| (variable == name).then(|| value.into()))
        };
        assert!(with("TERM", "xterm") && with("NO_COLOR", ""));
        assert!(!with("TERM", "dumb") && !with("NO_COLOR", "1"));
    }
}
