//! The vector of portable Rust.

use super::{LANES, Lanes, Vector, WORD_LANES, Words};
use core::array::from_fn;

impl Lanes {
    #[inline(always)]
    fn map2(self, other: Self, f: impl Fn(i32, i32) -> i32) -> Self {
        Lanes(from_fn(|k| f(self.0[k], other.0[k])))
    }

    #[inline(always)]
    fn map(self, f: impl Fn(i32) -> i32) -> Self {
        Lanes(self.0.map(f))
    }
}

impl Words for [i16; WORD_LANES] {
    #[inline(always)]
    fn load_u8(from: &[u8; WORD_LANES]) -> Self {
        from.map(i16::from)
    }
    #[inline(always)]
    fn load_i8(from: &[i8; WORD_LANES]) -> Self {
        from.map(i16::from)
    }
    #[inline(always)]
    fn load_pairs(from: &[i8; 4 * LANES]) -> [Self; 2] {
        [0, 2].map(|first| from_fn(|k| from[k / 2 * 4 + first + k % 2].into()))
    }
    #[inline(always)]
    fn store(self, to: &mut [i16; WORD_LANES]) {
        *to = self;
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        from_fn(|k| self[k].wrapping_add(other[k]))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        from_fn(|k| self[k].wrapping_sub(other[k]))
    }
}

impl Vector for Lanes {
    type Mask = [bool; LANES];
    type Table<'a> = &'a [u16; 256];
    type Words = [i16; WORD_LANES];

    #[inline(always)]
    fn splat(value: i32) -> Self {
        Lanes([value; LANES])
    }
    #[inline(always)]
    fn load_i32(from: &[i32; LANES]) -> Self {
        Lanes(*from)
    }
    #[inline(always)]
    fn load_i16(from: &[i16; LANES]) -> Self {
        Lanes(from.map(i32::from))
    }
    #[inline(always)]
    fn load_i8(from: &[i8; LANES]) -> Self {
        Lanes(from.map(i32::from))
    }
    #[inline(always)]
    fn load_u8(from: &[u8; LANES]) -> Self {
        Lanes(from.map(i32::from))
    }
    #[inline(always)]
    fn store_i32(self, to: &mut [i32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn store_i16(self, to: &mut [i16; LANES]) {
        *to = self.0.map(|v| v as i16);
    }
    #[inline(always)]
    fn store_i8(self, to: &mut [i8; LANES]) {
        *to = self.0.map(|v| v as i8);
    }
    #[inline(always)]
    fn store_u8(self, to: &mut [u8; LANES]) {
        *to = self.0.map(|v| v as u8);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.map2(other, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.map2(other, i32::wrapping_sub)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.map2(other, i32::wrapping_mul)
    }
    #[inline(always)]
    fn add_narrow_product(self, a: Self, b: Self) -> Self {
        self.add(a.mul(b))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.map2(other, i32::min)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.map2(other, i32::max)
    }
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        self.map2(other, |a, b| a & b)
    }
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        self.map2(other, |a, b| a ^ b)
    }
    #[inline(always)]
    fn shl(self, count: u32) -> Self {
        self.map(|v| v << count)
    }
    #[inline(always)]
    fn shr(self, count: u32) -> Self {
        self.map(|v| v >> count)
    }
    #[inline(always)]
    fn shr_unsigned(self, count: u32) -> Self {
        self.map(|v| (v as u32 >> count) as i32)
    }
    #[inline(always)]
    fn shr_each(self, counts: Self) -> Self {
        self.map2(counts, |v, count| v >> count)
    }
    #[inline(always)]
    fn greater(self, other: Self) -> Self::Mask {
        from_fn(|k| self.0[k] > other.0[k])
    }
    #[inline(always)]
    fn keep(self, mask: Self::Mask) -> Self {
        Lanes(from_fn(|k| if mask[k] { self.0[k] } else { 0 }))
    }
    #[inline(always)]
    fn or_else(self, mask: Self::Mask, other: Self) -> Self {
        Lanes(from_fn(|k| if mask[k] { self.0[k] } else { other.0[k] }))
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        mask.iter().enumerate().fold(0, |bits, (k, &lane)| bits | u32::from(lane) << k)
    }
    #[inline(always)]
    fn scaled(self, factor: u32, add: u64, shift: u32, limit: u32) -> Self {
        let scaled = |v: i32| (u64::from(v as u32) * u64::from(factor) + add) >> shift;
        self.map(|v| scaled(v).min(limit.into()) as i32)
    }
    #[inline(always)]
    fn largest(self) -> i32 {
        self.0.into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    fn total(self) -> i32 {
        self.0.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    fn table(values: &[u16; 256]) -> &[u16; 256] {
        values
    }
    #[inline(always)]
    fn look_up(self, table: &&[u16; 256]) -> Self {
        self.map(|v| table[(v & 255) as usize].into())
    }
}
