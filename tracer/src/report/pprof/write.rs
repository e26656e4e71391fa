//! Writes a profile as pprof.

use std::io;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use flate2::{Compression, GzBuilder};
use prost::Message as _;

use super::proto::{Function, Label, Line, Location, Mapping, Profile as Proto, Sample, ValueType};
use super::{HIDDEN_VALUES, NO_ADDRESSES, SAMPLE_TYPES, label};
use crate::model::{Frame, Profile, StackReport};
use crate::report::human::{counted, printable};
use crate::report::{Options, QuickMap, Report};

/// The `.pb.gz` report. It holds the whole profile; its values are of the kinds that the options draw.
pub struct Pprof;

impl Report for Pprof {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        // The time of writing would make equal reports differ.
        let mut gzip = GzBuilder::new().mtime(0).write(out, Compression::default());
        io::Write::write_all(&mut gzip, &encode(profile, options)?.encode_to_vec())?;
        gzip.finish().map(drop)
    }
}

fn encode(profile: &Profile, options: &Options) -> io::Result<Proto> {
    let mut tables = Tables::default();
    tables.strings.index("");
    tables.put_first(profile);
    let sample = profile.stacks.iter().map(|stack| tables.sample(profile, stack, options)).collect();
    let mut value_type =
        |(kind, unit)| ValueType { kind: tables.strings.index(kind), unit: tables.strings.index(unit) };
    let sample_type = SAMPLE_TYPES.map(&mut value_type).to_vec();
    let period_type = Some(value_type(("space", "bytes")));
    let default_sample_type = tables.strings.index("inuse_space");
    tables.strings.index_owned(serde_json::to_string(&profile.without_stacks())?);
    let comment = vec![tables.strings.index_owned(summary(profile))];
    Ok(Proto {
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
    })
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
    function_ids: QuickMap<(i64, i64, i64), u64>,
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

    fn sample(&mut self, profile: &Profile, stack: &'a StackReport, options: &Options) -> Sample {
        let groups = stack.frames.chunk_by(|inner, outer| inner.inlined && inner.ip == outer.ip);
        let location_id = groups.map(|group| self.location(group)).collect();
        let value =
            [stack.allocated_objects, stack.allocated_bytes, stack.outstanding_objects, stack.weight_bytes];
        let mut label = self.labels(profile, stack);
        if options.includes(stack.kind) {
            return Sample { location_id, value: value.map(signed).to_vec(), label };
        }
        for (key, number) in HIDDEN_VALUES.into_iter().zip(value) {
            label.push(Label { key: self.strings.index(key), num: signed(number), ..Label::default() });
        }
        Sample { location_id, value: vec![0; value.len()], label }
    }

    fn labels(&mut self, profile: &Profile, stack: &StackReport) -> Vec<Label> {
        let strings = &mut self.strings;
        let mut labels = Vec::new();
        let mut text = |key, value: &str| {
            let label = Label { key: strings.index(key), str: strings.index(value), ..Label::default() };
            labels.push(label);
        };
        text(label::API, &stack.api);
        text(label::KIND, &name_of(&stack.kind));
        if let Some(verdict) = stack.verdict {
            text(label::VERDICT, &name_of(&verdict));
        }
        if let Some(reason) = &stack.reason {
            text(label::REASON, reason);
        }
        if let Some(rate) = stack.growth_bytes_per_second {
            // The shortest text that reads back as the same number.
            text(label::GROWTH, &rate.to_string());
        }
        if !stack.history_bytes.is_empty() {
            let sizes: Vec<String> = stack.history_bytes.iter().map(u64::to_string).collect();
            text(label::HISTORY, &sizes.join(" "));
        }
        if !stack.complete {
            text(label::COMPLETE, "false");
        }
        if let Some(stop) = &stack.stop {
            text(label::STOP, stop);
        }

        let freed = |allocated: u64, outstanding: u64, freed: u64| {
            (allocated.checked_sub(outstanding) != Some(freed)).then_some(freed)
        };
        let numbers = [
            (label::PID, Some(stack.pid.unwrap_or(profile.target.pid).0.into()), ""),
            (label::PROCESS, stack.process.map(u64::from), ""),
            (label::OLDEST_AGE, stack.oldest_age_ns, "nanoseconds"),
            (label::MEDIAN_AGE, stack.median_age_ns, "nanoseconds"),
            (
                label::OUTSTANDING,
                (stack.outstanding_bytes != stack.weight_bytes).then_some(stack.outstanding_bytes),
                "bytes",
            ),
            (label::RESIDENT, stack.resident_bytes, "bytes"),
            (label::STANDARD_ERROR, stack.standard_error_bytes, "bytes"),
            (
                label::FREED_BYTES,
                freed(stack.allocated_bytes, stack.outstanding_bytes, stack.freed_bytes),
                "bytes",
            ),
            (
                label::FREED_OBJECTS,
                freed(stack.allocated_objects, stack.outstanding_objects, stack.freed_objects),
                "count",
            ),
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
        let has_lines = group.len() > 1
            || function.function.is_some()
            || function.file.is_some()
            || function.language.is_some();
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
        let (name, filename, language) = (index(&frame.function), index(&frame.file), index(&frame.language));
        let functions = &mut self.functions;
        let function_id = *self.function_ids.entry((name, filename, language)).or_insert_with(|| {
            let id = functions.len() as u64 + 1;
            functions.push(Function { id, name, filename, language });
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
                memory_limit: NO_ADDRESSES,
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
        match self.indexes.get(text) {
            Some(&index) => index,
            None => self.index_owned(text.to_owned()),
        }
    }

    fn index_owned(&mut self, text: String) -> i64 {
        let texts = &mut self.texts;
        *self.indexes.entry(text).or_insert_with_key(|text| {
            texts.push(text.clone());
            texts.len() as i64 - 1
        })
    }
}

/// The name of a kind or verdict, as the JSON report has it.
fn name_of(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}
