//! The values of options: how they are written.

use std::time::Duration;

use clap::{ValueEnum, builder::PossibleValue};
use tracer_ebpf::sampling::Sampling;

use crate::model::{Bytes, Mode, Pid, Verdict};
use crate::plan::{Allocator, SymbolPrefix};
use crate::report::filter::pattern;
use crate::report::{FlameOrder, Format, WeightUnit};

/// Shorter intervals would cost more to look than there is to see.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

pub(super) fn parse_pid(text: &str) -> Result<Pid, String> {
    /// `PID_MAX_LIMIT` of the kernel.
    const LARGEST: u32 = 4 << 20;
    match text.parse() {
        Ok(0) => Err("process ids begin at 1".into()),
        Ok(pid) if pid <= LARGEST => Ok(Pid(pid)),
        Ok(_) => Err(format!("process ids end at {LARGEST}")),
        Err(_) => Err("a process id is a number, as `pgrep -l NAME` shows it".into()),
    }
}

pub(super) fn parse_allocator(text: &str) -> Result<Allocator, String> {
    text.parse().map_err(|error: crate::plan::declared::AllocatorSyntaxError| error.to_string())
}

pub(super) fn parse_prefix(text: &str) -> Result<SymbolPrefix, String> {
    text.parse().map_err(|error: crate::plan::ApiSyntaxError| error.to_string())
}

pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .map_err(|_| "a time is a number and a unit, such as 30s, 5m, 1h 30m or 500ms".into())
}

pub(super) fn parse_positive_time(text: &str) -> Result<Duration, String> {
    let time = parse_time(text)?;
    if time.is_zero() { Err("it must be more than nothing".into()) } else { Ok(time) }
}

pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_time(text)?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("it must be at least {}", time(SHORTEST_INTERVAL)));
    }
    Ok(interval)
}

pub(super) fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

pub(super) fn parse_size(text: &str) -> Result<Bytes, String> {
    let size: Result<bytesize::ByteSize, _> = text.parse();
    let size = size.map_err(|_| "a size is a number of bytes or has a unit, such as 512KiB, 1MiB or 10MB")?;
    Ok(Bytes(size.as_u64()))
}

/// The mean of a sample.
pub(super) fn parse_sample(text: &str) -> Result<Bytes, String> {
    let size = parse_size(text)?;
    if size.0 > Sampling::LARGEST_MEAN {
        return Err(format!(
            "it must be at most {}: larger blocks than that are tracked anyway",
            Bytes(Sampling::LARGEST_MEAN)
        ));
    }
    Ok(size)
}

pub(super) fn parse_pattern(text: &str) -> Result<String, String> {
    pattern(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

pub(super) fn parse_verdict(name: &str) -> Result<Verdict, String> {
    const KNOWN: [Verdict; 5] =
        [Verdict::Leaking, Verdict::Growing, Verdict::Steady, Verdict::OneOff, Verdict::Unknown];
    let known = KNOWN.into_iter().find(|verdict| verdict.name() == name);
    known.ok_or_else(|| format!("the verdicts are {}", KNOWN.map(Verdict::name).join(", ")))
}

pub(super) fn parse_format(name: &str) -> Result<Format, String> {
    Format::from_name(name).map_err(|error| error.to_string())
}

impl ValueEnum for Mode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Allocations, Self::Growth]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Allocations => {
                PossibleValue::new("allocations").help("Every allocation, and which of them are not freed")
            }
            Self::Growth => PossibleValue::new("growth")
                .help("Only what makes the process' memory grow: mappings and page faults, no probes"),
        })
    }
}

impl ValueEnum for WeightUnit {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Bytes, Self::Objects]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Bytes => PossibleValue::new("bytes")
                .help("Outstanding bytes of native memory, resident bytes of mappings"),
            Self::Objects => PossibleValue::new("objects").help("Outstanding blocks and mappings"),
        })
    }
}

impl ValueEnum for FlameOrder {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Flame, Self::Icicle]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Flame => PossibleValue::new("flame").help("From the bottom, callers below callees"),
            Self::Icicle => PossibleValue::new("icicle").help("From the top, callers above callees"),
        })
    }
}
