//! Who is watched: control groups and processes, found anew from time to time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::container::{Identity, Names, Unit, recognise};
use crate::{
    model::{Bytes, Pid},
    target::{
        cgroup::{self, Hierarchy},
        choice,
    },
};

/// Whom to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Every container and service of the machine.
    pub all: bool,
    /// Each container, service or group with processes in these trees.
    pub cgroups: Vec<PathBuf>,
    /// All processes that are called so, together.
    pub names: Vec<String>,
    /// These processes, each by itself.
    pub pids: Vec<Pid>,
}

impl Selection {
    /// Whether nobody is chosen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all && self.cgroups.is_empty() && self.names.is_empty() && self.pids.is_empty()
    }
}

/// What tells one subject from another. It is never written on the way to a file's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SubjectId {
    /// A control group, by its directory.
    Group(PathBuf),
    /// All processes that are called so.
    Name(String),
    /// One process, and when it started.
    Process(Pid, u64),
}

/// Somebody who is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Who it is.
    pub id: SubjectId,
    /// What it is called.
    pub identity: Identity,
    /// Its processes.
    pub pids: Vec<Pid>,
}

/// Finds subjects.
#[derive(Debug)]
pub struct SubjectFinder {
    selection: Selection,
    hierarchy: Option<Hierarchy>,
    names: Names,
    /// A name that was found does not change; one that was not found may come later.
    known: BTreeMap<PathBuf, Identity>,
}

impl SubjectFinder {
    /// What finds these, in the hierarchy that counts memory.
    #[must_use]
    pub fn new(selection: Selection, hierarchy: Option<Hierarchy>) -> Self {
        Self { selection, hierarchy, names: Names::default(), known: BTreeMap::new() }
    }

    /// Everybody who is there now. Of what is in several trees there is one.
    pub fn find(&mut self) -> Vec<Subject> {
        let mut groups = BTreeMap::new();
        if let Some(hierarchy) = self.hierarchy.clone() {
            let root = hierarchy.root();
            let roots = self.selection.cgroups.iter().filter_map(|path| memory_directory(&hierarchy, path));
            let roots: Vec<PathBuf> =
                if self.selection.all { vec![root.to_owned()] } else { roots.collect() };
            for tree in roots {
                walk(root, &tree, None, &mut groups);
            }
        }
        self.known.retain(|group, _| groups.contains_key(group));
        let mut subjects: Vec<Subject> = groups
            .into_iter()
            .map(|(directory, Group { unit, pids })| Subject {
                identity: self.identify(&directory, unit.as_ref()),
                id: SubjectId::Group(directory),
                pids: pids.into_iter().collect(),
            })
            .collect();
        subjects.extend(self.selection.names.iter().filter_map(|name| by_name(name)));
        subjects.extend(self.selection.pids.iter().filter_map(|&pid| by_pid(pid)));
        subjects
    }

    /// Whose a group is, or would be if it was there: the directory of the subject, and what that is called. None of those that are not
    /// watched.
    pub fn whose(&mut self, directory: &Path) -> Option<(PathBuf, String)> {
        let hierarchy = self.hierarchy.clone()?;
        let root = hierarchy.root();
        let is_chosen = self.selection.all
            || (self.selection.cgroups.iter())
                .any(|path| directory.starts_with(named_directory(&hierarchy, path)));
        if !is_chosen || directory == root {
            return None;
        }
        let (owner, unit) = owner_of(root, directory);
        let identity = self.identify(owner, unit.as_ref());
        Some((owner.to_owned(), identity.name))
    }

    fn identify(&mut self, directory: &Path, unit: Option<&Unit>) -> Identity {
        if let Some(known) = self.known.get(directory) {
            return known.clone();
        }
        let root = self.hierarchy.as_ref().map_or(Path::new("/"), Hierarchy::root);
        let path = directory.strip_prefix(root).unwrap_or(directory);
        let identity = self.names.identify(path, unit);
        // A container that is only known by its id may get its name a moment later.
        if !matches!(unit, Some(Unit::Container { id, .. }) if id.starts_with(&identity.name)) {
            self.known.insert(directory.to_owned(), identity.clone());
        }
        identity
    }
}

/// Where a group is that was named by its path below the root, or by its directory, be it there or not.
fn named_directory(hierarchy: &Hierarchy, path: &Path) -> PathBuf {
    if path.starts_with(hierarchy.root()) {
        return path.to_owned();
    }
    hierarchy.root().join(path.strip_prefix("/").unwrap_or(path))
}

/// Whom the processes of a group belong to, by the rules of [`walk`].
fn owner_of<'a>(root: &Path, directory: &'a Path) -> (&'a Path, Option<Unit>) {
    let units = directory.ancestors().take_while(|above| *above != root).filter_map(|above| {
        let unit = recognise(above.strip_prefix(root).ok()?)?;
        Some((above, unit))
    });
    let mut owner = (directory, None);
    for (above, unit) in units {
        let is_container = matches!(unit, Unit::Container { .. });
        // The container that is nearest; without one, the nearest service.
        if is_container || owner.1.is_none() {
            owner = (above, Some(unit));
        }
        if is_container {
            break;
        }
    }
    owner
}

/// The directory of a group in the hierarchy of memory; it may be named by that of another controller.
fn memory_directory(hierarchy: &Hierarchy, path: &Path) -> Option<PathBuf> {
    let is_group = |directory: &PathBuf| directory.join(cgroup::MEMBERS).is_file();
    let name = path.strip_prefix("/").unwrap_or(path);
    let below = Some(hierarchy.root().join(name)).filter(is_group);
    below
        .or_else(|| Some(path.to_owned()).filter(|path| path.starts_with(hierarchy.root()) && is_group(path)))
}

