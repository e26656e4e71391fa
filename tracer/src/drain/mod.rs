//! Takes new stacks and changes of mappings out of the kernel's ring buffer.

mod event;

use std::{io, os::fd::AsRawFd};

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

pub use self::event::{Event, NewStack};

/// The stream of events from the kernel.
pub struct Drain {
    ring: AsyncFd<RingBuf<MapData>>,
    malformed: u64,
}

impl Drain {
    /// To be called in a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch the ring buffer.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        debug_assert!(ring.as_raw_fd() >= 0);
        Ok(Self { ring: AsyncFd::register_with_interest(ring, Interest::READABLE)?, malformed: 0 })
    }

    /// Waits until there are events.
    ///
    /// # Errors
    /// When the ring buffer cannot be watched any more.
    pub async fn ready(&mut self) -> io::Result<()> {
        self.ring.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Hands over every event that there is now.
    pub fn take(&mut self, mut each: impl FnMut(Event)) {
        while let Some(bytes) = self.ring.get_mut().next() {
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
