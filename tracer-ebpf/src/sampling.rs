//! Which allocations are kept when not all are, and how much a kept one stands for.
//!
//! Poisson sampling by bytes: as if one byte in `mean` of all that is requested were chosen by chance, and a block kept with the
//! first of its bytes that is. So a block of `s` bytes is kept with probability `p = 1 - exp(-s / mean)`: large ones always,
//! small ones in proportion to their size. What is kept stands for `1 / p` blocks and `s / p` bytes, which makes sums over what is
//! kept unbiased estimates of sums over everything.
//!
//! There is no state, hence nothing that a preempted program could spoil: each allocation is decided by a random number.
//! Both sides compute `p` by the same integers, and a weight is the inverse of *that* number, so estimates are unbiased however
//! well it approximates the exponential function.

/// One whole object, of which weights count parts.
pub const OBJECT: u64 = 1 << OBJECT_BITS;
const OBJECT_BITS: u32 = 16;

/// As much as a process can address.
const MOST_BYTES: u64 = 1 << 47;

/// What stands for certainty: probabilities are multiples of 2^-32.
const CERTAIN: u64 = 1 << 32;
/// Fixed point of `y = s / (mean * ln 2)`, for which `exp(-s / mean) = 2^-y`.
const RATE_BITS: u32 = 48;
/// From `y = 32` on the chance to be left out is less than the smallest number.
const CERTAIN_Y: u64 = 32 << RATE_BITS;

/// How much a block stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes, rounded.
    pub bytes: u64,
    /// Objects, in parts of an [`OBJECT`].
    pub objects: u64,
}

impl Weight {
    /// The smaller of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { bytes: self.bytes.min(other.bytes), objects: self.objects.min(other.objects) }
    }

    /// The weight of a block that was certain to be kept.
    #[must_use]
    #[inline(always)]
    pub const fn exactly(size: u64) -> Self {
        Self { bytes: size, objects: OBJECT }
    }

    /// The weight of a block that stands for so many objects, counted in parts of an [`OBJECT`].
    #[must_use]
    #[inline(always)]
    pub const fn of(size: u64, objects: u64) -> Self {
        if objects == OBJECT {
            return Self::exactly(size);
        }
        // For what a sampling makes this is below 2^63: 23 times the largest mean at most, times 2^16.
        let bytes = size.wrapping_mul(objects).wrapping_add(OBJECT / 2) >> OBJECT_BITS;
        Self { bytes, objects }
    }

    /// How many objects a block stands for, in parts of an [`OBJECT`], of which a process says that it stands for so many bytes. At
    /// least itself.
    #[must_use]
    #[inline(always)]
    pub const fn objects_of(size: u64, weight: u64) -> u64 {
        // Nobody has as much memory; and what is multiplied must not overflow.
        if size >= MOST_BYTES || weight >= MOST_BYTES {
            return OBJECT;
        }
        let size = if size == 0 { 1 } else { size };
        let objects = ((weight << OBJECT_BITS) + size / 2) / size;
        if objects < OBJECT { OBJECT } else { objects }
    }

    /// Objects, rounded.
    #[must_use]
    pub const fn whole_objects(self) -> u64 {
        self.objects.saturating_add(OBJECT / 2) >> OBJECT_BITS
    }
}

/// How allocations are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// `y` of one byte; 0 when every allocation is kept.
    pub rate: u64,
    /// The size from which on a block is certain to be kept.
    pub certain_size: u64,
}

impl Sampling {
    /// Keeps every allocation.
    pub const EVERY: Self = Self { rate: 0, certain_size: 0 };
    /// The largest mean: 1 GiB.
    pub const LARGEST_MEAN: u64 = 1 << 30;

