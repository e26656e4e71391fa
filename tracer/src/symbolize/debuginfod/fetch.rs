//! Asks servers for files. A thread fetches, so that the user can do without at any moment.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use ureq::{Agent, Error};

use super::{Debuginfod, cache::Kept};
use crate::{
    https::tls,
    symbolize::debug_file::{DebugLinks, belongs},
};

/// Between two looks at whether the user or the time has ended it.
const LOOK: Duration = Duration::from_millis(100);

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Whose debug file.
    pub module: &'a str,
    /// Bytes that have come.
    pub bytes: u64,
    /// Bytes that there are, if the server says so.
    pub of: Option<u64>,
}

/// Who waits for the files.
pub trait Watcher {
    /// Servers are about to be asked for so many files.
    fn begin(&mut self, servers: &[String], files: usize);
    /// How far it is.
    fn progress(&mut self, progress: Progress<'_>);
    /// Whether the user does without.
    fn is_tired(&self) -> bool;
}

/// Why there is no file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No server has it.
    Missing,
    /// Something is in the way.
    Error(String),
    /// The time is over, or the user does without.
    Ended,
}

/// What fetching needs and may do.
pub(super) struct Fetcher<'a> {
    debuginfod: &'a Debuginfod,
    agent: Agent,
    ends: Instant,
    /// Servers that did not answer are not asked again.
    silent: Vec<bool>,
}

enum Said {
    Bytes(u64, Option<u64>),
    Done(Result<(), Failure>),
}

impl<'a> Fetcher<'a> {
    pub fn new(debuginfod: &'a Debuginfod) -> Self {
        Self {
            debuginfod,
            agent: agent(debuginfod.silence),
            ends: Instant::now() + debuginfod.limit,
            silent: vec![false; debuginfod.servers.len()],
        }
    }

    /// The debug file of a module: from the cache, else from the first server that has it.
    pub fn debug_file(
        &mut self,
        build_id: &str,
        module: &str,
        watcher: &mut dyn Watcher,
    ) -> Result<File, Failure> {
        let Debuginfod { cache, servers, .. } = self.debuginfod;
        match cache.find(build_id) {
            Kept::File(file) => return Ok(file),
            Kept::Missed => return Err(Failure::Missing),
            Kept::Unknown => {}
        }
        let mut failure = Failure::Missing;
        for (server, url) in servers.iter().enumerate() {
            if self.silent[server] {
                continue;
            }
            match self.fetch(url, build_id, module, watcher) {
                Ok(file) => return Ok(file),
                Err(Failure::Missing) => {}
                Err(Failure::Ended) => return Err(Failure::Ended),
                Err(error) => {
                    self.silent[server] = true;
                    failure = error;
                }
            }
        }
        if failure == Failure::Missing && !self.silent.iter().any(|&silent| silent) {
            // If it cannot be noted, it is asked for again the next time.
            let _ = cache.miss(build_id);
        }
        Err(failure)
    }

    fn fetch(
        &self,
        server: &str,
        build_id: &str,
        module: &str,
        watcher: &mut dyn Watcher,
    ) -> Result<File, Failure> {
        let cache = &self.debuginfod.cache;
        let local = |error: io::Error| Failure::Error(format!("cannot keep what it sends: {error}"));
        let incoming = cache.begin(build_id).map_err(local)?;
        let file = incoming.file.try_clone().map_err(local)?;
        let (said, hear) = channel();
        let (agent, url) = (self.agent.clone(), format!("{server}/buildid/{build_id}/debuginfo"));
        let fetch = move || {
            let done = get(&agent, &url, file, &said);
            let _ = said.send(Said::Done(done));
        };
        thread::Builder::new().name("debuginfod".into()).spawn(fetch).map_err(local)?;
        self.wait(server, module, &hear, watcher)?;
        let links = DebugLinks { build_id: from_hex(build_id), link: None };
        if !belongs(&incoming.file, &links).unwrap_or(false) {
            return Err(Failure::Error(format!(
                "{server} sent something else than the debug file of {module}"
            )));
        }
        let file = incoming.file.try_clone().map_err(local)?;
        if let Err(error) = cache.keep(build_id, incoming) {
            log::debug!("not kept: {error}");
        }
        Ok(file)
    }

    /// Waits for the thread that fetches, but no longer than the user wants to.
    fn wait(
        &self,
        server: &str,
        module: &str,
        hear: &Receiver<Said>,
        watcher: &mut dyn Watcher,
    ) -> Result<(), Failure> {
        let mut heard = Instant::now();
        watcher.progress(Progress { module, bytes: 0, of: None });
        loop {
            match hear.recv_timeout(LOOK) {
                Ok(Said::Done(done)) => return done,
                Ok(Said::Bytes(bytes, of)) => {
                    heard = Instant::now();
                    watcher.progress(Progress { module, bytes, of });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Error("what fetches has panicked".to_owned()));
                }
            }
            if watcher.is_tired() || Instant::now() >= self.ends {
                return Err(Failure::Ended);
            }
            if heard.elapsed() >= self.debuginfod.silence {
                let seconds = self.debuginfod.silence.as_secs();
                return Err(Failure::Error(format!("{server} has said nothing for {seconds} s")));
            }
        }
    }
}

fn agent(silence: Duration) -> Agent {
    Agent::config_builder()
        .timeout_resolve(Some(silence))
        .timeout_connect(Some(silence))
        .user_agent(concat!("tracer/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls())
        .build()
        .new_agent()
}

/// Fetches what is at `url` into a file.
fn get(agent: &Agent, url: &str, mut file: File, said: &Sender<Said>) -> Result<(), Failure> {
    let failed = |what: &dyn std::fmt::Display| Failure::Error(format!("{url}: {what}"));
    let response = agent.get(url).call().map_err(|error| match error {
        Error::StatusCode(404) => Failure::Missing,
        error => failed(&error),
    })?;
    let mut body = response.into_body();
    let of = body.content_length();
    let mut body = body.as_reader();
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        let count = body.read(&mut buffer).map_err(|error| failed(&error))?;
        if count == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..count]).map_err(|error| failed(&error))?;
        bytes += count as u64;
        if said.send(Said::Bytes(bytes, of)).is_err() {
            // Nobody waits any more.
            return Err(Failure::Ended);
        }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(digit).collect()
}
