//! Who there is, and what the kernel says of their memory: what the [`Engine`] is told.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    container::Identity,
    engine::{Engine, Rules, Watched},
    reading::{Limit, LimitOwner, Parts, Reader, Reading},
    subject::{Selection, SubjectFinder, SubjectId, resident},
};
use crate::{
    model::{Bytes, Pid},
    target::cgroup::{Hierarchy, Version},
};

/// Looks from one search for subjects, and from one reading of all that there is of a group, to the next.
const LOOKS: u32 = 3;

/// Looks.
#[derive(Debug)]
pub struct Scanner {
    hierarchy: Option<Hierarchy>,
    finder: SubjectFinder,
    searched: Option<Instant>,
    /// Which third of the groups is read in full.
    looks: u32,
    reader: Reader,
    /// What it is told to.
    pub engine: Engine,
}

impl Scanner {
    /// Of these, with nothing seen yet.
    #[must_use]
    pub fn new(selection: Selection, rules: Rules) -> Self {
        let hierarchy = Hierarchy::of_memory();
        let (version, root) = match &hierarchy {
            Some(hierarchy) => (hierarchy.version, hierarchy.root().to_owned()),
            None => (Version::V2, PathBuf::from("/sys/fs/cgroup")),
        };
        Self {
            finder: SubjectFinder::new(selection, hierarchy.clone()),
            searched: None,
            looks: 0,
            reader: Reader::new(version, &root),
            hierarchy,
            engine: Engine::new(rules),
        }
    }

    /// Looks at others from now on.
    pub fn set(&mut self, selection: Selection, rules: Rules) {
        self.finder = SubjectFinder::new(selection, self.hierarchy.clone());
        self.searched = None;
        self.engine.set_rules(rules);
    }

    /// Which control groups count memory here.
    #[must_use]
    pub fn of_what(&self) -> String {
        match &self.hierarchy {
            Some(hierarchy) => {
                let version = if hierarchy.version == Version::V1 { 1 } else { 2 };
                let pressure = if version == 1 { ", which tell no pressure" } else { "" };
                format!("control groups of version {version} in {}{pressure}", hierarchy.root().display())
            }
            None => "no control group counts memory here: only processes can be watched".into(),
        }
    }

    /// Searches if it is time for that, and reads everybody: each look a third of them with all there is.
    pub fn look(&mut self, now: Duration) {
        let between = self.engine.rules().interval * LOOKS;
        if self.searched.is_none_or(|searched| searched.elapsed() >= between) {
            self.engine.meet(self.finder.find());
            self.searched = Some(Instant::now());
        }
        self.looks = (self.looks + 1) % LOOKS;
        let ids: Vec<SubjectId> = self.engine.watched().map(|watched| watched.subject.id.clone()).collect();
        for (place, id) in (0..LOOKS).cycle().zip(ids) {
            let is_new = self.engine.get(&id).is_none_or(|watched| watched.history.is_empty());
            match &id {
                SubjectId::Group(directory) if place != self.looks && !is_new => {
                    self.read_again(now, &id, directory);
                }
                _ => _ = self.read(now, &id),
            }
        }
    }

    fn read_again(&mut self, now: Duration, id: &SubjectId, directory: &Path) -> Option<()> {
        let before = self.engine.get(id)?.reading;
        let reading = self.reader.read_again(directory, &before).ok()?;
        self.engine.note(now, id, reading, None);
        Some(())
    }

