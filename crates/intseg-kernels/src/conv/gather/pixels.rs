//! Where the pixels of a tile lie.

use super::MAX_MR;
use crate::conv::Convolution;
use crate::conv::phase::Phase;

/// The pixels of a tile: where they are written, and where a tap at offset 0 reads. Places behind the last pixel repeat
/// the first: they read something that exists, and are not written.
pub(super) struct Pixels {
    pub len: usize,
    pub out: [usize; MAX_MR],
    /// Source row and column.
    pub y: [isize; MAX_MR],
    pub x: [isize; MAX_MR],
    /// Source pixel, counted from the batch's start.
    pub source: [isize; MAX_MR],
    /// From each source pixel to the next, where it is known that they are as far apart all along.
    pub along: Option<usize>,
    /// Smallest and largest row and column, and the largest source.
    pub low: [isize; 2],
    pub high: [isize; 2],
    pub last: isize,
}

impl Pixels {
    /// The `count` pixels of a phase from number `first` on, fewer at its end.
    #[inline(always)]
    pub fn new(plan: &Convolution, phase: &Phase, first: usize, count: usize) -> Self {
        let ([source_h, source_w, _], [out_h, out_w, _]) = (plan.source(), plan.target());
        let [rows, columns] = phase.count;
        let total = plan.geometry.batch * rows * columns;
        let len = count.min(total - first);
        let (mut out, mut ys, mut xs, mut source) = ([0; MAX_MR], [0; MAX_MR], [0; MAX_MR], [0; MAX_MR]);
        let (mut low, mut high, mut last) = ([isize::MAX; 2], [isize::MIN; 2], 0);
        let (mut n, mut row, mut column) = (first / (rows * columns), first / columns % rows, first % columns);
        if column + len <= columns {
            // One row.
            let y = ((phase.origin[0] + row) * phase.source_step[0]) as isize;
            let x = ((phase.origin[1] + column) * phase.source_step[1]) as isize;
            let step = phase.source_step[1] as isize;
            let from = ((n * source_h) as isize + y) * source_w as isize + x;
            let to_y = phase.first[0] + (phase.origin[0] + row) * phase.step[0];
            let to = (n * out_h + to_y) * out_w + phase.first[1] + (phase.origin[1] + column) * phase.step[1];
            ys.fill(y);
            for m in 0..MAX_MR {
                out[m] = to + m * phase.step[1];
                // Places behind the last pixel repeat the first.
                let along = if m < len { m as isize * step } else { 0 };
                (xs[m], source[m]) = (x + along, from + along);
            }
            let along = (len - 1) as isize * step;
            let (low, high, last) = ([y, x], [y, x + along], from + along);
            let along = (len == count).then_some(phase.source_step[1]);
            return Pixels { len, out, y: ys, x: xs, source, along, low, high, last };
        }
        let plain =
            phase.count == [out_h, out_w] && [source_h, source_w] == [out_h, out_w] && phase.source_step == [1; 2];
        if plain && columns >= MAX_MR {
            // The end of one row and the beginning of the next: pixels follow each other in both images.
            let below = if row + 1 < rows { row + 1 } else { 0 };
            for m in 0..MAX_MR {
                let along = if m < len { m } else { 0 };
                let wrapped = column + along >= columns;
                out[m] = first + along;
                source[m] = (first + along) as isize;
                xs[m] = (column + along - if wrapped { columns } else { 0 }) as isize;
                ys[m] = if wrapped { below } else { row } as isize;
            }
            let low = [row.min(below) as isize, 0];
            let high = [row.max(below) as isize, columns as isize - 1];
            let (along, last) = ((len == count).then_some(1), (first + len - 1) as isize);
            return Pixels { len, out, y: ys, x: xs, source, along, low, high, last };
        }
        for m in 0..len {
            let at = [phase.origin[0] + row, phase.origin[1] + column];
            let [to_y, to_x] = [0, 1].map(|axis| phase.first[axis] + at[axis] * phase.step[axis]);
            let [y, x] = [0, 1].map(|axis| (at[axis] * phase.source_step[axis]) as isize);
            out[m] = (n * out_h + to_y) * out_w + to_x;
            (ys[m], xs[m]) = (y, x);
            source[m] = (n * source_h * source_w) as isize + y * source_w as isize + x;
            low = [low[0].min(y), low[1].min(x)];
            high = [high[0].max(y), high[1].max(x)];
            last = source[m];
            column += 1;
            if column == columns {
                (column, row) = (0, row + 1);
            }
            if row == rows {
                (row, n) = (0, n + 1);
            }
        }
        for m in len..count {
            (ys[m], xs[m], source[m]) = (ys[0], xs[0], source[0]);
        }
        Pixels { len, out, y: ys, x: xs, source, along: None, low, high, last }
    }
}
