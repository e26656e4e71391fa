//! Debug files from debuginfod servers, by build id, once the recording is over.
//!
//! A server is asked only if somebody said so: by `--debuginfod`, or by `DEBUGINFOD_URLS`, which `sudo` leaves out of the environment.
//! It is asked after the window has closed and the probes are out, so the target waits for nobody, and only for files whose functions
//! are in stacks that hold something and have no debug information. A frame says all that is needed: build id and offset. So the frames of
//! a saved recording can be named later, on another machine. While the recording goes on, what the cache has is used.
//!
//! What was fetched stays in the cache of elfutils' own client ([`cache`]), so each of the two finds what the other has fetched.

mod cache;
mod fetch;
mod refine;

use std::{
    env,
    ffi::OsString,
    fs,
    net::ToSocketAddrs as _,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Duration,
};

use self::{cache::Cache, refine::Renamed};
pub use self::{
    fetch::{Progress, Watcher},
    refine::Outcome,
};

/// Where Debian, Fedora and others say which servers have the debug files of what they ship.
const CONFIGURED: &str = "/etc/debuginfod";

/// What a user says of servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: what `DEBUGINFOD_URLS` has, if it is set.
    #[default]
    Unsaid,
    /// That they are to be asked: these, separated by spaces, or those that the machine knows where it is empty.
    Servers(String),
}

/// Why servers cannot be asked that are to be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DebuginfodError {
    /// Nobody says which.
    #[error(
        "--debuginfod: no server is known: DEBUGINFOD_URLS is not set (sudo leaves it out), and {CONFIGURED} names none; give its URL"
    )]
    UnknownServers,
    /// It is none.
    #[error("--debuginfod: {0} is no URL of a server: it begins with http:// or https://")]
    InvalidUrl(String),
    /// There is no place for what is fetched.
    #[error("--debuginfod: no place for debug files: set DEBUGINFOD_CACHE_PATH to a directory")]
    UnknownCache,
}

/// Servers, and what has been fetched from them.
#[derive(Debug)]
pub struct Debuginfod {
    servers: Vec<String>,
    cache: Cache,
    /// No server may say nothing for longer.
    silence: Duration,
    /// All files together may take so long.
    limit: Duration,
    /// What frames have been renamed to by files of the cache.
    renamed: Mutex<Renamed>,
}

impl Debuginfod {
    /// What is said before files are fetched.
    #[must_use]
    pub fn announcement(&self, servers: &[String], files: usize) -> String {
        format!(
            "debug files of {files} modules are fetched from {} into {}; Ctrl-C goes on without",
            servers.join(", "),
            self.cache.directory().display()
        )
    }

    /// The servers that somebody wants asked, if any.
    ///
    /// # Errors
    /// When they are wanted and cannot be asked.
    pub fn wanted(wish: &Wish) -> Result<Option<Self>, DebuginfodError> {
        let wanted = Self::from_environment(wish, &|name| env::var_os(name), Path::new(CONFIGURED))?;
        wanted.iter().for_each(Self::look_up_names);
        Ok(wanted)
    }

    fn from_environment(
        wish: &Wish,
        variable: &dyn Fn(&str) -> Option<OsString>,
        configured: &Path,
    ) -> Result<Option<Self>, DebuginfodError> {
        let text = |name| variable(name).and_then(|value| value.into_string().ok()).unwrap_or_default();
        let servers = match wish {
            Wish::Unsaid => servers_in(&text("DEBUGINFOD_URLS")),
            Wish::Servers(urls) if !urls.is_empty() => match urls.split_whitespace().find(|url| !is_url(url))
            {
                Some(wrong) => return Err(DebuginfodError::InvalidUrl(wrong.to_owned())),
                None => servers_in(urls),
            },
            Wish::Servers(_) => {
                let of_environment = servers_in(&text("DEBUGINFOD_URLS"));
                let known =
                    if of_environment.is_empty() { servers_of_machine(configured) } else { of_environment };
                if known.is_empty() {
                    return Err(DebuginfodError::UnknownServers);
                }
                known
            }
        };
        if servers.is_empty() {
            return Ok(None);
        }
        let directory = Cache::default_directory(variable).ok_or(DebuginfodError::UnknownCache)?;
        let seconds = |name, default| {
            let given = text(name).parse().ok().filter(|&seconds: &u64| seconds > 0);
            Duration::from_secs(given.unwrap_or(default))
        };
        Ok(Some(Self {
            servers,
            cache: Cache::new(directory),
            silence: seconds("DEBUGINFOD_TIMEOUT", 30),
            limit: seconds("DEBUGINFOD_MAXTIME", 120),
            renamed: Mutex::default(),
        }))
    }

    /// Looks the servers' names up, beside what is done meanwhile. A C library that is linked statically loads the machine's own parts
    /// for that, of whatever version: if they do not fit, that is better seen before anything has been recorded.
    fn look_up_names(&self) {
        for server in self.servers.clone() {
            // The names are looked up again when they are needed.
            let _ = thread::Builder::new().name("debuginfod".into()).spawn(move || {
                let host =
                    server.split("//").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
                let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
                let found = (name, 0).to_socket_addrs().map(Iterator::count);
                log::debug!("addresses of {name}: {found:?}");
            });
        }
    }
}

fn is_url(word: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| word.len() > scheme.len() && word.starts_with(scheme))
}

/// The servers of a list as `DEBUGINFOD_URLS` has it. Other words in it are about what to believe of files that are signed.
fn servers_in(list: &str) -> Vec<String> {
    let urls = list.split_whitespace().filter(|word| is_url(word));
    urls.map(|url| url.trim_end_matches('/').to_owned()).collect()
}

/// The servers that files of the machine name, in the order of the files' names, as login shells are told them.
fn servers_of_machine(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "urls"));
    files.sort();
    files.iter().flat_map(|file| servers_in(&fs::read_to_string(file).unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests;
