//! A block of channels: its pixels are packed and multiplied, its sums handed over.

use super::{AHEAD_WEIGHTS, MAX_ROWS, Place, Plan};
use crate::Isa;
use crate::conv::Line;
use crate::conv::receive::Receive;
use crate::conv::weight_gradient::{CHANNELS, unbiased};
use crate::interleave::interleave_row;
use core::ops::Range;

/// What is packed.
pub(super) struct Source<'a> {
    pub input: &'a [u8],
    /// The bias makes signed input the unsigned operand; `flush` takes it back.
    pub flip: u8,
    pub error: &'a [u8],
}

/// A block of pixels: first and number of fours of strips, and of rows of each.
pub(super) struct Pixels {
    pub four: usize,
    pub fours: usize,
    pub row: usize,
    pub rows: usize,
}

/// A block of channels with its packed pixels and its sums.
pub(super) struct Block<'a> {
    pub plan: &'a Plan,
    pub channels: [[usize; 2]; 2],
    /// `[panel][four][row][column][NR][4]`.
    pub error: &'a mut [Line],
    /// `[four][row][column][channel][4]`.
    pub input: &'a mut [Line],
    /// The sum of each output channel's errors for signed input.
    pub biases: &'a mut [i32],
    /// `[run][tile][panel][MR][NR]`.
    pub sums: &'a mut [i32],
}

/// Sums that are to be handed over.
pub(super) struct Finished<'a> {
    pub plan: &'a Plan,
    pub channels: [[usize; 2]; 2],
    /// Which of the block's.
    pub tiles: Range<usize>,
    pub biases: &'a [i32],
    pub sums: &'a [i32],
}

impl Block<'_> {
    #[inline(always)]
    pub fn pack(&mut self, source: &Source, pixels: &Pixels) {
        let plan = self.plan;
        let (g, nr, width) = (&plan.g, plan.kernel.nr, plan.width());
        let (out_h, out_w) = (g.out_h(), g.out_w());
        let [[row, rows], [column, columns]] = self.channels;
        let input = Line::bytes_mut(self.input);
        let errors = Line::bytes_mut(self.error);
        let input_rows = plan.input_rows(pixels.rows);
        let above = plan.first_kernel_row() * g.dilation[0];
        // Columns of padding, of the image, and of padding again.
        let left = g.padding[1].min(width);
        let inside = g.in_w.min(width - left);
        for four in 0..pixels.fours {
            // The image and first output row of each lane.
            let lanes: [[usize; 2]; 4] = core::array::from_fn(|lane| {
                let strip = (pixels.four + four) * 4 + lane;
                [strip / plan.strips, strip % plan.strips * plan.strip_rows]
            });
            for at in 0..input_rows {
                let out = &mut input[(four * input_rows + at) * width * rows * 4..][..width * rows * 4];
                let (padding, out) = out.split_at_mut(left * rows * 4);
                padding.fill(source.flip);
                let (out, padding) = out.split_at_mut(inside * rows * 4);
                padding.fill(source.flip);
                let places = lanes.map(|[image, first]| {
                    let y = ((first + pixels.row) * g.stride[0] + above + at).checked_sub(g.padding[0]);
                    y.filter(|&y| y < g.in_h).map(|y| (image * g.in_h + y) * g.in_w * g.c_in + row)
                });
                interleave_row(out, source.input, places, rows, g.c_in, rows, source.flip);
            }
            for at in 0..pixels.rows {
                let places = lanes.map(|[image, first]| {
                    let y = Some(first + pixels.row + at).filter(|&y| y < out_h);
                    y.map(|y| (image * out_h + y) * out_w * g.c_out + column)
                });
                for panel in 0..columns.div_ceil(nr) {
                    let used = nr.min(columns - panel * nr);
                    let line = ((panel * plan.block_fours + four) * plan.block_rows + at) * out_w * nr * 4;
                    let places = places.map(|place| place.map(|place| place + panel * nr));
                    interleave_row(&mut errors[line..][..out_w * nr * 4], source.error, places, used, g.c_out, nr, 0);
                }
                if plan.signed {
                    for place in places.into_iter().flatten() {
                        for errors in source.error[place - column..][..out_w * g.c_out].chunks_exact(g.c_out) {
                            let sums = self.biases.iter_mut().zip(&errors[column..][..columns]);
                            sums.for_each(|(sum, &error)| *sum += i32::from(error as i8));
                        }
                    }
                }
            }
        }
    }

    /// Adds a packed block's products to the sums.
    pub fn multiply(&mut self, pixels: &Pixels) {
        let plan = self.plan;
        let (g, super::RowKernel { mr, nr, accumulate }) = (&plan.g, plan.kernel);
        let [[_, rows], [_, columns]] = self.channels;
        let (input_rows, width, out_w) = (plan.input_rows(pixels.rows), plan.width(), g.out_w());
        let input = &*Line::bytes_mut(self.input);
        let panel_lines = plan.block_fours * plan.block_rows * out_w * nr / 16;
        let panels = plan.columns / nr;
        let mut tiles = self.sums.chunks_exact_mut(mr * nr * panels);
        for run in plan.runs() {
            let [ky, kx] = [run.first / g.kernel[1], run.first % g.kernel[1]];
            // Strips of one image have no rows in common that all of them read padding for.
            let [top, bottom] = if plan.strips == 1 { plan.valid(0, ky) } else { [0, plan.strip_rows] };
            let mut places = [Place::default(); MAX_ROWS];
            let mut count = 0;
            for four in 0..pixels.fours {
                for y in top.max(pixels.row)..bottom.min(pixels.row + pixels.rows) {
                    let at = y - pixels.row;
                    let down = at * g.stride[0] + (ky - plan.first_kernel_row()) * g.dilation[0];
                    let right = run.columns[0] * g.stride[1] + kx * g.dilation[1];
                    places[count] = Place {
                        error: (((four * plan.block_rows) + at) * out_w + run.columns[0]) * nr / 16,
                        input: ((four * input_rows + down) * width + right) * rows * 4,
                    };
                    count += 1;
                }
            }
            let groups = run.columns[1] - run.columns[0];
            for tile in 0..plan.tiles_of(run, rows) {
                let sums = tiles.next().expect("the plan counts tiles");
                for (panel, sums) in sums.chunks_exact_mut(mr * nr).enumerate().take(columns.div_ceil(nr)) {
                    let error = &self.error[panel * panel_lines..][..panel_lines];
                    // SAFETY: the plan chose a kernel of the instruction set; a place's last row of its last group is
                    // less than `4 · MR` bytes behind the last pixel packed, and so many bytes follow it.
                    unsafe {
                        accumulate(
                            sums,
                            error,
                            &input[tile * mr * 4..],
                            &places[..count],
                            groups,
                            g.stride[1] * rows * 4,
                        )
                    };
                }
            }
        }
    }

    /// Its sums, of that many tiles at most.
    pub fn finished(&self, tiles: usize) -> Finished<'_> {
        let Block { plan, channels, biases, sums, .. } = self;
        Finished { plan, channels: *channels, tiles: 0..tiles, biases, sums }
    }
}

