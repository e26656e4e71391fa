//! Reads a saved recording, so that it can be drawn again: a `.pb.gz` or a `.json` report. What it is, its first bytes say.
//!
//! The file is not trusted: it is read in bounded memory, and its figures are ones that every report can add up.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use super::json::{self, JsonError};
use super::pprof::{self, PprofError};
use crate::model::{Profile, SCHEMA, StackReport};

/// Why a saved recording cannot be read. One line; the caller says which file it was.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is no recording; `tracer report` reads the .pb.gz and .json files that tracer wrote")]
    Unknown,
    /// It looks like pprof, but cannot be used.
    #[error(transparent)]
    Pprof(#[from] PprofError),
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
        [0x1f, 0x8b] => pprof::read(file)?,
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

    /// What pprof cannot tell apart: no name and an empty one.
    fn without_empty_names(mut profile: Profile) -> Profile {
        for frame in profile.stacks.iter_mut().flat_map(|stack| &mut stack.frames) {
            std::sync::Arc::make_mut(frame).function.take_if(|function| function.is_empty());
        }
        profile
    }

    #[test]
    fn nothing_is_lost_by_saving() {
        for format in [Format::Pprof, Format::Json] {
            for (name, profile) in fixtures::all() {
                let profile = without_empty_names(profile);
                let read = read(&write(format, &profile)[..]).unwrap();
                assert_eq!(json(&read), json(&profile), "{name} {format}");
            }
        }
    }

    #[test]
    fn stacks_share_their_frames() {
        for format in [Format::Pprof, Format::Json] {
            let profile = read(&write(format, &fixtures::deep())[..]).unwrap();
            let main = profile.stacks[0].frames.last().unwrap();
            assert_eq!(main.function.as_deref(), Some("main"));
            let profile = read(&write(format, &fixtures::node())[..]).unwrap();
            let of = |stack: usize| profile.stacks[stack].frames.last().unwrap();
            assert!(std::sync::Arc::ptr_eq(of(0), of(3)), "{format}");
        }
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

        let file = write(Format::Pprof, &fixtures::node());
        for length in [2, 10, file.len() / 2, file.len() - 1] {
            assert!(matches!(refuse(&file[..length]), ReadError::Pprof(PprofError::Gzip(_))), "{length}");
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
            json: bool,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut: Option<prop::sample::Index>,
        ) {
            // The packing of gzip has a checksum: damage what is in it.
            let mut bytes = match json {
                true => write(Format::Json, &fixtures::several()),
                false => pprof::tests::unpack(&write(Format::Pprof, &fixtures::several())),
            };
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            read_and_draw(&if json { bytes } else { pprof::tests::pack(&bytes) });
        }
    }
}
