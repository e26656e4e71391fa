//! Why a stack walk ended.
//!
//! Numbers are stable: they travel from BPF to user space and stand in saved profiles.

macro_rules! stops {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $description:literal;)*) => {
        /// Why a stack walk ended. Everything but [`Stop::Base`] means callers are missing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Stop { $($(#[$doc])* $variant = $number),* }

        impl Stop {
            /// Every reason, by ascending number.
            pub const ALL: &'static [Stop] = &[$(Stop::$variant),*];

            /// The name that reports use, in snake case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Stop::$variant => $name),* }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Stop::$variant => $description),* }
            }
        }

        impl TryFrom<u8> for Stop {
            type Error = u8;

            fn try_from(number: u8) -> Result<Self, u8> {
                match number { $($number => Ok(Stop::$variant),)* unknown => Err(unknown) }
            }
        }
    };
}

stops! {
    /// The walk reached the first function of the thread: the stack is complete.
    Base = 0, "base", "the walk reached the thread's first function";
    /// No unwind table covers the address and the frame pointer leads nowhere.
    NoTable = 1, "no_table", "no unwind information for this code";
    /// The table has a rule that the walk cannot evaluate.
    UnsupportedRule = 2, "unsupported_rule", "the unwind information uses a rule that is not supported";
    /// The stack memory could not be read.
    UnreadableMemory = 3, "unreadable_memory", "the stack memory could not be read";
    /// More frames than a stack can hold.
    TooDeep = 4, "too_deep", "the stack is deeper than the walk goes; its outermost frames are cut";
    /// The caller's stack pointer is not above the callee's.
    NoProgress = 5, "no_progress", "the walk did not move up the stack";
    /// The return address is in no executable mapping.
    NotCode = 6, "not_code", "the return address is not in executable memory";
    /// The frame-pointer chain ended before the thread's base, in code without frame pointers.
    FramePointerLost = 7, "frame_pointer_lost", "the code was built without frame pointers";
    /// The stack was captured, but its frames never reached user space.
    NotDelivered = 8, "not_delivered", "the frames could not be handed to user space";
    /// The code was mapped during the window, and its unwind table was not ready yet.
    TableNotReady = 9, "table_not_ready", "the code had just been loaded and its unwind information was not ready";
    /// The table of stacks, or of walks under way, was full.
    NoRoom = 10, "no_room", "the table of stacks is full";
    /// The stack held nothing, and its place in the table was given to another one.
    Retired = 11, "retired", "the stack held nothing any more, and its place was given to another";
}

impl Stop {
    /// Whether the walk reached the thread's base.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        matches!(self, Stop::Base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_unknown_ones_are_refused() {
        for &stop in Stop::ALL {
            assert_eq!(Stop::try_from(stop as u8), Ok(stop));
        }
        assert_eq!(Stop::try_from(255), Err(255));
    }
}
