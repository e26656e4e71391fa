//! pprof: what `go tool pprof` and many a service reads. An export: what pprof has no place for is not in it.
//!
//! | here | in pprof |
//! |---|---|
//! | weight, outstanding objects | `inuse_space`, `inuse_objects` |
//! | allocated bytes, objects | `alloc_space`, `alloc_objects` |
//! | allocator function, kind, process, verdict, ages | labels of a sample |
//! | address of a frame, and its offset in the object | address of a location, and that minus the start of its mapping |
//! | inlined frames | lines of a location |

pub(crate) mod proto;

use std::io;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use flate2::{Compression, GzBuilder, read::GzDecoder};
use prost::Message as _;

use self::proto::{Function, Label, Line, Location, Mapping, Profile as Proto, Sample, ValueType};
use super::human::{counted, printable};
use super::{Options, QuickMap, Report};
use crate::model::{Frame, Profile, StackReport, Verdict};

/// The values of a sample, in their order, and their units.
const SAMPLE_TYPES: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

/// The `.pb.gz` report: the stacks of the kinds that the options draw.
pub struct Pprof;

impl Report for Pprof {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        write(&encode(profile, options), out).map(drop)
    }
}

/// A profile in which another kind of value is shown first.
///
/// # Errors
/// When it is none of ours.
pub fn shows_first(kind: &str, profile: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut GzDecoder::new(profile), &mut bytes)?;
    let mut profile = Proto::decode(&*bytes).map_err(io::Error::other)?;
    let index = profile.string_table.iter().position(|text| text == kind);
    profile.default_sample_type = index.and_then(|index| i64::try_from(index).ok()).unwrap_or(0);
    write(&profile, Vec::new())
}

/// The time of writing would make equal reports differ.
fn write<W: io::Write>(profile: &Proto, out: W) -> io::Result<W> {
    let mut gzip = GzBuilder::new().mtime(0).write(out, Compression::default());
    io::Write::write_all(&mut gzip, &profile.encode_to_vec())?;
    gzip.finish()
}

fn encode(profile: &Profile, options: &Options) -> Proto {
    let mut tables = Tables::default();
    tables.strings.index("");
    tables.put_first(profile);
    let drawn = profile.stacks.iter().filter(|stack| options.includes(stack.kind));
    let sample = drawn.map(|stack| tables.sample(profile, stack)).collect();
    let mut value_type =
        |(kind, unit)| ValueType { kind: tables.strings.index(kind), unit: tables.strings.index(unit) };
    let sample_type = SAMPLE_TYPES.map(&mut value_type).to_vec();
    let period_type = Some(value_type(("space", "bytes")));
    let default_sample_type = tables.strings.index("inuse_space");
    let comment = vec![tables.strings.index(&summary(profile))];
    Proto {
        sample_type,
        sample,
        mapping: tables.mappings,
        location: tables.locations,
        function: tables.functions,
        time_nanos: time_nanos(&profile.window.started_at),
        duration_nanos: signed(profile.window.duration_ns),
        period_type,
        period: signed(profile.settings.sample_bytes.max(1)),
        comment,
        default_sample_type,
        string_table: tables.strings.texts,
    }
}

/// What a person reads first with `go tool pprof -comments`.
fn summary(profile: &Profile) -> String {
    let (target, totals) = (&profile.target, &profile.totals);
    format!(
        "tracer {}: {} ({}), {} outstanding, {} lost",
        profile.tracer_version,
        printable(&target.comm),
        target.pid,
        counted(totals.outstanding_objects, "block"),
        counted(profile.events.lost_total(), "event")
    )
}

fn time_nanos(rfc3339: &str) -> i64 {
    let since_1970 =
        humantime::parse_rfc3339(rfc3339).ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since_1970.and_then(|time| i64::try_from(time.as_nanos()).ok()).unwrap_or(0)
}

/// pprof's numbers are signed; no process has as many bytes as do not fit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What samples refer to.
#[derive(Default)]
struct Tables<'a> {
    strings: Strings,
    mappings: Vec<Mapping>,
    mapping_ids: QuickMap<ObjectKey<'a>, u64>,
    functions: Vec<Function>,
    function_ids: QuickMap<(i64, i64), u64>,
    locations: Vec<Location>,
    /// Of frames with nothing inlined in them. Stacks share their frames, so this answers nearly always.
    locations_of_frames: QuickMap<*const Frame, u64>,
    /// By address, which nearly always has one location.
    location_ids: QuickMap<u64, Vec<KnownLocation<'a>>>,
}

