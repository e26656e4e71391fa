//! Reads back what [`Pprof`](super::Pprof) wrote. The file is not trusted: whatever it holds, reading it takes a bounded
//! amount of memory and ends with a profile or an error.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::proto::{Function, Label, Location, Mapping, Sample};
use super::{HIDDEN_VALUES, NO_ADDRESSES, SAMPLE_TYPES, label};
use crate::model::{Address, Frame, Pid, Profile, SCHEMA, StackReport};
use crate::report::{Budget, QuickMap, TooLarge};

/// The largest profile, unpacked: some 4 million stacks. A gzip file can unpack to a thousand times its size.
const MAX_UNPACKED: u64 = 512 << 20;

/// The largest of the messages in it but texts: a stack of 60 frames takes 300 bytes. A message takes up to 36 times its
/// size in memory while it is read.
const MAX_MESSAGE: usize = 1 << 20;

/// Times at which a stack's size is known; the tracer writes fewer.
const MAX_HISTORY: usize = 256;

/// Why a file is no profile of ours.
#[derive(Debug, thiserror::Error)]
pub enum PprofError {
    /// It cannot be unpacked.
    #[error("it is damaged or cut off: {0}")]
    Gzip(#[source] std::io::Error),
    /// It does not follow the format.
    #[error("it is damaged: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// It follows the format, but makes no sense.
    #[error("it is damaged: {0}")]
    Inconsistent(&'static str),
    /// It would take too much memory.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// Something else wrote it.
    #[error("it is a pprof profile, but not one that tracer recorded")]
    Foreign,
    /// What it says beyond its stacks is not valid.
    #[error("it is damaged: the text with the recording's settings does not parse: {0}")]
    Header(#[source] serde_json::Error),
}

/// Reads a profile from the bytes of a `.pb.gz` file.
pub fn read(file: impl Read) -> Result<Profile, PprofError> {
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(file).take(MAX_UNPACKED + 1).read_to_end(&mut unpacked).map_err(PprofError::Gzip)?;
    if unpacked.len() as u64 > MAX_UNPACKED {
        return Err(TooLarge.into());
    }
    decode(&unpacked)
}

/// Field numbers of the messages that are read.
mod field {
    pub const SAMPLE: u32 = 2;
    pub const MAPPING: u32 = 3;
    pub const LOCATION: u32 = 4;
    pub const FUNCTION: u32 = 5;
    pub const STRING: u32 = 6;
}

fn decode(bytes: &[u8]) -> Result<Profile, PprofError> {
    let mut budget = Budget::default();
    let mut tables = Tables::default();
    for text in fields(bytes, field::STRING) {
        budget.charge(size_of::<&str>())?;
        let text = std::str::from_utf8(text?).map_err(|_| PprofError::Inconsistent("a text is not UTF-8"))?;
        tables.strings.push(text);
    }
    let mut profile = header(&tables.strings)?;

    for mapping in messages::<Mapping>(bytes, field::MAPPING) {
        budget.charge(2 * size_of::<Mapping>())?;
        let mapping = mapping?;
        tables.mappings.insert(mapping.id, mapping);
    }
    for function in messages::<Function>(bytes, field::FUNCTION) {
        budget.charge(2 * size_of::<Function>())?;
        let function = function?;
        tables.functions.insert(function.id, function);
    }
    for location in messages::<Location>(bytes, field::LOCATION) {
        let location = location?;
        let frames = tables.frames(&location, &mut budget)?;
        let start = tables.frames.len();
        tables.frames.extend(frames);
        tables.locations.insert(location.id, start..tables.frames.len());
    }
    // One for all, so that memory is taken once.
    let mut sample = Sample::default();
    for message in bounded(bytes, field::SAMPLE) {
        sample.clear();
        sample.merge(message?)?;
        let stack = tables.stack(&sample, &profile, &mut budget)?;
        profile.stacks.push(stack);
    }
    Ok(profile)
}

/// The longest text with the recording's settings: it has 2,000 points of the timeline at most.
const MAX_HEADER: usize = 16 << 20;

/// The profile without its stacks, from the text that holds it.
fn header(strings: &[&str]) -> Result<Profile, PprofError> {
    let start = format!("{{\"schema\":\"{SCHEMA}\"");
    let header = strings.iter().find(|text| text.starts_with(&start)).ok_or(PprofError::Foreign)?;
    if header.len() > MAX_HEADER {
        return Err(TooLarge.into());
    }
    serde_json::from_str(header).map_err(PprofError::Header)
}

/// What samples refer to.
#[derive(Default)]
struct Tables<'a> {
    strings: Vec<&'a str>,
    mappings: QuickMap<u64, Mapping>,
    functions: QuickMap<u64, Function>,
    /// Where a location's frames are in `frames`.
    locations: QuickMap<u64, Range<usize>>,
    /// Leaf first.
    frames: Vec<Arc<Frame>>,
}

impl Tables<'_> {
    /// A text; `None` for the empty one, which says that there is none.
    fn text(&self, index: i64, budget: &mut Budget) -> Result<Option<String>, PprofError> {
        if index == 0 {
            return Ok(None);
        }
        let text = self.str(index)?;
        budget.charge(text.len())?;
        Ok(Some(text.to_owned()))
    }

    fn str(&self, index: i64) -> Result<&str, PprofError> {
        let text = usize::try_from(index).ok().and_then(|index| self.strings.get(index));
        text.copied().ok_or(PprofError::Inconsistent("a text is missing"))
    }

    fn frames(&self, location: &Location, budget: &mut Budget) -> Result<Vec<Arc<Frame>>, PprofError> {
        budget.charge(size_of::<(u64, Range<usize>)>() * 2)?;
        let mapping = match location.mapping_id {
            0 => None,
            id => Some(self.mappings.get(&id).ok_or(PprofError::Inconsistent("a mapping is missing"))?),
        };
        let mut frames = Vec::with_capacity(location.line.len().max(1));
        let mut push = |frame: Frame, budget: &mut Budget| {
            // The frame, its two counters, and where it is referred to, in a list that doubles as it grows.
            budget.charge(size_of::<Frame>() + 4 * size_of::<usize>())?;
            frames.push(Arc::new(frame));
            Ok::<_, PprofError>(())
        };
        for (i, line) in location.line.iter().enumerate() {
            let function = self.functions.get(&line.function_id);
            let function = function.ok_or(PprofError::Inconsistent("a function is missing"))?;
            let frame = Frame {
                function: self.text(function.name, budget)?,
                file: self.text(function.filename, budget)?,
                language: self.text(function.language, budget)?,
                line: u32::try_from(line.line).ok().filter(|&line| line > 0),
                inlined: i + 1 < location.line.len(),
                ..self.place(location, mapping, budget)?
            };
            push(frame, budget)?;
        }
        if location.line.is_empty() {
            let frame = self.place(location, mapping, budget)?;
            push(frame, budget)?;
        }
        Ok(frames)
    }

    /// A frame that says no more than where it is.
    fn place(
        &self,
        location: &Location,
        mapping: Option<&Mapping>,
        budget: &mut Budget,
    ) -> Result<Frame, PprofError> {
        let ip = Address(location.address);
        let Some(mapping) = mapping else { return Ok(Frame { ip, ..Frame::default() }) };
        let has_addresses = mapping.memory_limit != NO_ADDRESSES;
        Ok(Frame {
            ip,
            module: self.text(mapping.filename, budget)?,
            build_id: self.text(mapping.build_id, budget)?,
            offset: has_addresses
                .then(|| format!("{:#x}", location.address.wrapping_sub(mapping.memory_start))),
            ..Frame::default()
        })
    }

    fn stack(
        &self,
        sample: &Sample,
        profile: &Profile,
        budget: &mut Budget,
    ) -> Result<StackReport, PprofError> {
        budget.charge(size_of::<StackReport>())?;
        let mut frames = Vec::with_capacity(sample.location_id.len());
        for id in &sample.location_id {
            let location = self.locations.get(id).ok_or(PprofError::Inconsistent("a location is missing"))?;
            budget.charge(location.len() * size_of::<Arc<Frame>>())?;
            frames.extend_from_slice(&self.frames[location.clone()]);
        }
        frames.shrink_to_fit();

        let value: [i64; SAMPLE_TYPES.len()] = sample.value[..]
            .try_into()
            .map_err(|_| PprofError::Inconsistent("a stack has too few or too many values"))?;
        let labels = Labels { labels: &sample.label, tables: self };
        let mut figures = [0; SAMPLE_TYPES.len()];
        for ((figure, value), hidden) in figures.iter_mut().zip(value).zip(HIDDEN_VALUES) {
            *figure = labels.number(hidden)?.map_or_else(|| unsigned(value), Ok)?;
        }
        let [allocated_objects, allocated_bytes, outstanding_objects, weight_bytes] = figures;
        let outstanding_bytes = labels.number(label::OUTSTANDING)?.unwrap_or(weight_bytes);
        let freed = |key, allocated: u64, outstanding: u64| {
            Ok::<_, PprofError>(labels.number(key)?.unwrap_or(allocated.saturating_sub(outstanding)))
        };
        let pid = match profile.processes.len() {
            0 | 1 => None,
            _ => labels.number(label::PID)?.and_then(|pid| u32::try_from(pid).ok()).map(Pid),
        };
        let process = labels.number(label::PROCESS)?;
        let api = labels.text(label::API)?.unwrap_or_default();
        let stop = labels.text(label::STOP)?;
        let history_bytes = labels.text(label::HISTORY)?.map_or_else(Vec::new, history);
        budget.charge(history_bytes.len() * size_of::<u64>())?;
        budget.charge(api.len() + stop.map_or(0, str::len))?;
        Ok(StackReport {
            pid,
            process: process.and_then(|process| u32::try_from(process).ok()),
            kind: labels.named(label::KIND)?.ok_or(PprofError::Inconsistent("a stack has no kind"))?,
            api: api.to_owned(),
            weight_bytes,
            outstanding_bytes,
            outstanding_objects,
            allocated_bytes,
            allocated_objects,
            freed_bytes: freed(label::FREED_BYTES, allocated_bytes, outstanding_bytes)?,
            freed_objects: freed(label::FREED_OBJECTS, allocated_objects, outstanding_objects)?,
            resident_bytes: labels.number(label::RESIDENT)?,
            standard_error_bytes: labels.number(label::STANDARD_ERROR)?,
            oldest_age_ns: labels.number(label::OLDEST_AGE)?,
            median_age_ns: labels.number(label::MEDIAN_AGE)?,
            growth_bytes_per_second: labels.text(label::GROWTH)?.and_then(|rate| rate.parse().ok()),
            history_bytes,
            verdict: labels.named(label::VERDICT)?,
            reason: labels.text(label::REASON)?.map(str::to_owned),
            complete: labels.text(label::COMPLETE)? != Some("false"),
            stop: stop.map(str::to_owned),
            frames,
        })
    }
}

/// The labels of one sample.
struct Labels<'a> {
    labels: &'a [Label],
    tables: &'a Tables<'a>,
}

