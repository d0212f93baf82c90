//! Functions of one byte, as the table of their 256 values.

use crate::Context;
use crate::pool::for_each_piece;

/// Bytes that one task takes.
const PIECE: usize = 1 << 14;

/// `out = table[input]`, the input's bits as the index whatever its sign.
///
/// # Panics
/// When lengths differ.
pub fn look_up(ctx: Context, out: &mut [u8], input: &[u8], table: &[u8; 256]) {
    assert_eq!(out.len(), input.len(), "input");
    for_each_piece(ctx.pool, out, PIECE, |index, out, _| {
        let input = &input[index * PIECE..][..out.len()];
        out.iter_mut().zip(input).for_each(|(out, &v)| *out = table[usize::from(v)]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::testing::{Threads, random};
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn every_byte_becomes_its_entry_on_every_instruction_set() {
        let table: [u8; 256] = core::array::from_fn(|v| (v * 167 + 13) as u8);
        for len in [0, 1, 63, 256, 40_001] {
            let input: Vec<u8> = random(len, 1, 8).into_iter().map(|v| v as u8).collect();
            for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                let mut out = vec![0; len];
                look_up(Context { isa, pool: &Threads(threads) }, &mut out, &input, &table);
                assert!(out.iter().zip(&input).all(|(&out, &v)| out == (usize::from(v) * 167 + 13) as u8));
            }
        }
    }
}