    /// Reads all of one, and returns what was read before.
    pub fn read(&mut self, now: Duration, id: &SubjectId) -> Option<Reading> {
        let Watched { reading: before, subject, .. } = self.engine.get(id)?;
        let before = *before;
        let sizes: Vec<(Pid, Bytes, Bytes)> = (subject.pids.iter())
            .filter_map(|&pid| resident(pid).map(|(all, anonymous)| (pid, all, anonymous)))
            .collect();
        let sum = |of: fn(&(Pid, Bytes, Bytes)) -> Bytes| Bytes(sizes.iter().map(|size| of(size).0).sum());
        let (rss, anonymous) = (sum(|size| size.1), sum(|size| size.2));
        let reading = match id {
            SubjectId::Group(directory) => self.reader.read(directory).ok()?,
            SubjectId::Name(_) | SubjectId::Process(..) => {
                let first = sizes.first().map(|(pid, ..)| *pid);
                self.read_processes(first, rss, anonymous)
            }
        };
        let reading = Reading { rss_bytes: rss, processes: sizes.len() as u64, ..reading };
        let sizes: Vec<(Pid, Bytes)> =
            sizes.into_iter().map(|(pid, _, anonymous)| (pid, anonymous)).collect();
        self.engine.note(now, id, reading, Some(&sizes));
        Some(before)
    }

    /// Whether a group is that of a subject who is there.
    #[must_use]
    pub fn is_watched(&self, group: &Path) -> bool {
        self.engine.get(&SubjectId::Group(group.to_owned())).is_some()
    }

    /// How many processes of a group the kernel killed; none when it has gone.
    pub fn oom_kills(&mut self, group: &Path) -> Option<u64> {
        self.reader.oom_kills(group)
    }

    /// Whose a group is that the kernel names by this path, be it there or gone: the group of the subject, and what that is called.
    pub fn whose(&mut self, group: &Path) -> Option<(PathBuf, String)> {
        let directory = self.hierarchy.as_ref()?.root().join(group.strip_prefix("/").unwrap_or(group));
        let is_watched = |above: &Path| self.engine.get(&SubjectId::Group(above.to_owned()));
        match directory.ancestors().find_map(is_watched) {
            Some(watched) => match &watched.subject.id {
                SubjectId::Group(group) => Some((group.clone(), watched.subject.identity.name.clone())),
                SubjectId::Name(_) | SubjectId::Process(..) => None,
            },
            None => self.finder.whose(&directory),
        }
    }

    /// Processes by themselves. Their limit, and what happened for want of memory, are those of the group of the first.
    fn read_processes(&mut self, first: Option<Pid>, rss: Bytes, anonymous: Bytes) -> Reading {
        let group = first.and_then(|pid| self.hierarchy.as_ref()?.of_process(pid));
        let group = group.and_then(|group| self.reader.read(&group).ok());
        let machine = Limit { bytes: self.reader.machine_bytes, used_bytes: rss, whose: LimitOwner::Machine };
        let limit =
            group.as_ref().map(|group| group.limit).filter(|limit| limit.whose != LimitOwner::Machine);
        Reading {
            usage_bytes: rss,
            working_set_bytes: rss,
            limit: limit.unwrap_or(machine),
            parts: Parts { anon: anonymous, ..Parts::default() },
            ..group.unwrap_or_default()
        }
    }

    /// Who is seen, one line each: `web.service: 120.0 MiB of 200.0 MiB (60 %) in 3 processes`.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.engine.watched().map(|watched| line(&watched.subject.identity, &watched.reading)).collect()
    }
}

fn line(Identity { name, .. }: &Identity, Reading { limit, processes, .. }: &Reading) -> String {
    let whose = if limit.whose == LimitOwner::Machine { ", the machine's memory" } else { "" };
    let processes = if *processes == 1 { "1 process".into() } else { format!("{processes} processes") };
    let share = limit.share() * 100.0;
    format!("{name}: {} of {}{whose} ({share:.0} %) in {processes}", limit.used_bytes, limit.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_with_its_limit() {
        let own = Pid(std::process::id());
        let selection = Selection { pids: vec![own], ..Selection::default() };
        let rules = Rules {
            conditions: vec!["rss > 1KiB".parse().unwrap()],
            at_most: 1,
            cool_down: Duration::ZERO,
            interval: Duration::from_secs(10),
        };
        let mut scanner = Scanner::new(selection, rules);
        scanner.look(Duration::from_secs(1));
        let [line] = &scanner.lines()[..] else { panic!("one process") };
        assert!(line.contains(&format!("-{own}: ")) && line.ends_with("in 1 process"), "{line}");
        assert_eq!(scanner.engine.decide(Duration::from_secs(1)).len(), 1);
    }
}
