//! Control groups, of both versions: where they are mounted, which one limits the memory of a process, and who is in one.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::model::Pid;

/// The list of processes in a control group's directory, of both versions.
pub const MEMBERS: &str = "cgroup.procs";

/// A hierarchy of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// One hierarchy for each controller; this is the one that limits memory.
    V1,
    /// One hierarchy for all controllers.
    V2,
}

/// Where a hierarchy is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The order in which they are asked for a name.
    rank: u8,
    /// The directory.
    place: PathBuf,
    /// Which group of the hierarchy that directory is.
    group: PathBuf,
}

const UNIFIED: u8 = 0;
const MEMORY: u8 = 1;
const OTHER: u8 = 2;

impl Mount {
    /// The directory of a group, if it is below what is mounted.
    fn directory(&self, group: &Path) -> Option<PathBuf> {
        let below = group.strip_prefix(&self.group).ok()?;
        Some(if below == Path::new("") { self.place.clone() } else { self.place.join(below) })
    }
}

/// What is mounted: version 2 first, then the hierarchy that limits memory, then others.
fn mounts() -> Vec<Mount> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (group, place) = (unescaped(fields.next()?).into(), unescaped(fields.next()?).into());
        let mut system = system.split(' ');
        let rank = match (system.next()?, system.nth(1).unwrap_or_default()) {
            ("cgroup2", _) => UNIFIED,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => MEMORY,
            ("cgroup", _) => OTHER,
            _ => return None,
        };
        Some(Mount { rank, place, group })
    };
    let mut mounts: Vec<_> = mountinfo.lines().filter_map(mount).collect();
    mounts.sort_by_key(|mount| mount.rank);
    mounts
}

/// The kernel writes blanks and backslashes of a path in octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The directory of a control group, which is named by it, or by the group's name as in `/proc/PID/cgroup`.
#[must_use]
pub fn directory(cgroup: &Path) -> Option<PathBuf> {
    let is_cgroup = |directory: &PathBuf| directory.join(MEMBERS).is_file();
    let name = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let below = mounts().into_iter().map(|mount| mount.place.join(name));
    let itself = cgroup.is_absolute().then(|| cgroup.to_owned());
    itself.into_iter().chain(below).find(is_cgroup)
}

/// The hierarchy that counts memory on this machine, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Of which version.
    pub version: Version,
    mount: Mount,
}

impl Hierarchy {
    /// The one of this machine; none where no control group counts memory.
    #[must_use]
    pub fn of_memory() -> Option<Self> {
        Self::among(mounts(), |place| {
            let controllers = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
            controllers.split_whitespace().any(|controller| controller == "memory")
        })
    }

    /// A hierarchy of version 2 may be mounted without the controller, beside one of version 1 that has it.
    fn among(mounts: Vec<Mount>, unified_has_memory: impl Fn(&Path) -> bool) -> Option<Self> {
        mounts.into_iter().find_map(|mount| match mount.rank {
            UNIFIED if unified_has_memory(&mount.place) => Some(Self { version: Version::V2, mount }),
            MEMORY => Some(Self { version: Version::V1, mount }),
            _ => None,
        })
    }

    /// The directory of all groups that can be seen.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.mount.place
    }

    /// The directory of the group whose memory a process uses; none when it is gone, or out of sight.
    #[must_use]
    pub fn of_process(&self, pid: Pid) -> Option<PathBuf> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        self.mount.directory(self.group_among(&groups)?)
    }

    /// `5:memory:/group` of version 1, `0::/group` of version 2.
    fn group_among<'a>(&self, groups: &'a str) -> Option<&'a Path> {
        groups.lines().find_map(|line| {
            let (number, rest) = line.split_once(':')?;
            let (controllers, group) = rest.split_once(':')?;
            let is_it = match self.version {
                Version::V1 => controllers.split(',').any(|controller| controller == "memory"),
                Version::V2 => number == "0" && controllers.is_empty(),
            };
            is_it.then(|| Path::new(group.strip_suffix(" (deleted)").unwrap_or(group)))
        })
    }
}

/// Whether the control group of a process is frozen, of either version, as far as it is in sight.
#[must_use]
pub fn is_frozen(pid: Pid) -> bool {
    let Ok(groups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
    let mounts = mounts();
    let is_frozen = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        let says = |directory: PathBuf| match controllers {
            "" => fs::read_to_string(directory.join("cgroup.events"))
                .is_ok_and(|text| text.contains("frozen 1")),
            _ => {
                fs::read_to_string(directory.join("freezer.state")).is_ok_and(|text| text.trim() != "THAWED")
            }
        };
        let is_it = controllers.split(',').any(|controller| ["", "freezer"].contains(&controller));
        is_it.then(|| mounts.iter().filter_map(|mount| mount.directory(Path::new(group))).any(says))
    };
    groups.lines().filter_map(is_frozen).any(|is_frozen| is_frozen)
}

/// The CPUs that a process may use by the quota of its control group, or of the one above that leaves it least; none where nothing limits it.
#[must_use]
pub fn cpu_quota(pid: Pid) -> Option<f64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
            let is_unified = controllers.is_empty();
            let counts = is_unified || controllers.split(',').any(|controller| controller == "cpu");
            let mounts = mounts().into_iter().filter(|mount| counts && (mount.rank == UNIFIED) == is_unified);
            let quotas =
                mounts.filter_map(|mount| least_quota(&mount.place, &mount.directory(Path::new(group))?));
            quotas.min_by(f64::total_cmp)
        })
        .min_by(f64::total_cmp)
}

