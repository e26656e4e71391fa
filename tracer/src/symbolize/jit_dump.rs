//! Names and lines of just-in-time compiled code, from the file that a runtime writes for `perf inject --jit` (`node --perf-prof`, .NET,
//! LLVM, wasmtime): `jit-PID.dump`, records appended as code is made.
//!
//! The runtime maps the first page of the file executable, so that perf sees where it is; so does the tracer. Records have the time at
//! which the code was made, and runtimes write them late, out of buffers of up to two megabytes: so a stack that was seen before its names were
//! written is named afterwards, by code that is older than it and is still there.
//!
//! See `tools/perf/Documentation/jitdump-specification.txt` in the kernel's sources.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::jit_code::JitCode;
use crate::model::Pid;
use crate::target::{FileId, Mapping, Target};

/// Bytes of a file that are looked at; what a runtime appends after them is not seen. Code itself is in it, too.
const READ_LIMIT: u64 = 4 << 30;
/// Bytes of names and lines that are kept of a file.
const KEPT_LIMIT: usize = 256 << 20;
/// How much of a file is read at once, and the longest record whose lines are read.
const WINDOW: usize = 1 << 20;
/// The longest name that is kept; what is longer is cut.
const LONGEST_NAME: usize = 4 << 10;
/// What perf puts before the code in the ELF files that it makes of it (`GEN_ELF_TEXT_OFFSET`).
const ELF_HEADER: u32 = 0x40;
/// So many functions with lines, none of which has one in its first bytes, and the lines are shifted by an [`ELF_HEADER`].
const ENOUGH_SHIFTED: u32 = 16;

/// The dump of a process, as far as it has been read.
#[derive(Default)]
pub(super) struct JitDump {
    source: Option<(FileId, File, Pid)>,
    records: Records,
}

/// What the dump says of an address.
pub(super) struct JitFunction<'a> {
    pub(super) name: &'a str,
    /// File and line, where the runtime says them.
    pub(super) place: Option<(&'a str, u32)>,
}

impl JitDump {
    /// Looks for the dump among what a process has mapped executable.
    pub(super) fn look_for(&mut self, code: &[Mapping], target: Option<&Target>) {
        let Some(target) = target else { return };
        let pid = target.inner_pid();
        let name = format!("jit-{pid}.dump");
        let mapped = code.iter().filter(|mapping| mapping.file_name() == Some(&name));
        for (mapping, id) in mapped.filter_map(|mapping| Some((mapping, mapping.file_id()?))) {
            if self.source.as_ref().is_some_and(|(known, ..)| *known == id) {
                return;
            }
            match target.open_mapped(mapping) {
                Ok(file) => *self = Self { source: Some((id, file, pid)), records: Records::default() },
                Err(error) => log::debug!("cannot open {}: {error}", mapping.name.display()),
            }
        }
    }

    pub(super) const fn is_there(&self) -> bool {
        self.source.is_some()
    }

    /// Reads what the runtime has written since the last time.
    pub(super) fn update(&mut self) {
        let Some((_, file, pid)) = &self.source else { return };
        if let Err(error) = self.records.take(file, *pid) {
            log::debug!("cannot read the jitdump: {error}");
        }
    }

    /// The function whose code holds `address`, by its last byte.
    pub(super) fn find(&self, address: u64) -> Option<JitFunction<'_>> {
        self.records.find(address, u64::MAX)
    }

    /// As [`JitDump::find`], of code that was there at that time of `CLOCK_MONOTONIC`, in nanoseconds.
    pub(super) fn find_as_of(&self, address: u64, time: u64) -> Option<JitFunction<'_>> {
        self.records.find(address, time)
    }
}

/// Bytes that can become more.
trait Source {
    fn length(&self) -> io::Result<u64>;
    fn fill(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.size())
    }

    fn fill(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }
}

