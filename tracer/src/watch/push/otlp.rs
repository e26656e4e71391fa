//! OpenTelemetry's profiles by HTTP, made from pprof: of each kind of value a profile, what is held first, and one dictionary for all.
//! <https://opentelemetry.io/docs/specs/otlp/>

use std::{
    collections::HashMap,
    io::{self, Write as _},
};

use flate2::{Compression, write::GzEncoder};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{
    Post, PushedProfile, SendError,
    proto::{
        AnyValue, Dictionary, ExportRequest, ExportResponse, Function, KeyValue, KeyValueAndUnit, Line, Link,
        Location, Mapping, Profile, Resource, ResourceProfiles, Sample, Scope, ScopeProfiles, Stack, Value,
        ValueType,
    },
};
use crate::report::pprof::proto as pprof;

/// Where profiles are posted to, below an endpoint.
const PATH: &str = "/v1development/profiles";

/// The names that OpenTelemetry has for what labels say.
const KNOWN: [(&str, &str); 6] = [
    ("host", "host.name"),
    ("container_id", "container.id"),
    ("namespace", "k8s.namespace.name"),
    ("pod", "k8s.pod.name"),
    ("pod_uid", "k8s.pod.uid"),
    ("container", "k8s.container.name"),
];

/// The request for one report.
pub fn request(url: &str, pushed: &PushedProfile, profile: &pprof::Profile) -> io::Result<Post> {
    let url = if url.ends_with(PATH) { url.to_owned() } else { format!("{url}{PATH}") };
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&export(pushed, profile).encode_to_vec())?;
    let headers = [("content-type", "application/x-protobuf"), ("content-encoding", "gzip")];
    let headers = headers.map(|(name, value)| (name, value.to_owned())).to_vec();
    Ok(Post { url, headers, body: gzip.finish()? })
}

/// Whether an answer says that it was taken.
pub fn judge(answer: &[u8]) -> Result<(), SendError> {
    let answer = ExportResponse::decode(answer)
        .map_err(|_| SendError::Later("it answers with something that is no protobuf".into()))?;
    match answer.partial_success {
        Some(partial) if partial.rejected_profiles > 0 => {
            let why = crate::report::human::printable(&partial.error_message).into_owned();
            Err(SendError::Never(format!(
                "{} of its profiles were not taken: {why}",
                partial.rejected_profiles
            )))
        }
        _ => Ok(()),
    }
}

fn export(pushed: &PushedProfile, profile: &pprof::Profile) -> ExportRequest {
    let mut tables = DictionaryMaker::new(profile);
    let samples: Vec<(i32, Vec<i32>)> =
        profile.sample.iter().map(|sample| (tables.stack(sample), tables.labels(&sample.label))).collect();
    let period_type = profile.period_type.map(|of| tables.value_type(of));
    let mut kinds: Vec<usize> = (0..profile.sample_type.len()).collect();
    kinds.sort_by_key(|&kind| profile.sample_type[kind].kind != profile.default_sample_type);
    let profiles = kinds.into_iter().map(|kind| {
        let value = |sample: &pprof::Sample| sample.value.get(kind).copied().filter(|&value| value != 0);
        let with_values = profile.sample.iter().zip(&samples).filter_map(|(sample, (stack, attributes))| {
            Some(Sample { stack: *stack, attributes: attributes.clone(), values: vec![value(sample)?] })
        });
        Profile {
            sample_type: Some(tables.value_type(profile.sample_type[kind])),
            samples: with_values.collect(),
            time_unix_nano: profile.time_nanos.cast_unsigned(),
            duration_nano: profile.duration_nanos.cast_unsigned(),
            period_type,
            period: profile.period,
            // The same in each try.
            profile_id: Sha256::digest(format!("{pushed:?} {kind}"))[..16].to_vec(),
        }
    });
    let profiles = profiles.collect();
    let scope = Scope { name: "tracer".into(), version: env!("CARGO_PKG_VERSION").into() };
    ExportRequest {
        resource_profiles: vec![ResourceProfiles {
            resource: Some(resource(pushed)),
            scope_profiles: vec![ScopeProfiles { scope: Some(scope), profiles }],
        }],
        dictionary: Some(tables.dictionary),
    }
}