impl Finished<'_> {
    /// Hands the sums over.
    ///
    /// # Safety
    /// No others of the same channels and tiles may be handed over at the same time.
    pub unsafe fn flush<R: Receive>(&self, isa: Isa, out: &R, shift: u32) {
        isa.vectorize(
            #[inline(always)]
            // SAFETY: the caller's promise is handed on.
            || unsafe { self.flush_inlined(out, shift) },
        );
    }

    /// # Safety
    /// As [`Finished::flush`].
    #[inline(always)]
    unsafe fn flush_inlined<R: Receive>(&self, out: &R, shift: u32) {
        let plan = self.plan;
        let (g, mr, nr) = (&plan.g, plan.kernel.mr, plan.kernel.nr);
        let [[row, rows], [column, columns]] = self.channels;
        let mut tiles = self.sums.chunks_exact(mr * plan.columns);
        let (mut total, mut before) = (0, 0);
        for run in plan.runs() {
            let place = |index: usize| {
                let tap = run.first - plan.taps[0] + index / rows;
                (tap * g.c_in + row + index % rows) * g.c_out + column
            };
            // Those of the run's tiles that are among the sums.
            let count = plan.tiles_of(run, rows);
            let first = self.tiles.start.saturating_sub(before);
            let last = self.tiles.end.saturating_sub(before).min(count);
            before += count;
            let end = (last * mr).min(run.taps * rows);
            let ahead = (AHEAD_WEIGHTS / columns).max(1);
            for index in first * mr..end.min(first * mr + ahead) {
                out.expect(place(index), columns);
            }
            for tile in first..last {
                let sums = tiles.next().expect("as many tiles as sums");
                for index in tile * mr..end.min((tile + 1) * mr) {
                    let at = place(index);
                    if index + ahead < end {
                        out.expect(place(index + ahead), columns);
                    }
                    let mut whole = [0; CHANNELS];
                    let biases = self.biases.chunks(nr);
                    for (panel, (out, biases)) in whole[..columns].chunks_mut(nr).zip(biases).enumerate() {
                        unbiased(out, &sums[(panel * mr + index - tile * mr) * nr..], biases);
                    }
                    // SAFETY: these weights are this call's alone, as the caller promises.
                    total += unsafe { out.take(at, &whole[..columns], shift) };
                }
            }
        }
        out.done(total);
    }
}
