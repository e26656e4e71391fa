//! Reads a JSON report back, as it streams in: a report of 100,000 stacks takes more than a gigabyte, most of it the same
//! frames again and again. The file is not trusted: whatever it holds, reading it takes a bounded amount of memory.
//!
//! The text is cut into the report without its stacks, every stack without its frames, and the frames. Each of these is parsed by
//! itself, a frame that came before not at all.

use std::io::{self, BufRead};
use std::sync::Arc;

use memchr::memchr2;
use serde::de::DeserializeOwned;

use crate::model::{Frame, Profile, StackReport};
use crate::report::{Budget, QuickMap, TooLarge};

/// The longest text of a frame, of a stack without its frames, or of a report without its stacks.
const MAX_TEXT: usize = 16 << 20;

/// Texts of frames that are remembered.
const MAX_KNOWN: usize = 128 << 20;

/// Why a file is no report.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not JSON, or not the JSON of a report.
    #[error("it is no valid report: {0}")]
    Invalid(String),
    /// It would take too much memory.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// Reads a report.
pub fn read(mut file: impl BufRead) -> Result<Profile, JsonError> {
    let mut reading = Reading::default();
    loop {
        let chunk = file.fill_buf()?;
        if chunk.is_empty() {
            return reading.finish();
        }
        let length = chunk.len();
        reading.feed(chunk)?;
        file.consume(length);
    }
}

/// Which text the bytes belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Report,
    Stack,
    Frame,
}

/// A report that is being read.
#[derive(Default)]
struct Reading {
    part: Part,
    /// Brackets that are open.
    depth: usize,
    in_string: bool,
    /// The next byte follows a backslash.
    escaped: bool,
    report: Vec<u8>,
    stack: Vec<u8>,
    frame: Vec<u8>,
    frames: Vec<Arc<Frame>>,
    stacks: Vec<StackReport>,
    known: Known,
    budget: Budget,
}

/// Brackets that are open around the keys of the report, and around those of a stack.
const REPORT: usize = 1;
const STACK: usize = 3;

