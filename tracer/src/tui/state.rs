//! What the terminal interface shows: plain data, changed by keys and by news of the recording. Nothing here draws.

use super::series::Series;
use crate::{
    model::{Profile, StackReport},
    report::{human::printable, status::Vitals, view::frame_label},
};

/// Everything that is shown.
#[derive(Debug, Default)]
pub struct ViewState {
    /// `node (4242)`
    pub target: String,
    /// The figures that change several times a second.
    pub vitals: Vitals,
    /// Resident and outstanding memory over the whole recording.
    pub series: Series,
    /// The profile of the window so far; its stacks are those that are drawn.
    pub profile: Option<Profile>,
    /// What came while the display was paused.
    waiting: Option<Profile>,
    /// Whether the display is paused.
    pub paused: bool,
    /// The stacks of the table, as indexes.
    pub rows: Vec<usize>,
    /// Which of the rows is selected.
    pub selected: usize,
    /// How many frames of the selected stack are scrolled away.
    pub scrolled: usize,
    /// What the rows are ordered by.
    pub order: Order,
    /// Only stacks that say this somewhere.
    pub filter: String,
    /// What keys mean.
    pub mode: Mode,
    /// What happened last.
    message: Option<Message>,
}

/// Something to be said for a while.
#[derive(Debug)]
struct Message {
    text: String,
    /// So many figures later it has been read.
    lasts: u32,
}

/// What keys mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Each does something.
    #[default]
    Normal,
    /// They are text of the filter.
    Filter,
    /// Any takes the help away.
    Help,
}

/// What the table is ordered by, most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// What stacks hold.
    #[default]
    Outstanding,
    /// How fast they grow.
    Growth,
    /// The age of their oldest block.
    Age,
    /// How many blocks they hold.
    Blocks,
}

impl Order {
    /// Each, in the order of the columns.
    pub const ALL: [Self; 4] = [Self::Outstanding, Self::Growth, Self::Age, Self::Blocks];

