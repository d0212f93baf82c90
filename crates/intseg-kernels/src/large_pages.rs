//! Large pages of memory.

use core::mem::MaybeUninit;

/// Asks the system to keep memory that nobody has touched yet in large pages, of which fewer need to be looked up while
/// tensors stream by. Whether it does changes speed alone; where it cannot be asked, nothing happens.
pub fn prefer_large_pages<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(all(feature = "std", target_os = "linux"))]
    {
        use core::ffi::{c_int, c_void};
        // The standard library links the system's C library, which has it.
        unsafe extern "C" {
            fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int;
        }
        const LARGE: usize = 2 << 20;
        const MADV_HUGEPAGE: c_int = 14;
        let start = memory.as_mut_ptr().cast::<u8>();
        let skipped = start.align_offset(LARGE);
        // Whole large pages alone.
        let len = size_of_val(memory).saturating_sub(skipped) / LARGE * LARGE;
        if len > 0 {
            // SAFETY: the pages lie in `memory`, and the advice leaves their content as it is.
            unsafe { madvise(start.wrapping_add(skipped).cast(), len, MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(all(feature = "std", target_os = "linux")))]
    let _ = memory;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn memory_of_any_size_can_be_used_as_before() {
        for len in [0, 1, 1000, 5 << 20] {
            let mut values: Vec<u16> = Vec::new();
            values.reserve_exact(len);
            prefer_large_pages(values.spare_capacity_mut());
            values.resize(len, 7);
            assert!(values.len() == len && values.iter().all(|&value| value == 7));
        }
    }
}
