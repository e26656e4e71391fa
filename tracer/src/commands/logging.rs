//! Warnings and what is being done, on standard error or in the terminal interface.

use std::io::Write as _;

use env_logger::Target;
use log::LevelFilter;

use crate::{
    cli::{RecordConfig, Verbosity},
    report::human::printable,
    tui,
};

/// From now on messages go where the command line wants them.
pub(super) fn start_log(config: &RecordConfig) {
    let level = match config.verbosity {
        Verbosity::Quiet => LevelFilter::Error,
        Verbosity::Normal => LevelFilter::Warn,
        Verbosity::Verbose => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_level(LevelFilter::Error)
        .filter_module("tracer", level)
        .target(if config.tui { Target::Pipe(tui::log_sink()) } else { Target::Stderr })
        .format(|out, record| {
            let level = match record.level() {
                log::Level::Warn => "warning: ",
                log::Level::Error => "error: ",
                _ => "",
            };
            // A target names itself and its files as it likes.
            writeln!(out, "tracer: {level}{}", printable(&record.args().to_string()))
        })
        .init();
}
