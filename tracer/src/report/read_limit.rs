//! How much memory a file may make its reader take: a few bytes of it can stand for a lot.

/// What a profile may take in memory.
const MOST: usize = 1 << 30;

/// A file would take too much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is too large, or made to be: it would take more than {} of memory", crate::model::Bytes(MOST as u64))]
pub struct TooLarge;

/// Memory that may still be taken.
pub(super) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(MOST)
    }
}

impl Budget {
    pub fn charge(&mut self, bytes: usize) -> Result<(), TooLarge> {
        self.0 = self.0.checked_sub(bytes).ok_or(TooLarge)?;
        Ok(())
    }
}