/// The least quota of a group and those above it, in CPUs.
fn least_quota(root: &Path, group: &Path) -> Option<f64> {
    let quotas = group.ancestors().take_while(|above| above.starts_with(root)).filter_map(quota_of);
    quotas.min_by(f64::total_cmp)
}

fn quota_of(group: &Path) -> Option<f64> {
    let read = |file| fs::read_to_string(group.join(file));
    // Version 2 has both in one file, and says `max` where there is none; version 1 says -1.
    let both = read("cpu.max").or_else(|_| {
        Ok::<_, io::Error>(format!(
            "{} {}",
            read("cpu.cfs_quota_us")?.trim(),
            read("cpu.cfs_period_us")?.trim()
        ))
    });
    let both = both.ok()?;
    let mut numbers = both.split_whitespace().map(|number| number.parse::<u64>().ok());
    let (quota, period) = (numbers.next()??, numbers.next()??);
    (period > 0).then(|| quota as f64 / period as f64)
}

/// The processes of a control group and those below it.
///
/// # Errors
/// When a list cannot be read. A group that has gone meanwhile has nobody.
pub fn members(directory: &Path) -> io::Result<BTreeSet<Pid>> {
    let mut pids = BTreeSet::new();
    collect(directory, &mut pids)?;
    Ok(pids)
}

fn collect(directory: &Path, pids: &mut BTreeSet<Pid>) -> io::Result<()> {
    pids.extend(own_members(directory)?);
    for below in children(directory) {
        collect(&below, pids)?;
    }
    Ok(())
}

/// The processes of a control group, without those below it.
///
/// # Errors
/// When the list cannot be read. A group that has gone meanwhile has nobody.
pub fn own_members(directory: &Path) -> io::Result<Vec<Pid>> {
    match fs::read_to_string(directory.join(MEMBERS)) {
        // 0 stands for a process of another pid namespace.
        Ok(members) => {
            let pids = members.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid| pid != 0);
            Ok(pids.map(Pid).collect())
        }
        // A group of threads, whose processes are members of the one above; or one that has been removed meanwhile.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOENT)) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// The groups right below one.
#[must_use]
pub fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.filter(is_directory).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
30 24 0:26 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct
31 24 0:27 /outer /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory
32 24 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate
33 24 0:29 / /tmp rw - tmpfs tmpfs rw
nonsense";

    #[test]
    fn the_unified_hierarchy_comes_before_that_of_memory_and_others() {
        let places: Vec<_> = parse_mounts(MOUNTINFO).into_iter().map(|mount| mount.place).collect();
        let expected = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/my memory", "/sys/fs/cgroup/cpu"];
        assert_eq!(places, expected.map(PathBuf::from));
    }

    #[test]
    fn memory_is_counted_where_its_controller_is() {
        let v1 = Hierarchy::among(parse_mounts(MOUNTINFO), |_| false).unwrap();
        assert_eq!((v1.version, v1.root()), (Version::V1, Path::new("/sys/fs/cgroup/my memory")));
        let v2 = Hierarchy::among(parse_mounts(MOUNTINFO), |_| true).unwrap();
        assert_eq!((v2.version, v2.root()), (Version::V2, Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(Hierarchy::among(parse_mounts("nonsense"), |_| true), None);
    }

    #[test]
    fn the_quota_that_leaves_least_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("pod/container");
        fs::create_dir_all(&group).unwrap();
        assert_eq!(least_quota(root.path(), &group), None);
        fs::write(group.join("cpu.max"), "max 100000\n").unwrap();
        assert_eq!(least_quota(root.path(), &group), None);
        fs::write(root.path().join("pod/cpu.max"), "150000 100000\n").unwrap();
        assert_eq!(least_quota(root.path(), &group), Some(1.5));
        // As version 1 has it.
        fs::remove_file(group.join("cpu.max")).unwrap();
        fs::write(group.join("cpu.cfs_period_us"), "100000\n").unwrap();
        fs::write(group.join("cpu.cfs_quota_us"), "-1\n").unwrap();
        assert_eq!(least_quota(root.path(), &group), Some(1.5));
        fs::write(group.join("cpu.cfs_quota_us"), "10000\n").unwrap();
        assert_eq!(least_quota(root.path(), &group), Some(0.1));
    }

    #[test]
    fn a_process_names_its_groups_from_the_root_of_the_hierarchy() {
        let groups = "5:cpu:/x\n4:hugetlb,memory:/outer/a b\n0::/unified.slice\n";
        let v1 = Hierarchy::among(parse_mounts(MOUNTINFO), |_| false).unwrap();
        let group = v1.group_among(groups).unwrap();
        assert_eq!(v1.mount.directory(group), Some("/sys/fs/cgroup/my memory/a b".into()));
        assert_eq!(v1.mount.directory(Path::new("/outer")), Some("/sys/fs/cgroup/my memory".into()));
        assert_eq!(v1.mount.directory(Path::new("/elsewhere")), None);
        let v2 = Hierarchy::among(parse_mounts(MOUNTINFO), |_| true).unwrap();
        assert_eq!(v2.group_among(groups), Some(Path::new("/unified.slice")));
    }
}