/// A function and what is inlined in it, and its location's number.
type KnownLocation<'a> = (&'a [Arc<Frame>], u64);

/// An object as it is mapped: its name, its build id, and where its address 0 is.
type ObjectKey<'a> = (&'a str, Option<&'a str>, Option<u64>);

impl<'a> Tables<'a> {
    /// Makes the executable the first mapping, by which pprof's tools call the profile.
    fn put_first(&mut self, profile: &'a Profile) {
        let Some(name) = profile.target.exe.as_deref().and_then(|exe| exe.rsplit('/').next()) else { return };
        let mut frames = profile.stacks.iter().flat_map(|stack| &stack.frames);
        if let Some(frame) = frames.find(|frame| frame.module.as_deref() == Some(name)) {
            self.mapping(frame);
        }
    }

    fn sample(&mut self, profile: &Profile, stack: &'a StackReport) -> Sample {
        let groups = stack.frames.chunk_by(|inner, outer| inner.inlined && inner.ip == outer.ip);
        let location_id = groups.map(|group| self.location(group)).collect();
        let value =
            [stack.allocated_objects, stack.allocated_bytes, stack.outstanding_objects, stack.weight_bytes];
        Sample { location_id, value: value.map(signed).to_vec(), label: self.labels(profile, stack) }
    }

    /// What pprof shows beside a stack, and can choose stacks by.
    fn labels(&mut self, profile: &Profile, stack: &StackReport) -> Vec<Label> {
        let strings = &mut self.strings;
        let mut labels = Vec::new();
        let texts = [
            ("api", Some(&*stack.api)),
            ("kind", Some(stack.kind.name())),
            ("verdict", stack.verdict.map(Verdict::name)),
            ("stop", stack.stop.as_deref()),
        ];
        for (key, text) in texts {
            labels.extend(text.map(|text| Label {
                key: strings.index(key),
                str: strings.index(text),
                ..Label::default()
            }));
        }
        let numbers = [
            ("pid", Some(stack.pid.unwrap_or(profile.target.pid).0.into()), ""),
            ("oldest_age", stack.oldest_age_ns, "nanoseconds"),
            ("median_age", stack.median_age_ns, "nanoseconds"),
            ("standard_error_bytes", stack.standard_error_bytes, "bytes"),
        ];
        for (key, number, unit) in numbers {
            labels.extend(number.map(|number| Label {
                key: strings.index(key),
                num: signed(number),
                num_unit: strings.index(unit),
                ..Label::default()
            }));
        }
        labels
    }

    /// The location of a function and what is inlined in it.
    fn location(&mut self, group: &'a [Arc<Frame>]) -> u64 {
        let [frame] = group else { return self.find_location(group) };
        if let Some(&id) = self.locations_of_frames.get(&Arc::as_ptr(frame)) {
            return id;
        }
        let id = self.find_location(group);
        self.locations_of_frames.insert(Arc::as_ptr(frame), id);
        id
    }

    fn find_location(&mut self, group: &'a [Arc<Frame>]) -> u64 {
        let [.., function] = group else { return 0 };
        let same = |known: &[Arc<Frame>]| {
            known.len() == group.len() && known.iter().zip(group).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
        };
        let known = self.location_ids.entry(function.ip.0).or_default();
        if let Some((_, id)) = known.iter().find(|(known, _)| same(known)) {
            return *id;
        }
        let id = self.locations.len() as u64 + 1;
        known.push((group, id));
        let has_lines = group.len() > 1 || function.function.is_some() || function.file.is_some();
        let line = match has_lines {
            true => group.iter().map(|frame| self.line(frame)).collect(),
            false => Vec::new(),
        };
        let mapping_id = self.mapping(function);
        self.locations.push(Location { id, mapping_id, address: function.ip.0, line });
        id
    }

    fn line(&mut self, frame: &Frame) -> Line {
        let mut index = |text: &Option<String>| text.as_deref().map_or(0, |text| self.strings.index(text));
        let (name, filename) = (index(&frame.function), index(&frame.file));
        let functions = &mut self.functions;
        let function_id = *self.function_ids.entry((name, filename)).or_insert_with(|| {
            let id = functions.len() as u64 + 1;
            functions.push(Function { id, name, filename });
            id
        });
        Line { function_id, line: frame.line.unwrap_or(0).into() }
    }

