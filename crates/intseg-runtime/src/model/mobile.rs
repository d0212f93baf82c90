//! The nodes of networks for phones: depthwise convolutions, functions of a byte, products of maps.

use super::{Cursor, Element, Model, Requantization, WEIGHT_RANGE};
use intseg_kernels::bytes::as_i8;

/// A convolution with one filter a channel, with its folded requantisation.
#[derive(Clone, Copy, Debug)]
pub struct Depthwise<'a> {
    /// Kernel rows and columns.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: [usize; 2],
    /// Dilation.
    pub dilation: [usize; 2],
    /// Padding.
    pub padding: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// The input's integer that stands for zero, which padding is made of.
    pub zero: i32,
    /// `[KH, KW, C]`.
    pub weights: &'a [i8],
    /// Where weights and constants end in the file.
    pub(crate) end: usize,
    /// Exponent of the weights' step, for people to read.
    pub weight_exponent: i32,
    /// From sums to output.
    pub requantization: Requantization<'a>,
}

impl Depthwise<'_> {
    /// The largest magnitude that a sum can reach.
    pub fn accumulator_bound(&self) -> u64 {
        accumulator_bound(self.kernel)
    }

    /// Checks the range under which no sum can overflow.
    pub(super) fn check_weights(&self) -> Result<(), &'static str> {
        if self.weights.contains(&i8::MIN) { Err(WEIGHT_RANGE) } else { Ok(()) }
    }
}

/// A function of 8 bits.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// The output's bits for each of the input's, whatever their sign.
    pub values: &'a [u8; 256],
    /// Where they end in the file.
    pub(crate) end: usize,
}

/// The table while so much of the file is not held.
static NOT_HELD: [u8; 256] = [0; 256];

/// A product of two maps, with its requantisation: `(a − zero) · b`, where `b` has `a`'s shape, or one value a channel.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// The first input's integer that stands for zero.
    pub zero: i32,
    /// From products to output.
    pub requantization: Requantization<'a>,
}

fn accumulator_bound(kernel: [usize; 2]) -> u64 {
    kernel[0] as u64 * kernel[1] as u64 * 255 * 127
}

/// Checks that a function's values lie within the node's clamp.
pub(super) fn check_table(table: &Table, element: Element, [low, high]: [i32; 2]) -> Result<(), &'static str> {
    let value = |bits: u8| if element == Element::I8 { i32::from(bits as i8) } else { i32::from(bits) };
    match table.values.iter().all(|&bits| (low..=high).contains(&value(bits))) {
        true => Ok(()),
        false => Err("a value of its table lies outside its clamp"),
    }
}

/// What stands for zero among 8 bits of either sign.
fn zero(cursor: &mut Cursor) -> Option<i32> {
    cursor.i32().filter(|zero| (-128..=255).contains(zero))
}

impl<'a> Model<'a> {
    pub(super) fn depthwise(&self, cursor: &mut Cursor<'a>) -> Result<Depthwise<'a>, &'static str> {
        let size = "a size is out of range";
        let kernel = cursor.pair(1).ok_or(size)?;
        let stride = cursor.pair(1).ok_or(size)?;
        let dilation = cursor.pair(1).ok_or(size)?;
        let padding = cursor.pair(0).ok_or(size)?;
        let [channels, _] = cursor.pair(1).ok_or(size)?;
        let zero = zero(cursor).ok_or("its zero is out of range")?;
        let weight_exponent = cursor.i32().ok_or(size)?;
        if accumulator_bound(kernel) > i32::MAX as u64 {
            return Err("its accumulator could overflow 32 bits");
        }
        let count = (kernel[0] * kernel[1]).checked_mul(channels).ok_or(size)?;
        let (weights_at, weights) = self.tensor(cursor, 1, count).ok_or("its weights lie outside the file")?;
        let (weights, requantization) = (as_i8(weights), self.requantization(cursor, channels)?);
        let end = requantization.end.max(weights_at + count);
        Ok(Depthwise {
            kernel,
            stride,
            dilation,
            padding,
            channels,
            zero,
            weights,
            end,
            weight_exponent,
            requantization,
        })
    }

    pub(super) fn table(&self, cursor: &mut Cursor<'a>) -> Result<Table<'a>, &'static str> {
        let (at, values) = self.tensor(cursor, 1, 256).ok_or("its table lies outside the file")?;
        Ok(Table { values: values.first_chunk().unwrap_or(&NOT_HELD), end: at + 256 })
    }

    pub(super) fn product(&self, cursor: &mut Cursor<'a>) -> Result<Product<'a>, &'static str> {
        let [channels, _] = cursor.pair(1).ok_or("a size is out of range")?;
        let zero = zero(cursor).ok_or("its zero is out of range")?;
        Ok(Product { zero, requantization: self.requantization(cursor, channels)? })
    }
}