    /// One sample every `mean` bytes, at most [`Sampling::LARGEST_MEAN`]; 0 keeps every allocation.
    #[must_use]
    pub const fn with_mean(mean: u64) -> Self {
        /// `1 / ln 2`.
        const BITS_PER_E: u64 = 406_082_553_034_801;
        if mean == 0 {
            return Self::EVERY;
        }
        let mean = if mean > Self::LARGEST_MEAN { Self::LARGEST_MEAN } else { mean };
        let rate = (BITS_PER_E + mean / 2) / mean;
        Self { rate, certain_size: CERTAIN_Y.div_ceil(rate) }
    }

    /// Whether every allocation is kept.
    #[must_use]
    #[inline(always)]
    pub const fn keeps_every_one(self) -> bool {
        self.rate == 0
    }

    /// `y` of a block; none when it is certain to be kept.
    #[inline(always)]
    const fn y(self, size: u64) -> Option<u64> {
        if size >= self.certain_size {
            return None;
        }
        // Blocks of no bytes are as likely as those of one. No overflow: below `certain_size` the product is about 2^53 at most.
        let size = if size == 0 { 1 } else { size };
        Some(size * self.rate)
    }

    /// Whether a block is kept, given 32 random bits.
    #[must_use]
    #[inline(always)]
    pub const fn keeps(self, size: u64, random: u32) -> bool {
        let Some(y) = self.y(size) else { return true };
        // `p` is less than `y`, and nearly all are small: one multiplication is enough to leave them out.
        if random as u64 > y >> (RATE_BITS - 32) {
            return false;
        }
        (random as u64) < probability(y)
    }

    /// What a kept block stands for.
    #[must_use]
    #[inline(always)]
    pub const fn weight(self, size: u64) -> Weight {
        Weight::of(size, self.objects(size))
    }

    /// How many objects a kept block stands for, in parts of an [`OBJECT`].
    #[must_use]
    #[inline(always)]
    pub const fn objects(self, size: u64) -> u64 {
        let Some(y) = self.y(size) else { return OBJECT };
        // No `max`: the compiler would not see that it is no division by zero.
        match probability(y) {
            0 => CERTAIN << OBJECT_BITS,
            probability => (CERTAIN << OBJECT_BITS) / probability,
        }
    }
}

