//! Frames, each once: stacks have most of them in common, and a frame takes some 500 bytes with its names.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::Frame;

/// The frames in use.
#[derive(Default)]
pub(super) struct FramePool {
    frames: HashSet<Arc<Frame>>,
    /// How many there may be before those that nobody has any more are dropped.
    limit: usize,
}

impl FramePool {
    const SMALLEST_LIMIT: usize = 1 << 14;

    /// The one frame that is equal to this.
    pub fn share(&mut self, frame: Frame) -> Arc<Frame> {
        if let Some(known) = self.frames.get(&frame) {
            return Arc::clone(known);
        }
        if self.frames.len() >= self.limit {
            self.frames.retain(|frame| Arc::strong_count(frame) > 1);
            self.limit = (2 * self.frames.len()).max(Self::SMALLEST_LIMIT);
        }
        let frame = Arc::new(frame);
        self.frames.insert(Arc::clone(&frame));
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Address;

    fn frame(ip: u64) -> Frame {
        Frame { ip: Address(ip), ..Frame::default() }
    }

    #[test]
    fn equal_frames_are_one_and_unused_ones_are_dropped() {
        let mut pool = FramePool::default();
        let (a, b) = (pool.share(frame(1)), pool.share(frame(1)));
        assert!(Arc::ptr_eq(&a, &b));
        for ip in 2..10 * FramePool::SMALLEST_LIMIT as u64 {
            pool.share(frame(ip));
        }
        assert!(pool.frames.len() <= FramePool::SMALLEST_LIMIT);
        assert!(Arc::ptr_eq(&a, &pool.share(frame(1))));
    }
}