impl Reading {
    fn feed(&mut self, chunk: &[u8]) -> Result<(), JsonError> {
        // What is before `kept` has its place, what is before `at` has been looked at.
        let (mut kept, mut at) = (0, 0);
        while at < chunk.len() {
            if self.in_string {
                at += self.skip_string(&chunk[at..]);
                continue;
            }
            let byte = chunk[at];
            match byte {
                b'"' => self.in_string = true,
                b'[' | b'{' => {
                    if byte == b'['
                        && matches!((self.part, self.depth), (Part::Report, REPORT) | (Part::Stack, STACK))
                    {
                        self.keep(&chunk[kept..=at])?;
                        kept = at + 1;
                        self.enter_list();
                    }
                    self.depth += 1;
                }
                b']' | b'}' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.ends_list() {
                        self.keep(&chunk[kept..at])?;
                        kept = at;
                        self.end_element(true)?;
                    }
                }
                b',' if self.is_between_elements() => {
                    self.keep(&chunk[kept..at])?;
                    kept = at + 1;
                    self.end_element(false)?;
                }
                _ => {}
            }
            at += 1;
        }
        self.keep(&chunk[kept..])
    }

    /// How many bytes belong to the string that is open.
    fn skip_string(&mut self, chunk: &[u8]) -> usize {
        if std::mem::take(&mut self.escaped) {
            return 1;
        }
        let Some(end) = memchr2(b'"', b'\\', chunk) else { return chunk.len() };
        self.escaped = chunk[end] == b'\\';
        self.in_string = self.escaped;
        end + 1
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), JsonError> {
        let text = self.text();
        if text.len() + bytes.len() > MAX_TEXT {
            return Err(TooLarge.into());
        }
        text.extend_from_slice(bytes);
        Ok(())
    }

    fn text(&mut self) -> &mut Vec<u8> {
        match self.part {
            Part::Report => &mut self.report,
            Part::Stack => &mut self.stack,
            Part::Frame => &mut self.frame,
        }
    }

    /// A list has begun: of stacks, of frames, or one that stays where it is.
    fn enter_list(&mut self) {
        let (key, inner): (&[u8], _) = match self.part {
            Part::Report => (b"\"stacks\"", Part::Stack),
            _ => (b"\"frames\"", Part::Frame),
        };
        let before = self.text().strip_suffix(b"[").unwrap_or_default().trim_ascii_end();
        if before.strip_suffix(b":").is_some_and(|before| before.trim_ascii_end().ends_with(key)) {
            self.part = inner;
        }
    }

    const fn is_between_elements(&self) -> bool {
        matches!((self.part, self.depth), (Part::Stack, 2) | (Part::Frame, 4))
    }

    const fn ends_list(&self) -> bool {
        matches!((self.part, self.depth), (Part::Stack, REPORT) | (Part::Frame, STACK))
    }

    /// The text of a stack or a frame is whole.
    fn end_element(&mut self, is_last: bool) -> Result<(), JsonError> {
        let is_frame = self.part == Part::Frame;
        let is_first = if is_frame { self.frames.is_empty() } else { self.stacks.is_empty() };
        if is_last && is_first && self.text().trim_ascii().is_empty() {
            // The list has no elements.
        } else if is_frame {
            let frame = self.known.frame(&self.frame, &mut self.budget)?;
            self.budget.charge(size_of::<Arc<Frame>>())?;
            self.frames.push(frame);
        } else {
            let mut stack: StackReport = parse(&self.stack)?;
            refuse_elements(&stack.frames)?;
            stack.frames.append(&mut self.frames);
            stack.frames.shrink_to_fit();
            self.budget.charge(size_of::<StackReport>() + self.stack.len())?;
            self.stacks.push(stack);
        }
        self.text().clear();
        if is_last {
            self.part = if is_frame { Part::Stack } else { Part::Report };
        }
        Ok(())
    }

    fn finish(self) -> Result<Profile, JsonError> {
        if self.part != Part::Report {
            return Err(JsonError::Invalid("it is cut off".into()));
        }
        let profile: Profile = parse(&self.report)?;
        refuse_elements(&profile.stacks)?;
        Ok(Profile { stacks: self.stacks, ..profile })
    }
}

/// The elements of a list were taken out of it, unless its key is spelled with escapes: that is made to get by the bounds.
fn refuse_elements<T>(list: &[T]) -> Result<(), JsonError> {
    if list.is_empty() { Ok(()) } else { Err(JsonError::Invalid("a key is spelled with escapes".into())) }
}

/// Frames by their texts.
#[derive(Default)]
struct Known {
    frames: QuickMap<Box<[u8]>, Arc<Frame>>,
    bytes: usize,
}