fn resource(pushed: &PushedProfile) -> Resource {
    let text = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Value::Text(value.to_owned())) }),
    };
    let labels = pushed.labels.iter().map(|(key, value)| {
        let known = KNOWN.iter().find(|(label, _)| label == key).map(|(_, name)| (*name).to_owned());
        text(&known.unwrap_or_else(|| format!("tracer.{key}")), value)
    });
    Resource { attributes: std::iter::once(text("service.name", &pushed.service)).chain(labels).collect() }
}

/// The dictionary, and where in it things are.
struct DictionaryMaker<'a> {
    pprof: &'a pprof::Profile,
    dictionary: Dictionary,
    strings: HashMap<&'a str, i32>,
    attributes: HashMap<(i32, Value), i32>,
    stacks: HashMap<Stack, i32>,
    locations: HashMap<u64, i32>,
}

impl<'a> DictionaryMaker<'a> {
    fn new(pprof: &'a pprof::Profile) -> Self {
        let dictionary = Dictionary {
            mappings: vec![Mapping::default()],
            locations: vec![Location::default()],
            functions: vec![Function::default()],
            links: vec![Link { trace_id: vec![0; 16], span_id: vec![0; 8] }],
            strings: vec![String::new()],
            attributes: vec![KeyValueAndUnit::default()],
            stacks: vec![Stack::default()],
        };
        let mut tables = Self {
            pprof,
            dictionary,
            strings: [("", 0)].into(),
            attributes: HashMap::new(),
            stacks: [(Stack::default(), 0)].into(),
            locations: HashMap::new(),
        };
        let mappings: HashMap<u64, i32> =
            pprof.mapping.iter().map(|mapping| (mapping.id, tables.mapping(mapping))).collect();
        let functions: HashMap<u64, i32> =
            pprof.function.iter().map(|function| (function.id, tables.function(*function))).collect();
        tables.locations = pprof
            .location
            .iter()
            .map(|location| (location.id, tables.location(location, &mappings, &functions)))
            .collect();
        tables
    }

    /// A text of pprof's.
    fn text(&mut self, index: i64) -> i32 {
        self.string(self.pprof_text(index))
    }

    fn pprof_text(&self, index: i64) -> &'a str {
        let pprof = self.pprof;
        let text = usize::try_from(index).ok().and_then(|index| pprof.string_table.get(index));
        text.map_or("", String::as_str)
    }

    fn string(&mut self, text: &'a str) -> i32 {
        let strings = &mut self.dictionary.strings;
        *self.strings.entry(text).or_insert_with(|| pushed(strings, text.to_owned()))
    }

    fn value_type(&mut self, of: pprof::ValueType) -> ValueType {
        ValueType { kind: self.text(of.kind), unit: self.text(of.unit) }
    }

    fn attribute(&mut self, key: &'a str, value: Value) -> i32 {
        let key = self.string(key);
        let attributes = &mut self.dictionary.attributes;
        let entry = self.attributes.entry((key, value.clone()));
        *entry.or_insert_with(|| {
            pushed(attributes, KeyValueAndUnit { key, value: Some(AnyValue { value: Some(value) }) })
        })
    }

    fn mapping(&mut self, mapping: &pprof::Mapping) -> i32 {
        let filename = self.text(mapping.filename);
        let build_id = self.pprof_text(mapping.build_id);
        let attributes = match build_id {
            "" => Vec::new(),
            id => vec![self.attribute("process.executable.build_id.gnu", Value::Text(id.to_owned()))],
        };
        let (memory_start, memory_limit) = (mapping.memory_start, mapping.memory_limit);
        pushed(&mut self.dictionary.mappings, Mapping { memory_start, memory_limit, filename, attributes })
    }

    fn function(&mut self, function: pprof::Function) -> i32 {
        let function = Function { name: self.text(function.name), filename: self.text(function.filename) };
        pushed(&mut self.dictionary.functions, function)
    }

    fn location(
        &mut self,
        location: &pprof::Location,
        mappings: &HashMap<u64, i32>,
        functions: &HashMap<u64, i32>,
    ) -> i32 {
        let index = |of: &HashMap<u64, i32>, id| of.get(&id).copied().unwrap_or(0);
        let lines = location
            .line
            .iter()
            .map(|line| Line { function: index(functions, line.function_id), line: line.line });
        let (mapping, address) = (index(mappings, location.mapping_id), location.address);
        pushed(&mut self.dictionary.locations, Location { mapping, address, lines: lines.collect() })
    }

    fn stack(&mut self, sample: &pprof::Sample) -> i32 {
        let location = |id| self.locations.get(id).copied().unwrap_or(0);
        let stack = Stack { locations: sample.location_id.iter().map(location).collect() };
        let stacks = &mut self.dictionary.stacks;
        *self.stacks.entry(stack.clone()).or_insert_with(|| pushed(stacks, stack))
    }

    /// What many samples have in common. Ages are different in each, and would make the table as long as the samples.
    fn labels(&mut self, labels: &[pprof::Label]) -> Vec<i32> {
        const TEXTS: [(&str, &str); 4] = [
            ("api", "tracer.api"),
            ("kind", "tracer.kind"),
            ("verdict", "tracer.verdict"),
            ("stop", "tracer.stop"),
        ];
        let mut attributes = Vec::new();
        for label in labels {
            let key = self.pprof_text(label.key);
            if let Some((_, name)) = TEXTS.iter().find(|(known, _)| *known == key) {
                attributes.push(self.attribute(name, Value::Text(self.pprof_text(label.str).to_owned())));
            } else if key == "pid" {
                attributes.push(self.attribute("process.pid", Value::Number(label.num)));
            }
        }
        attributes
    }
}

