//! Views of bytes.

use crate::conv::Line;
use crate::resize::Tap;

/// Bytes as signed bytes.
pub fn as_i8(bytes: &[u8]) -> &[i8] {
    // SAFETY: both have size and alignment 1, and every bit pattern is valid.
    unsafe { core::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}

/// Signed bytes as bytes.
pub fn as_u8(bytes: &[i8]) -> &[u8] {
    // SAFETY: as above.
    unsafe { core::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}

/// Signed bytes as bytes.
pub fn as_u8_mut(bytes: &mut [i8]) -> &mut [u8] {
    // SAFETY: as above, and the borrow is handed on.
    unsafe { core::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
}

/// Bytes as signed bytes.
pub fn as_i8_mut(bytes: &mut [u8]) -> &mut [i8] {
    // SAFETY: as above, and the borrow is handed on.
    unsafe { core::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
}

/// Types without padding, for which every pattern of bits is a value.
///
/// # Safety
/// Implementors must be such types.
pub unsafe trait Plain: Copy {}

// SAFETY: integers, and structures of integers of one size.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for i64 {}
// SAFETY: three u32.
unsafe impl Plain for Tap {}
// SAFETY: 64 bytes, aligned to their number.
unsafe impl Plain for Line {}

/// Takes `len` values, aligned, from the front of an arena, which keeps what follows; `None`, with the arena untouched,
/// when it is too small. Their content is what was there.
pub fn take<'a, T: Plain>(arena: &mut &'a mut [u8], len: usize) -> Option<&'a mut [T]> {
    let skip = arena.as_ptr().align_offset(align_of::<T>());
    let size = size_of::<T>().checked_mul(len)?;
    if skip.checked_add(size)? > arena.len() {
        return None;
    }
    let (front, rest) = core::mem::take(arena).split_at_mut(skip + size);
    *arena = rest;
    // SAFETY: the pointer is aligned and `size` bytes from it lie in `front`, which is borrowed for 'a and handed on to
    // nobody else; every pattern of bits is a T.
    Some(unsafe { core::slice::from_raw_parts_mut(front[skip..].as_mut_ptr().cast(), len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_cut_into_aligned_parts_or_left_alone() {
        let mut memory = [7u8; 100];
        let mut arena = &mut memory[1..];
        let first: &mut [u8] = take(&mut arena, 3).unwrap();
        assert_eq!(first, [7; 3]);
        let words: &mut [i64] = take(&mut arena, 5).unwrap();
        assert_eq!(words, [0x0707_0707_0707_0707; 5]);
        let left = arena.len();
        assert!(take::<i32>(&mut arena, 25).is_none() && take::<i64>(&mut arena, usize::MAX).is_none());
        assert_eq!(arena.len(), left);
    }
}
