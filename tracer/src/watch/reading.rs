//! What the kernel says of the memory of a control group, of either version.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{model::Bytes, target::cgroup::Version};

/// What was read of a subject at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Reading {
    /// All that counts against the limit; of single processes, their resident memory.
    pub usage_bytes: Bytes,
    /// The limit that is nearest, and what counts against that.
    pub limit: Limit,
    /// Usage without files that were not used for long.
    pub working_set_bytes: Bytes,
    /// What the usage is made of.
    pub parts: Parts,
    /// What happened for want of memory, since the group was made.
    pub events: MemoryEvents,
    /// Who waited for memory; none where the kernel does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// Resident memory of the processes.
    pub rss_bytes: Bytes,
    /// How many processes there are.
    pub processes: u64,
}

/// A limit, and what counts against it: the group's own usage, or that of the one above that has the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// How much there may be; the machine's memory where nothing else limits.
    pub bytes: Bytes,
    /// What counts against it.
    pub used_bytes: Bytes,
    /// Whose it is.
    pub whose: LimitOwner,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitOwner {
    /// The group's own.
    Own,
    /// That of a group above it.
    Above,
    /// Nothing limits it but the machine's memory.
    #[default]
    Machine,
}

impl Limit {
    /// From 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.used_bytes.0 as f64 / self.bytes.0.max(1) as f64
    }
}

/// Parts of `memory.stat`. They overlap: shared memory is a part of files, slab of the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// Anonymous memory: heaps, stacks.
    pub anon: Bytes,
    /// Page cache, shared memory included.
    pub file: Bytes,
    /// Shared memory and tmpfs.
    pub shmem: Bytes,
    /// The kernel's own, on behalf of the group.
    pub kernel: Bytes,
    /// Of that, objects of its allocator.
    pub slab: Bytes,
    /// Buffers of sockets.
    pub sockets: Bytes,
}

impl Parts {
    /// Each with its name, in `memory.stat`'s order.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, Bytes); 6] {
        [
            ("anon", self.anon),
            ("file", self.file),
            ("shmem", self.shmem),
            ("kernel", self.kernel),
            ("slab", self.slab),
            ("sock", self.sockets),
        ]
    }

    /// A sentence where most of it is something that no allocator holds.
    #[must_use]
    pub fn not_ours(&self) -> Option<String> {
        let apart = [
            (self.shmem, "shared memory and files in tmpfs (shmem)"),
            (Bytes(self.file.0.saturating_sub(self.shmem.0)), "page cache (file)"),
            (self.kernel, "the kernel's own (kernel, slab)"),
            (self.sockets, "buffers of sockets (sock)"),
        ];
        let whole: u64 = self.anon.0 + apart.iter().map(|(Bytes(bytes), _)| bytes).sum::<u64>();
        let (Bytes(most), what) = apart.into_iter().max_by_key(|(bytes, _)| *bytes)?;
        (whole > 0 && most > whole / 2).then(|| {
            format!("{} % of it is {what}, which no allocator holds", most.saturating_mul(100) / whole)
        })
    }
}

/// Counts of `memory.events`. Version 1 has only the last two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEvents {
    /// How often it was slowed down at its `high` mark.
    pub high: u64,
    /// How often it was about to exceed its limit, and no memory was got back.
    pub oom: u64,
    /// How often it was about to exceed its limit.
    pub max: u64,
    /// How many processes were killed.
    pub oom_kill: u64,
}

impl MemoryEvents {
    /// Each with its name.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 4] {
        [("high", self.high), ("max", self.max), ("oom", self.oom), ("oom_kill", self.oom_kill)]
    }
}

/// Pressure stall information: parts of the time, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Somebody waited, over the last 10 seconds.
    pub some: f64,
    /// Everybody waited, over the last 10 seconds.
    pub full: f64,
    /// How long somebody waited since the group was made, in microseconds.
    pub some_total_us: u64,
}

/// Reads files of control groups.
#[derive(Debug)]
pub struct Reader {
    version: Version,
    /// The directory of all groups: what is above it has no limits that can be seen.
    root: PathBuf,
    /// Of the machine.
    pub machine_bytes: Bytes,
    text: String,
}

