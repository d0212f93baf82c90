//! Bilinear resizing that loses nothing.
//!
//! `Resize` in 32-bit floats is exact where its coordinates and weights are: at factors that are powers of two, as long as
//! sums fit 24 bits. Everywhere else two products with the integer weights in 64-bit floats are: every sum fits 53 bits.

use super::graph::{Builder, Values, int, text};
use crate::export::power;
use crate::onnx::tensor as element;
use intseg_kernels::resize::{Coordinates, Resize, Tap, axis};
use intseg_runtime::Shape;

/// A resize of a real-valued map.
pub struct Bilinear<'a> {
    /// The map's value.
    pub input: &'a str,
    /// The name of the result.
    pub name: &'a str,
    /// The map's shape.
    pub from: Shape,
    /// Rows and columns of the result.
    pub to: [usize; 2],
    /// The exponent of the map's unit.
    pub exponent: i32,
    /// The largest magnitude in those units.
    pub largest: u32,
    /// Whether the corner pixels' centres are aligned.
    pub align_corners: bool,
}

/// The denominator of an axis's weights where `Resize` computes them exactly.
fn exact_denominator(size: usize, out: usize, align_corners: bool) -> Option<u64> {
    if size == out || size == 1 {
        return Some(1);
    }
    let denominator = Coordinates::new(size, out, align_corners).denominator as u64;
    let [less, more] = [size.min(out), size.max(out)];
    let exact = align_corners || more.is_multiple_of(less) && (more / less).is_power_of_two();
    (exact && denominator.is_power_of_two()).then_some(denominator)
}

impl Bilinear<'_> {
    /// Whether `Resize` in 32-bit floats is exact.
    pub fn is_exact_in_f32(&self) -> bool {
        let denominator = |axis: usize| {
            let size = [self.from.h, self.from.w][axis];
            exact_denominator(size, self.to[axis], self.align_corners)
        };
        let (Some(rows), Some(columns)) = (denominator(0), denominator(1)) else { return false };
        rows.saturating_mul(columns).saturating_mul(u64::from(self.largest)) <= 1 << f32::MANTISSA_DIGITS
    }

    /// The resize as one operator.
    pub fn operator(&self, builder: &mut Builder) -> String {
        let sizes = [1, self.from.c, self.to[0], self.to[1]].map(|size| size as i64).to_vec();
        let sizes = builder.constant(&format!("{}/sizes", self.name), &[4], Values::I64(sizes));
        let mode = if self.align_corners { "align_corners" } else { "half_pixel" };
        let attributes = vec![text("coordinate_transformation_mode", mode), text("mode", "linear")];
        builder.node("Resize", self.name, &[self.input, "", "", &sizes], attributes)
    }

    /// The exact sums in 64-bit floats, in units of the map's, times what is returned with them.
    fn sums(&self, builder: &mut Builder, shift: u32) -> (String, f64) {
        let mut taps = vec![Tap::default(); self.to[0] + self.to[1]];
        let (rows, columns) = taps.split_at_mut(self.to[0]);
        let denominators =
            [axis(rows, self.from.h, self.align_corners), axis(columns, self.from.w, self.align_corners)];
        let unit = power(-self.exponent - shift as i32);
        let rows = matrix(rows, denominators[0], self.from.h, unit);
        let columns = transposed(&matrix(columns, denominators[1], self.from.w, 1.0), self.from.w);
        let name = |part: &str| format!("{}/{part}", self.name);
        let rows = builder.constant(&name("row_weights"), &[self.to[0], self.from.h], Values::F64(rows));
        let columns = builder.constant(&name("column_weights"), &[self.from.w, self.to[1]], Values::F64(columns));
        let wide = builder.node("Cast", &name("wide"), &[self.input], vec![int("to", element::DOUBLE.into())]);
        let rows = builder.node("MatMul", &name("rows"), &[&rows, &wide], vec![]);
        let sums = builder.node("MatMul", &name("sums"), &[&rows, &columns], vec![]);
        (sums, f64::from(denominators[0]) * f64::from(denominators[1]))
    }

    /// The result to the nearest unit of the map's, ties to even, by products.
    pub fn rounded(&self, builder: &mut Builder) -> String {
        let (sums, denominator) = self.sums(builder, 0);
        let name = |part: &str| format!("{}/{part}", self.name);
        let denominator = builder.constant(&name("denominator"), &[], Values::F64(vec![denominator]));
        let quotient = builder.node("Div", &name("quotient"), &[&sums, &denominator], vec![]);
        let rounded = builder.node("Round", &name("rounded"), &[&quotient], vec![]);
        let narrow = builder.node("Cast", &name("narrow"), &[&rounded], vec![int("to", element::FLOAT.into())]);
        let unit = super::scale(builder, self.exponent);
        builder.node("Mul", self.name, &[&narrow, &unit], vec![])
    }

    /// What the executor compares to find a pixel's class, by products.
    pub fn scores(&self, builder: &mut Builder) -> String {
        let mut taps = vec![Tap::default(); self.to[0] + self.to[1]];
        let (rows, columns) = taps.split_at_mut(self.to[0]);
        let input = [self.from.h, self.from.w];
        let denominators = [axis(rows, input[0], self.align_corners), axis(columns, input[1], self.align_corners)];
        let shift = Resize { input, channels: self.from.c, rows, columns, denominators }.shift_to_i32(1 << 15);
        let (sums, _) = self.sums(builder, shift);
        match shift {
            0 => sums,
            _ => builder.node("Floor", self.name, &[&sums], vec![]),
        }
    }
}

