//! Reads a saved recording, so that it can be drawn again: a `.json` report.
//!
//! The file is not trusted: it is read in bounded memory, and its figures are ones that every report can add up.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use super::json::{self, JsonError};
use crate::model::{Profile, SCHEMA, StackReport};

/// Why a saved recording cannot be read. One line; the caller says which file it was.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{}", reason(.0))]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is no recording; `tracer report` reads the .json files that tracer wrote")]
    Unknown,
    /// It looks like JSON, but cannot be used.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A version of the report that this tracer does not know.
    #[error(
        "it is a report of version {0:?}, and this tracer reads {SCHEMA:?}; use the tracer that wrote it"
    )]
    Version(String),
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
    read(BufReader::with_capacity(1 << 20, File::open(path)?))
}

/// Reads a recording from its file.
pub fn read(mut file: impl BufRead) -> Result<Profile, ReadError> {
    // A pipe may give one byte at first.
    let mut start = Vec::new();
    file.by_ref().take(2).read_to_end(&mut start)?;
    let file = io::Read::chain(&start[..], file);
    check(match start[..] {
        [b'{', _] => json::read(file)?,
        _ => return Err(ReadError::Unknown),
    })
}

fn check(profile: Profile) -> Result<Profile, ReadError> {
    if profile.schema != SCHEMA {
        return Err(ReadError::Version(profile.schema));
    }
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
    use proptest::prelude::*;

    use super::*;
    use crate::report::{Format, Options, Report, fixtures, text::Text};

    fn write(format: Format, profile: &Profile) -> Vec<u8> {
        let mut out = Vec::new();
        format.report().write(profile, &Options::default(), &mut out).unwrap();
        out
    }

    fn json(profile: &Profile) -> serde_json::Value {
        serde_json::to_value(profile).unwrap()
    }

    #[test]
    fn nothing_is_lost_by_saving() {
        for (name, profile) in fixtures::all() {
            let read = read(&write(Format::Json, &profile)[..]).unwrap();
            assert_eq!(json(&read), json(&profile), "{name}");
        }
    }

    #[test]
    fn stacks_share_their_frames() {
        let profile = read(&write(Format::Json, &fixtures::deep())[..]).unwrap();
        let main = profile.stacks[0].frames.last().unwrap();
        assert_eq!(main.function.as_deref(), Some("main"));
        let profile = read(&write(Format::Json, &fixtures::node())[..]).unwrap();
        let of = |stack: usize| profile.stacks[stack].frames.last().unwrap();
        assert!(std::sync::Arc::ptr_eq(of(0), of(3)));
    }

    #[test]
    fn what_is_no_recording_is_refused_in_one_line() {
        let refuse = |bytes: &[u8]| {
            let error = read(bytes).unwrap_err();
            let text = error.to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            error
        };
        assert!(matches!(refuse(b""), ReadError::Unknown));
        assert!(matches!(refuse(b"main;malloc 17"), ReadError::Unknown));
        assert!(matches!(refuse(b"{\"schema\": \"x\"}"), ReadError::Json(_)));

        let mut profile = fixtures::empty();
        profile.schema = "tracer.report/9".into();
        assert!(matches!(refuse(&write(Format::Json, &profile)), ReadError::Version(_)));
        let mut profile = fixtures::several();
        profile.stacks[0].freed_bytes = u64::MAX - 3;
        assert!(matches!(refuse(&write(Format::Json, &profile)), ReadError::Figures));
        assert!(matches!(refuse(&write(Format::Pprof, &fixtures::node())), ReadError::Unknown));
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
        ) {
            let mut bytes = write(Format::Json, &fixtures::several());
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            read_and_draw(&bytes);
        }
    }
}
