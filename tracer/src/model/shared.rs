//! Reads the stacks of a profile so that equal frames are one, and nothing in the file can take memory without bound.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::Deserializer;
use serde::de::{Error, SeqAccess, Visitor};

use super::{Frame, StackReport};

/// Frames of one stack; a walk ends long before, but functions that were inlined count too.
const MAX_FRAMES: usize = 1 << 16;

/// Different frames of a profile: more than the code of the largest programs has calls that allocate. Each takes some 300
/// bytes.
const MAX_DIFFERENT_FRAMES: usize = 1 << 22;

/// The stacks of a profile.
pub(super) fn stacks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<StackReport>, D::Error> {
    struct Stacks;

    impl<'de> Visitor<'de> for Stacks {
        type Value = Vec<StackReport>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of stacks")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut known: HashSet<Arc<Frame>> = HashSet::new();
            let mut stacks = Vec::new();
            while let Some(mut stack) = list.next_element::<StackReport>()? {
                for frame in &mut stack.frames {
                    match known.get(frame) {
                        Some(twin) => *frame = Arc::clone(twin),
                        None if known.len() == MAX_DIFFERENT_FRAMES => {
                            return Err(A::Error::custom("too many different frames"));
                        }
                        None => _ = known.insert(Arc::clone(frame)),
                    }
                }
                stacks.push(stack);
            }
            Ok(stacks)
        }
    }

    deserializer.deserialize_seq(Stacks)
}

/// The frames of a stack.
pub(super) fn frames<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Arc<Frame>>, D::Error> {
    struct Frames;

    impl<'de> Visitor<'de> for Frames {
        type Value = Vec<Arc<Frame>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of frames")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut frames = Vec::new();
            while let Some(frame) = list.next_element::<Frame>()? {
                if frames.len() == MAX_FRAMES {
                    return Err(A::Error::custom("a stack with too many frames"));
                }
                frames.push(Arc::new(frame));
            }
            frames.shrink_to_fit();
            Ok(frames)
        }
    }

    deserializer.deserialize_seq(Frames)
}
