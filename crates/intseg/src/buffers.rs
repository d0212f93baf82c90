//! Reuse of buffers between the steps of a training run.

use crate::tensor::{Mantissas, Tensor};
use intseg_kernels::large_pages::prefer_large_pages;
use std::cell::RefCell;

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

struct Shelf<T>(RefCell<Vec<Vec<T>>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Shelf(RefCell::new(Vec::new()))
    }
}

impl<T: Copy + Default> Shelf<T> {
    /// The smallest free buffer that is large enough, but not one of many times the size, which a larger request will
    /// want. Else a new one in place of the largest that is too small: growing that would copy its content, and keeping
    /// it would leave a buffer of every size that ever was too small.
    fn take(&self, len: usize) -> Vec<T> {
        let mut free = self.0.borrow_mut();
        let capacity = |i: &usize| free[*i].capacity();
        let fits = (0..free.len()).filter(|i| (len..=len.saturating_mul(WASTE)).contains(&capacity(i)));
        let fit = fits.min_by_key(capacity);
        let small = || (0..free.len()).filter(|i| capacity(i) < len).max_by_key(capacity);
        let mut buffer = match fit.or_else(small).map(|i| free.swap_remove(i)) {
            Some(fit) if fit.capacity() >= len => fit,
            small => {
                drop(small);
                with_room(len)
            }
        };
        buffer.resize(len, T::default());
        buffer
    }

    fn give(&self, buffer: Vec<T>) {
        if buffer.capacity() > 0 {
            self.0.borrow_mut().push(buffer);
        }
    }
}

impl Buffers {
    /// A buffer of `len` bytes.
    pub fn take_u8(&self, len: usize) -> Vec<u8> {
        self.u8.take(len)
    }

    /// A buffer of `len` signed bytes.
    pub fn take_i8(&self, len: usize) -> Vec<i8> {
        self.i8.take(len)
    }

    /// A buffer of `len` 16-bit integers.
    pub fn take_i16(&self, len: usize) -> Vec<i16> {
        self.i16.take(len)
    }

    /// A buffer of `len` 32-bit integers.
    pub fn take_i32(&self, len: usize) -> Vec<i32> {
        self.i32.take(len)
    }

    /// A buffer of `len` 64-bit integers.
    pub fn take_i64(&self, len: usize) -> Vec<i64> {
        self.i64.take(len)
    }

    /// Takes back bytes.
    pub fn give_u8(&self, buffer: Vec<u8>) {
        self.u8.give(buffer);
    }

    /// Takes back signed bytes.
    pub fn give_i8(&self, buffer: Vec<i8>) {
        self.i8.give(buffer);
    }

    /// Takes back 16-bit integers.
    pub fn give_i16(&self, buffer: Vec<i16>) {
        self.i16.give(buffer);
    }

    /// Takes back 32-bit integers.
    pub fn give_i32(&self, buffer: Vec<i32>) {
        self.i32.give(buffer);
    }

    /// Takes back 64-bit integers.
    pub fn give_i64(&self, buffer: Vec<i64>) {
        self.i64.give(buffer);
    }

    /// A copy of a tensor.
    pub fn copy(&self, tensor: &Tensor) -> Tensor {
        fn copied<T: Copy + Default>(shelf: &Shelf<T>, values: &[T]) -> Vec<T> {
            let mut copy = shelf.take(values.len());
            copy.copy_from_slice(values);
            copy
        }
        let mantissas = match &tensor.mantissas {
            Mantissas::U8(m) => Mantissas::U8(copied(&self.u8, m)),
            Mantissas::I8(m) => Mantissas::I8(copied(&self.i8, m)),
            Mantissas::I16(m) => Mantissas::I16(copied(&self.i16, m)),
            Mantissas::I32(m) => Mantissas::I32(copied(&self.i32, m)),
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