/// `1 - 2^-y` in parts of 2^32, and at least one of them.
#[inline(always)]
const fn probability(y: u64) -> u64 {
    /// `ln 2` in parts of 2^32.
    const LN_2: u64 = 2_977_044_472;
    let whole = y >> RATE_BITS;
    let u = ((y >> (RATE_BITS - 32)) as u32 as u64 * LN_2) >> 32;
    // 1 - exp(-u) = u (1 - u/2 (1 - u/3 (1 - ...))), u < 0.7: the tenth term is below 2^-32.
    let mut sum = CERTAIN;
    let mut term = 10;
    while term > 1 {
        sum = CERTAIN - (((u / term) * sum) >> 32);
        term -= 1;
    }
    let fraction = (u * sum) >> 32;
    let probability = CERTAIN - ((CERTAIN - fraction) >> whole);
    if probability == 0 { 1 } else { probability }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// From one byte to a gibibyte, and a few that are no powers of two.
    fn sizes() -> impl Iterator<Item = u64> {
        (0..=30).flat_map(|shift| [1_u64 << shift, (1 << shift) + (1 << shift) / 3])
    }

    const MEANS: [u64; 7] = [1, 100, 4096, 100_000, 512 << 10, 64 << 20, Sampling::LARGEST_MEAN];

    fn chance(mean: u64, size: u64) -> f64 {
        let sampling = Sampling::with_mean(mean);
        sampling.y(size).map_or(1.0, |y| probability(y) as f64 / CERTAIN as f64)
    }

    #[test]
    fn the_probability_is_that_of_the_exponential_function() {
        for mean in MEANS {
            for size in sizes() {
                let exact = -(-(size as f64) / mean as f64).exp_m1();
                let found = chance(mean, size);
                // One step of 2^-32 for each of ten terms, and what rounding the mean makes.
                let allowed = 1e-8_f64.max(3e-6 * exact);
                assert!((found - exact).abs() < allowed, "{size} of {mean}: {found} {exact}");
            }
        }
    }

    #[test]
    fn a_weight_is_the_inverse_of_the_probability() {
        for mean in MEANS {
            for size in sizes() {
                let weight = Sampling::with_mean(mean).weight(size);
                let probability = chance(mean, size);
                let objects = weight.objects as f64 / OBJECT as f64 * probability;
                assert!((objects - 1.0).abs() < 2e-5, "{size} of {mean}: {objects}");
                let bytes = weight.bytes as f64 * probability;
                let allowed = 2e-5 * size as f64 + probability;
                assert!((bytes - size as f64).abs() < allowed, "{size} of {mean}: {bytes}");
            }
        }
    }

    #[test]
    fn weights_in_bytes_say_how_many_objects_there_are() {
        assert_eq!(Weight::objects_of(100, 100), OBJECT);
        assert_eq!(Weight::objects_of(100, 250), 5 * OBJECT / 2);
        assert_eq!(Weight::objects_of(100, 1), OBJECT, "it stands for itself at least");
        assert_eq!(Weight::objects_of(0, 512), 512 * OBJECT);
        assert_eq!(Weight::objects_of(1 << 47, 1 << 48), OBJECT);
        for size in sizes() {
            for weight in [size, size + 512, 3 * size + 7] {
                let back = Weight::of(size, Weight::objects_of(size, weight)).bytes;
                let allowed = size as f64 / OBJECT as f64 + 1.0;
                assert!(
                    size == 0 || (back as f64 - weight as f64).abs() <= allowed,
                    "{size} {weight} {back}"
                );
            }
        }
    }

    #[test]
    fn what_is_certain_is_exact() {
        let sampling = Sampling::with_mean(512 << 10);
        for size in [12 << 20, (1 << 40) + 1, u64::MAX] {
            assert_eq!(sampling.weight(size), Weight::exactly(size));
            assert!(sampling.keeps(size, u32::MAX));
        }
        for size in [0, 1, u64::MAX] {
            assert_eq!(Sampling::EVERY.weight(size), Weight::exactly(size));
            assert!(Sampling::EVERY.keeps(size, u32::MAX));
        }
    }

    #[test]
    fn a_block_is_kept_for_as_many_random_numbers_as_its_probability_says() {
        for mean in MEANS {
            let sampling = Sampling::with_mean(mean);
            for size in sizes() {
                let Some(y) = sampling.y(size) else { continue };
                // It is a threshold: kept below, left out from there on.
                let threshold = probability(y);
                assert!((1..=CERTAIN).contains(&threshold));
                assert!(sampling.keeps(size, (threshold - 1) as u32), "{size} of {mean}");
                if let Ok(beyond) = u32::try_from(threshold) {
                    assert!(!sampling.keeps(size, beyond), "{size} of {mean}");
                }
            }
        }
    }

    #[test]
    fn larger_blocks_are_likelier() {
        for mean in MEANS {
            let chances: Vec<f64> = (0..4000).map(|step| chance(mean, step * mean / 200)).collect();
            assert!(chances.is_sorted());
        }
    }

    #[test]
    fn estimates_of_a_mixture_are_unbiased() {
        // The random numbers are evenly spread, so the sum is as good as its expectation.
        let sampling = Sampling::with_mean(512 << 10);
        for size in [8, 100, 4096, 300_000, 1 << 20, 8 << 20] {
            let numbers = 1_u64 << 22;
            let kept =
                (0..numbers).filter(|number| sampling.keeps(size, (number << 10) as u32)).count() as u64;
            let estimate = kept as f64 * sampling.weight(size).bytes as f64;
            let exact = (size * numbers) as f64;
            assert!((estimate / exact - 1.0).abs() < 0.01, "{size}: {estimate} {exact}");
        }
    }
}