impl Source for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn fill(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A stretch of a source, read ahead.
struct Window<'a, S: ?Sized> {
    source: &'a S,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<S: Source + ?Sized> Window<'_, S> {
    /// So many bytes, at most a [`WINDOW`], which must be there.
    fn at(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let within = at.checked_sub(self.start).and_then(|offset| usize::try_from(offset).ok());
        let within = within.filter(|offset| offset.saturating_add(length) <= self.bytes.len());
        let offset = match within {
            Some(offset) => offset,
            None => {
                let rest = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
                self.bytes.resize(rest.min(WINDOW).max(length), 0);
                self.start = at;
                self.source.fill(&mut self.bytes, at)?;
                0
            }
        };
        Ok(&self.bytes[offset..offset + length])
    }
}

/// What has been read of a dump.
#[derive(Default)]
struct Records {
    /// Bytes that have been taken.
    done: u64,
    /// Whether the rest makes no sense, or is too much.
    is_over: bool,
    /// Whether its times are those of another clock.
    has_own_clock: bool,
    code: JitCode<Code>,
    /// Lines come before the code that they belong to, with its address.
    lines: Option<(u64, Box<[Line]>)>,
    files: Files,
    kept: usize,
    /// Functions whose first line is in their first bytes, and others.
    early: u32,
    late: u32,
}

/// A function that was compiled.
#[derive(Debug)]
struct Code {
    name: Box<str>,
    /// When it came to its place.
    since: u64,
    /// By ascending offset.
    lines: Box<[Line]>,
}

/// From which byte of the code on which line is meant.
#[derive(Clone, Copy, Debug)]
struct Line {
    offset: u32,
    file: u32,
    line: u32,
}

/// Names of files, each once.
#[derive(Default)]
struct Files {
    names: Vec<Box<str>>,
    indexes: HashMap<Box<str>, u32>,
    /// Bytes of the names.
    bytes: usize,
}

impl Files {
    fn index(&mut self, name: &[u8]) -> u32 {
        let name = String::from_utf8_lossy(&name[..name.len().min(LONGEST_NAME)]);
        if let Some(&index) = self.indexes.get(&*name) {
            return index;
        }
        let index = self.names.len() as u32;
        self.bytes += 2 * (name.len() + size_of::<Box<str>>());
        self.names.push(name.as_ref().into());
        self.indexes.insert(name.into(), index);
        index
    }
}

const HEADER: usize = 40;
const MAGIC: u32 = u32::from_be_bytes(*b"JiTD");
/// Times are those of the processor's counter.
const ARCHITECTURES_CLOCK: u64 = 1;
/// Kind, size and time: what every record begins with.
const HEAD: usize = 16;

const LOAD: u32 = 0;
const MOVE: u32 = 1;
const DEBUG_INFO: u32 = 2;
const CLOSE: u32 = 3;

impl Records {
    /// Takes the records of a process that are complete by now.
    fn take(&mut self, source: &(impl Source + ?Sized), pid: Pid) -> io::Result<()> {
        let length = source.length()?;
        if length < self.done {
            *self = Self::default();
        }
        let mut window = Window { source, length, start: 0, bytes: Vec::new() };
        if self.done == 0 && !self.take_header(&mut window, pid)? {
            return Ok(());
        }
        while !self.is_over && self.done + HEAD as u64 <= length {
            let mut head = Bytes(window.at(self.done, HEAD)?);
            let (kind, size, time) = (head.u32(), head.u32(), head.u64());
            let (Some(kind), Some(size), Some(time)) = (kind, size, time) else { break };
            let Some(body) = (size as usize).checked_sub(HEAD) else {
                self.is_over = true;
                break;
            };
            if self.done + u64::from(size) > length {
                break;
            }
            self.take_record(kind, time, body, &mut window, pid)?;
            self.done += u64::from(size);
            self.is_over |= self.done > READ_LIMIT || self.kept + self.files.bytes > KEPT_LIMIT;
        }
        Ok(())
    }

    /// Whether the file begins as such a file of this process does.
    fn take_header<S: Source + ?Sized>(&mut self, window: &mut Window<'_, S>, pid: Pid) -> io::Result<bool> {
        if window.length < HEADER as u64 {
            return Ok(false);
        }
        let mut header = Bytes(window.at(0, HEADER)?);
        let mut word = || header.u32().unwrap_or_default();
        let (magic, version, size) = (word(), word(), word());
        let (_machine, _padding, owner) = (word(), word(), word());
        let (_time, flags) = (header.u64(), header.u64().unwrap_or_default());
        let fits = magic == MAGIC && version == 1 && size as usize >= HEADER && Pid(owner) == pid;
        self.is_over = !fits;
        self.has_own_clock = flags & ARCHITECTURES_CLOCK != 0;
        self.done = u64::from(size);
        Ok(fits)
    }

    fn take_record<S: Source + ?Sized>(
        &mut self,
        kind: u32,
        time: u64,
        body: usize,
        window: &mut Window<'_, S>,
        pid: Pid,
    ) -> io::Result<()> {
        let at = self.done + HEAD as u64;
        match kind {
            LOAD => {
                let read = body.min(CODE_LOAD + LONGEST_NAME);
                let read = Load::read(Bytes(window.at(at, read)?));
                let owned = read.filter(|load| load.pid == pid.0);
                let _ = owned.map(|load| self.load(&load, time));
            }
            MOVE => {
                let moved = Moved::read(Bytes(window.at(at, body.min(CODE_MOVE))?));
                let _ = moved.filter(|moved| moved.pid == pid.0).map(|moved| self.relocate(&moved, time));
            }
            // A part of its lines would be wrong for the rest of the code.
            DEBUG_INFO if body <= WINDOW => {
                let bytes = window.at(at, body)?.to_vec();
                self.lines = self.lines_of(Bytes(&bytes));
            }
            DEBUG_INFO => self.lines = None,
            CLOSE => self.is_over = true,
            // How to unwind the code, and what is to come.
            _ => {}
        }
        Ok(())
    }

    fn load(&mut self, load: &Load<'_>, time: u64) {
        let lines = self.lines.take().filter(|(address, _)| *address == load.address);
        let lines = lines.map(|(_, lines)| lines).unwrap_or_default();
        let Some(end) = load.address.checked_add(load.size).filter(|_| load.size > 0) else { return };
        if let Some(first) = lines.first() {
            let count = if first.offset < ELF_HEADER { &mut self.early } else { &mut self.late };
            *count = count.saturating_add(1);
        }
        self.kept += size_of::<(u64, u64, Code)>() + load.name.len() + size_of_val(&*lines);
        let name = String::from_utf8_lossy(load.name).into();
        self.code.add(load.address, end, Code { name, since: time, lines });
    }

    fn relocate(&mut self, moved: &Moved, time: u64) {
        let Some((_, code)) = self.code.take(moved.from) else { return };
        if let Some(end) = moved.to.checked_add(moved.size).filter(|_| moved.size > 0) {
            self.code.add(moved.to, end, Code { since: time, ..code });
        }
    }

    /// The lines of the code at the address that they begin with; none if they make no sense.
    fn lines_of(&mut self, mut bytes: Bytes<'_>) -> Option<(u64, Box<[Line]>)> {
        /// Stands for the name of the entry before.
        const SAME_FILE: &[u8] = b"\xff";
        let (start, count) = (bytes.u64()?, bytes.u64()?);
        let mut lines: Vec<Line> = Vec::new();
        for _ in 0..count {
            let (address, line, _discriminator) = (bytes.u64()?, bytes.u32()?, bytes.u32()?);
            let name = bytes.text()?;
            let file = match lines.last() {
                Some(last) if name == SAME_FILE => last.file,
                _ => self.files.index(name),
            };
            let offset = u32::try_from(address.checked_sub(start)?).ok()?;
            lines.push(Line { offset, file, line });
        }
        lines.sort_by_key(|line| line.offset);
        Some((start, lines.into()))
    }

    fn find(&self, address: u64, time: u64) -> Option<JitFunction<'_>> {
        let (start, code) = self.code.find(address)?;
        if time != u64::MAX && (self.has_own_clock || code.since > time) {
            return None;
        }
        let offset = u32::try_from(address - start).ok();
        Some(JitFunction { name: &code.name, place: offset.and_then(|offset| self.place(code, offset)) })
    }

    fn place(&self, code: &Code, offset: u32) -> Option<(&str, u32)> {
        let offset = offset.checked_add(self.shift()?)?;
        let after = code.lines.partition_point(|line| line.offset <= offset);
        let line = code.lines.get(after.checked_sub(1)?)?;
        Some((self.files.names.get(line.file as usize)?, line.line))
    }

    /// How far the addresses of lines are beside those of code. perf took them for addresses in the ELF file that it makes, and was
    /// repaired in Linux 5.13; V8 still writes them so. In which way a runtime does shows in where its functions' lines begin.
    const fn shift(&self) -> Option<u32> {
        match self {
            Self { early: 1.., .. } => Some(0),
            Self { late: ENOUGH_SHIFTED.., .. } => Some(ELF_HEADER),
            _ => None,
        }
    }
}