impl Reader {
    /// What reads groups of this version, below this directory.
    #[must_use]
    pub fn new(version: Version, root: &Path) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes = meminfo.lines().find_map(|line| {
            line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        });
        let machine_bytes = Bytes(kibibytes.unwrap_or(0) * 1024);
        Self { version, root: root.to_owned(), machine_bytes, text: String::new() }
    }

    /// What the kernel says of a group. Its processes are not looked at.
    ///
    /// # Errors
    /// When the group has gone, or cannot be read.
    pub fn read(&mut self, group: &Path) -> io::Result<Reading> {
        let usage = self.number(&group.join(self.usage_file()))?;
        let mut parts = Parts::default();
        if self.version == Version::V1 {
            let mut number = |file| Bytes(self.number(&group.join(file)).unwrap_or(0));
            parts.kernel = number("memory.kmem.usage_in_bytes");
            parts.sockets = number("memory.kmem.tcp.usage_in_bytes");
        }
        let inactive_file = self.stat(group, &mut parts)?;
        Ok(Reading {
            usage_bytes: Bytes(usage),
            limit: self.limit(group, usage),
            working_set_bytes: Bytes(usage.saturating_sub(inactive_file)),
            parts,
            events: self.events(group),
            pressure: self.pressure(group),
            ..Reading::default()
        })
    }

    /// How many processes of a group the kernel killed; none when it has gone.
    pub fn oom_kills(&mut self, group: &Path) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = self.text(&group.join(file)).ok()?;
        pairs(text).find(|(name, _)| *name == "oom_kill").map(|(_, kills)| kills)
    }

    const fn usage_file(&self) -> &'static str {
        match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }
    }

    /// As [`Reader::read`], but only what changes from one moment to the next: files cost some 10 µs each. The rest is as it was before.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read_again(&mut self, group: &Path, before: &Reading) -> io::Result<Reading> {
        let usage = self.number(&group.join(self.usage_file()))?;
        let mut parts = before.parts;
        let inactive_file = self.stat(group, &mut parts)?;
        let limit = match before.limit.whose {
            LimitOwner::Above => self.limit(group, usage),
            LimitOwner::Own | LimitOwner::Machine => Limit { used_bytes: Bytes(usage), ..before.limit },
        };
        Ok(Reading {
            usage_bytes: Bytes(usage),
            limit,
            working_set_bytes: Bytes(usage.saturating_sub(inactive_file)),
            parts,
            pressure: self.pressure(group),
            ..*before
        })
    }

    /// The limit of the group or the nearest above it that has one, and what counts against it.
    pub fn limit(&mut self, group: &Path, usage: u64) -> Limit {
        let file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let root = self.root.clone();
        for above in group.ancestors().take_while(|above| above.starts_with(&root)) {
            // `max` is no number, and version 1 says a number that no machine has.
            let Ok(bytes) = self.number(&above.join(file)) else { continue };
            if bytes > 0 && bytes < self.machine_bytes.0 {
                let used =
                    if above == group { Ok(usage) } else { self.number(&above.join(self.usage_file())) };
                let used_bytes = Bytes(used.unwrap_or(usage));
                let whose = if above == group { LimitOwner::Own } else { LimitOwner::Above };
                return Limit { bytes: Bytes(bytes), used_bytes, whose };
            }
        }
        Limit { bytes: self.machine_bytes, used_bytes: Bytes(usage), whose: LimitOwner::Machine }
    }

    /// Notes the parts of `memory.stat`, and returns what are files that were not used for long.
    fn stat(&mut self, group: &Path, parts: &mut Parts) -> io::Result<u64> {
        let version = self.version;
        let mut inactive_file = 0;
        for (name, value) in pairs(self.text(&group.join("memory.stat"))?) {
            match (version, name) {
                (Version::V2, "anon") | (Version::V1, "total_rss") => parts.anon = Bytes(value),
                (Version::V2, "file") | (Version::V1, "total_cache") => parts.file = Bytes(value),
                (Version::V2, "shmem") | (Version::V1, "total_shmem") => parts.shmem = Bytes(value),
                (Version::V2, "kernel") => parts.kernel = Bytes(value),
                (Version::V2, "slab") => parts.slab = Bytes(value),
                (Version::V2, "sock") => parts.sockets = Bytes(value),
                (Version::V2, "inactive_file") | (Version::V1, "total_inactive_file") => {
                    inactive_file = value;
                }
                _ => {}
            }
        }
        Ok(inactive_file)
    }

    fn events(&mut self, group: &Path) -> MemoryEvents {
        let mut events = MemoryEvents::default();
        match self.version {
            Version::V2 => {
                let Ok(text) = self.text(&group.join("memory.events")) else { return events };
                for (name, value) in pairs(text) {
                    match name {
                        "high" => events.high = value,
                        "max" => events.max = value,
                        "oom" => events.oom = value,
                        "oom_kill" => events.oom_kill = value,
                        _ => {}
                    }
                }
            }
            Version::V1 => {
                events.max = self.number(&group.join("memory.failcnt")).unwrap_or(0);
                if let Ok(text) = self.text(&group.join("memory.oom_control")) {
                    let kills = pairs(text).find(|(name, _)| *name == "oom_kill");
                    events.oom_kill = kills.map_or(0, |(_, kills)| kills);
                }
            }
        }
        events
    }

    fn pressure(&mut self, group: &Path) -> Option<Pressure> {
        if self.version == Version::V1 {
            return None;
        }
        parse_pressure(self.text(&group.join("memory.pressure")).ok()?)
    }

    fn number(&mut self, file: &Path) -> io::Result<u64> {
        self.text(file)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn text(&mut self, file: &Path) -> io::Result<&str> {
        self.text.clear();
        File::open(file)?.read_to_string(&mut self.text)?;
        Ok(&self.text)
    }
}