impl<'a> Labels<'a> {
    fn find(&self, key: &str) -> Result<Option<&'a Label>, PprofError> {
        for label in self.labels {
            if self.tables.str(label.key)? == key {
                return Ok(Some(label));
            }
        }
        Ok(None)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, PprofError> {
        self.find(key)?.map(|label| self.tables.str(label.str)).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<u64>, PprofError> {
        self.find(key)?.map(|label| unsigned(label.num)).transpose()
    }

    /// A kind or verdict by its name in the JSON report.
    fn named<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, PprofError> {
        use serde::de::IntoDeserializer;
        use serde::de::value::{Error, StrDeserializer};
        let parse = |name: &str| {
            let name: StrDeserializer<'_, Error> = name.into_deserializer();
            T::deserialize(name)
                .map_err(|_| PprofError::Inconsistent("a stack has an unknown kind or verdict"))
        };
        self.text(key)?.map(parse).transpose()
    }
}

/// The sizes of a stack at evenly spaced times.
fn history(sizes: &str) -> Vec<u64> {
    let number = 1 + sizes.bytes().filter(|&byte| byte == b' ').count();
    let mut history = Vec::with_capacity(number.min(MAX_HISTORY));
    history.extend(sizes.split(' ').take(MAX_HISTORY).map_while(|size| size.parse::<u64>().ok()));
    history
}

fn unsigned(number: i64) -> Result<u64, PprofError> {
    u64::try_from(number).map_err(|_| PprofError::Inconsistent("a figure is negative"))
}

/// The messages of one field.
fn messages<M: Message + Default>(bytes: &[u8], field: u32) -> impl Iterator<Item = Result<M, PprofError>> {
    bounded(bytes, field).map(|message| Ok(M::decode(message?)?))
}

/// The bytes of the messages of one field, none of which is too large to be read.
fn bounded(bytes: &[u8], field: u32) -> impl Iterator<Item = Result<&[u8], PprofError>> {
    fields(bytes, field).map(|message| {
        let message = message?;
        if message.len() > MAX_MESSAGE {
            return Err(TooLarge.into());
        }
        Ok(message)
    })
}

/// The bytes of every occurrence of one field of the outermost message.
fn fields(mut bytes: &[u8], field: u32) -> impl Iterator<Item = Result<&[u8], PprofError>> {
    std::iter::from_fn(move || {
        while !bytes.is_empty() {
            match next_field(&mut bytes) {
                Ok((tag, Some(value))) if tag == field => return Some(Ok(value)),
                Ok(_) => {}
                Err(error) => {
                    bytes = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    })
}

/// The number of the next field, and its bytes if it has a length.
fn next_field<'a>(bytes: &mut &'a [u8]) -> Result<(u32, Option<&'a [u8]>), PprofError> {
    let (tag, wire_type) = decode_key(bytes)?;
    if wire_type != WireType::LengthDelimited {
        skip_field(wire_type, tag, bytes, DecodeContext::default())?;
        return Ok((tag, None));
    }
    let length = decode_varint(bytes)?;
    let split = usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length));
    let (value, rest) = split.ok_or(PprofError::Inconsistent("it is cut off"))?;
    *bytes = rest;
    Ok((tag, Some(value)))
}
