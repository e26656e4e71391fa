//! The service, as the command line asks for it.

use std::env;

use anyhow::{Result, bail};
use env_logger::Target;

use super::logging::start_log;
use crate::{
    cli::{self, Action, Exit, WatchConfig},
    doctor,
    watch::{self, Config},
};

/// `tracer watch`.
pub(super) fn watch(config: &WatchConfig) -> Result<Exit> {
    start_log(config.verbosity, Target::Stderr);
    doctor::check_rights()?;
    if config.check {
        print!("{}", watch::check(&config.service)?);
        return Ok(Exit::Done);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch::run(config.service.clone(), read_again))?;
    Ok(Exit::Done)
}

/// What the command line says now: the file that it names may say something else.
fn read_again() -> Result<Config> {
    match cli::parse_from(env::args_os()) {
        Ok(Action::Watch(config)) => Ok(config.service),
        Ok(_) => bail!("the command line is another one"),
        Err(error) => {
            let text = error.to_string();
            bail!("{}", text.strip_prefix("error: ").unwrap_or(&text).lines().next().unwrap_or_default())
        }
    }
}
