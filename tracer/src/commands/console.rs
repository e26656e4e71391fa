//! Looks on by a status line on standard error.

use std::io::{self, Write as _};

use anyhow::Result;

use crate::{
    cli::RecordConfig,
    record::{Findings, Observer},
    report::{
        snapshot::{self, Background},
        status::{Status, StatusLine},
    },
};

/// The status line, and what writes snapshots.
pub struct Console<'a> {
    config: &'a RecordConfig,
    line: StatusLine,
    /// After the window.
    waiting: Option<StatusLine>,
    snapshots: u32,
    writer: Background,
}

impl<'a> Console<'a> {
    /// Says what is to be said as the command line asks for.
    #[must_use]
    pub fn new(config: &'a RecordConfig) -> Self {
        Self {
            config,
            line: StatusLine::new(config.progress),
            waiting: None,
            snapshots: 0,
            writer: Background::default(),
        }
    }
}

fn print(line: &StatusLine, text: &str) {
    line.suspend(|| _ = writeln!(io::stderr(), "{text}"));
}

impl Observer for Console<'_> {
    fn begin(&mut self, line: &str) -> Result<()> {
        self.say(line);
        Ok(())
    }

    fn say(&mut self, line: &str) {
        if !self.config.is_quiet() {
            print(&self.line, line);
        }
    }

    fn wants_status(&self) -> bool {
        self.line.is_visible()
    }

    fn show(&mut self, status: &Status<'_>) {
        self.line.update(status);
    }

    fn wait_for(&mut self, what: Option<&str>) {
        match what {
            Some(what) => {
                let line = self.waiting.get_or_insert_with(|| StatusLine::new(self.config.progress));
                line.say(what);
            }
            None => {
                if let Some(line) = self.waiting.take() {
                    line.finish();
                }
            }
        }
    }

    fn is_ready(&self) -> bool {
        !self.writer.is_busy()
    }

    fn snapshot(&mut self, findings: Findings) {
        self.snapshots += 1;
        let (number, config, line) = (self.snapshots, self.config.clone(), self.line.clone());
        self.writer.run(move || {
            let mut profile = findings.profile();
            config.filter().apply(&mut profile);
            let said =
                snapshot::write(number, &config.destinations(&profile.target), &profile, &config.view());
            if !config.is_quiet() {
                print(&line, &said);
            }
        });
    }

    fn finish(&mut self) {
        self.line.finish();
    }
}
