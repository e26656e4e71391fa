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
#[must_use]
pub fn bytes(random: u64, mean: u64) -> u64 {
    /// One in 2^53: as many numbers as an `f64` between 0 and 1 tells apart.
    const STEP: f64 = 1.0 / (1_u64 << 53) as f64;
    let uniform = ((random >> 11) as f64 + 0.5) * STEP;
    (-ln(uniform) * mean as f64) as u64
}

/// The natural logarithm of a normal number above 0: there is no mathematical library inside `malloc`.
fn ln(x: f64) -> f64 {
    const FRACTION_BITS: u32 = 52;
    const ONE: u64 = 1023 << FRACTION_BITS;
    let bits = x.to_bits();
    let exponent = (bits >> FRACTION_BITS) as i64 - 1023;
    let fraction = f64::from_bits(bits & ((1 << FRACTION_BITS) - 1) | ONE);
    // ln m = 2 (t + t^3 / 3 + t^5 / 5 + ...), t = (m - 1) / (m + 1) <= 1/3: the sixteenth term is below 10^-16.
    let t = (fraction - 1.0) / (fraction + 1.0);
    let square = t * t;
    let mut sum = 0.0;
    let mut term = 31;
    while term > 0 {
        sum = sum * square + 1.0 / term as f64;
        term -= 2;
    }
    exponent as f64 * core::f64::consts::LN_2 + 2.0 * t * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_that_of_the_mathematical_library() {
        let mut random = Random::new(7);
        for _ in 0..100_000 {
            let x = (random.next(0) >> 11) as f64 / (1_u64 << 53) as f64 + f64::MIN_POSITIVE;
            assert!((ln(x) - x.ln()).abs() <= 4e-15 * x.ln().abs().max(0.1), "{x}: {} {}", ln(x), x.ln());
        }
        assert!((ln(f64::MIN_POSITIVE) - f64::MIN_POSITIVE.ln()).abs() < 1e-12);
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