/// The length of what stands before the name.
const CODE_LOAD: usize = 40;

/// Code that was made.
struct Load<'a> {
    pid: u32,
    address: u64,
    size: u64,
    name: &'a [u8],
}

impl<'a> Load<'a> {
    fn read(mut bytes: Bytes<'a>) -> Option<Self> {
        let (pid, _thread, _virtual) = (bytes.u32()?, bytes.u32()?, bytes.u64()?);
        let (address, size, _number) = (bytes.u64()?, bytes.u64()?, bytes.u64()?);
        let name = bytes.0;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len()).min(LONGEST_NAME);
        (end > 0).then(|| Self { pid, address, size, name: &name[..end] })
    }
}

const CODE_MOVE: usize = 48;

/// Code that was put somewhere else.
struct Moved {
    pid: u32,
    from: u64,
    to: u64,
    size: u64,
}

impl Moved {
    fn read(mut bytes: Bytes<'_>) -> Option<Self> {
        let (pid, _thread, _virtual) = (bytes.u32()?, bytes.u32()?, bytes.u64()?);
        Some(Self { pid, from: bytes.u64()?, to: bytes.u64()?, size: bytes.u64()? })
    }
}

/// What is left of a record. The fields are those of the machine, in its byte order.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn u32(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*word))
    }

    fn u64(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*word))
    }

    /// What stands before the next zero.
    fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(text)
    }
}