/// Output `o` is input `⌊o · in / out⌋`: at integer factors as one operator, elsewhere picked by index.
pub fn nearest(builder: &mut Builder, input: &str, name: &str, from: Shape, to: Shape) -> String {
    if to.h.is_multiple_of(from.h) && to.w.is_multiple_of(from.w) {
        let sizes = [1, to.c, to.h, to.w].map(|size| size as i64).to_vec();
        let sizes = builder.constant(&format!("{name}/sizes"), &[4], Values::I64(sizes));
        let mode = [("coordinate_transformation_mode", "asymmetric"), ("mode", "nearest"), ("nearest_mode", "floor")];
        let attributes = mode.map(|(name, value)| text(name, value)).to_vec();
        return builder.node("Resize", name, &[input, "", "", &sizes], attributes);
    }
    let axes = [("rows", 2, from.h, to.h), ("columns", 3, from.w, to.w)];
    axes.into_iter().fold(input.to_owned(), |value, (part, axis, size, out)| {
        let indices = (0..out).map(|o| (o * size / out) as i64).collect();
        let indices = builder.constant(&format!("{name}/{part}_indices"), &[out], Values::I64(indices));
        builder.node("Gather", &format!("{name}/{part}"), &[&value, &indices], vec![int("axis", axis)])
    })
}

/// The integer weights of an axis, `[outputs, size]`, times `unit`.
fn matrix(taps: &[Tap], denominator: u32, size: usize, unit: f64) -> Vec<f64> {
    let mut weights = vec![0.0; taps.len() * size];
    for (row, tap) in weights.chunks_exact_mut(size).zip(taps) {
        row[tap.first as usize] += f64::from(denominator - tap.weight) * unit;
        row[tap.second as usize] += f64::from(tap.weight) * unit;
    }
    weights
}

/// A matrix of so many columns with rows and columns exchanged.
fn transposed(matrix: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_that_are_powers_of_two_are_exact_and_others_are_not() {
        assert_eq!(exact_denominator(60, 480, false), Some(16));
        assert_eq!(exact_denominator(65, 513, false), None);
        assert_eq!(exact_denominator(65, 513, true), Some(8));
        assert_eq!(exact_denominator(3, 4, false), None);
        assert_eq!(exact_denominator(1, 37, false), Some(1));
    }

    #[test]
    fn rows_of_a_matrix_sum_to_the_denominator() {
        let mut taps = [Tap::default(); 5];
        let denominator = axis(&mut taps, 3, false);
        let weights = matrix(&taps, denominator, 3, 1.0);
        assert!(weights.chunks(3).all(|row| row.iter().sum::<f64>() == f64::from(denominator)));
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
