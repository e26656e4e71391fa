//! pprof: what `go tool pprof` and many a service reads, and the saved recording that `tracer report` reads back.
//!
//! Nothing is lost on the way. What a stack says beyond the four values travels in the sample's labels. What the profile
//! says beyond its stacks travels as JSON in the table of texts, where no other tool looks: pprof's print every comment
//! above every listing.
//!
//! | here | in pprof |
//! |---|---|
//! | weight, outstanding objects | `inuse_space`, `inuse_objects` |
//! | allocated bytes, objects | `alloc_space`, `alloc_objects` |
//! | outstanding and freed, where they do not follow from these | labels |
//! | all figures of a kind that is not drawn, so that sums agree with the other reports | labels |
//! | address of a frame, and its offset in the object | address of a location, and that minus the start of its mapping |
//! | inlined frames | lines of a location |

mod proto;
mod read;
mod write;

pub use read::{PprofError, read};
pub use write::Pprof;

/// The names of the labels.
mod label {
    pub const API: &str = "api";
    pub const KIND: &str = "kind";
    pub const PID: &str = "pid";
    pub const PROCESS: &str = "process";
    pub const COMPLETE: &str = "complete";
    pub const STOP: &str = "stop";
    pub const VERDICT: &str = "verdict";
    pub const HISTORY: &str = "history_bytes";
    pub const GROWTH: &str = "growth_bytes_per_second";
    pub const OLDEST_AGE: &str = "oldest_age";
    pub const MEDIAN_AGE: &str = "median_age";
    pub const REASON: &str = "reason";
    pub const OUTSTANDING: &str = "outstanding_bytes";
    pub const WEIGHT: &str = "weight_bytes";
    pub const OUTSTANDING_OBJECTS: &str = "outstanding_objects";
    pub const ALLOCATED_BYTES: &str = "allocated_bytes";
    pub const ALLOCATED_OBJECTS: &str = "allocated_objects";
    pub const FREED_BYTES: &str = "freed_bytes";
    pub const FREED_OBJECTS: &str = "freed_objects";
    pub const RESIDENT: &str = "resident_bytes";
    pub const STANDARD_ERROR: &str = "standard_error_bytes";
}

/// The values of a sample, in their order, and their units.
const SAMPLE_TYPES: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

/// The labels that hold the values of a stack that is not drawn.
const HIDDEN_VALUES: [&str; SAMPLE_TYPES.len()] =
    [label::ALLOCATED_OBJECTS, label::ALLOCATED_BYTES, label::OUTSTANDING_OBJECTS, label::WEIGHT];

/// What a mapping without addresses has as its limit: its frames have no offsets.
const NO_ADDRESSES: u64 = 0;

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read as _, Write as _};

    use flate2::Compression;
    use flate2::read::GzDecoder;
    use flate2::write::GzEncoder;
    use prost::Message as _;

    use super::proto;
    use super::*;
    use crate::model::Profile;
    use crate::report::{Options, Report as _, fixtures};

    pub(in crate::report) fn unpack(file: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        bytes
    }

    pub(in crate::report) fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    fn encoded(profile: &Profile) -> proto::Profile {
        let mut out = Vec::new();
        Pprof.write(profile, &Options::default(), &mut out).unwrap();
        proto::Profile::decode(&unpack(&out)[..]).unwrap()
    }

    fn packed(change: impl FnOnce(&mut proto::Profile)) -> Vec<u8> {
        let mut profile = encoded(&fixtures::node());
        change(&mut profile);
        pack(&profile.encode_to_vec())
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

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = pack(&vec![0; 1 << 20]).repeat(600);
        assert!(bomb.len() < 8 << 20);
        assert!(matches!(read(&bomb[..]), Err(PprofError::TooLarge(_))));
    }

    #[test]
    fn few_bytes_cannot_stand_for_much_memory() {
        let long_text = packed(|profile| {
            profile.string_table.push("x".repeat(1 << 20));
            let name = profile.string_table.len() as i64 - 1;
            profile.function.iter_mut().for_each(|function| function.name = name);
            let location = profile.location[0].clone();
            profile
                .location
                .extend((0..2_000).map(|i| proto::Location { id: 1_000_000 + i, ..location.clone() }));
        });
        assert!(matches!(read(&long_text[..]), Err(PprofError::TooLarge(_))));
        let huge_message = packed(|profile| profile.sample[0].location_id = vec![1; 2 << 20]);
        assert!(matches!(read(&huge_message[..]), Err(PprofError::TooLarge(_))));
    }

    #[test]
    fn what_refers_to_nothing_is_refused() {
        let changes: [fn(&mut proto::Profile); 7] = [
            |profile| profile.sample[0].location_id[0] = 99_999,
            |profile| profile.sample[0].value[0] = -1,
            |profile| profile.sample[0].value.clear(),
            |profile| profile.sample[0].label[0].key = -1,
            |profile| profile.location[0].mapping_id = 99_999,
            |profile| profile.location[0].line[0].function_id = 99_999,
            |profile| profile.function[0].name = i64::MAX,
        ];
        for (i, change) in changes.into_iter().enumerate() {
            assert!(matches!(read(&packed(change)[..]), Err(PprofError::Inconsistent(_))), "{i}");
        }
        let foreign = packed(|profile| profile.string_table.retain(|text| !text.starts_with('{')));
        assert!(matches!(read(&foreign[..]), Err(PprofError::Foreign)));
    }
}
