//! Chance that can be had again: the same seed gives the same choices.

use std::{env, time::Duration};

/// Random numbers (SplitMix64; Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// From `TRACER_FAULTS_SEED`, else always the same. A failed test shows it.
    #[must_use]
    pub fn seeded() -> Self {
        let seed = from_environment("TRACER_FAULTS_SEED").unwrap_or(1);
        println!("seed {seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `least` to `most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.between(0, of.len() as u64 - 1) as usize]
    }

    /// A time up to `most`.
    pub fn moment(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.between(0, most.as_micros() as u64))
    }
}

/// How many faults of a kind: so many in `TRACER_FAULTS`, else a few.
#[must_use]
pub fn faults(few: u64) -> u64 {
    from_environment("TRACER_FAULTS").unwrap_or(few)
}

/// How often a gate opens and closes: so often as `TRACER_GATE_ROUNDS` says, else a few times.
#[must_use]
pub fn gate_rounds(few: u64) -> u64 {
    from_environment("TRACER_GATE_ROUNDS").unwrap_or(few)
}

fn from_environment(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number: {text:?}")))
}
