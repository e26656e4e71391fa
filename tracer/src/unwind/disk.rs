//! Tables kept on disk, so that a program traced again is ready at once.
//!
//! A table is found by the SHA-256 of what it was made from, not by a build id: files of the target are not trusted, and
//! one that carries another's build id must not give that one its table.
//!
//! The files are ours alone: directory and files must belong to this user and be writable by nobody else, are opened
//! without following links, and what is read is checked whole before it is used. A cache that cannot be used costs
//! time, never a table.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tracer_ebpf::unwind::{PAGE_BITS, Row, Rule};

use super::elf::{self, Elf};
use super::rules::Rules;
use super::table::{MAX_ROWS, Table, TableError, TableStats};

/// Changes with the meaning of the bytes, of a rule, or of how files are read.
const VERSION: u32 = 4;
const MAGIC: &[u8; 8] = b"unwind\0\0";

/// How much the cache may hold. What was not used for longest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of files.
    pub files: usize,
}

impl Default for CacheLimits {
    /// 256 MiB, 1,024 files: a table takes 0.1 to 6 MiB.
    fn default() -> Self {
        Self { bytes: 256 << 20, files: 1024 }
    }
}

/// Where a table came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Read from the cache.
    Cached,
    /// Made from the file.
    Made,
}

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be made or opened.
    #[error("cannot use {}: {source}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody else can change what is in the directory.
    #[error("{} is not used: it must belong to this user and be writable by nobody else", .0.display())]
    NotOurs(PathBuf),
    /// There is no place for it: neither a cache directory nor a home is set.
    #[error("neither XDG_CACHE_HOME nor HOME is set")]
    NoHome,
}

/// A directory of tables.
#[derive(Debug)]
pub struct Cache {
    directory: OwnedFd,
    limits: CacheLimits,
}

