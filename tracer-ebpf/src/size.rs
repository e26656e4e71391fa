//! Sizes of requests.

/// `size * elements`, or the largest number when that is larger: a request which no allocator can meet.
///
/// By halves, since BPF has neither a 128-bit product nor the overflow flag that `saturating_mul` would use.
#[must_use]
#[inline(always)]
pub const fn saturating_product(size: u64, elements: u64) -> u64 {
    let (large, small) = if size > elements { (size, elements) } else { (elements, size) };
    if small >> 32 != 0 {
        return u64::MAX;
    }
    let high = (large >> 32).wrapping_mul(small);
    if high >> 32 != 0 {
        return u64::MAX;
    }
    let low = (large as u32 as u64).wrapping_mul(small);
    let product = (high << 32).wrapping_add(low);
    if product < low { u64::MAX } else { product }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_product_or_the_largest_number() {
        let numbers = [
            0,
            1,
            3,
            8,
            u32::MAX as u64 - 1,
            u32::MAX as u64,
            1 << 32,
            1 << 33,
            (1 << 33) + 7,
            1 << 63,
            u64::MAX,
        ];
        for size in numbers {
            for elements in numbers {
                assert_eq!(
                    saturating_product(size, elements),
                    size.saturating_mul(elements),
                    "{size} {elements}"
                );
            }
        }
    }
}
