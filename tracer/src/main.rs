//! The command line: `tracer --pid N`.

use std::{path::Path, time::Duration};

use tracer::{
    model::Pid,
    record::{Config, record},
    report::{
        Options, Report,
        destination::{Destination, write_all},
        status::StatusLine,
        text::Text,
    },
};

fn main() -> anyhow::Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let mut args = std::env::args().skip(1);
    let mut config = Config {
        targets: vec![],
        duration: None,
        min_age: Duration::ZERO,
        min_size: None,
        max_size: None,
        max_live: None,
        interval: Duration::from_secs(1),
    };
    let mut outputs = vec![];
    while let Some(arg) = args.next() {
        let value = args.next().unwrap_or_default();
        match arg.as_str() {
            "--pid" => config.targets.push(Pid(value.parse()?)),
            "-d" => config.duration = Some(humantime::parse_duration(&value)?),
            "-o" => outputs.push(Destination::parse(Path::new(&value), None)?),
            "--max-live" => config.max_live = Some(value.parse()?),
            _ => anyhow::bail!("unknown {arg}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = StatusLine::new(true);
    let profile = runtime.block_on(record(&config, &status))?;
    drop(status);
    let options = Options::default();
    let (written, errors) = write_all(&outputs, &profile, &options);
    Text { written: &written }.write(&profile, &options, &mut std::io::stdout())?;
    for error in errors {
        eprintln!("{error}");
    }
    Ok(())
}
