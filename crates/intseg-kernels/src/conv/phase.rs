//! Which input pixels a convolution reads, in either direction.
//!
//! Forward, output pixel `o` reads `o·stride + tap·dilation − padding`. The adjoint reads
//! `(o + padding − tap·dilation) / stride` where that division is exact. Output pixels of equal remainder modulo the
//! stride read the same taps, and among them the source moves by one pixel a step: such a set is a [`Phase`], and the
//! forward direction is the special case of a single one.
//!
//! Taps that fall on padding need not be computed. A tile skips those that do for all of its pixels; so where much of a
//! window lies outside (an atrous convolution on a small map), a phase is cut into rectangles within which every pixel
//! reads the same taps, and tiles do not straddle them.

use super::{Conv2d, Direction};

/// A rectangle of output pixels, equally spaced, that read the same taps but for those on padding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    /// Rows and columns of the set.
    pub count: [usize; 2],
    /// First output row and column of the phase.
    pub first: [usize; 2],
    /// Output rows and columns between neighbours.
    pub step: [usize; 2],
    /// Source rows and columns between neighbours.
    pub source_step: [usize; 2],
    /// Where the rectangle begins, in rows and columns of the phase.
    pub origin: [usize; 2],
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
        let whole = Phase { count, first, step: steps, source_step, origin: [0; 2], direction, geometry };
        (count[0] * count[1] > 0).then_some(whole)
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

    /// Rows or columns of the source.
    fn source_size(&self, axis: usize) -> usize {
        let g = &self.geometry;
        match self.direction {
            Direction::Forward => [g.in_h, g.in_w][axis],
            Direction::Transposed => [g.out_h(), g.out_w()][axis],
        }
    }

    /// First and one past the last row or column whose source for a tap lies inside the image.
    fn valid(&self, axis: usize, reach: isize) -> [usize; 2] {
        let (size, step) = (self.source_size(axis) as isize, self.source_step[axis] as isize);
        // The smallest index with index · step + reach >= bound.
        let reaches = |bound: isize| (bound - reach + step - 1).div_euclid(step).max(0) as usize;
        [reaches(0), reaches(size)].map(|at| at.min(self.count[axis]))
    }

    fn reaches(&self, axis: usize) -> impl Iterator<Item = isize> {
        (0..self.geometry.kernel[axis]).filter_map(move |tap| self.source(axis, tap))
    }

    /// How many pairs of row (or column) and tap lie inside the image.
    pub fn inside(&self, axis: usize) -> usize {
        self.reaches(axis).map(|reach| self.valid(axis, reach)).map(|[from, to]| to - from).sum()
    }
}

/// The most rows or columns of rectangles that a phase is cut into.
const MAX_CUTS: usize = 16;
/// The most rectangles of a convolution.
pub(crate) const MAX_REGIONS: usize = 64;

/// Where an axis is cut: boundaries, both ends included.
#[derive(Clone, Copy)]
struct Cuts {
    at: [usize; MAX_CUTS + 1],
    len: usize,
}

impl Cuts {
    fn none(phase: &Phase, axis: usize) -> Self {
        let mut cuts = Cuts { at: [0; MAX_CUTS + 1], len: 2 };
        cuts.at[1] = phase.count[axis];
        cuts
    }

    /// Wherever the set of valid taps changes; `None` when there are too many such places.
    fn all(phase: &Phase, axis: usize) -> Option<Self> {
        let mut cuts = Self::none(phase, axis);
        for at in phase.reaches(axis).flat_map(|reach| phase.valid(axis, reach)) {
            if let Err(place) = cuts.at[..cuts.len].binary_search(&at) {
                if cuts.len > MAX_CUTS {
                    return None;
                }
                cuts.at.copy_within(place..cuts.len, place + 1);
                cuts.at[place] = at;
                cuts.len += 1;
            }
        }
        Some(cuts)
    }

    fn pieces(&self) -> impl Iterator<Item = [usize; 2]> {
        self.at[..self.len].windows(2).map(|ends| [ends[0], ends[1]])
    }
}

/// The rectangles of all phases of a convolution.
pub(crate) struct Regions {
    list: [Option<Phase>; MAX_REGIONS],
    len: usize,
}

impl Regions {
    /// The rectangles that tiles of `mr` pixels compute with least work, as far as an estimate tells; `None` when there
    /// are more than [`MAX_REGIONS`].
    pub fn new(geometry: &Conv2d, direction: Direction, mr: usize) -> Option<Self> {
        let mut regions = Regions { list: [None; MAX_REGIONS], len: 0 };
        for phase in phases(geometry, direction) {
            let (rows, columns) = cut(&phase, mr);
            for [top, bottom] in rows.pieces() {
                for [left, right] in columns.pieces() {
                    let slot = regions.list.get_mut(regions.len)?;
                    *slot = Some(Phase { count: [bottom - top, right - left], origin: [top, left], ..phase });
                    regions.len += 1;
                }
            }
        }
        Some(regions)
    }