impl Known {
    fn frame(&mut self, text: &[u8], budget: &mut Budget) -> Result<Arc<Frame>, JsonError> {
        let text = text.trim_ascii();
        if let Some(frame) = self.frames.get(text) {
            return Ok(Arc::clone(frame));
        }
        let frame: Arc<Frame> = Arc::new(parse(text)?);
        budget.charge(size_of::<Frame>() + 2 * size_of::<usize>() + text.len())?;
        self.bytes += text.len();
        if self.bytes > MAX_KNOWN {
            self.frames.clear();
            self.bytes = text.len();
        }
        self.frames.insert(text.into(), Arc::clone(&frame));
        Ok(frame)
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    serde_json::from_slice(text).map_err(|error| {
        // Lines and columns are those of a part.
        let reason = error.to_string();
        let reason = reason.rsplit_once(" at line ").map_or(&*reason, |(reason, _)| reason);
        JsonError::Invalid(if error.is_eof() { "it is cut off".into() } else { reason.into() })
    })
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    const REPORT: &str = r#"{"schema": "x [\"stacks\": [", "tracer_version": "1", "target": {"pid": 1, "comm": "c"},
        "window": {"started_at": "", "duration_ns": 0, "end": "duration"},
        "settings": {"sample_bytes": 0, "min_age_ns": 0, "max_live": 0},
        "events": {"allocations": 0, "frees": 0, "unmatched_frees": 0, "lost": {}},
        "totals": {"outstanding_bytes": 0, "outstanding_objects": 0, "allocated_bytes": 0, "allocated_objects": 0,
            "freed_bytes": 0, "freed_objects": 0, "weight_bytes": 0},
        "stacks" : [STACKS], "timeline": []}"#;
    const STACK: &str = r#"{"kind": "native", "api": "a\\", "weight_bytes": 1, "outstanding_bytes": 1,
        "outstanding_objects": 1, "allocated_bytes": 1, "allocated_objects": 1, "freed_bytes": 0, "freed_objects": 0,
        "frames": [FRAMES], "complete": true}"#;

    fn report(stacks: &str) -> String {
        REPORT.replace("STACKS", stacks)
    }

    fn stack(frames: &str) -> String {
        STACK.replace("FRAMES", frames)
    }

    #[test]
    fn texts_are_cut_wherever_the_chunks_are() {
        let frames =
            r#"{"ip": "0x1", "function": "a],[{\"b"} , {"ip": "0x2"}, {"ip": "0x1", "function": "a],[{\"b"}"#;
        let text = report(&format!("{}, {}", stack(frames), stack(" ")));
        for capacity in [1, 2, 3, 7, 64, 1 << 20] {
            let profile = read(BufReader::with_capacity(capacity, text.as_bytes())).unwrap();
            assert_eq!(profile.schema, "x [\"stacks\": [");
            assert_eq!(profile.stacks.iter().map(|stack| stack.frames.len()).collect::<Vec<_>>(), [3, 0]);
            let frames = &profile.stacks[0].frames;
            assert_eq!(frames[0].function.as_deref(), Some("a],[{\"b"));
            assert!(Arc::ptr_eq(&frames[0], &frames[2]) && !Arc::ptr_eq(&frames[0], &frames[1]));
        }
        assert!(read(report("").as_bytes()).unwrap().stacks.is_empty());
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let one = stack(r#"{"ip": "0x1"}"#);
        let broken = [
            report(&format!("{one},")),
            report(&format!(",{one}")),
            report(&format!("{one} {one}")),
            report(&stack(r#"{"ip": "0x1"},"#)),
            report(&stack("7")),
            report(&one).replace("\"stacks\" :", "\"stacks\""),
            report(&one).replace("\"timeline\": []", "\"stacks\": []"),
            report(&one).replace("frames", "fr\\u0061mes"),
            report(&one).replace("stacks\" :", "st\\u0061cks\" :"),
            report(&one) + "]",
            report(&one).replacen('{', "", 1),
            report(&"[".repeat(1 << 20)),
            "{".repeat(1 << 20),
            format!("{{\"a\": {}", "[".repeat(1 << 20)),
        ];
        for text in broken {
            let error = read(text.as_bytes()).unwrap_err();
            assert!(matches!(error, JsonError::Invalid(_)), "{error}: {}", &text[..text.len().min(200)]);
        }
        let whole = report(&one);
        for length in 1..whole.len() {
            read(&whole.as_bytes()[..length]).unwrap_err();
        }
    }

    #[test]
    fn memory_is_bounded() {
        // Endless texts, of each kind.
        let endless = |before: &str| {
            let blanks = io::Read::take(io::repeat(b' '), MAX_TEXT as u64 + 1);
            read(BufReader::new(io::Read::chain(before.as_bytes(), blanks))).unwrap_err()
        };
        let in_stack =
            report(&stack("{")).split_once("FRAMES").map_or_else(String::new, |(before, _)| before.into());
        for before in ["{", "{\"stacks\": [", "{\"stacks\": [{\"frames\": [", &in_stack] {
            assert!(matches!(endless(before), JsonError::TooLarge(_)), "{before}");
        }
    }
}
