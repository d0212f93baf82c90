//! Sixteen 32-bit lanes: what element-wise loops are written in.
//!
//! A loop over a tensor is written once over `Vector` and becomes code of each instruction set. A compiler's own
//! vectorisation gives up on loops with many streams or lanes that differ in their constants; this does not.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::Isa;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Vector512;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// One value a lane, in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Lanes(pub [i32; LANES]);

/// Lanes of a vector of words.
pub(crate) const WORD_LANES: usize = 2 * LANES;

/// Thirty-two signed 16-bit integers. Arithmetic wraps.
pub(crate) trait Words: Copy {
    fn load_u8(from: &[u8; WORD_LANES]) -> Self;
    fn load_i8(from: &[i8; WORD_LANES]) -> Self;
    /// Of sixteen groups of four, the first two of each, and the last two.
    fn load_pairs(from: &[i8; 4 * LANES]) -> [Self; 2];
    fn store(self, to: &mut [i16; WORD_LANES]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
}

/// Sixteen signed 32-bit integers. Arithmetic wraps.
pub(crate) trait Vector: Copy {
    /// One truth value a lane.
    type Mask: Copy;
    /// The same instruction set's vector of 16-bit integers.
    type Words: Words;
    /// 256 values of 16 bits.
    type Table<'a>: Copy;