    /// The rectangles.
    pub fn iter(&self) -> impl Iterator<Item = &Phase> {
        self.list[..self.len].iter().flatten()
    }
}

/// Where to cut a phase: each axis everywhere or nowhere.
fn cut(phase: &Phase, mr: usize) -> (Cuts, Cuts) {
    let none = [0, 1].map(|axis| Cuts::none(phase, axis));
    let taps = [0, 1].map(|axis| phase.reaches(axis).count());
    let dense = phase.count[0] * taps[0] * phase.count[1] * taps[1];
    let useful = phase.inside(0) * phase.inside(1);
    // Where little falls on padding there is little to win.
    if 16 * (dense - useful) < dense {
        return (none[0], none[1]);
    }
    let all = [0, 1].map(|axis| Cuts::all(phase, axis));
    let options = [none[0]].into_iter().chain(all[0]).flat_map(|rows| {
        let columns = [none[1]].into_iter().chain(all[1]);
        columns.map(move |columns| (rows, columns))
    });
    options.min_by_key(|(rows, columns)| cost(phase, mr, rows, columns)).unwrap_or((none[0], none[1]))
}

/// Quarters of taps that all tiles compute, and a quarter of a tap a tile for what each tile costs besides.
fn cost(phase: &Phase, mr: usize, rows: &Cuts, columns: &Cuts) -> usize {
    let mut total = 0;
    for [top, bottom] in rows.pieces() {
        for [left, right] in columns.pieces() {
            let (height, width) = (bottom - top, right - left);
            let pixels = height * width;
            let mut first = 0;
            while first < pixels {
                let last = (first + mr).min(pixels) - 1;
                let (upper, lower) = (top + first / width, top + last / width + 1);
                // A tile in more than one row may have any column.
                let (from, to) = match lower - upper {
                    1 => (left + first % width, left + last % width + 1),
                    _ => (left, right),
                };
                total += 4 * overlapping(phase, 0, upper, lower) * overlapping(phase, 1, from, to) + 1;
                first += mr;
            }
        }
    }
    total
}

/// How many taps of an axis are valid for any of some rows or columns.
fn overlapping(phase: &Phase, axis: usize, from: usize, to: usize) -> usize {
    let valid = phase.reaches(axis).map(|reach| phase.valid(axis, reach));
    valid.filter(|&[first, end]| first < to && from < end).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn atrous(size: usize, rate: usize) -> Conv2d {
        Conv2d {
            batch: 1,
            in_h: size,
            in_w: size,
            c_in: 8,
            c_out: 8,
            kernel: [3; 2],
            stride: [1; 2],
            dilation: [rate; 2],
            padding: [rate; 2],
        }
    }

    #[test]
    fn a_sparse_window_is_cut_where_its_taps_change_and_a_dense_one_is_not() {
        // A tile lies in one or two rows, so that cuts between rows would win nothing.
        let regions = Regions::new(&atrous(65, 36), Direction::Forward, 14).unwrap();
        let regions: std::vec::Vec<_> = regions.iter().map(|r| (r.origin, r.count)).collect();
        assert_eq!(regions, [([0, 0], [65, 29]), ([0, 29], [65, 7]), ([0, 36], [65, 29])]);
        assert_eq!(Regions::new(&atrous(65, 1), Direction::Forward, 14).unwrap().iter().count(), 1);
    }

    #[test]
    fn rectangles_cover_every_pixel_once() {
        for direction in [Direction::Forward, Direction::Transposed] {
            for (size, rate, stride) in [(10, 3, 1), (17, 12, 2), (9, 9, 3), (5, 40, 1)] {
                let g = Conv2d { stride: [stride, 1], ..atrous(size, rate) };
                let size = match direction {
                    Direction::Forward => [g.out_h(), g.out_w()],
                    Direction::Transposed => [g.in_h, g.in_w],
                };
                let mut seen = std::vec![0; size[0] * size[1]];
                for r in Regions::new(&g, direction, 14).unwrap().iter() {
                    for y in 0..r.count[0] {
                        for x in 0..r.count[1] {
                            let [row, column] =
                                [(0, y), (1, x)].map(|(k, at)| r.first[k] + (r.origin[k] + at) * r.step[k]);
                            seen[row * size[1] + column] += 1;
                        }
                    }
                }
                assert!(seen.iter().all(|&count| count == 1), "{direction:?} {rate} {stride}");
            }
        }
    }
}
