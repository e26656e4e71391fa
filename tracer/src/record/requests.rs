//! What can be asked of a recording while it goes on: by a signal, by a key of the terminal interface, or by a time that was set.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::UnboundedReceiver,
    time::Instant,
};

use super::at;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Write the reports of the window so far, and go on.
    Snapshot,
    /// Begin a new window: what was allocated before counts no more.
    Mark,
    /// End the recording and write the reports.
    End,
}

/// Where requests come from.
pub struct Requests {
    snapshot: Signal,
    mark: Signal,
    keys: UnboundedReceiver<Request>,
    mark_at: Option<Instant>,
}

impl Requests {
    /// Listens. To be called before anything else is done: the default effect of these signals is the end of this process.
    ///
    /// # Errors
    /// When signals cannot be listened to.
    pub fn listen(keys: UnboundedReceiver<Request>) -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            snapshot: listen(SignalKind::user_defined1())?,
            mark: listen(SignalKind::user_defined2())?,
            keys,
            mark_at: None,
        })
    }

    /// Asks for a mark so long after now.
    pub fn mark_after(&mut self, time: Option<Duration>) {
        self.mark_at = time.map(|time| Instant::now() + time);
    }

    pub async fn next(&mut self) -> Request {
        select! {
            biased;
            // Nobody has keys when the channel is closed.
            Some(request) = self.keys.recv() => request,
            _ = self.snapshot.recv() => Request::Snapshot,
            _ = self.mark.recv() => Request::Mark,
            () = at(self.mark_at) => {
                self.mark_at = None;
                Request::Mark
            }
        }
    }
}
