//! Views of bytes.

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
pub(crate) fn as_u8_mut(bytes: &mut [i8]) -> &mut [u8] {
    // SAFETY: as above, and the borrow is handed on.
    unsafe { core::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
}
