//! Which input pixels a convolution reads, in either direction.
//!
//! Forward, output pixel `o` reads `o·stride + tap·dilation − padding`. The adjoint reads
//! `(o + padding − tap·dilation) / stride` where that division is exact. Output pixels of equal remainder modulo the
//! stride read the same taps, and among them the source moves by one pixel a step: such a set is a [`Phase`], and the
//! forward direction is the special case of a single one.

use super::{Conv2d, Direction};

/// A set of output pixels, equally spaced, that read the same taps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    /// Rows and columns of the set.
    pub count: [usize; 2],
    /// First output row and column.
    pub first: [usize; 2],
    /// Output rows and columns between neighbours.
    pub step: [usize; 2],
    /// Source rows and columns between neighbours.
    pub source_step: [usize; 2],
    direction: Direction,
    geometry: Conv2d,
}

/// The phases of a direction.
pub(crate) fn phases(geometry: &Conv2d, direction: Direction) -> impl Iterator<Item = Phase> + use<> {
    let geometry = *geometry;
    let (steps, size, source_step) = match direction {
        Direction::Forward => ([1; 2], [geometry.out_h(), geometry.out_w()], geometry.stride),
        Direction::Transposed => (geometry.stride, [geometry.in_h, geometry.in_w], [1; 2]),
    };
    (0..steps[0] * steps[1]).filter_map(move |index| {
        let first = [index / steps[1], index % steps[1]];
        let count = [0, 1].map(|axis| size[axis].saturating_sub(first[axis]).div_ceil(steps[axis]));
        (count[0] * count[1] > 0).then_some(Phase { count, first, step: steps, source_step, direction, geometry })
    })
}

impl Phase {
    /// Source row or column, relative to `index · source_step`, of kernel tap `tap` along `axis`; `None` when this
    /// phase does not read that tap.
    #[inline]
    pub fn source(&self, axis: usize, tap: usize) -> Option<isize> {
        let g = &self.geometry;
        let reach = (tap * g.dilation[axis]) as isize - g.padding[axis] as isize;
        match self.direction {
            Direction::Forward => Some(reach),
            Direction::Transposed => {
                let back = self.first[axis] as isize - reach;
                let stride = g.stride[axis] as isize;
                (back.rem_euclid(stride) == 0).then(|| back.div_euclid(stride))
            }
        }
    }
}