/// The index of what is added to a table.
fn pushed<T>(table: &mut Vec<T>, item: T) -> i32 {
    table.push(item);
    i32::try_from(table.len() - 1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use opentelemetry_proto::tonic::{
        collector::profiles::v1development::{
            ExportProfilesPartialSuccess, ExportProfilesServiceRequest, ExportProfilesServiceResponse,
        },
        common::v1::any_value,
    };

    use super::*;
    use crate::report::{Options, Report as _, fixtures, pprof::Pprof};

    fn pushed() -> PushedProfile {
        let labels = [("namespace", "shop"), ("condition", "usage > 80%")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        PushedProfile { name: "web-1".into(), service: "web".into(), labels, from: 1, until: 2 }
    }

    /// By the messages that OpenTelemetry's own crate has, not by ours.
    fn decoded(profile: &pprof::Profile) -> ExportProfilesServiceRequest {
        let Post { url, headers, body } = request("http://collector:4318", &pushed(), profile).unwrap();
        assert_eq!(url, "http://collector:4318/v1development/profiles");
        assert!(headers.contains(&("content-encoding", "gzip".into())));
        let mut bytes = Vec::new();
        GzDecoder::new(&body[..]).read_to_end(&mut bytes).unwrap();
        let decoded = ExportProfilesServiceRequest::decode(&bytes[..]).unwrap();
        // Nothing is lost on the way, as would be what has another number or kind.
        assert_eq!(decoded.encode_to_vec(), bytes);
        decoded
    }

    fn all() -> Vec<(&'static str, pprof::Profile)> {
        let encoded = |profile| {
            let mut file = Vec::new();
            Pprof.write(&profile, &Options::default(), &mut file).unwrap();
            super::super::unpacked(&file).unwrap()
        };
        fixtures::all().into_iter().map(|(name, profile)| (name, encoded(profile))).collect()
    }

    #[test]
    fn what_others_read_is_what_pprof_says() {
        for (name, pprof) in all() {
            let request = decoded(&pprof);
            let dictionary = request.dictionary.as_ref().unwrap();
            let text = |index: i32| dictionary.string_table[index as usize].as_str();
            let of_pprof = |index: i64| pprof.string_table[index as usize].as_str();
            let [resource] = &request.resource_profiles[..] else { panic!("one resource") };
            let [scope] = &resource.scope_profiles[..] else { panic!("one scope") };
            assert_eq!(scope.profiles.len(), pprof.sample_type.len(), "{name}");
            let first = scope.profiles[0].sample_type.unwrap();
            assert_eq!((text(first.type_strindex), text(first.unit_strindex)), ("inuse_space", "bytes"));
            for profile in &scope.profiles {
                let kind = text(profile.sample_type.unwrap().type_strindex);
                let place = pprof.sample_type.iter().position(|of| of_pprof(of.kind) == kind).unwrap();
                let expected = pprof.sample.iter().filter(|sample| sample.value[place] != 0).map(|sample| {
                    let functions = sample.location_id.iter().flat_map(|id| {
                        let location = pprof.location.iter().find(|location| location.id == *id).unwrap();
                        location.line.iter().map(|line| {
                            let is_it = |function: &&pprof::Function| function.id == line.function_id;
                            (of_pprof(pprof.function.iter().find(is_it).unwrap().name), line.line)
                        })
                    });
                    (functions.collect::<Vec<_>>(), sample.value[place])
                });
                let got = profile.samples.iter().map(|sample| {
                    let stack = &dictionary.stack_table[sample.stack_index as usize];
                    let lines = stack
                        .location_indices
                        .iter()
                        .flat_map(|&index| &dictionary.location_table[index as usize].lines);
                    let functions = lines.map(|line| {
                        let function = &dictionary.function_table[line.function_index as usize];
                        (text(function.name_strindex), line.line)
                    });
                    (functions.collect::<Vec<_>>(), sample.values[0])
                });
                assert_eq!(got.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{name}: {kind}");
                assert_eq!(profile.profile_id.len(), 16);
                assert_eq!(profile.time_unix_nano, pprof.time_nanos as u64);
                assert_eq!(profile.duration_nano, pprof.duration_nanos as u64);
            }
        }
    }

    #[test]
    fn the_first_of_each_table_is_empty_and_every_text_is_used() {
        for (name, pprof) in all() {
            let request = decoded(&pprof);
            let dictionary = request.dictionary.as_ref().unwrap();
            assert_eq!(dictionary.mapping_table[0], Default::default());
            assert_eq!(dictionary.location_table[0], Default::default());
            assert_eq!(dictionary.function_table[0], Default::default());
            assert_eq!(dictionary.attribute_table[0], Default::default());
            assert_eq!(dictionary.stack_table[0], Default::default());
            assert_eq!(dictionary.string_table[0], "");
            let mut shown = vec![0];
            shown.extend(dictionary.mapping_table.iter().map(|mapping| mapping.filename_strindex));
            shown.extend(
                dictionary.function_table.iter().flat_map(|of| [of.name_strindex, of.filename_strindex]),
            );
            shown.extend(dictionary.attribute_table.iter().map(|attribute| attribute.key_strindex));
            let profiles = request.resource_profiles.iter().flat_map(|of| &of.scope_profiles);
            let types = profiles
                .flat_map(|of| &of.profiles)
                .flat_map(|profile| [profile.sample_type, profile.period_type]);
            shown.extend(types.flatten().flat_map(|of| [of.type_strindex, of.unit_strindex]));
            let hidden = (0..).zip(&dictionary.string_table).find(|(index, _)| !shown.contains(index));
            assert_eq!(hidden, None, "{name}");
            let mut texts = dictionary.string_table.clone();
            texts.sort();
            texts.dedup();
            assert_eq!(texts.len(), dictionary.string_table.len(), "{name}: no text is there twice");
        }
    }

    #[test]
    fn labels_are_attributes_of_the_resource() {
        let (_, pprof) = all().remove(0);
        let request = decoded(&pprof);
        let attributes: Vec<_> = request.resource_profiles[0]
            .resource
            .as_ref()
            .unwrap()
            .attributes
            .iter()
            .map(|attribute| match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
                any_value::Value::StringValue(value) => (attribute.key.as_str(), value.as_str()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            attributes,
            [("service.name", "web"), ("tracer.condition", "usage > 80%"), ("k8s.namespace.name", "shop")]
        );
    }

    #[test]
    fn an_answer_says_what_was_not_taken() {
        let answer = |rejected_profiles| {
            let partial = ExportProfilesPartialSuccess { rejected_profiles, error_message: "too old".into() };
            ExportProfilesServiceResponse { partial_success: Some(partial) }.encode_to_vec()
        };
        assert_eq!((judge(b""), judge(&answer(0))), (Ok(()), Ok(())));
        assert!(matches!(judge(&answer(2)), Err(SendError::Never(why)) if why.contains("too old")));
        assert!(matches!(judge(b"<html>"), Err(SendError::Later(_))));
    }
}