    fn splat(value: i32) -> Self;
    fn load_i32(from: &[i32; LANES]) -> Self;
    fn load_i16(from: &[i16; LANES]) -> Self;
    fn load_i8(from: &[i8; LANES]) -> Self;
    fn load_u8(from: &[u8; LANES]) -> Self;
    fn store_i32(self, to: &mut [i32; LANES]);
    /// Every lane must fit 16 bits, as for the other narrow stores.
    fn store_i16(self, to: &mut [i16; LANES]);
    fn store_i8(self, to: &mut [i8; LANES]);
    fn store_u8(self, to: &mut [u8; LANES]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    /// The low 32 bits.
    fn mul(self, other: Self) -> Self;
    /// `self + a · b` for lanes of 16 bits, those of `a` not negative: in fewer instructions than [`Vector::mul`] takes.
    fn add_narrow_product(self, a: Self, b: Self) -> Self;
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn and(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    /// Left by `count`, 0..=31.
    fn shl(self, count: u32) -> Self;
    /// Right by `count`, 0..=31, copies of the sign moving in.
    fn shr(self, count: u32) -> Self;
    /// Right by `count`, 0..=31, zeros moving in.
    fn shr_unsigned(self, count: u32) -> Self;
    /// Right by a count a lane, 0..=31, copies of the sign moving in.
    fn shr_each(self, counts: Self) -> Self;
    /// Where `self > other`.
    fn greater(self, other: Self) -> Self::Mask;
    /// `self` where the mask holds, 0 elsewhere.
    fn keep(self, mask: Self::Mask) -> Self;
    /// `self` where the mask holds, `other` elsewhere.
    fn or_else(self, mask: Self::Mask, other: Self) -> Self;
    /// The mask, a bit a lane.
    fn bits(mask: Self::Mask) -> u32;
    /// Of unsigned lanes, `(self · factor + add) >> shift` in 64 bits, at most `limit`. `shift` is 0..=63; product and
    /// sum must stay below 2^63.
    fn scaled(self, factor: u32, add: u64, shift: u32, limit: u32) -> Self;
    /// The largest lane.
    fn largest(self) -> i32;
    /// The sum of the lanes.
    fn total(self) -> i32;
    /// Makes a table ready for [`Vector::look_up`].
    fn table(values: &[u16; 256]) -> Self::Table<'_>;
    /// The table's value at each lane, which must be 0..=255.
    fn look_up(self, table: &Self::Table<'_>) -> Self;

    /// `self / 2^shift` to nearest, ties to even. `shift` is 0..=31; `|self|` and half a unit together must fit.
    #[inline(always)]
    fn half_even(self, shift: u32) -> Self {
        let unit = 1i64 << shift;
        // Half a unit, less one where the floor is even; 0 where nothing is dropped.
        let below_half = Self::splat(((unit >> 1) - 1) as i32);
        let odd = self.shr(shift).and(Self::splat(1));
        let up = below_half.add(odd).and(Self::splat((unit - 1) as i32));
        self.add(up).shr(shift)
    }

    /// [`crate::round::stochastic_i32`].
    #[inline(always)]
    fn stochastic(self, shift: u32, bits: Self) -> Self {
        let mask = Self::splat(((1i64 << shift) - 1) as i32);
        self.shr(shift).add(self.and(mask).add(bits.and(mask)).shr_unsigned(shift))
    }

    /// Held within `low..=high`.
    #[inline(always)]
    fn within(self, low: Self, high: Self) -> Self {
        self.max(low).min(high)
    }
}

/// A type that tensors hold their mantissas in.
pub(crate) trait Element: Copy + Default + Send + Sync {
    fn load<V: Vector>(from: &[Self; LANES]) -> V;
    /// Every lane must fit.
    fn store<V: Vector>(vector: V, to: &mut [Self; LANES]);
    /// `sums + values · bytes`, of values of this type and signed bytes.
    #[inline(always)]
    fn add_product<V: Vector>(sums: V, values: V, bytes: V) -> V {
        sums.add(values.mul(bytes))
    }
}

impl Element for i32 {
    #[inline(always)]
    fn load<V: Vector>(from: &[Self; LANES]) -> V {
        V::load_i32(from)
    }
    #[inline(always)]
    fn store<V: Vector>(vector: V, to: &mut [Self; LANES]) {
        vector.store_i32(to);
    }
}

impl Element for i16 {
    #[inline(always)]
    fn load<V: Vector>(from: &[Self; LANES]) -> V {
        V::load_i16(from)
    }
    #[inline(always)]
    fn store<V: Vector>(vector: V, to: &mut [Self; LANES]) {
        vector.store_i16(to);
    }
}

impl Element for i8 {
    #[inline(always)]
    fn load<V: Vector>(from: &[Self; LANES]) -> V {
        V::load_i8(from)
    }
    #[inline(always)]
    fn store<V: Vector>(vector: V, to: &mut [Self; LANES]) {
        vector.store_i8(to);
    }
}

impl Element for u8 {
    #[inline(always)]
    fn load<V: Vector>(from: &[Self; LANES]) -> V {
        V::load_u8(from)
    }
    #[inline(always)]
    fn add_product<V: Vector>(sums: V, values: V, bytes: V) -> V {
        sums.add_narrow_product(values, bytes)
    }
    #[inline(always)]
    fn store<V: Vector>(vector: V, to: &mut [Self; LANES]) {
        vector.store_u8(to);
    }
}

/// Pieces that cover `0..len`: where each begins and how long it is. That is `width` where there is as much, the last piece
/// then overlapping the one before.
#[inline(always)]
pub(crate) fn covering(len: usize, width: usize) -> impl Iterator<Item = (usize, usize)> {
    let whole = width.min(len);
    (0..len).step_by(width).map(move |first| (first.min(len - whole), whole))
}

/// Elements `at..at + len` of a slice; lanes from `len` on hold 0.
#[inline(always)]
pub(crate) fn load<T: Element, V: Vector>(from: &[T], at: usize, len: usize) -> V {
    let from = &from[at..];
    match from.first_chunk() {
        Some(whole) if len >= LANES => T::load(whole),
        _ => T::load(&padded(&from[..len])),
    }
}

/// Some elements, and zeros. A call that is rare, since around an unlikely one alone the compiler keeps a loop's constants in
/// registers.
#[cold]
#[inline(never)]
fn padded<T: Element>(from: &[T]) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    lanes.iter_mut().zip(from).for_each(|(lane, &value)| *lane = value);
    lanes
}

/// The lanes below `len`.
#[inline(always)]
pub(crate) fn first_lanes<V: Vector>(len: usize) -> V::Mask {
    const LANE: Lanes = {
        let mut lanes = [0; LANES];
        let mut k = 0;
        while k < LANES {
            lanes[k] = k as i32;
            k += 1;
        }
        Lanes(lanes)
    };
    V::splat(len as i32).greater(LANE.get::<V>())
}

/// Writes the first `len` lanes to `at..at + len`.
#[inline(always)]
pub(crate) fn store<T: Element, V: Vector>(vector: V, to: &mut [T], at: usize, len: usize) {
    let to = &mut to[at..];
    match to.first_chunk_mut() {
        Some(whole) if len >= LANES => T::store(vector, whole),
        _ => {
            let mut lanes = [T::default(); LANES];
            T::store(vector, &mut lanes);
            put(&mut to[..len], &lanes);
        }
    }
}

/// The first lanes, as many as there is room for; rare, as [`padded`] is.
#[cold]
#[inline(never)]
fn put<T: Element>(to: &mut [T], lanes: &[T; LANES]) {
    to.iter_mut().zip(lanes).for_each(|(to, lane)| *to = *lane);
}

impl Lanes {
    /// As a vector.
    #[inline(always)]
    pub(crate) fn get<V: Vector>(&self) -> V {
        V::load_i32(&self.0)
    }

    /// From a vector.
    #[inline(always)]
    pub(crate) fn set<V: Vector>(&mut self, vector: V) {
        vector.store_i32(&mut self.0);
    }
}

/// A loop over vectors. `run` and all it calls must be `#[inline(always)]`.
pub(crate) trait Loop {
    /// What it returns.
    type Output;
    /// Runs it with the vectors of one instruction set.
    fn run<V: Vector>(self) -> Self::Output;
}

impl Isa {
    /// Runs a loop with this instruction set's vectors.
    #[inline(always)]
    pub(crate) fn run_loop<L: Loop>(self, body: L) -> L::Output {
        self.vectorize(
            #[inline(always)]
            || match self {
                Isa::Scalar => body.run::<Lanes>(),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(_) => body.run::<avx2::Vector256>(),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni(_) => body.run::<avx512::Vector512>(),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round::{half_even_i32, stochastic_i32};
    use crate::{Dither, Role};
    use std::vec;
    use std::vec::Vec;

    /// Every operation, applied to 16 pairs.
    struct All<'a>(&'a [i32; LANES], &'a [i32; LANES], u32);

    impl Loop for All<'_> {
        type Output = Vec<[i32; LANES]>;

        #[inline(always)]
        fn run<V: Vector>(self) -> Self::Output {
            let (a, b, shift) = (V::load_i32(self.0), V::load_i32(self.1), self.2);
            let counts = b.and(V::splat(31));
            let mut out = vec![
                a.add(b),
                a.sub(b),
                a.mul(b),
                a.min(b),
                a.max(b),
                a.and(b),
                a.xor(b),
                a.shl(shift),
                a.shr(shift),
                a.shr_unsigned(shift),
                a.shr_each(counts),
                a.keep(a.greater(b)),
                a.or_else(a.greater(b), b),
                a.shr(1).half_even(shift.min(30)),
                a.stochastic(shift, b),
                a.within(V::splat(-1000), V::splat(77)),
                a.add_narrow_product(a.shr_unsigned(17), b.shr(16)),
                a.scaled(0x3FFF_FFFF, 1 << 40, 2 * shift, shift << 27),
                V::splat(a.largest()),
                V::splat(a.total()),
                V::splat(V::bits(a.greater(b)) as i32),
                a.and(V::splat(255)).look_up(&V::table(&table())),
            ];
            let (mut i8s, mut u8s, mut i16s) = ([0i8; LANES], [0u8; LANES], [0i16; LANES]);
            a.shr(24).store_i8(&mut i8s);
            a.shr_unsigned(24).store_u8(&mut u8s);
            a.shr(16).store_i16(&mut i16s);
            out.extend([V::load_i8(&i8s), V::load_u8(&u8s), V::load_i16(&i16s)]);
            out.into_iter()
                .map(|v| {
                    let mut lanes = [0; LANES];
                    v.store_i32(&mut lanes);
                    lanes
                })
                .collect()
        }
    }

    fn table() -> [u16; 256] {
        core::array::from_fn(|k| (k * 60_013) as u16)
    }

    /// Lane `k` of every operation's result.
    fn naive(all: [&[i32; LANES]; 2], k: usize, shift: u32) -> Vec<i32> {
        let (a, b) = (all[0][k], all[1][k]);
        let greater = (0..LANES).filter(|&k| all[0][k] > all[1][k]);
        vec![
            a.wrapping_add(b),
            a.wrapping_sub(b),
            a.wrapping_mul(b),
            a.min(b),
            a.max(b),
            a & b,
            a ^ b,
            a << shift,
            a >> shift,
            (a as u32 >> shift) as i32,
            a >> (b & 31),
            if a > b { a } else { 0 },
            if a > b { a } else { b },
            half_even_i32(a >> 1, shift.min(30)),
            stochastic_i32(a, shift, b as u32),
            a.clamp(-1000, 77),
            a.wrapping_add((a as u32 >> 17) as i32 * (b >> 16)),
            ((u64::from(a as u32) * 0x3FFF_FFFF + (1 << 40)) >> (2 * shift)).min((shift << 27).into()) as i32,
            *all[0].iter().max().unwrap(),
            all[0].iter().fold(0, |sum, &v| sum.wrapping_add(v)),
            greater.map(|k| 1 << k).sum(),
            table()[(a & 255) as usize].into(),
            a >> 24,
            (a as u32 >> 24) as i32,
            a >> 16,
        ]
    }

    #[test]
    fn every_instruction_set_computes_what_the_definitions_say() {
        let d = Dither::new(1, 0, 0, Role::Initial);
        for round in 0..400 {
            let value = |k: usize| match d.at(round * 64 + k) {
                extreme if extreme % 11 == 0 => [i32::MIN, i32::MAX, 0, -1][extreme as usize / 11 % 4],
                other => other as i32 >> (other % 29),
            };
            let (a, b) = (core::array::from_fn(value), core::array::from_fn(|k| value(k + 32)));
            let shift = round as u32 % 32;
            for isa in Isa::available() {
                for (op, lanes) in isa.run_loop(All(&a, &b, shift)).into_iter().enumerate() {
                    let want: [i32; LANES] = core::array::from_fn(|k| naive([&a, &b], k, shift)[op]);
                    assert_eq!(lanes, want, "{}: operation {op} of {a:?} and {b:?} by {shift}", isa.name());
                }
            }
        }
    }

    /// Every operation on words: of bytes, and of what becomes of them when they are doubled eight times.
    struct AllWords<'a>(&'a [i8; 4 * LANES]);

    impl Loop for AllWords<'_> {
        type Output = Vec<[i16; WORD_LANES]>;

        #[inline(always)]
        fn run<V: Vector>(self) -> Self::Output {
            let first: &[i8; WORD_LANES] = self.0.first_chunk().unwrap();
            let (signed, unsigned) = (V::Words::load_i8(first), V::Words::load_u8(&first.map(|v| v as u8)));
            let [a, b] = V::Words::load_pairs(self.0);
            let large = |words: V::Words| (0..8).fold(words, |words, _| words.add(words));
            [signed, unsigned, a, b, large(a).add(large(unsigned)), large(a).sub(large(signed))]
                .into_iter()
                .map(|words| {
                    let mut lanes = [0; WORD_LANES];
                    words.store(&mut lanes);
                    lanes
                })
                .collect()
        }
    }

    #[test]
    fn words_are_what_the_definitions_say_on_every_instruction_set() {
        let d = Dither::new(2, 0, 0, Role::Initial);
        for round in 0..100 {
            let bytes: [i8; 4 * LANES] = core::array::from_fn(|k| d.at(round * 64 + k) as i8);
            let lanes = |f: &dyn Fn(usize) -> i16| -> [i16; WORD_LANES] { core::array::from_fn(f) };
            let pair = |half: usize| lanes(&|k| bytes[k / 2 * 4 + 2 * half + k % 2].into());
            let (signed, unsigned) = (lanes(&|k| bytes[k].into()), lanes(&|k| (bytes[k] as u8).into()));
            let (a, b) = (pair(0), pair(1));
            let sum = lanes(&|k| (a[k] << 8).wrapping_add(unsigned[k] << 8));
            let difference = lanes(&|k| (a[k] << 8).wrapping_sub(signed[k] << 8));
            for isa in Isa::available() {
                assert_eq!(isa.run_loop(AllWords(&bytes)), [signed, unsigned, a, b, sum, difference], "{}", isa.name());
            }
        }
    }

    #[test]
    fn pieces_cover_everything_and_are_whole_where_they_can_be() {
        let pieces = |len| covering(len, LANES).collect::<Vec<_>>();
        assert_eq!(pieces(0), []);
        assert_eq!(pieces(5), [(0, 5)]);
        assert_eq!(pieces(32), [(0, 16), (16, 16)]);
        assert_eq!(pieces(37), [(0, 16), (16, 16), (21, 16)]);
    }

    #[test]
    fn a_part_of_the_lanes_is_read_and_written() {
        for len in 0..=LANES {
            let from: Vec<i16> = (1..=LANES as i16).collect();
            let vector: Lanes = load(&from[..len], 0, len);
            assert!(vector.0.iter().enumerate().all(|(k, &v)| v == if k < len { k as i32 + 1 } else { 0 }));
            let mut to = vec![-1i8; LANES];
            store(vector, &mut to, 0, len);
            assert!(to.iter().enumerate().all(|(k, &v)| v == if k < len { k as i8 + 1 } else { -1 }));
        }
    }
}
