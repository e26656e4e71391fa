//! Reads a saved recording, so that it can be drawn again: a `.json` or `.json.gz` report.
//!
//! The file is not trusted: it is read in bounded memory, and its figures are ones that every report can add up.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;

use super::read_limit::{MOST, ReadLimit, TooLarge};
use crate::model::{
    Cause, Events, Frame, Memory, NotProbed, Overhead, Process, Profile, SCHEMA, Settings, StackReport,
    TimelinePoint, Totals, VerdictSummary, Window,
};

/// Why a saved recording cannot be read. One line; the caller says which file it was.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{}", reason(.0))]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is no recording; `tracer report` reads the .json and .json.gz files that tracer wrote")]
    Unknown,
    /// It does not go on to its end.
    #[error("it is damaged or cut off")]
    Damaged,
    /// It is JSON of another version, of something else, or none.
    #[error("it is no report that this tracer can read: {0}")]
    Invalid(String),
    /// It would take too much memory.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A stack refers to what is not there.
    #[error("it is damaged: a stack has a frame that is not in the table of frames")]
    NoSuchFrame,
    /// The figures are such that their sum is no number of bytes.
    #[error("it is damaged: its figures are larger than any memory")]
    Figures,
}

/// What the system said, without Rust's `(os error 2)`.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::IsADirectory => "it is a directory".into(),
        _ => error.to_string(),
    }
}

/// Reads a recording from a file.
pub fn open(path: &Path) -> Result<Profile, ReadError> {
    read(File::open(path)?)
}

/// Reads a recording from its file.
pub fn read(file: impl Read) -> Result<Profile, ReadError> {
    read_within(file, MOST)
}

/// Reads a recording that takes no more than `most` bytes of memory.
fn read_within(file: impl Read, most: usize) -> Result<Profile, ReadError> {
    let mut file = BufReader::with_capacity(BUFFER, file);
    match file.fill_buf()?.first() {
        Some(0x1f) => read_json(ReadLimit::new(MultiGzDecoder::new(file), most)),
        _ => read_json(ReadLimit::new(file, most)),
    }
}

const BUFFER: usize = 1 << 16;

fn read_json(json: impl Read) -> Result<Profile, ReadError> {
    let mut json = BufReader::with_capacity(BUFFER, json);
    if json.fill_buf().map_err(io_error)?.first() != Some(&b'{') {
        return Err(ReadError::Unknown);
    }
    let document: Document = serde_json::from_reader(json).map_err(json_error)?;
    check(document.into_profile()?)
}

fn json_error(error: serde_json::Error) -> ReadError {
    match error.classify() {
        Category::Io => io_error(error.into()),
        Category::Eof => ReadError::Damaged,
        Category::Syntax | Category::Data => ReadError::Invalid(error.to_string()),
    }
}

fn io_error(error: io::Error) -> ReadError {
    match error.kind() {
        // What gzip says of what it cannot unpack.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            ReadError::Damaged
        }
        _ => error.downcast::<TooLarge>().map_or_else(ReadError::Io, ReadError::TooLarge),
    }
}

/// What [`json`](super::json) writes. Fields that are not known are skipped, and take no memory.
#[derive(Deserialize)]
struct Document {
    #[serde(deserialize_with = "known_version")]
    schema: String,
    tracer_version: String,
    target: Process,
    #[serde(default)]
    processes: Vec<Process>,
    window: Window,
    settings: Settings,
    overhead: Option<Overhead>,
    events: Events,
    #[serde(default)]
    not_probed: Vec<NotProbed>,
    totals: Totals,
    memory: Option<Memory>,
    #[serde(default)]
    timeline: Vec<TimelinePoint>,
    frames: Vec<Arc<Frame>>,
    /// Places of frames are as wide as what takes their place, so that their memory is used again.
    stacks: Vec<StackReport<u64>>,
    verdict: Option<VerdictSummary>,
    #[serde(default)]
    causes: Vec<Cause>,
}

/// It comes first in a report, so that one of another version is not first found to lack something.
fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let version = String::deserialize(deserializer)?;
    if version == SCHEMA {
        return Ok(version);
    }
    Err(serde::de::Error::custom(format!(
        "its version is {version:?}, not {SCHEMA:?}; record again, or use the tracer that wrote it"
    )))
}

impl Document {
    fn into_profile(self) -> Result<Profile, ReadError> {
        let find = |place: u64| self.frames.get(usize::try_from(place).ok()?).map(Arc::clone);
        let stacks = self.stacks.into_iter().map(|stack| stack.find_frames(find));
        Ok(Profile {
            stacks: stacks.collect::<Option<_>>().ok_or(ReadError::NoSuchFrame)?,
            schema: self.schema,
            tracer_version: self.tracer_version,
            target: self.target,
            processes: self.processes,
            window: self.window,
            settings: self.settings,
            overhead: self.overhead,
            events: self.events,
            not_probed: self.not_probed,
            totals: self.totals,
            memory: self.memory,
            timeline: self.timeline,
            verdict: self.verdict,
            causes: self.causes,
        })
    }
}

