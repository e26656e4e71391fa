//! The bytes until the next sample: exponentially distributed, which makes samples a Poisson process over bytes, and means that what
//! was allocated before says nothing about when the next one comes. So an interval can be cut and drawn anew at any time.

/// A generator of random numbers: splitmix64 (Steele, Lea and Flood 2014).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Random(u64);

impl Random {
    /// A generator that begins here.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// What the next number depends on.
    pub(crate) const fn state(self) -> u64 {
        self.0
    }

    /// The next number. `entropy` changes what follows: a forked child has its parent's generator.
    pub fn next(&mut self, entropy: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ entropy;
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The whole bytes of an interval of this mean, given a random number. A block is sampled when it is larger than what is left of it;
/// rounding down changes nothing, as sizes are whole.
///
/// By integers alone: arithmetic with floating point would leave its exceptions in the flags of a program that only allocated.
#[must_use]
pub fn bytes(random: u64, mean: u64) -> u64 {
    let bytes = (u128::from(exponential(random)) * u128::from(mean)) >> FRACTION_BITS;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// So many bits of a logarithm are behind its point.
const FRACTION_BITS: u32 = 52;

/// `-ln u` of an odd number of 2^-54ths `u` between 0 and 1, exponentially distributed with a mean of 1.
fn exponential(random: u64) -> u64 {
    /// ln 2, in 2^-64ths.
    const LN_2: u64 = 0xb172_17f7_d1cf_79ac;
    const UNIFORM_BITS: u32 = 54;
    let uniform = random >> (u64::BITS - UNIFORM_BITS) | 1;
    // A number from 1 to 2 with 63 bits behind its point, and the power of two that makes it `uniform`.
    let zeros = uniform.leading_zeros();
    let mut mantissa = uniform << zeros;
    let power = zeros - (u64::BITS - UNIFORM_BITS) + 1;
    // Its logarithm, bit by bit: the square of a number has twice its logarithm.
    let mut logarithm = 0;
    for _ in 0..FRACTION_BITS {
        let square = u128::from(mantissa) * u128::from(mantissa);
        let is_2_or_more = square >> 127 == 1;
        logarithm = logarithm << 1 | u64::from(is_2_or_more);
        mantissa = (square >> if is_2_or_more { 64 } else { 63 }) as u64;
    }
    let logarithm = (u64::from(power) << FRACTION_BITS) - logarithm;
    ((u128::from(logarithm) * u128::from(LN_2)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_that_of_the_mathematical_library() {
        let mut random = Random::new(7);
        let extremes = [0, 1 << 10, u64::MAX, u64::MAX >> 1, 1 << 63];
        for random in extremes.into_iter().chain((0..100_000).map(|_| random.next(0))) {
            let uniform = (random >> 10 | 1) as f64 / (1_u64 << 54) as f64;
            let found = exponential(random) as f64 / (1_u64 << FRACTION_BITS) as f64;
            assert!((found + uniform.ln()).abs() <= 1e-15 * (1.0 + found), "{random:#x}: {found}");
        }
    }

    #[test]
    fn intervals_have_their_mean_and_are_exponential() {
        const MEAN: u64 = 100_000;
        const COUNT: usize = 400_000;
        let mut random = Random::new(1);
        let drawn: Vec<u64> = (0..COUNT).map(|_| bytes(random.next(0), MEAN)).collect();
        let mean = drawn.iter().sum::<u64>() as f64 / COUNT as f64;
        // Five standard errors; rounding down takes half a byte.
        let allowed = 5.0 * MEAN as f64 / (COUNT as f64).sqrt() + 1.0;
        assert!((mean - MEAN as f64).abs() < allowed, "{mean}");
        for part in [0.01, 0.1, 0.5, 1.0, 2.0, 5.0] {
            let limit = (MEAN as f64 * part) as u64;
            let below = drawn.iter().filter(|&&bytes| bytes < limit).count() as f64 / COUNT as f64;
            let expected = -(-part).exp_m1();
            let error = (expected * (1.0 - expected) / COUNT as f64).sqrt();
            assert!((below - expected).abs() < 5.0 * error, "{part}: {below} {expected}");
        }
    }

    #[test]
    fn the_extremes_are_finite() {
        assert!(bytes(0, 1 << 30) < 40 << 30);
        assert_eq!(bytes(u64::MAX, 1 << 30), 0);
        assert_eq!(bytes(0, 0), 0);
    }
}
