//! How many processes of each subject the kernel killed for want of memory: counts that outlive the subjects.
//!
//! A container is often removed as soon as its process is killed, and the counter of its group with it. So there are two sources: that
//! counter, for as long as the group is there, with processes or without, and the kernel's log. What the log says is left out at times, since
//! the kernel limits its rate; of what either says, the larger counts. Pure: time comes from who asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use super::view::bounded;

/// Subjects that are gone and still have a count: the last ones that lost a process.
const MOST_GONE: usize = 200;
/// For how long they have it after the last kill. A subject of that name begins anew after that, as after a new start of the service.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The counts.
#[derive(Debug, Default)]
pub struct OomKills {
    groups: BTreeMap<PathBuf, Group>,
    /// By the names of subjects, shortened as they are shown.
    subjects: BTreeMap<String, Count>,
}

/// A control group.
#[derive(Debug)]
struct Group {
    subject: String,
    /// Its counter, as it was read last.
    counter: Option<u64>,
    /// By how much that has risen.
    risen: u64,
    /// How often the log named it.
    logged: u64,
}

#[derive(Debug, Default)]
struct Count {
    kills: u64,
    /// When the last one was.
    last: Duration,
}

impl OomKills {
    /// The counter of a subject's group says this. What it said at first was before anybody looked.
    pub fn read(&mut self, now: Duration, group: &Path, subject: &str, counter: u64) {
        self.note(now, group, subject, |group| {
            let before = group.counter.replace(counter).unwrap_or(counter);
            // Less than before: another group has its path.
            group.risen += counter.checked_sub(before).unwrap_or(counter);
        });
    }

    /// The log says that a process of a subject's group was killed.
    pub fn logged(&mut self, now: Duration, group: &Path, subject: &str) {
        self.note(now, group, subject, |group| group.logged += 1);
    }

    /// A process was killed of a subject that is no group, or of one of which neither source said so.
    pub fn count(&mut self, now: Duration, subject: &str) {
        self.add(now, subject, 1);
    }

    fn note(&mut self, now: Duration, path: &Path, subject: &str, change: impl FnOnce(&mut Group)) {
        let group = self.groups.entry(path.to_owned()).or_insert_with(|| Group {
            subject: subject.to_owned(),
            counter: None,
            risen: 0,
            logged: 0,
        });
        // A container may get its name later than its group.
        subject.clone_into(&mut group.subject);
        let before = group.kills();
        change(group);
        let more = group.kills() - before;
        self.add(now, subject, more);
    }

    fn add(&mut self, now: Duration, subject: &str, more: u64) {
        if more > 0 {
            let count = self.subjects.entry(bounded(subject)).or_default();
            count.kills += more;
            count.last = now;
        }
    }

    /// Groups without anybody to watch, of which the counter is worth a look: they may be gone, or not. Each with its subject.
    #[must_use]
    pub fn left(&self, is_watched: impl Fn(&Path) -> bool) -> Vec<(PathBuf, String)> {
        let left = self.groups.iter().filter(|(path, _)| !is_watched(path));
        left.map(|(path, group)| (path.clone(), group.subject.clone())).collect()
    }

    /// A group is gone.
    pub fn gone(&mut self, group: &Path) {
        self.groups.remove(group);
    }

    /// Forgets whom nobody asks about any more, where these are there.
    pub fn forget(&mut self, now: Duration, present: &BTreeSet<String>) {
        self.subjects.retain(|name, count| present.contains(name) || now.saturating_sub(count.last) < KEPT);
        let mut gone: Vec<(Duration, String)> = (self.subjects.iter())
            .filter(|(name, _)| !present.contains(*name))
            .map(|(name, count)| (count.last, name.clone()))
            .collect();
        gone.sort_unstable();
        for (_, name) in gone.iter().rev().skip(MOST_GONE) {
            self.subjects.remove(name);
        }
    }

    /// How many of a subject were killed.
    #[must_use]
    pub fn of(&self, subject: &str) -> u64 {
        self.subjects.get(&bounded(subject)).map_or(0, |count| count.kills)
    }

    /// Of each, the subjects that are there included, and 0 where nobody was killed.
    #[must_use]
    pub fn all(&self, present: BTreeSet<String>) -> BTreeMap<String, u64> {
        let mut all: BTreeMap<String, u64> = present.into_iter().map(|name| (name, 0)).collect();
        all.extend(self.subjects.iter().map(|(name, count)| (name.clone(), count.kills)));
        all
    }
}

impl Group {
    fn kills(&self) -> u64 {
        self.risen.max(self.logged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn group(name: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(name)
    }

    #[test]
    fn what_both_sources_say_counts_once() {
        let mut kills = OomKills::default();
        kills.read(s(0), &group("a"), "web", 7);
        assert_eq!(kills.of("web"), 0, "that was before");
        kills.logged(s(1), &group("a"), "web");
        kills.read(s(2), &group("a"), "web", 8);
        kills.read(s(3), &group("a"), "web", 10);
        assert_eq!(kills.of("web"), 3, "the log had left out two");
        kills.logged(s(4), &group("a"), "web");
        kills.logged(s(4), &group("a"), "web");
        assert_eq!(kills.of("web"), 3, "which it says late");
    }

    #[test]
    fn a_count_outlives_the_group_and_goes_on_in_the_next_one() {
        let mut kills = OomKills::default();
        kills.read(s(0), &group("a"), "web", 0);
        kills.logged(s(5), &group("a"), "web");
        assert_eq!(kills.left(|_| false), [(group("a"), "web".to_owned())]);
        kills.gone(&group("a"));
        assert!(kills.left(|_| false).is_empty() && kills.of("web") == 1);
        // Nobody had looked at it before it was gone.
        kills.logged(s(9), &group("b"), "web");
        assert_eq!(kills.of("web"), 2);
        // Another group has the path, as when systemd starts a service anew.
        kills.read(s(20), &group("c"), "db", 4);
        kills.read(s(30), &group("c"), "db", 1);
        assert_eq!(kills.of("db"), 1);
        let present = BTreeSet::from(["cache".to_owned()]);
        let all = BTreeMap::from([("cache", 0), ("db", 1), ("web", 2)].map(|(name, n)| (name.to_owned(), n)));
        assert_eq!(kills.all(present), all);
    }

    #[test]
    fn who_is_gone_is_remembered_for_a_day_and_so_are_not_more_than_some() {
        let mut kills = OomKills::default();
        let present = BTreeSet::from(["stays".to_owned()]);
        kills.count(s(0), "stays");
        for second in 0..1000 {
            kills.count(s(second), &format!("job-{second}"));
        }
        kills.forget(s(1000), &present);
        assert_eq!((kills.subjects.len(), kills.of("job-799"), kills.of("job-800")), (201, 0, 1));
        kills.forget(s(999) + KEPT, &present);
        assert_eq!(kills.subjects.len(), 1);
        assert_eq!(kills.of("stays"), 1);
        kills.count(s(0), &"x".repeat(5000));
        assert!(kills.all(present).keys().all(|name| name.chars().count() <= 200));
    }
}