fn check(profile: Profile) -> Result<Profile, ReadError> {
    let fits = |figure: fn(&StackReport) -> u64| {
        let sum = profile.stacks.iter().try_fold(0_u64, |sum, stack| sum.checked_add(figure(stack)));
        sum.is_some_and(|sum| i64::try_from(sum).is_ok())
    };
    let figures: [fn(&StackReport) -> u64; 7] = [
        |stack| stack.weight_bytes,
        |stack| stack.outstanding_bytes,
        |stack| stack.outstanding_objects,
        |stack| stack.allocated_bytes,
        |stack| stack.allocated_objects,
        |stack| stack.freed_bytes,
        |stack| stack.freed_objects,
    ];
    if figures.into_iter().all(fits) { Ok(profile) } else { Err(ReadError::Figures) }
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;
    use crate::report::{Format, Options, Report, fixtures, text::Text};

    const FORMATS: [Format; 2] = [Format::Json, Format::JsonGz];

    fn write(format: Format, profile: &Profile) -> Vec<u8> {
        let mut out = Vec::new();
        format.report().write(profile, &Options::default(), &mut out).unwrap();
        out
    }

    fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    #[track_caller]
    fn refuse(bytes: &[u8]) -> ReadError {
        let error = read(bytes).unwrap_err();
        let text = error.to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        error
    }

    /// The report of a fixture with another value somewhere.
    fn changed(path: &str, value: serde_json::Value) -> Vec<u8> {
        let mut report: serde_json::Value =
            serde_json::from_slice(&write(Format::Json, &fixtures::node())).unwrap();
        *report.pointer_mut(path).unwrap() = value;
        report.to_string().into_bytes()
    }

    #[test]
    fn nothing_is_lost_by_saving() {
        for format in FORMATS {
            for (name, mut profile) in fixtures::all() {
                for stack in &mut profile.stacks {
                    // A number that is not read exactly by all means.
                    stack.growth_bytes_per_second = Some(0.42549314045060405);
                }
                let read = read(&write(format, &profile)[..]).unwrap();
                assert_eq!(format!("{read:?}"), format!("{profile:?}"), "{name} {format}");
            }
        }
    }

    #[test]
    fn stacks_share_their_frames() {
        let profile = read(&write(Format::Json, &fixtures::node())[..]).unwrap();
        let main = |stack: usize| profile.stacks[stack].frames.last().unwrap();
        assert!(Arc::ptr_eq(main(0), main(3)));
    }

    #[test]
    fn what_is_not_known_is_skipped() {
        let text = String::from_utf8(write(Format::Json, &fixtures::node())).unwrap();
        let text =
            text.replacen("\"frames\":[{", "\"new\":[{\"x\":[1,\"\"]},null],\"frames\":[{\"newer\":1,", 1);
        assert_eq!(format!("{:?}", read(text.as_bytes()).unwrap()), format!("{:?}", fixtures::node()));
    }

    #[test]
    fn another_version_is_refused_in_one_line() {
        let first = br#"{ "schema": "tracer.report/1", "tracer_version": "0.1.0", "stacks": [{"frames": [{"ip": "0x1"}]}]}"#;
        for file in [first.to_vec(), pack(first), changed("/schema", "tracer.report/3".into())] {
            let error = refuse(&file).to_string();
            assert!(
                error.contains("its version is \"tracer.report/")
                    && error.contains("not \"tracer.report/2\"")
            );
        }
    }

    #[test]
    fn what_is_no_recording_is_refused_in_one_line() {
        let pprof = write(Format::Pprof, &fixtures::node());
        for unknown in [&b""[..], b"main;malloc 17", b"[1]", &pack(b""), &pprof] {
            assert!(matches!(refuse(unknown), ReadError::Unknown));
        }
        for foreign in [&b"{\"schema\": \"x\"}"[..], b"{]", b"{}", b"{\"a\": {}} {}"] {
            assert!(matches!(refuse(foreign), ReadError::Invalid(_)));
        }
        let invalid: [(&str, serde_json::Value); 5] = [
            ("/stacks/0/kind", "imaginary".into()),
            ("/stacks/0/weight_bytes", (-1).into()),
            ("/stacks/0/frames/0", "0".into()),
            ("/frames/0/ip", "1".into()),
            ("/frames", 7.into()),
        ];
        for (path, value) in invalid {
            assert!(matches!(refuse(&changed(path, value)), ReadError::Invalid(_)), "{path}");
        }
    }

    #[test]
    fn a_damaged_recording_is_refused_in_one_line() {
        for place in [u64::MAX, 1 << 32, 1_000] {
            assert!(matches!(refuse(&changed("/stacks/0/frames/0", place.into())), ReadError::NoSuchFrame));
        }
        assert!(matches!(refuse(&changed("/frames", serde_json::json!([]))), ReadError::NoSuchFrame));
        let mut profile = fixtures::several();
        profile.stacks[0].freed_bytes = u64::MAX - 3;
        assert!(matches!(refuse(&write(Format::Json, &profile)), ReadError::Figures));
        for format in FORMATS {
            let file = write(format, &fixtures::node());
            for length in [2, 10, file.len() / 2, file.len() - 2] {
                assert!(matches!(refuse(&file[..length]), ReadError::Damaged), "{format} {length}");
            }
        }
        let packed = write(Format::JsonGz, &fixtures::node());
        assert!(matches!(refuse(&[&packed[..], b"more"].concat()), ReadError::Damaged));
    }

    #[test]
    fn memory_is_bounded_whatever_comes_without_end() {
        const MOST: usize = 16 << 20;
        let whole = String::from_utf8(write(Format::Json, &fixtures::node())).unwrap();
        let up_to = |key: &str| {
            let start = whole.find(key).unwrap_or_else(|| panic!("there is {key}"));
            whole[..start + key.len()].to_owned()
        };
        let timeline = r#"{"t_ns":0,"rss_bytes":0,"outstanding_bytes":0},"#;
        let stack = r#"{"kind":"native","api":"","weight_bytes":0,"outstanding_bytes":0,"outstanding_objects":0,"allocated_bytes":0,"allocated_objects":0,"freed_bytes":0,"freed_objects":0,"complete":true,"frames":[]},"#;
        let numbers = format!("0{}", ",0".repeat(1 << 10));
        let long_stack = stack.replace("[]", &format!("[{numbers}],\"history_bytes\":[{numbers}]"));
        let endless = [
            ("{".to_owned(), " "),
            ("{\"".to_owned(), "x"),
            ("{\"".to_owned(), "\\u0061"),
            ("{\"x\":".to_owned(), "["),
            ("{\"x\":[".to_owned(), "0,"),
            ("{\"x\":[".to_owned(), "{},"),
            (up_to("\"command\":["), "\"\","),
            (up_to("\"comm\":\""), "x"),
            (up_to("\"duration_ns\":"), "1"),
            (up_to("\"timeline\":["), timeline),
            (up_to("\"frames\":["), "{\"ip\":\"0x0\"},"),
            (up_to("\"frames\":["), "{\"ip\":\"0x0\",\"function\":\"f\",\"module\":\"m\",\"file\":\"f\"},"),
            (up_to("\"stacks\":["), stack),
            (up_to("\"history_bytes\":["), "0,"),
            (up_to("\"stacks\":["), &long_stack),
            (format!("{}{}", up_to("\"stacks\":["), stack.trim_end_matches("]},")), "0,"),
        ];
        for (start, pattern) in endless {
            let before = HELD.get();
            PEAK.set(before);
            let file = start.as_bytes().chain(Endless { pattern: pattern.as_bytes(), at: 0 });
            let error = read_within(file, MOST).unwrap_err();
            let start = &start[start.len().saturating_sub(40)..];
            assert!(matches!(error, ReadError::TooLarge(_)), "{start}{pattern}: {error}");
            let taken = PEAK.get() - before;
            assert!(taken < MOST as isize, "{start}{pattern}: {taken}");
        }
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = pack(&[b"{", &[b' '; 1 << 20][..]].concat()).repeat(600);
        assert!(bomb.len() < 8 << 20);
        assert!(matches!(read_within(&bomb[..], 16 << 20), Err(ReadError::TooLarge(_))));
    }

    /// A text again and again.
    struct Endless<'a> {
        pattern: &'a [u8],
        at: usize,
    }

    impl Read for Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            for byte in &mut *buffer {
                *byte = self.pattern[self.at];
                self.at = (self.at + 1) % self.pattern.len();
            }
            Ok(buffer.len())
        }
    }

    thread_local! {
        /// What this thread has taken and not given back, and the most that it ever was.
        static HELD: Cell<isize> = const { Cell::new(0) };
        static PEAK: Cell<isize> = const { Cell::new(0) };
    }

    /// Knows how much memory each thread of the tests takes.
    struct Counting;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    fn count(bytes: isize) {
        HELD.set(HELD.get() + bytes);
        PEAK.set(PEAK.get().max(HELD.get()));
    }

    // SAFETY: memory is that of the system's allocator; counting takes none.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count(layout.size() as isize);
            // SAFETY: the caller keeps to the same rules.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            count(-(layout.size() as isize));
            // SAFETY: the caller keeps to the same rules.
            unsafe { System.dealloc(block, layout) }
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            count(size as isize - layout.size() as isize);
            // SAFETY: the caller keeps to the same rules.
            unsafe { System.realloc(block, layout, size) }
        }
    }

    /// Reads, and draws what could be read in every format.
    fn read_and_draw(bytes: &[u8]) {
        if let Ok(profile) = read(bytes) {
            for &format in Format::ALL {
                write(format, &profile);
            }
            Text::default().write(&profile, &Options::default(), &mut io::sink()).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn a_damaged_file_cannot_harm(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut: Option<prop::sample::Index>,
            is_packed: bool,
        ) {
            let mut bytes = write(Format::Json, &fixtures::several());
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            // The packing of gzip has a checksum: damage is done to what is in it.
            read_and_draw(&if is_packed { pack(&bytes) } else { bytes });
        }
    }
}
