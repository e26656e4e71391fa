//! Takes new stacks and changes of mappings out of the kernel's ring buffer.

mod event;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

pub use self::event::{Change, Event, NewStack, RuntimeFrame, WalkedCode, WalkedFrame};
use crate::readable;

/// The stream of events from the kernel.
pub struct Drain {
    ring: RingBuf<MapData>,
    /// Another descriptor of the same ring buffer.
    readable: AsyncFd<OwnedFd>,
    malformed: u64,
}

impl Drain {
    /// To be called in a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch the ring buffer.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        let readable = readable::watch(ring.as_fd().try_clone_to_owned()?)?;
        Ok(Self { ring, readable, malformed: 0 })
    }

    /// Waits until there are events.
    ///
    /// # Errors
    /// When the ring buffer cannot be watched any more.
    pub async fn ready(&mut self) -> io::Result<()> {
        self.readable.readable().await?.clear_ready();
        Ok(())
    }

    /// Hands over every event that there is now.
    pub fn take(&mut self, mut each: impl FnMut(Event)) {
        while let Some(bytes) = self.ring.next() {
            match Event::decode(&bytes) {
                Ok(event) => each(event),
                Err(error) => {
                    self.malformed += 1;
                    log::error!("an event from the kernel cannot be read: {error}");
                }
            }
        }
    }

    /// Events that could not be read.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}
