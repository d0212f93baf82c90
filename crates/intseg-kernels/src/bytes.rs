//! Views of bytes.

/// Bytes as signed bytes.
pub fn as_i8(bytes: &[u8]) -> &[i8] {
    // SAFETY: both have size and alignment 1, and every bit pattern is valid.
    unsafe { core::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}