    /// The mapping of the object that holds a frame, 0 when there is none.
    fn mapping(&mut self, frame: &'a Frame) -> u64 {
        let Some(name) = frame.module.as_deref() else { return 0 };
        let offset = frame.offset.as_deref().and_then(|offset| offset.strip_prefix("0x"));
        let offset = offset.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        // An object whose own addresses are above where it is mapped starts, in this sense, below 0.
        let start = offset.map(|offset| frame.ip.0.wrapping_sub(offset));
        let mappings = &mut self.mappings;
        let strings = &mut self.strings;
        let id = *self.mapping_ids.entry((name, frame.build_id.as_deref(), start)).or_insert_with(|| {
            let id = mappings.len() as u64 + 1;
            mappings.push(Mapping {
                id,
                memory_start: start.unwrap_or(0),
                memory_limit: 0,
                filename: strings.index(name),
                build_id: frame.build_id.as_deref().map_or(0, |id| strings.index(id)),
                // They are what they are: no tool should look for better ones.
                has_functions: true,
                has_filenames: true,
                has_line_numbers: true,
                has_inline_frames: true,
            });
            id
        });
        if start.is_some() {
            let mapping = &mut mappings[id as usize - 1];
            mapping.memory_limit = mapping.memory_limit.max(frame.ip.0.saturating_add(1));
        }
        id
    }
}

/// The table of texts.
#[derive(Default)]
struct Strings {
    texts: Vec<String>,
    indexes: QuickMap<String, i64>,
}

impl Strings {
    fn index(&mut self, text: &str) -> i64 {
        if let Some(&index) = self.indexes.get(text) {
            return index;
        }
        let index = self.texts.len() as i64;
        self.texts.push(text.to_owned());
        self.indexes.insert(text.to_owned(), index);
        index
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::report::fixtures;

    fn unpack(file: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn encoded(profile: &Profile) -> Proto {
        let mut out = Vec::new();
        Pprof.write(profile, &Options::default(), &mut out).unwrap();
        Proto::decode(&unpack(&out)[..]).unwrap()
    }

    #[test]
    fn the_sums_are_those_of_the_totals() {
        let profile = fixtures::node();
        assert!(profile.stacks.iter().any(|stack| !stack.kind.counts_by_default()));
        let sums = encoded(&profile).sample.iter().fold([0; 4], |mut sums, sample| {
            sums.iter_mut().zip(&sample.value).for_each(|(sum, value)| *sum += value);
            sums
        });
        let totals = &profile.totals;
        let expected = [
            totals.allocated_objects,
            totals.allocated_bytes,
            totals.outstanding_objects,
            totals.weight_bytes,
        ];
        assert_eq!(sums.map(|sum| sum as u64), expected);
    }

    #[test]
    fn every_text_is_one_that_pprof_shows() {
        for (name, profile) in fixtures::all() {
            let encoded = encoded(&profile);
            let mut shown = vec![0, encoded.default_sample_type];
            shown.extend(
                encoded.sample_type.iter().chain(&encoded.period_type).flat_map(|of| [of.kind, of.unit]),
            );
            shown.extend(&encoded.comment);
            shown.extend(encoded.mapping.iter().flat_map(|mapping| [mapping.filename, mapping.build_id]));
            shown.extend(encoded.function.iter().flat_map(|function| [function.name, function.filename]));
            let labels = encoded.sample.iter().flat_map(|sample| &sample.label);
            shown.extend(labels.flat_map(|label| [label.key, label.str, label.num_unit]));
            let hidden = encoded.string_table.iter().zip(0..).find(|(_, index)| !shown.contains(index));
            assert_eq!(hidden, None, "{name}");
        }
    }

    #[test]
    fn inlined_functions_are_lines_of_one_location() {
        let profile = encoded(&fixtures::node());
        let location = &profile.location[0];
        let names: Vec<_> = location
            .line
            .iter()
            .map(|line| {
                let function =
                    profile.function.iter().find(|function| function.id == line.function_id).unwrap();
                profile.string_table[function.name as usize].split('(').nth(1).unwrap_or_default()
            })
            .collect();
        assert_eq!(
            names,
            [
                "anonymous namespace)::Buffer::Reserve",
                "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > const&)"
            ]
        );
        let file = profile.mapping[0].filename;
        assert_eq!(profile.string_table[file as usize], "node", "the executable comes first");
    }
}
