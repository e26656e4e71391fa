//! What those who come by HTTP ask of the service, and what they get.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::view::View;

/// A query, and where the answer goes.
#[derive(Debug)]
pub enum Query {
    /// How is it?
    View(oneshot::Sender<Arc<View>>),
    /// What does this subject allocate?
    Profile(ProfileRequest),
}

/// Somebody wants a pprof.
#[derive(Debug)]
pub struct ProfileRequest {
    /// Of whom: a name as in the view.
    pub subject: String,
    /// Recorded for how long.
    pub time: Duration,
    /// The profile's bytes. Who does not wait any more is not recorded for.
    pub answer: oneshot::Sender<Result<Vec<u8>, Refusal>>,
}

/// Why there is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody is called so.
    #[error("no subject is called so: / lists them")]
    NoSuchSubject,
    /// It is being recorded.
    #[error("it is being recorded already")]
    AlreadyRecorded,
    /// There are as many recordings as there may be.
    #[error("there are {0} recordings already, as many as there may be (--at-most)")]
    TooMany(usize),
    /// Recordings have taken what they may of the machine's CPU time.
    #[error("recordings have used up their CPU time (--cpu-budget); the next one may begin in {}", humantime::format_duration(*.0))]
    NoCpuTime(Duration),
    /// Nobody in it can be traced, or the recording went wrong.
    #[error("{0}")]
    Failed(String),
}

/// A recording that somebody waits for.
#[derive(Debug)]
pub struct PendingProfile {
    /// Where the profile will be.
    pub file: PathBuf,
    /// Where it goes.
    pub answer: oneshot::Sender<Result<Vec<u8>, Refusal>>,
}
