//! The rate of sampling: at the start by the environment, later by whoever traces the process.

/// The variable of the environment: mean bytes between samples (`TRACER_SAMPLE=64KiB`).
pub const VARIABLE: &str = "TRACER_SAMPLE";

/// Mean bytes between samples where nobody says otherwise: 512 KiB, as the other implementations of the contract have it.
pub const USUAL_MEAN: u64 = 512 << 10;

/// The largest mean, in bytes: 1 GiB.
pub const LARGEST_MEAN: u64 = tracer_ebpf::sampling::Sampling::LARGEST_MEAN;

/// A number of bytes: decimal, with `K`, `M` or `G` behind it, or these with `iB`, for powers of 1,024. None of what is something else,
/// or more than [`LARGEST_MEAN`].
#[must_use]
pub fn parse_bytes(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, unit) = text.split_at_checked(digits)?;
    if number.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for digit in number {
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    let scale = match unit {
        b"" | b"B" => 1,
        b"K" | b"KiB" => 1 << 10,
        b"M" | b"MiB" => 1 << 20,
        b"G" | b"GiB" => 1 << 30,
        _ => return None,
    };
    value.checked_mul(scale).filter(|&bytes| bytes <= LARGEST_MEAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let read = |text: &str| parse_bytes(text.as_bytes());
        assert_eq!(read("0"), Some(0));
        assert_eq!(read("4096"), Some(4096));
        assert_eq!(read("64K"), Some(64 << 10));
        assert_eq!(read("512KiB"), Some(512 << 10));
        assert_eq!(read("1GiB"), Some(1 << 30));
        for wrong in ["", "KiB", "-1", "2GiB", "1 KiB", "1KB", "99999999999999999999"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
