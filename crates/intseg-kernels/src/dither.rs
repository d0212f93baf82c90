//! Random bits from a counter.
//!
//! The bits of an element depend on seed, step, tensor, role and element index alone, never on the order in which
//! elements are visited, so results are the same for any number of threads and after any interruption.

use crate::vector::{LANES, Lanes, Vector};

/// What random bits are used for. Two roles of one tensor draw independent bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Rounding an error that leaves ReLU or batch normalisation backward (E1).
    ErrorAtActivation = 1,
    /// Rounding an error that enters convolution backward (E2).
    ErrorAtConvolution = 2,
    /// Rounding a weight gradient (G).
    Gradient = 3,
    /// Rounding the update of a momentum or a master weight.
    Update = 4,
    /// Rounding running statistics.
    RunningStatistics = 5,
    /// Dropout masks.
    Dropout = 6,
    /// Initial weights.
    Initial = 7,
    /// Data augmentation.
    Augmentation = 8,
    /// The order in which samples are visited.
    Shuffle = 9,
    /// Halving of masters when a weight grid grows.
    Regrid = 10,
    /// Generated scenes.
    Scene = 11,
}

/// A stream of random bits addressed by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dither {
    k0: u32,
    k1: u32,
    /// Whether rounding that uses it is to nearest, for comparison.
    nearest: bool,
    /// Bits of the stream that are kept, and bits that are set instead.
    keep: u32,
    set: u32,
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix64(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Dither {
    /// The stream of `(seed, step, tensor, role)`.
    pub const fn new(seed: u64, step: u64, tensor: u32, role: Role) -> Self {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let key = mix64(
            mix64(mix64(seed.wrapping_add(GOLDEN)) ^ step.wrapping_mul(GOLDEN)) ^ ((tensor as u64) << 8 | role as u64),
        );
        Dither { k0: key as u32, k1: (key >> 32) as u32, nearest: false, keep: u32::MAX, set: 0 }
    }

    /// A stream for rounding to nearest (ties up) in place of stochastically, once [`Dither::over`] knows the shift.
    /// Training with it shows what stochastic rounding is worth.
    pub const fn to_nearest(self) -> Self {
        Dither { nearest: true, ..self }
    }

    /// The stream for dropping `shift` bits, or the highest of 32: itself, or the constant half where rounding is to
    /// nearest.
    pub const fn over(self, shift: u32) -> Self {
        if !self.nearest {
            return self;
        }
        let half = match shift {
            0 => 0,
            1..=31 => 1 << (shift - 1),
            _ => 1 << 31,
        };
        Dither { keep: 0, set: half | 1 << 31, ..self }
    }

    /// 32 random bits of element `index`; indices 2^32 apart share them. Two 32-bit multiplications, so that the
    /// compiler can vectorise loops over it.
    #[inline(always)]
    pub const fn at(self, index: usize) -> u32 {
        let mut h = (index as u32).wrapping_mul(0x9E37_79B9).wrapping_add(self.k0);
        h ^= h >> 16;
        h = h.wrapping_mul(0x7FEB_352D);
        h ^= h >> 15;
        h = h.wrapping_add(self.k1).wrapping_mul(0x846C_A68B);
        ((h ^ (h >> 16)) & self.keep) ^ self.set
    }

    /// The bits of elements `first..first + 16`.
    #[inline(always)]
    pub(crate) fn lanes<V: Vector>(self, first: usize) -> V {
        const STEPS: Lanes = {
            let mut steps = [0; LANES];
            let mut k = 0;
            while k < LANES {
                steps[k] = (k as u32).wrapping_mul(0x9E37_79B9) as i32;
                k += 1;
            }
            Lanes(steps)
        };
        let start = (first as u32).wrapping_mul(0x9E37_79B9).wrapping_add(self.k0);
        let h = STEPS.get::<V>().add(V::splat(start as i32));
        let h = h.xor(h.shr_unsigned(16)).mul(V::splat(0x7FEB_352D));
        let h = h.xor(h.shr_unsigned(15)).add(V::splat(self.k1 as i32)).mul(V::splat(0x846C_A68Bu32 as i32));
        h.xor(h.shr_unsigned(16)).and(V::splat(self.keep as i32)).xor(V::splat(self.set as i32))
    }

    /// A random integer in `0..bound` of element `index` (0 when `bound` is 0).
    #[inline]
    pub const fn below(self, index: usize, bound: u32) -> u32 {
        ((self.at(index) as u64 * bound as u64) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_frozen() {
        // A change here changes every trained model: these values must never move.
        let d = Dither::new(1, 2, 3, Role::Gradient);
        assert_eq!([d.at(0), d.at(1), d.at(1 << 20)], [2653549067, 1893584679, 198395010]);
    }

    #[test]
    fn lanes_hold_the_bits_of_neighbours() {
        for first in [0, 5, 1 << 20, u32::MAX as usize - 7] {
            let d = Dither::new(4, 5, 6, Role::Update);
            let lanes: Lanes = d.lanes(first);
            assert!((0..LANES).all(|k| lanes.0[k] as u32 == d.at(first + k)));
        }
    }

    #[test]
    fn a_stream_for_nearest_rounds_halves_up_at_every_shift() {
        let d = Dither::new(1, 2, 3, Role::Update).to_nearest();
        for shift in 0..32 {
            for x in (-4000..4000).chain([i32::MAX, i32::MIN]) {
                let got = crate::round::stochastic_i32(x, shift, d.over(shift).at(x as usize));
                let want = ((i64::from(x) << 1 >> shift) + 1) >> 1;
                assert_eq!(i64::from(got), want, "{x} >> {shift}");
                let lanes: Lanes = d.over(shift).lanes(7);
                assert_eq!(lanes.0[3] as u32, d.over(shift).at(10));
            }
        }
        for shift in [33, 45, 62] {
            let x = 0x1234_5678_9ABC_DEF0i64;
            let got = crate::round::stochastic_i64(x, shift, d.over(shift).at(0));
            assert_eq!(got, ((x >> (shift - 1)) + 1) >> 1, "{shift}");
        }
    }

    #[test]
    fn every_bit_is_balanced_and_streams_differ() {
        let (a, b) = (Dither::new(0, 0, 0, Role::Update), Dither::new(0, 1, 0, Role::Update));
        let n = 1 << 16;
        for bit in 0..32 {
            let ones = (0..n).filter(|&i| a.at(i) >> bit & 1 == 1).count();
            let equal = (0..n).filter(|&i| (a.at(i) ^ b.at(i)) >> bit & 1 == 0).count();
            let serial = (0..n).filter(|&i| (a.at(i) ^ a.at(i + 1)) >> bit & 1 == 0).count();
            for (what, count) in [("ones", ones), ("equal", equal), ("serial", serial)] {
                assert!(count.abs_diff(n / 2) < 800, "bit {bit}: {what} {count} of {n}");
            }
        }
    }

    #[test]
    fn below_stays_below_and_reaches_all() {
        let d = Dither::new(7, 0, 0, Role::Shuffle);
        let mut seen = [0; 10];
        (0..1000).for_each(|i| seen[d.below(i, 10) as usize] += 1);
        assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
    }
}
