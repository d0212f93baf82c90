//! Adding up the accumulators of several convolutions that read one tensor.

use crate::Context;
use crate::pool::for_each_piece;

/// Elements that one task takes.
const PIECE: usize = 1 << 14;

/// `sums = sums · 2^own + others · 2^left`, each shift 0..=31. The caller knows that the results fit.
///
/// # Panics
/// When lengths differ.
pub fn add_shifted(ctx: Context, sums: &mut [i32], own: u32, others: &[i32], left: u32) {
    assert_eq!(sums.len(), others.len(), "accumulators");
    for_each_piece(ctx.pool, sums, PIECE, |index, sums, _| {
        let others = &others[index * PIECE..][..sums.len()];
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (sum, &other) in sums.iter_mut().zip(others) {
                    *sum = sum.wrapping_shl(own).wrapping_add(other.wrapping_shl(left));
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::testing::{Threads, random};

    #[test]
    fn accumulators_in_two_units_are_added_on_every_instruction_set() {
        let (a, b) = (random(40_001, 1, 24), random(40_001, 2, 24));
        for (isa, [own, left]) in Isa::available().flat_map(|isa| [(isa, [0, 0]), (isa, [3, 0]), (isa, [0, 6])]) {
            let mut sums = a.clone();
            add_shifted(Context { isa, pool: &Threads(3) }, &mut sums, own, &b, left);
            for (i, &sum) in sums.iter().enumerate() {
                assert_eq!(i64::from(sum), (i64::from(a[i]) << own) + (i64::from(b[i]) << left));
            }
        }
    }
}