impl Cache {
    /// Where the cache of this user is: `/var/cache/tracer/unwind` for root, who must not write into a home that `sudo`
    /// left in the environment; `$XDG_CACHE_HOME` or `~/.cache` and `tracer/unwind` for others.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn default_directory() -> Result<PathBuf, CacheError> {
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/cache/tracer/unwind"));
        }
        let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || set("HOME").map(|home| home.join(".cache"));
        set("XDG_CACHE_HOME").or_else(home).map(|cache| cache.join("tracer/unwind")).ok_or(CacheError::NoHome)
    }

    /// Opens a cache, and makes its directory if there is none.
    ///
    /// # Errors
    /// When the directory cannot be used, or is not safe to use.
    pub fn open(path: &Path, limits: CacheLimits) -> Result<Self, CacheError> {
        let unusable = |source| CacheError::Unusable { path: path.to_owned(), source };
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(path).map_err(unusable)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let directory =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| unusable(error.into()))?;
        let stat = rustix::fs::fstat(&directory).map_err(|error| unusable(error.into()))?;
        if !is_ours(&stat) {
            return Err(CacheError::NotOurs(path.to_owned()));
        }
        Ok(Self { directory, limits })
    }

    /// The table of an ELF file: from the cache, else made and kept there.
    ///
    /// # Errors
    /// As [`Table::from_elf`].
    pub fn table(&self, bytes: &[u8]) -> Result<(Table, Origin), TableError> {
        let elf = elf::read(bytes)?;
        let key = Key::of(&elf);
        if let Some(table) = self.load(&key) {
            return Ok((table, Origin::Cached));
        }
        let table = Table::from_parts(&elf)?;
        if let Err(error) = self.store(&key, &table) {
            log::debug!("an unwind table was not cached: {error}");
        }
        Ok((table, Origin::Made))
    }

    fn load(&self, key: &Key) -> Option<Table> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.directory, key.file_name(), flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let size = u64::try_from(stat.st_size).ok()?;
        if !is_ours(&stat)
            || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || size > MAX_FILE
        {
            return None;
        }
        let mut bytes = Vec::with_capacity(size as usize + 1);
        // One byte more than it should have: a file that grows meanwhile is not read without end.
        let mut file = File::from(file);
        (&mut file).take(size + 1).read_to_end(&mut bytes).ok()?;
        let table = decode(&bytes, key)?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // Only its place in the order of removal depends on it.
        let _ = rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now });
        Some(table)
    }

    /// Writes beside and renames, so that a reader sees a whole file or none.
    fn store(&self, key: &Key, table: &Table) -> std::io::Result<()> {
        let bytes = encode(table, key);
        if bytes.len() as u64 > self.limits.bytes.min(MAX_FILE) {
            return Ok(());
        }
        let name = key.file_name();
        let unfinished = format!("{name}.{}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, &unfinished, flags, Mode::RUSR | Mode::WUSR)?;
        let written = File::from(file)
            .write_all(&bytes)
            .and_then(|()| Ok(rustix::fs::renameat(&self.directory, &unfinished, &self.directory, &name)?));
        if written.is_err() {
            rustix::fs::unlinkat(&self.directory, &unfinished, AtFlags::empty())?;
        }
        written.and_then(|()| Ok(self.trim()?))
    }

    /// Removes what was not used for longest, until the rest is within the limits.
    fn trim(&self) -> Result<(), Errno> {
        let mut files = Vec::new();
        for entry in Dir::read_from(self.directory.as_fd())? {
            let name = entry?.file_name().to_owned();
            let stat = rustix::fs::statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                files.push(((stat.st_mtime, stat.st_mtime_nsec), stat.st_size as u64, name));
            }
        }
        files.sort_unstable_by(|a, b| b.cmp(a));
        let mut bytes = 0_u64;
        for (index, (_, size, name)) in files.iter().enumerate() {
            bytes = bytes.saturating_add(*size);
            if index >= self.limits.files || bytes > self.limits.bytes {
                rustix::fs::unlinkat(&self.directory, OsStr::from_bytes(name.to_bytes()), AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

fn is_ours(stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0
}

/// The SHA-256 of everything that a table is made from.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key([u8; 32]);

impl Key {
    fn of(elf: &Elf<'_>) -> Self {
        let mut hash = Sha256::new();
        let mut put = |number: u64| hash.update(number.to_le_bytes());
        put(elf.length);
        put(elf.entry.unwrap_or(0));
        put(elf.coroutine_end.unwrap_or(0));
        let switches = elf.switches.clone().unwrap_or_default();
        put(switches.start);
        put(switches.end);
        put(elf.code.len() as u64);
        for range in &elf.code {
            put(range.start);
            put(range.end);
        }
        for section in &elf.sections {
            hash.update([section.flavour as u8]);
            for base in
                [section.bases.eh_frame.section, section.bases.eh_frame.text, section.bases.eh_frame.data]
            {
                hash.update([u8::from(base.is_some())]);
                hash.update(base.unwrap_or(0).to_le_bytes());
            }
            hash.update((section.data.len() as u64).to_le_bytes());
            hash.update(&section.data);
        }
        if let Some(standalone) = &elf.standalone {
            for code in &standalone.code {
                hash.update(code.svma.to_le_bytes());
                hash.update((code.bytes.len() as u64).to_le_bytes());
                hash.update(code.bytes);
            }
            hash.update((standalone.entries.len() as u64).to_le_bytes());
            standalone.entries.iter().for_each(|entry| hash.update(entry.to_le_bytes()));
        }
        Self(hash.finalize().into())
    }

    fn file_name(&self) -> String {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}-v{VERSION}")
    }
}

/// Magic, version, page bits, key, code, 5 numbers of statistics, 3 lengths.
const HEADER: usize = 8 + 4 + 4 + 32 + 8 + 5 * 4 + 3 * 4;
const CHECKSUM: usize = 32;
/// No page index is longer: a table's code is at most 4 GiB.
const MAX_PAGES: usize = (1 << (32 - PAGE_BITS)) + 1;
/// The largest file that is read: every array at its limit.
const MAX_FILE: u64 = (HEADER + 4 * MAX_PAGES + 4 * MAX_ROWS + 8 * Rules::MAX + CHECKSUM) as u64;

/// All numbers little endian; last the SHA-256 of everything before.
fn encode(table: &Table, key: &Key) -> Vec<u8> {
    let Table { code, pages, rows, rules, stats } = table;
    let mut bytes =
        Vec::with_capacity(HEADER + 4 * pages.len() + 4 * rows.len() + 8 * rules.len() + CHECKSUM);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(PAGE_BITS.to_le_bytes());
    bytes.extend(key.0);
    bytes.extend(code.to_le_bytes());
    for number in [stats.functions, stats.file_rows, stats.unsupported_rows, stats.broken, stats.synthesized]
    {
        bytes.extend(number.to_le_bytes());
    }
    for length in [pages.len(), rows.len(), rules.len()] {
        bytes.extend((length as u32).to_le_bytes());
    }
    bytes.extend(pages.iter().flat_map(|page| page.to_le_bytes()));
    bytes.extend(rows.iter().flat_map(|row| row.to_bits().to_le_bytes()));
    bytes.extend(rules.iter().flat_map(|rule| rule.to_bits().to_le_bytes()));
    let checksum = Sha256::digest(&bytes);
    bytes.extend(checksum);
    bytes
}

/// Takes a file apart; `None` unless it is whole, of this version, for this key, and a table that could have been made.
fn decode(bytes: &[u8], key: &Key) -> Option<Table> {
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
    if Sha256::digest(content)[..] != *checksum {
        return None;
    }
    let mut rest = ByteReader(content);
    let is_ours = rest.array()? == *MAGIC
        && rest.u32()? == VERSION
        && rest.u32()? == PAGE_BITS
        && rest.array::<32>()? == key.0;
    if !is_ours {
        return None;
    }
    let code = rest.u64()?;
    let stats = TableStats {
        functions: rest.u32()?,
        file_rows: rest.u32()?,
        unsupported_rows: rest.u32()?,
        broken: rest.u32()?,
        synthesized: rest.u32()?,
    };
    let [pages, rows, rules] = [rest.u32()? as usize, rest.u32()? as usize, rest.u32()? as usize];
    let table = Table {
        code,
        pages: rest.list(pages, u32::from_le_bytes)?,
        rows: rest.list(rows, |bytes| Row::from_bits(u32::from_le_bytes(bytes)))?,
        rules: rest.list(rules, |bytes| Rule::from_bits(u64::from_le_bytes(bytes)))?,
        stats,
    };
    (rest.0.is_empty() && is_sound(&table)).then_some(table)
}

/// Whether every index leads somewhere, and searches find what they should.
fn is_sound(Table { code, pages, rows, rules, .. }: &Table) -> bool {
    code & ((1 << PAGE_BITS) - 1) == 0
        && (2..=MAX_PAGES).contains(&pages.len())
        && rows.len() <= MAX_ROWS
        && (2..=Rules::MAX).contains(&rules.len())
        && rules[..2] == [Rule::NO_TABLE, Rule::UNSUPPORTED]
        && pages[0] == 0
        && pages[pages.len() - 1] as usize == rows.len()
        && pages.is_sorted()
        && rows.iter().all(|row| usize::from(row.rule()) < rules.len() && row.offset() >> PAGE_BITS == 0)
        && pages.windows(2).all(|page| {
            let rows = &rows[page[0] as usize..page[1] as usize];
            rows.is_sorted_by(|a, b| a.offset() < b.offset())
        })
}

/// Little-endian numbers, one after the other.
struct ByteReader<'a>(&'a [u8]);

impl ByteReader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn list<const N: usize, T>(&mut self, length: usize, item: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
        let (list, rest) = self.0.split_at_checked(length.checked_mul(N)?)?;
        self.0 = rest;
        Some(list.as_chunks().0.iter().map(|&bytes| item(bytes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;
    use tracer_ebpf::unwind::{Cfa, SavedBp};

    use super::super::table::tests::table_of;
    use super::*;

    fn ours() -> Vec<u8> {
        std::fs::read(std::env::current_exe().expect("our path")).expect("our bytes")
    }

    fn cache(directory: &tempfile::TempDir, limits: CacheLimits) -> Cache {
        Cache::open(&directory.path().join("made/unwind"), limits).expect("a directory of ours")
    }

    fn only_file(directory: &tempfile::TempDir) -> PathBuf {
        let mut files = std::fs::read_dir(directory.path().join("made/unwind")).expect("the cache");
        let file = files.next().expect("one file").expect("readable").path();
        assert!(files.next().is_none(), "one file only");
        file
    }

    fn small_table() -> Table {
        let rule = |offset| Rule::new(Cfa::Sp(offset), SavedBp::Same).expect("fits");
        table_of(&[(0, rule(8)), (4, rule(16)), (300, rule(8))], 1000)
    }

    const KEY: Key = Key([7; 32]);

    #[test]
    fn what_was_made_is_found_again_the_same() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = cache(&directory, CacheLimits::default());
        let bytes = ours();
        let (made, from) = cache.table(&bytes).expect("a table");
        assert_eq!(from, Origin::Made);
        assert_eq!(cache.table(&bytes), Ok((made, Origin::Cached)));
        assert!(only_file(&directory).to_string_lossy().ends_with(&format!("-v{VERSION}")));
    }

    #[test]
    fn a_damaged_file_is_made_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = cache(&directory, CacheLimits::default());
        let bytes = ours();
        cache.table(&bytes).expect("a table");
        let file = only_file(&directory);
        for damage in [&b""[..], b"unwind\0\0", &[0; 4096]] {
            std::fs::write(&file, damage).expect("written");
            assert_eq!(cache.table(&bytes).expect("a table").1, Origin::Made);
            assert_eq!(cache.table(&bytes).expect("a table").1, Origin::Cached);
        }
    }

    #[test]
    fn files_and_directories_that_others_can_write_are_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = cache(&directory, CacheLimits::default());
        let bytes = ours();
        cache.table(&bytes).expect("a table");
        let file = only_file(&directory);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).expect("changed");
        assert_eq!(cache.table(&bytes).expect("a table").1, Origin::Made);

        let moved = directory.path().join("moved");
        std::fs::rename(&file, &moved).expect("moved");
        symlink(&moved, &file).expect("linked");
        assert_eq!(cache.table(&bytes).expect("a table").1, Origin::Made);

        let path = directory.path().join("made/unwind");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).expect("changed");
        assert!(matches!(Cache::open(&path, CacheLimits::default()), Err(CacheError::NotOurs(_))));
        let link = directory.path().join("link");
        symlink(directory.path(), &link).expect("linked");
        assert!(matches!(Cache::open(&link, CacheLimits::default()), Err(CacheError::Unusable { .. })));
    }

    #[test]
    fn the_cache_stays_within_its_limits() {
        let directory = tempfile::tempdir().expect("a directory");
        let table = small_table();
        let cache = cache(&directory, CacheLimits { files: 3, ..CacheLimits::default() });
        for key in 0..9 {
            cache.store(&Key([key; 32]), &table).expect("stored");
        }
        let path = directory.path().join("made/unwind");
        assert_eq!(std::fs::read_dir(&path).expect("the cache").count(), 3);
        assert!(cache.load(&Key([8; 32])).is_some(), "the newest stays");

        let size = encode(&table, &KEY).len() as u64;
        let cache = Cache::open(&path, CacheLimits { bytes: 2 * size, files: 9 }).expect("ours");
        cache.store(&KEY, &table).expect("stored");
        assert_eq!(std::fs::read_dir(&path).expect("the cache").count(), 2);
        let cache = Cache::open(&path, CacheLimits { bytes: size - 1, files: 9 }).expect("ours");
        cache.store(&Key([99; 32]), &table).expect("not stored, no error");
        assert!(cache.load(&Key([99; 32])).is_none());
    }

    #[test]
    fn a_table_is_only_for_its_key_and_version() {
        let bytes = encode(&small_table(), &KEY);
        assert_eq!(decode(&bytes, &KEY), Some(small_table()));
        assert_eq!(decode(&bytes, &Key([8; 32])), None);
    }

    /// With a checksum that is right again.
    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM);
        let checksum = Sha256::digest(&bytes);
        bytes.extend(checksum);
        bytes
    }

    proptest! {
        #[test]
        fn any_change_is_noticed(at in 0_usize..4096, bit in 0..8) {
            let mut bytes = encode(&small_table(), &KEY);
            let at = at % bytes.len();
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(decode(&bytes, &KEY), None);
        }

        #[test]
        fn what_a_forger_writes_is_refused_or_searched_safely(
            changes in prop::collection::vec((0_usize..4096, any::<u8>()), 1..4),
            cut in 0_usize..64,
        ) {
            let mut bytes = encode(&small_table(), &KEY);
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len().saturating_sub(cut).max(CHECKSUM));
            if let Some(table) = decode(&resealed(bytes), &KEY) {
                for offset in 0..2000 {
                    let _ = table.lookup(table.code.wrapping_add(offset));
                }
                let _ = table.probes();
            }
        }
    }
}
