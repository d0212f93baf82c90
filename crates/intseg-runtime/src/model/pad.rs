//! Padding with other values than 0.

use super::{Cursor, Element, Model};

/// A map with rows and columns around it, every pixel of which is the same: what stands for zero in an image from which
/// no mean was taken away.
#[derive(Clone, Copy, Debug)]
pub struct Pad<'a> {
    /// Rows above and as many below, columns on the left and as many on the right.
    pub padding: [usize; 2],
    /// The bits of the pixel's channels.
    pub pixel: &'a [u8],
    /// Channels.
    pub channels: usize,
    /// Where the pixel ends in the file.
    pub(crate) end: usize,
}

impl Pad<'_> {
    /// Checks that the pixel lies within the node's clamp.
    pub(super) fn check(&self, element: Element, [low, high]: [i32; 2]) -> Result<(), &'static str> {
        let value = |bits: u8| if element == Element::I8 { i32::from(bits as i8) } else { i32::from(bits) };
        match self.pixel.iter().all(|&bits| (low..=high).contains(&value(bits))) {
            true => Ok(()),
            false => Err("a value of its padding lies outside its clamp"),
        }
    }
}

impl<'a> Model<'a> {
    pub(super) fn pad(&self, cursor: &mut Cursor<'a>) -> Result<Pad<'a>, &'static str> {
        let size = "a size is out of range";
        let (padding, [channels, _]) = (cursor.pair(0).ok_or(size)?, cursor.pair(1).ok_or(size)?);
        let (at, pixel) = self.tensor(cursor, 1, channels).ok_or("its pixel lies outside the file")?;
        Ok(Pad { padding, pixel, channels, end: at + channels })
    }
}
