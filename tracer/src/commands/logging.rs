//! Warnings and what is being done.

use std::io::Write as _;

use env_logger::Target;
use log::LevelFilter;

use crate::{cli::Verbosity, report::human::printable};

/// From now on messages go there.
pub(super) fn start_log(verbosity: Verbosity, target: Target) {
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::Error,
        Verbosity::Normal => LevelFilter::Warn,
        Verbosity::Verbose => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_level(LevelFilter::Error)
        .filter_module("tracer", level)
        .target(target)
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
