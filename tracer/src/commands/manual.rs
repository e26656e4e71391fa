//! The man pages and the completions of shells, made from the command line's own definition, so that they say what it does.

use std::io;

use clap::Command;
use clap_complete::Shell;

use crate::cli;

/// Writes the completions of a shell.
pub(super) fn write_completions(shell: Shell, out: &mut dyn io::Write) {
    clap_complete::generate(shell, &mut cli::command(), "tracer", out);
}

/// Writes the man page of the tracer, or of one of its commands.
///
/// # Errors
/// When it cannot be written. A command that is not known has the page of the tracer.
pub(super) fn write_man(command: Option<&str>, out: &mut dyn io::Write) -> io::Result<()> {
    clap_mangen::Man::new(page_of(command)).render(&mut &mut *out)
}

fn page_of(command: Option<&str>) -> Command {
    // Global options belong to every command.
    let mut tracer = cli::command();
    tracer.build();
    match command.and_then(|name| tracer.find_subcommand(name)) {
        Some(command) => {
            let name = format!("tracer-{}", command.get_name());
            command.clone().name(name).version(env!("CARGO_PKG_VERSION"))
        }
        // clap lists its own command `help`.
        None => tracer.disable_help_subcommand(true),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    fn man(command: Option<&str>) -> String {
        let mut page = Vec::new();
        write_man(command, &mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    #[test]
    fn every_command_has_a_page_with_its_options() {
        assert!(man(None).contains("\\-\\-min\\-age") && man(None).contains("tracer\\-report(1)"));
        assert!(man(Some("report")).contains(".TH tracer-report 1"));
        assert!(man(Some("report")).contains("\\-\\-focus") && man(Some("report")).contains("\\-\\-color"));
        assert!(cli::command().get_subcommands().all(|command| {
            let name = command.get_name();
            man(Some(name)).contains(&format!(".TH tracer-{name} 1"))
        }));
    }

    #[test]
    fn every_shell_completes() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            write_completions(*shell, &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("min-age") && script.contains("diff"), "{shell}");
        }
    }
}
