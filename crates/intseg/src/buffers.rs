//! Reuse of buffers between the steps of a training run.

use crate::tensor::{Mantissas, Tensor};
use intseg_kernels::Pool;
use intseg_kernels::large_pages::prefer_large_pages;
use intseg_kernels::pool::for_each_piece;
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Values in memory that a step after this one uses again: the first `len` of those that were ever written. All of them
/// stay initialised, so that a longer tensor in the same memory has nothing to fill.
#[derive(Default)]
pub struct Buffer<T> {
    values: Vec<T>,
    len: usize,
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Self {
        Buffer { len: values.len(), values }
    }
}

impl<T> FromIterator<T> for Buffer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Vec::from_iter(values).into()
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[..self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[..self.len]
    }
}

impl<T: Clone> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        self.to_vec().into()
    }
}

impl<T: fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self[..].fmt(f)
    }
}

impl<T: PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl<T: Eq> Eq for Buffer<T> {}

/// Buffers that were used before and are free now. After the first step of a run every `take` finds one, so a steady
/// step allocates nothing. What a buffer holds when it is taken is unspecified.
#[derive(Default)]
pub struct Buffers {
    u8: Shelf<u8>,
    i8: Shelf<i8>,
    i16: Shelf<i16>,
    i32: Shelf<i32>,
    i64: Shelf<i64>,
}

/// A buffer is not used for less than this part of its size. A tensor that is kept for the backward pass would hold a
/// buffer that the next large one then allocates anew.
const WASTE: usize = 2;

struct Shelf<T>(RefCell<Vec<Buffer<T>>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Shelf(RefCell::new(Vec::new()))
    }
}

impl<T: Copy + Default> Shelf<T> {
    /// The smallest free buffer that is large enough, but not one of many times the size, which a larger request will
    /// want. Else a new one in place of the largest that is too small: growing that would copy its content, and keeping
    /// it would leave a buffer of every size that ever was too small.
    fn take(&self, len: usize) -> Buffer<T> {
        let mut free = self.0.borrow_mut();
        let capacity = |i: &usize| free[*i].values.len();
        let fits = (0..free.len()).filter(|i| (len..=len.saturating_mul(WASTE)).contains(&capacity(i)));
        let fit = fits.min_by_key(capacity);
        let small = || (0..free.len()).filter(|i| capacity(i) < len).max_by_key(capacity);
        match fit.or_else(small).map(|i| free.swap_remove(i)) {
            Some(Buffer { values, .. }) if values.len() >= len => Buffer { values, len },
            small => {
                drop(small);
                let mut values = with_room(len);
                values.resize(len, T::default());
                values.into()
            }
        }
    }

    fn give(&self, buffer: Buffer<T>) {
        if !buffer.values.is_empty() {
            self.0.borrow_mut().push(buffer);
        }
    }
}

impl Buffers {
    /// A buffer of `len` bytes.
    pub fn take_u8(&self, len: usize) -> Buffer<u8> {
        self.u8.take(len)
    }

    /// A buffer of `len` signed bytes.
    pub fn take_i8(&self, len: usize) -> Buffer<i8> {
        self.i8.take(len)
    }

    /// A buffer of `len` 16-bit integers.
    pub fn take_i16(&self, len: usize) -> Buffer<i16> {
        self.i16.take(len)
    }

    /// A buffer of `len` 32-bit integers.
    pub fn take_i32(&self, len: usize) -> Buffer<i32> {
        self.i32.take(len)
    }

    /// A buffer of `len` 64-bit integers.
    pub fn take_i64(&self, len: usize) -> Buffer<i64> {
        self.i64.take(len)
    }

    /// Takes back bytes.
    pub fn give_u8(&self, buffer: Buffer<u8>) {
        self.u8.give(buffer);
    }

    /// Takes back signed bytes.
    pub fn give_i8(&self, buffer: Buffer<i8>) {
        self.i8.give(buffer);
    }

    /// Takes back 16-bit integers.
    pub fn give_i16(&self, buffer: Buffer<i16>) {
        self.i16.give(buffer);
    }

    /// Takes back 32-bit integers.
    pub fn give_i32(&self, buffer: Buffer<i32>) {
        self.i32.give(buffer);
    }

    /// Takes back 64-bit integers.
    pub fn give_i64(&self, buffer: Buffer<i64>) {
        self.i64.give(buffer);
    }

    /// A copy of a tensor.
    pub fn copy(&self, pool: &dyn Pool, tensor: &Tensor) -> Tensor {
        fn copied<T: Copy + Default + Send + Sync>(pool: &dyn Pool, shelf: &Shelf<T>, values: &[T]) -> Buffer<T> {
            const PIECE: usize = 1 << 16;
            let mut copy = shelf.take(values.len());
            for_each_piece(pool, &mut copy, PIECE, |piece, copy, _| {
                copy.copy_from_slice(&values[piece * PIECE..][..copy.len()]);
            });
            copy
        }
        let mantissas = match &tensor.mantissas {
            Mantissas::U8(m) => Mantissas::U8(copied(pool, &self.u8, m)),
            Mantissas::I8(m) => Mantissas::I8(copied(pool, &self.i8, m)),
            Mantissas::I16(m) => Mantissas::I16(copied(pool, &self.i16, m)),
            Mantissas::I32(m) => Mantissas::I32(copied(pool, &self.i32, m)),
        };
        Tensor { mantissas, ..*tensor }
    }

    /// Takes back the buffer of a tensor.
    pub fn give(&self, tensor: Tensor) {
        match tensor.mantissas {
            Mantissas::U8(b) => self.u8.give(b),
            Mantissas::I8(b) => self.i8.give(b),
            Mantissas::I16(b) => self.i16.give(b),
            Mantissas::I32(b) => self.i32.give(b),
        }
    }
}

/// An empty vector for `len` values, in large pages where the system has them: every step reads and writes them from end
/// to end.
pub(crate) fn with_room<T>(len: usize) -> Vec<T> {
    let mut all = Vec::with_capacity(len);
    prefer_large_pages(all.spare_capacity_mut());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_buffer_is_taken_again_and_the_smallest_fit_wins() {
        let buffers = Buffers::default();
        let (small, large) = (buffers.take_i32(10), buffers.take_i32(100));
        let at = small.as_ptr();
        buffers.give_i32(large);
        buffers.give_i32(small);
        let again = buffers.take_i32(8);
        assert_eq!(again.as_ptr(), at);
    }

    #[test]
    fn memory_that_served_a_shorter_tensor_has_nothing_to_fill_for_a_longer_one() {
        let buffers = Buffers::default();
        let mut long = buffers.take_i8(100);
        long.fill(7);
        let at = long.as_ptr();
        buffers.give_i8(long);
        let short = buffers.take_i8(60);
        assert_eq!((short.as_ptr(), &*short), (at, &[7; 60][..]));
        buffers.give_i8(short);
        let again = buffers.take_i8(100);
        assert_eq!((again.as_ptr(), &*again), (at, &[7; 100][..]));
    }

    #[test]
    fn a_buffer_of_more_than_twice_the_size_waits_for_a_larger_request() {
        let buffers = Buffers::default();
        let large = buffers.take_i16(201);
        let at = large.as_ptr();
        buffers.give_i16(large);
        let small = buffers.take_i16(100);
        assert_ne!(small.as_ptr(), at);
        let larger = buffers.take_i16(150);
        assert_eq!(larger.as_ptr(), at);
    }
}
