//! Who is to blame: a function, and what all stacks through it hold together.

use serde::{Deserialize, Serialize};

use super::{Kind, Verdict};

/// Stacks that hold memory for one reason: a function that asked for it, in as many stacks as there are ways from it to the allocator
/// and to it. Processes of one program are summed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// The function that asked, as `module: function`; `module+0xoffset` where it has no name.
    pub place: String,
    /// By which functions of others it got the memory, outermost first: the one that it called, and the one that allocates. Empty when
    /// it called the allocator itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// The nearest caller that has a name, where the function itself has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<String>,
    /// The innermost function of the program's own that called it, where it is written in a language with a runtime; of the largest stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called_from: Option<String>,
    /// Whether the function is only known to have touched most of it first, or mapped it: who keeps it may be another. So it is in growth mode.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first_touch: bool,
    /// What kind of memory most of it is.
    pub kind: Kind,
    /// What the history of all its stacks together says.
    pub verdict: Verdict,
    /// Why it says so, as the end of a sentence.
    pub reason: String,
    /// Sum of the stacks' weights.
    pub weight_bytes: u64,
    /// Objects of the stacks that are outstanding.
    pub outstanding_objects: u64,
    /// Objects that the stacks allocated in the window and that were freed. Not in reports.
    #[serde(skip)]
    pub freed_objects: u64,
    /// Of the outstanding ones, objects in processes that came during the window: nothing in them is older. Not in reports.
    #[serde(skip)]
    pub objects_of_new_processes: u64,
    /// Standard error of `weight_bytes`, when it is estimated from a sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error_bytes: Option<u64>,
    /// Growth over the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth_bytes_per_second: Option<f64>,
    /// What the stacks weighed together at evenly spaced times; empty when that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history_bytes: Vec<u64>,
    /// How many stacks.
    pub stacks: u64,
    /// In how many processes.
    pub processes: u64,
}

impl Cause {
    /// `` `addon.node: Session::Open` (by `g_strdup` → `g_malloc`) ``, with the nearest named caller where the function has no name;
    /// `` memory first touched by `addon.node: Session::Open` `` where no more is known.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut text = format!("{}`{}`", self.before_place(), self.place);
        if let (Some(below), None) = (&self.below, &self.called_from) {
            text += &format!(" below `{below}`");
        }
        if !self.by.is_empty() {
            let by: Vec<String> = self.by.iter().map(|function| format!("`{function}`")).collect();
            text += &format!(" (by {})", by.join(" → "));
        }
        if let Some(caller) = &self.called_from {
            text += &format!(", called from `{caller}`");
        }
        text
    }

    /// What is said before the function, to say what it did.
    #[must_use]
    pub const fn before_place(&self) -> &'static str {
        if self.first_touch { "memory first touched by " } else { "" }
    }

    /// Growth a second: that of its history, or over a window of so many seconds where its sizes waver too much to show it.
    #[must_use]
    pub fn rate(&self, window_seconds: f64) -> f64 {
        match self.growth_bytes_per_second {
            Some(rate) if rate > 0.0 => rate,
            _ => self.weight_bytes as f64 / window_seconds.max(1.0),
        }
    }
}