/// `name number` on each line.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name, value.trim().parse().ok()?))
    })
}

/// `some avg10=0.00 avg60=0.25 avg300=0.38 total=199030349`, in per cent and microseconds.
fn parse_pressure(text: &str) -> Option<Pressure> {
    let field = |who: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(who))?;
        line.split_whitespace().find_map(|field| field.strip_prefix(name)?.parse::<f64>().ok())
    };
    Some(Pressure {
        some: field("some ", "avg10=")? / 100.0,
        full: field("full ", "avg10=").unwrap_or(0.0) / 100.0,
        some_total_us: field("some ", "total=")? as u64,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn version_2_says_all_of_it() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("a.slice/b.service");
        write(
            &root.path().join("a.slice"),
            &[("memory.max", "209715200\n"), ("memory.current", "104857600\n")],
        );
        write(
            &group,
            &[
                ("memory.current", "83886080\n"),
                ("memory.max", "max\n"),
                (
                    "memory.stat",
                    "anon 52428800\nfile 20971520\nkernel 4194304\nshmem 1048576\nslab 2097152\nsock 4096\n\
                     inactive_file 10485760\nnonsense\n",
                ),
                ("memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n"),
                (
                    "memory.pressure",
                    "some avg10=12.50 avg60=1.00 avg300=0.00 total=77\nfull avg10=2.00 avg60=0.00 avg300=0.00 total=5\n",
                ),
            ],
        );
        let reading = Reader::new(Version::V2, root.path()).read(&group).unwrap();
        assert_eq!(reading.usage_bytes, Bytes(80 * MIB));
        assert_eq!(reading.working_set_bytes, Bytes(70 * MIB));
        // The slice above is what will be full first.
        let limit = Limit { bytes: Bytes(200 * MIB), used_bytes: Bytes(100 * MIB), whose: LimitOwner::Above };
        assert_eq!((reading.limit, reading.limit.share()), (limit, 0.5));
        assert_eq!(
            reading.parts.named().map(|(_, Bytes(bytes))| bytes / 1024),
            [51200, 20480, 1024, 4096, 2048, 4]
        );
        assert_eq!(reading.events.named().map(|(_, count)| count), [1, 2, 3, 4]);
        assert_eq!(reading.pressure, Some(Pressure { some: 0.125, full: 0.02, some_total_us: 77 }));
    }

    #[test]
    fn version_1_says_most_of_it() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("docker/abc");
        write(
            &group,
            &[
                ("memory.usage_in_bytes", "83886080\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                (
                    "memory.stat",
                    "rss 1\ntotal_rss 52428800\ntotal_cache 20971520\ntotal_inactive_file 10485760\n",
                ),
                ("memory.failcnt", "9\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
                ("memory.kmem.usage_in_bytes", "4096\n"),
            ],
        );
        let mut reader = Reader::new(Version::V1, root.path());
        let reading = reader.read(&group).unwrap();
        assert!(reading.limit.whose == LimitOwner::Machine && reading.limit.bytes == reader.machine_bytes);
        assert_eq!((reading.usage_bytes, reading.parts.anon), (Bytes(80 * MIB), Bytes(50 * MIB)));
        assert_eq!((reading.events.max, reading.events.oom_kill, reading.parts.kernel), (9, 2, Bytes(4096)));
        assert_eq!(reading.pressure, None);
        write(&group, &[("memory.usage_in_bytes", "94371840\n"), ("memory.failcnt", "11\n")]);
        let again = reader.read_again(&group, &reading).unwrap();
        assert_eq!((again.limit.used_bytes, again.working_set_bytes), (Bytes(90 * MIB), Bytes(80 * MIB)));
        assert_eq!((again.events, again.parts), (reading.events, reading.parts));
    }

    #[test]
    fn a_group_that_has_gone_is_an_error_and_no_empty_one() {
        let root = tempfile::tempdir().unwrap();
        let gone = Reader::new(Version::V2, root.path()).read(&root.path().join("gone"));
        assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_no_allocator_holds_is_said() {
        let parts = |anon, file, shmem, kernel| Parts {
            anon: Bytes(anon),
            file: Bytes(file),
            shmem: Bytes(shmem),
            kernel: Bytes(kernel),
            ..Parts::default()
        };
        assert_eq!(parts(100, 50, 0, 10).not_ours(), None);
        assert_eq!(Parts::default().not_ours(), None);
        let said = |parts: Parts| parts.not_ours().unwrap();
        assert!(said(parts(10, 90, 90, 0)).starts_with("90 % of it is shared memory"));
        assert!(said(parts(10, 90, 10, 0)).starts_with("80 % of it is page cache"));
        assert!(said(parts(10, 0, 0, 30)).contains("kernel"));
    }
}