#[derive(Debug, Default)]
struct Group {
    unit: Option<Unit>,
    pids: BTreeSet<Pid>,
}

/// Whom processes belong to, further down in a tree.
#[derive(Clone, Copy)]
struct Owner<'a> {
    directory: &'a Path,
    is_container: bool,
}

/// Goes through a tree. Processes belong to the nearest container above them, else to the nearest service, else to their own group; those
/// of the root belong to nobody. A service within a container is the container's.
fn walk(root: &Path, directory: &Path, owner: Option<Owner<'_>>, groups: &mut BTreeMap<PathBuf, Group>) {
    let is_in_container = owner.is_some_and(|owner| owner.is_container);
    let unit = directory.strip_prefix(root).ok().and_then(recognise);
    let unit = unit.filter(|unit| !is_in_container || matches!(unit, Unit::Container { .. }));
    let owner = match &unit {
        Some(unit) => Some(Owner { directory, is_container: matches!(unit, Unit::Container { .. }) }),
        None => owner,
    };
    let members =
        if directory == root { Vec::new() } else { cgroup::own_members(directory).unwrap_or_default() };
    if !members.is_empty() {
        let group = groups.entry(owner.map_or(directory, |owner| owner.directory).to_owned()).or_default();
        group.pids.extend(members);
    }
    for below in cgroup::children(directory) {
        walk(root, &below, owner, groups);
    }
    if let (Some(unit), Some(group)) = (unit, groups.get_mut(directory)) {
        group.unit = Some(unit);
    }
}

fn by_name(name: &str) -> Option<Subject> {
    let pids = choice::called(name).ok().filter(|pids| !pids.is_empty())?;
    let identity = Identity { name: name.to_owned(), ..Identity::default() };
    Some(Subject { id: SubjectId::Name(name.to_owned()), identity, pids })
}

fn by_pid(pid: Pid) -> Option<Subject> {
    let (started, comm) = start_of(pid)?;
    let identity = Identity { name: format!("{comm}-{pid}"), ..Identity::default() };
    Some(Subject { id: SubjectId::Process(pid, started), identity, pids: vec![pid] })
}

/// When a process started, and the kernel's name for it.
fn start_of(pid: Pid) -> Option<(u64, String)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let comm = stat.get(open + 1..close)?.to_owned();
    // Field 22 of proc(5); what follows the name begins with field 3.
    let started = stat.get(close + 1..)?.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    Some((started, comm))
}

/// What a process has resident, and of that what is anonymous; none when it is gone.
#[must_use]
pub fn resident(pid: Pid) -> Option<(Bytes, Bytes)> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = statm.split_ascii_whitespace().skip(1).map(|field| field.parse::<u64>());
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    let bytes = |pages: u64| Bytes(pages * crate::model::PAGE_BYTES);
    Some((bytes(resident), bytes(resident.saturating_sub(shared))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn processes_belong_to_the_nearest_container_or_service_above() {
        let root = tempfile::tempdir().unwrap();
        let group = |path: String, pids: &str| {
            fs::create_dir_all(root.path().join(&path)).unwrap();
            fs::write(root.path().join(path).join("cgroup.procs"), pids).unwrap();
        };
        group(String::new(), "1\n2\n");
        group("system.slice/web.service".into(), "10\n");
        group("system.slice/web.service/workers".into(), "11\n12\n");
        group(format!("docker/{ID}"), "");
        group(format!("docker/{ID}/init.scope"), "20\n");
        group(format!("docker/{ID}/system.slice/inner.service"), "21\n");
        group(format!("machine.slice/libpod-{ID}.scope/container"), "25\n");
        group("plain".into(), "30\n");
        group("plain/below".into(), "31\n0\n");
        group("empty".into(), "");

        let mut groups = BTreeMap::new();
        walk(root.path(), root.path(), None, &mut groups);
        let found: Vec<(String, Vec<u32>)> = groups
            .iter()
            .map(|(path, group)| {
                let path = path.strip_prefix(root.path()).unwrap().display().to_string().replace(ID, "ID");
                (path, group.pids.iter().map(|pid| pid.0).collect())
            })
            .collect();
        let expected = [
            ("docker/ID", vec![20, 21]),
            ("machine.slice/libpod-ID.scope", vec![25]),
            ("plain", vec![30]),
            ("plain/below", vec![31]),
            ("system.slice/web.service", vec![10, 11, 12]),
        ];
        assert_eq!(found, expected.map(|(path, pids)| (path.to_owned(), pids)));
    }

    #[test]
    fn a_group_that_is_gone_belongs_to_whom_its_path_says() {
        let root = Path::new("/sys/fs/cgroup");
        for (path, owner) in [
            ("system.slice/web.service/workers", "system.slice/web.service"),
            ("docker/ID/system.slice/inner.service", "docker/ID"),
            ("machine.slice/libpod-ID.scope/container", "machine.slice/libpod-ID.scope"),
            ("plain/below", "plain/below"),
        ] {
            let [path, owner] = [path, owner].map(|path| root.join(path.replace("ID", ID)));
            assert_eq!(owner_of(root, &path).0, owner, "{}", path.display());
        }
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = Pid(std::process::id());
        let subject = by_pid(own).unwrap();
        assert!(matches!(subject.id, SubjectId::Process(pid, started) if pid == own && started > 0));
        assert!(subject.identity.name.ends_with(&format!("-{own}")));
        assert_eq!(by_pid(Pid(4 << 20)), None);
        let (all, anonymous) = resident(own).unwrap();
        assert!(all > anonymous && anonymous.0 > 0);
        assert_eq!(resident(Pid(4 << 20)), None);
    }
}