    /// The one of the next column.
    #[must_use]
    pub fn next(self) -> Self {
        let at = Self::ALL.iter().position(|&order| order == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    fn is_before(self, a: &StackReport, b: &StackReport) -> std::cmp::Ordering {
        let growth = |stack: &StackReport| stack.growth_bytes_per_second.unwrap_or(f64::MIN);
        match self {
            Self::Outstanding => b.weight_bytes.cmp(&a.weight_bytes),
            Self::Growth => growth(b).total_cmp(&growth(a)),
            Self::Age => b.oldest_age_ns.cmp(&a.oldest_age_ns),
            Self::Blocks => b.outstanding_objects.cmp(&a.outstanding_objects),
        }
    }
}

impl ViewState {
    /// Says who is recorded.
    pub fn set_target(&mut self, target: &str) {
        self.target = printable(target).into_owned();
    }

    /// Says something until a key is pressed, or for some seconds.
    pub fn say(&mut self, text: impl Into<String>) {
        /// Figures come five times a second.
        const SIX_SECONDS: u32 = 30;
        self.message = Some(Message { text: text.into(), lasts: SIX_SECONDS });
    }

    /// What is to be said.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.message.as_ref().map(|message| &*message.text)
    }

    /// What was said has been read.
    pub fn clear_message(&mut self) {
        self.message = None;
    }

    /// Takes the figures of now.
    pub fn take_vitals(&mut self, vitals: Vitals) {
        if let Some(message) = &mut self.message {
            message.lasts -= 1;
            if message.lasts == 0 {
                self.message = None;
            }
        }
        if let Some((_, rss)) = vitals.rss {
            self.series.push(rss.0, vitals.outstanding.0);
        }
        if !self.paused {
            self.vitals = vitals;
        }
    }

    /// Takes the profile of the window so far.
    pub fn take_profile(&mut self, profile: Profile) {
        if self.paused {
            self.waiting = Some(profile);
            return;
        }
        let selected = self.chosen_stack();
        self.profile = Some(profile);
        self.choose_rows(selected);
    }

    /// A new window has begun.
    pub fn mark(&mut self) {
        self.series.mark();
        (self.profile, self.waiting) = (None, None);
        (self.selected, self.scrolled) = (0, 0);
        self.rows.clear();
    }

    /// Stops what is shown, or lets it go on.
    pub fn pause(&mut self) {
        self.paused = !self.paused;
        if let (false, Some(profile)) = (self.paused, self.waiting.take()) {
            self.take_profile(profile);
        }
    }

    /// Orders the table.
    pub fn order_by(&mut self, order: Order) {
        self.order = order;
        self.choose_rows(None);
        (self.selected, self.scrolled) = (0, 0);
    }

    /// Changes the filter.
    pub fn filter_by(&mut self, filter: String) {
        let selected = self.chosen_stack();
        self.filter = filter;
        self.choose_rows(selected);
    }

    /// Selects another row.
    pub fn select(&mut self, row: usize) {
        let row = row.min(self.rows.len().saturating_sub(1));
        if row != self.selected {
            (self.selected, self.scrolled) = (row, 0);
        }
    }

    /// Scrolls the frames.
    pub fn scroll(&mut self, by: isize) {
        let most = self.selected_stack().map_or(0, |stack| stack.frames.len().saturating_sub(1));
        self.scrolled = self.scrolled.saturating_add_signed(by).min(most);
    }

    /// The stack that stays selected wherever it goes. The first row is the first, whoever it is.
    fn chosen_stack(&self) -> Option<Identity> {
        if self.selected == 0 { None } else { self.selected_stack().map(identity) }
    }

    /// The stack whose frames are shown.
    #[must_use]
    pub fn selected_stack(&self) -> Option<&StackReport> {
        self.profile.as_ref()?.stacks.get(*self.rows.get(self.selected)?)
    }

    /// Fills the table; the same stack stays selected if it is still in it.
    fn choose_rows(&mut self, selected: Option<Identity>) {
        let Some(profile) = &self.profile else { return };
        let stacks = &profile.stacks;
        let mut rows: Vec<_> = (0..stacks.len()).filter(|&row| says(&stacks[row], &self.filter)).collect();
        rows.sort_by(|&a, &b| self.order.is_before(&stacks[a], &stacks[b]));
        let again =
            selected.and_then(|selected| rows.iter().position(|&row| identity(&stacks[row]) == selected));
        self.rows = rows;
        match again {
            Some(row) => self.selected = row,
            None => {
                self.selected = self.selected.min(self.rows.len().saturating_sub(1));
                self.scrolled = 0;
            }
        }
    }
}

/// What tells stacks apart from one profile to the next.
type Identity = (Option<crate::model::Pid>, crate::model::Kind, String, Vec<u64>);

fn identity(stack: &StackReport) -> Identity {
    let frames = stack.frames.iter().map(|frame| frame.ip.0).collect();
    (stack.pid, stack.kind, stack.api.clone(), frames)
}

/// Whether a stack says this somewhere: in a function, a file, a module, or the allocator function. Case does not matter.
fn says(stack: &StackReport, text: &str) -> bool {
    if text.is_empty() {
        return true;
    }
    let text = text.to_lowercase();
    let has = |name: &str| name.to_lowercase().contains(&text);
    has(&stack.api)
        || stack.frames.iter().any(|frame| {
            has(&frame_label(frame))
                || frame.module.as_deref().is_some_and(has)
                || frame.file.as_deref().is_some_and(has)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Options, fixtures, view::drawn_stacks};

    fn state() -> ViewState {
        let mut state = ViewState::default();
        state.set_target("node (1234)");
        state.take_profile(profile());
        state
    }

    fn profile() -> Profile {
        let profile = fixtures::node();
        Profile { stacks: drawn_stacks(&profile, &Options::default()), ..profile }
    }

    fn apis(state: &ViewState) -> Vec<&str> {
        let stacks = &state.profile.as_ref().unwrap().stacks;
        state.rows.iter().map(|&row| &*stacks[row].api).collect()
    }

    #[test]
    fn rows_are_ordered_and_begin_at_the_top() {
        let mut state = state();
        assert_eq!(apis(&state), ["malloc", "mmap", "operator new(unsigned long)", "malloc", "mmap"]);
        state.select(3);
        state.order_by(Order::Blocks);
        assert_eq!(apis(&state), ["operator new(unsigned long)", "malloc", "mmap", "malloc", "mmap"]);
        assert_eq!(state.selected, 0);
        state.order_by(Order::Age);
        assert_eq!(*apis(&state).last().unwrap(), "mmap");
    }

    #[test]
    fn a_selected_stack_stays_selected() {
        let mut state = state();
        state.select(2);
        let mut later = profile();
        later.stacks[2].weight_bytes = 4 << 20;
        state.take_profile(later);
        let api = &state.selected_stack().unwrap().api;
        assert_eq!((state.selected, &**api), (1, "operator new(unsigned long)"));
    }

    #[test]
    fn the_first_row_is_whoever_is_first() {
        let mut state = state();
        let mut later = profile();
        later.stacks[2].weight_bytes = 1 << 40;
        state.take_profile(later);
        let api = &state.selected_stack().unwrap().api;
        assert_eq!((state.selected, &**api), (0, "operator new(unsigned long)"));
    }

    #[test]
    fn what_was_said_goes_away_after_a_while() {
        let mut state = state();
        state.say("something");
        (0..29).for_each(|_| state.take_vitals(Vitals::default()));
        assert_eq!(state.message(), Some("something"));
        state.take_vitals(Vitals::default());
        assert_eq!(state.message(), None);
    }

    #[test]
    fn a_filter_looks_at_every_frame() {
        let mut state = state();
        state.filter_by("STRDUP".to_owned());
        assert_eq!(state.rows.len(), 1);
        state.filter_by("buffer.h".to_owned());
        assert_eq!(apis(&state), ["malloc"]);
        state.filter_by("nothing says this".to_owned());
        assert!(state.rows.is_empty() && state.selected_stack().is_none());
        state.filter_by(String::new());
        assert_eq!(state.rows.len(), 5);
    }

    #[test]
    fn while_paused_nothing_changes() {
        let mut state = state();
        state.pause();
        state.take_vitals(Vitals { objects: 7, ..Vitals::default() });
        state.take_profile(Profile { stacks: Vec::new(), ..profile() });
        assert_eq!((state.rows.len(), state.vitals.objects), (5, 0));
        state.pause();
        assert_eq!(state.rows.len(), 0);
    }

    #[test]
    fn selecting_and_scrolling_end_at_the_ends() {
        let mut state = state();
        state.select(100);
        assert_eq!(state.selected, 4);
        state.scroll(1000);
        assert_eq!(state.scrolled, state.selected_stack().unwrap().frames.len() - 1);
        state.scroll(-1000);
        assert_eq!(state.scrolled, 0);
        state.mark();
        assert_eq!((state.rows.len(), state.selected), (0, 0));
        state.select(5);
        state.scroll(1);
        assert_eq!((state.selected, state.scrolled), (0, 0));
    }
}