/// What a dump of process 1 that consists of these bytes says of an address.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn find_in(bytes: &[u8], address: u64) -> Option<String> {
    let mut records = Records::default();
    // As if half of it had been written later.
    for end in [bytes.len() / 2, bytes.len()] {
        records.take(&bytes[..end], Pid(1)).expect("bytes can be read");
    }
    let found = records.find(address, u64::MAX)?;
    let place = found.place.map(|(file, line)| format!(" {file}:{line}"));
    Some(format!("{}{}", found.name, place.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dump of process 1.
    struct Dump(Vec<u8>);

    impl Dump {
        fn new() -> Self {
            Self::of(1, 0)
        }

        fn of(pid: u32, flags: u64) -> Self {
            let words = [MAGIC, 1, HEADER as u32, 62, 0, pid];
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            [0, flags].iter().for_each(|word: &u64| bytes.extend(word.to_ne_bytes()));
            Self(bytes)
        }

        fn record(mut self, kind: u32, time: u64, body: &[u8]) -> Self {
            self.0.extend(kind.to_ne_bytes());
            self.0.extend(((HEAD + body.len()) as u32).to_ne_bytes());
            self.0.extend(time.to_ne_bytes());
            self.0.extend(body);
            self
        }

        fn owned(self, kind: u32, time: u64, pid: u32, words: &[u64], rest: &[u8]) -> Self {
            let mut body = [pid.to_ne_bytes(), pid.to_ne_bytes()].concat();
            body.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            body.extend(rest);
            self.record(kind, time, &body)
        }

        fn load(self, time: u64, address: u64, size: u64, name: &str) -> Self {
            let rest = [name.as_bytes(), b"\0", &vec![0xcc; size as usize]].concat();
            self.owned(LOAD, time, 1, &[address, address, size, 1], &rest)
        }

        fn moved(self, time: u64, from: u64, to: u64, size: u64) -> Self {
            self.owned(MOVE, time, 1, &[to, from, to, size, 1], b"")
        }

        fn lines(self, address: u64, lines: &[(u64, u32, &str)]) -> Self {
            let mut body = [address.to_ne_bytes(), (lines.len() as u64).to_ne_bytes()].concat();
            for (address, line, file) in lines {
                body.extend(address.to_ne_bytes());
                body.extend(line.to_ne_bytes());
                body.extend([0; 4]);
                body.extend(if *file == "same" { &b"\xff"[..] } else { file.as_bytes() });
                body.push(0);
            }
            self.record(DEBUG_INFO, 0, &body)
        }

        fn find(&self, address: u64) -> Option<String> {
            find_in(&self.0, address)
        }

        fn records(&self) -> Records {
            let mut records = Records::default();
            records.take(&self.0[..], Pid(1)).expect("bytes can be read");
            records
        }
    }

    #[test]
    fn functions_are_found_where_they_were_put_last() {
        let dump = Dump::new().load(1, 0x1000, 0x40, "first").load(2, 0x2000, 0x40, "second");
        let dump = dump.moved(3, 0x1000, 0x3000, 0x40).load(4, 0x2020, 0x40, "in the way");
        assert_eq!(dump.find(0x1000), None);
        assert_eq!(dump.find(0x303f).as_deref(), Some("first"));
        assert_eq!(dump.find(0x2000), None, "the rest of a function that is partly gone is not its code");
        assert_eq!(dump.find(0x2020).as_deref(), Some("in the way"));
    }

    #[test]
    fn lines_belong_to_the_code_that_comes_next() {
        let lines = [(0x1000, 7, "a.rb"), (0x1010, 8, "same"), (0x1020, 3, "b.rb")];
        let dump = Dump::new().lines(0x1000, &lines).load(1, 0x1000, 0x40, "of a");
        let dump = dump.lines(0x5000, &lines[..1]).load(2, 0x2000, 0x40, "of nothing");
        assert_eq!(dump.find(0x100f).as_deref(), Some("of a a.rb:7"));
        assert_eq!(dump.find(0x1010).as_deref(), Some("of a a.rb:8"));
        assert_eq!(dump.find(0x103f).as_deref(), Some("of a b.rb:3"));
        assert_eq!(dump.find(0x2000).as_deref(), Some("of nothing"));
    }

    #[test]
    fn lines_that_are_shifted_are_told_from_those_that_are_not() {
        let shifted = |functions: u64| {
            (0..functions).fold(Dump::new(), |dump, function| {
                let at = 0x1000 * (function + 1);
                let lines = [(at + 0x42, 10, "s.js"), (at + 0x50, 11, "same")];
                dump.lines(at, &lines).load(function, at, 0x80, "shifted")
            })
        };
        assert_eq!(shifted(15).find(0x1010).as_deref(), Some("shifted"), "it may be either way");
        assert_eq!(shifted(16).find(0x100f).as_deref(), Some("shifted s.js:10"));
        assert_eq!(shifted(16).find(0x1010).as_deref(), Some("shifted s.js:11"));
        assert_eq!(shifted(16).find(0x1001).as_deref(), Some("shifted"), "before the first line");
        let mixed = shifted(16).lines(0x900000, &[(0x900000, 1, "x")]).load(99, 0x900000, 8, "plain");
        assert_eq!(mixed.find(0x1042).as_deref(), Some("shifted s.js:10"));
    }

    #[test]
    fn a_stack_is_not_named_by_code_that_came_after_it() {
        let records = Dump::new().load(100, 0x1000, 0x40, "old").moved(200, 0x1000, 0x2000, 0x40).records();
        let name = |address, time| records.find(address, time).map(|found| found.name.to_owned());
        assert_eq!(name(0x2000, 199), None);
        assert_eq!(name(0x2000, 200).as_deref(), Some("old"));
        let own_clock = Dump::of(1, ARCHITECTURES_CLOCK).load(100, 0x1000, 0x40, "x").records();
        assert!(own_clock.find(0x1000, 1 << 40).is_none() && own_clock.find(0x1000, u64::MAX).is_some());
    }

    #[test]
    fn records_are_taken_once_they_are_complete() {
        let dump = Dump::new().load(1, 0x1000, 0x40, "first").load(2, 0x2000, 0x40, "second");
        let mut records = Records::default();
        for end in 0..=dump.0.len() {
            records.take(&dump.0[..end], Pid(1)).expect("bytes can be read");
            let whole = usize::from(end >= (HEADER + dump.0.len()) / 2) + usize::from(end == dump.0.len());
            // Both records are of different lengths, by one byte.
            assert!(records.code.len().abs_diff(whole) <= 1, "{end}");
        }
        assert_eq!(records.code.len(), 2);
        // The runtime has begun anew in the same file.
        records.take(&Dump::new().load(3, 0x3000, 8, "third").0[..], Pid(1)).expect("bytes can be read");
        assert!(records.find(0x3000, u64::MAX).is_some() && records.code.len() == 1);
    }

    #[test]
    fn what_makes_no_sense_names_nothing() {
        assert_eq!(Dump::of(2, 0).load(1, 0x1000, 0x40, "of another process").find(0x1000), None);
        let name = b"of a child\0";
        let child = Dump::new().owned(LOAD, 1, 2, &[0x1000, 0x1000, 0x40, 1], name);
        assert_eq!(child.find(0x1000), None);
        assert_eq!(
            Dump::new().load(1, u64::MAX, 2, "beyond").load(1, 0x10, 0, "empty").records().code.len(),
            0
        );
        let mut short = Dump::new().load(1, 0x1000, 0x40, "first").0;
        short.extend([0; HEAD]);
        let short = Dump(short).load(1, 0x2000, 0x40, "behind a record without a size");
        assert_eq!(short.records().code.len(), 1);
        let closed = Dump::new().record(CLOSE, 1, b"").load(1, 0x1000, 0x40, "after the end");
        assert_eq!(closed.find(0x1000), None);
        let unknown = Dump::new().record(99, 1, &[0xff; 33]).load(1, 0x1000, 0x40, "f");
        assert_eq!(unknown.find(0x1000).as_deref(), Some("f"));
        let countless = Dump::new().record(DEBUG_INFO, 1, &[0xff; 64]).load(1, 0x1000, 0x40, "f");
        assert_eq!(countless.find(0x1000).as_deref(), Some("f"));
    }

    #[test]
    fn a_record_that_is_longer_than_what_is_read_at_once_is_passed() {
        let long = Dump::new().load(1, 0x10_0000, 3 << 20, "long").load(2, 0x1000, 0x40, "behind");
        assert_eq!(long.find(0x1000).as_deref(), Some("behind"));
        assert_eq!(long.find(0x20_0000).as_deref(), Some("long"));
    }
}
