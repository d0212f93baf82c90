//! The weight gradient of several taps from one packing.
//!
//! A product with four pixels in place of four channels needs the pixels interleaved. Here the four come from four
//! images, or from four strips of one: `[row][column][channel][4]`. A tap is then a distance in the packed input, so
//! that one packing serves all taps; and the channels of neighbouring taps follow each other, so that a tile's rows are
//! neighbours whatever the number of channels: the three taps of three channels are nine rows.

mod block;

use super::receive::Receive;
use super::weight_gradient::{CHANNELS, FLUSH};
use super::{Conv2d, Line};
use crate::Context;
use crate::bytes::as_u8;
use crate::pool::Disjoint;
use block::{Block, Finished, Pixels, Source};
use core::ops::Range;

/// 32-bit sums of a block of channels, and bytes of a block of packed pixels: together they fill two thirds of a 1 MiB
/// second-level cache.
const SUMS: usize = 80 << 10;
const PACKED: usize = 320 << 10;
/// Weights that are fetched before sums are handed to them.
pub(super) const AHEAD_WEIGHTS: usize = 1024;
/// The most taps of a run, and the most rows of pixels of a block.
const MAX_TAPS: usize = 64;
const MAX_ROWS: usize = 256;

/// Where a row of pixels begins in the packed error, in lines, and in the packed input, in bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Place {
    pub error: usize,
    pub input: usize,
}

/// Adds the products of `groups` groups of four pixels from each place on to the tile `[MR][NR]`: row `m` reads the
/// input at `4 · m` bytes from a place; groups are `step` bytes apart there, and `NR · 4` bytes in the error.
///
/// It is safe where the instruction set is present and every row of every group lies in the input.
pub(crate) type Accumulate = unsafe fn(&mut [i32], &[Line], &[u8], &[Place], usize, usize);

/// The innermost loop of an instruction set.
#[derive(Clone, Copy)]
pub(crate) struct RowKernel {
    pub mr: usize,
    pub nr: usize,
    pub accumulate: Accumulate,
}

/// Taps of one kernel row whose channels make one sequence of rows.
#[derive(Clone, Copy, Default)]
struct Run {
    first: usize,
    taps: usize,
    /// Output columns that any of them reads the image for.
    columns: [usize; 2],
}

/// How a run of the weight gradient is cut.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    g: Conv2d,
    signed: bool,
    taps: [usize; 2],
    kernel: RowKernel,
    runs: [Run; MAX_TAPS],
    run_count: usize,
    /// Input and output channels of a block, and how many blocks there are.
    rows: usize,
    columns: usize,
    blocks: [usize; 2],
    /// Strips of an image, and their output rows.
    strips: usize,
    strip_rows: usize,
    /// Output rows of a block of pixels, and how many fours of strips it takes of them.
    block_rows: usize,
    block_fours: usize,
    /// Blocks of pixels, and pieces of as many of them: each has sums of its own where there are several.
    pixel_blocks: usize,
    pieces: usize,
    threads: usize,
}

impl Plan {
    /// The cheapest plan over some micro-kernels, or `None` where tap by tap is better: for a single tap, and where
    /// taps lie so far apart that the rows of a block share none.
    pub fn new(g: &Conv2d, signed: bool, taps: Range<usize>, kernels: &[RowKernel], threads: usize) -> Option<Self> {
        if taps.len() < 2 || taps.len() > MAX_TAPS || g.input_len() == 0 || g.output_len() == 0 {
            return None;
        }
        let cost = |plan: &Plan| {
            let tiles = |run: &Run| (run.taps * plan.rows).div_ceil(plan.kernel.mr) * (run.columns[1] - run.columns[0]);
            plan.runs().iter().map(tiles).sum::<usize>() * (plan.kernel.mr + 1) * plan.blocks[0]
        };
        let joined = [true, false].into_iter().filter(|&joined| !joined || g.dilation[1] == 1);
        let plans = joined.flat_map(|joined| kernels.iter().map(move |kernel| (joined, kernel)));
        let plans = plans.filter_map(|(joined, k)| Self::with(g, signed, taps.clone(), *k, threads, joined));
        plans.min_by_key(cost)
    }

    fn with(
        g: &Conv2d,
        signed: bool,
        taps: Range<usize>,
        kernel: RowKernel,
        threads: usize,
        joined: bool,
    ) -> Option<Self> {
        let width = |columns: &usize| columns * taps.len() * g.c_in <= SUMS;
        let columns = [CHANNELS, 128].into_iter().find(width).unwrap_or(64).min(g.c_out.next_multiple_of(kernel.nr));
        let rows = g.c_in.div_ceil((taps.len() * g.c_in * columns).div_ceil(SUMS));
        let rows = if rows < g.c_in { rows.next_multiple_of(16).min(g.c_in) } else { rows };
        let strips = 4 >> g.batch.trailing_zeros().min(2);
        let mut plan = Plan {
            g: *g,
            signed,
            taps: [taps.start, taps.end],
            kernel,
            runs: [Run::default(); MAX_TAPS],
            run_count: 0,
            rows,
            columns,
            blocks: [g.c_in.div_ceil(rows), g.c_out.div_ceil(columns)],
            strips,
            strip_rows: g.out_h().div_ceil(strips),
            block_rows: 0,
            block_fours: 0,
            pixel_blocks: 0,
            pieces: 0,
            threads,
        };
        plan.find_runs(joined);
        // Every row takes as much as the second.
        let [first, both] = [1, 2].map(|rows| plan.packed_bytes(rows));
        let rows = 1 + PACKED.checked_sub(first)? / (both - first);
        plan.block_rows = rows.min(plan.strip_rows).min(MAX_ROWS);
        // Rows that only serve taps of a neighbouring block are packed twice.
        if plan.block_rows < plan.strip_rows && 2 * plan.block_rows < plan.reach() {
            return None;
        }
        let fours = g.batch * strips / 4;
        if plan.block_rows == plan.strip_rows {
            plan.block_fours = (PACKED / plan.packed_bytes(plan.block_rows)).min(MAX_ROWS / plan.block_rows);
        }
        plan.block_fours = plan.block_fours.clamp(1, fours);
        plan.cut_into_pieces();
        Some(plan)
    }

    /// Joins the taps of each kernel row, or takes each alone, with fewer columns on padding.
    fn find_runs(&mut self, joined: bool) {
        let g = &self.g;
        let mut tap = self.taps[0];
        while tap < self.taps[1] {
            let end = if joined { (tap / g.kernel[1] + 1) * g.kernel[1] } else { tap + 1 }.min(self.taps[1]);
            let mut columns = [g.out_w(), 0];
            for kx in (tap..end).map(|tap| tap % g.kernel[1]) {
                let [first, past] = self.valid(1, kx);
                columns = [columns[0].min(first), columns[1].max(past)];
            }
            // Taps that read padding alone have sums too: zeros.
            let columns = if columns[0] < columns[1] { columns } else { [0; 2] };
            self.runs[self.run_count] = Run { first: tap, taps: end - tap, columns };
            self.run_count += 1;
            tap = end;
        }
    }

    /// First and one past the last output row or column that a kernel row or column reads the image for. Signed input
    /// is biased, and what that adds is known for all pixels together: padding is then multiplied too.
    fn valid(&self, axis: usize, at: usize) -> [usize; 2] {
        let g = &self.g;
        let (size, count) = [(g.in_h, g.out_h()), (g.in_w, g.out_w())][axis];
        if self.signed {
            return [0, count];
        }
        let reach = at * g.dilation[axis];
        let first = g.padding[axis].saturating_sub(reach).div_ceil(g.stride[axis]);
        let end = (size + g.padding[axis]).saturating_sub(reach).div_ceil(g.stride[axis]);
        [first.min(count), end.min(count)]
    }

    fn cut_into_pieces(&mut self) {
        let fours = (self.g.batch * self.strips / 4).div_ceil(self.block_fours);
        self.pixel_blocks = fours * self.strip_rows.div_ceil(self.block_rows);
        let blocks = self.blocks[0] * self.blocks[1];
        self.pieces = match 2 * self.threads {
            // Sums are flushed as they go.
            _ if self.threads == 1 => 1,
            wanted if blocks >= wanted => 1,
            wanted => {
                let least = self.pixel_blocks.div_ceil(FLUSH / self.block_pixels());
                wanted.div_ceil(blocks).max(least).min(self.pixel_blocks)
            }
        };
    }

    fn runs(&self) -> &[Run] {
        &self.runs[..self.run_count]
    }

    fn first_kernel_row(&self) -> usize {
        self.taps[0] / self.g.kernel[1]
    }

    /// Input rows between those of the first and of the last tap.
    fn reach(&self) -> usize {
        ((self.taps[1] - 1) / self.g.kernel[1] - self.first_kernel_row()) * self.g.dilation[0]
    }

    /// Packed input columns: those of all taps, padding included.
    fn width(&self) -> usize {
        (self.g.out_w() - 1) * self.g.stride[1] + (self.g.kernel[1] - 1) * self.g.dilation[1] + 1
    }

    fn input_rows(&self, output_rows: usize) -> usize {
        (output_rows - 1) * self.g.stride[0] + self.reach() + 1
    }

    /// Bytes of so many packed rows of four strips.
    fn packed_bytes(&self, rows: usize) -> usize {
        4 * (self.input_rows(rows) * self.width() * self.rows + rows * self.g.out_w() * self.columns)
    }

    /// The most pixels of a block.
    fn block_pixels(&self) -> usize {
        4 * self.block_fours * self.block_rows * self.g.out_w()
    }

    /// Lines of packed error, of packed input with what a last tile reads behind it, of sums of errors, and of a tile's sums
    /// for all columns.
    fn lines(&self) -> [usize; 4] {
        let fours = self.block_fours;
        let error = fours * self.block_rows * self.g.out_w() * self.columns / 16;
        let input = fours * self.input_rows(self.block_rows) * self.width() * self.rows + self.kernel.mr;
        [error, input.div_ceil(16), self.columns / 16, self.kernel.mr * self.columns / 16]
    }

    /// Tiles of a run of taps with so many input channels.
    fn tiles_of(&self, run: &Run, rows: usize) -> usize {
        (run.taps * rows).div_ceil(self.kernel.mr)
    }

    /// The most tiles of a block.
    fn tiles(&self) -> usize {
        self.runs().iter().map(|run| self.tiles_of(run, self.rows)).sum()
    }

    /// How many sets of sums there are.
    fn areas(&self) -> usize {
        if self.pieces == 1 { self.threads } else { self.blocks[0] * self.blocks[1] * self.pieces }
    }

    /// How many i32 of scratch a run takes.
    pub fn scratch_len(&self) -> usize {
        let [error, input, biases, tile] = self.lines();
        16 * (self.threads * (error + input) + self.areas() * (biases + self.tiles() * tile) + 1)
    }

    /// Hands the `sums << shift` of the plan's taps to `out`; signed input comes with its signs flipped by `flip`. Those
    /// of a weight come once where 32 bits hold them ([`super::WeightGradient::is_narrow`]).
    #[allow(clippy::too_many_arguments, reason = "the operands of the product")]
    pub fn run<R: Receive>(
        &self,
        ctx: Context,
        out: &R,
        input: &[u8],
        flip: u8,
        error: &[i8],
        shift: u32,
        scratch: &mut [i32],
    ) {
        let [error_lines, input_lines, bias_lines, tile_lines] = self.lines();
        // SAFETY: a line is 64 bytes of integers, any bits are valid for both.
        let (_, lines, _) = unsafe { scratch.align_to_mut::<Line>() };
        let (packed, lines) = lines.split_at_mut(self.threads * (error_lines + input_lines));
        let (biases, lines) = lines.split_at_mut(self.areas() * bias_lines);
        let tiles = self.tiles();
        let sums = Disjoint::new(&mut lines[..self.areas() * tiles * tile_lines]);
        let narrow = self.g.batch * self.g.out_h() * self.g.out_w() <= FLUSH;
        let blocks = self.blocks[0] * self.blocks[1];
        let sums_of = |area: usize, some: Range<usize>| {
            let [from, to] = [some.start, some.end].map(|tile| (area * tiles + tile) * tile_lines);
            // SAFETY: each worker, or each task, has its own tiles.
            Line::sums_mut(unsafe { sums.piece(from, to) })
        };
        let source = Source { input, flip, error: as_u8(error) };
        let (packed, shared) = (Disjoint::new(packed), Disjoint::new(&mut *biases));
        ctx.pool.run(blocks * self.pieces, &|task, worker| {
            let len = error_lines + input_lines;
            // SAFETY: each worker has its own part, and runs one task at a time.
            let packed = unsafe { packed.piece(worker * len, (worker + 1) * len) };
            let (error, input) = packed.split_at_mut(error_lines);
            let area = if self.pieces == 1 { worker } else { task };
            let sums = sums_of(area, 0..tiles);
            // SAFETY: as above.
            let biases = Line::sums_mut(unsafe { shared.piece(area * bias_lines, (area + 1) * bias_lines) });
            sums.fill(0);
            biases.fill(0);
            let channels = self.channels(task / self.pieces);
            let mut block = Block { plan: self, channels, error, input, biases, sums };
            let [from, to] = [0, 1].map(|end| (task % self.pieces + end) * self.pixel_blocks / self.pieces);
            let mut since_flush = 0;
            for pixels in (from..to).map_while(|index| self.pixels(index)) {
                if !narrow && since_flush + self.block_pixels() > FLUSH {
                    // SAFETY: sums are flushed here when there is one piece: tasks then have disjoint channels.
                    unsafe { block.finished(tiles).flush(ctx.isa, out, shift) };
                    block.sums.fill(0);
                    block.biases.fill(0);
                    since_flush = 0;
                }
                since_flush += self.block_pixels();
                ctx.isa.vectorize(
                    #[inline(always)]
                    || block.pack(&source, &pixels),
                );
                block.multiply(&pixels);
            }
            if self.pieces == 1 {
                // SAFETY: as above.
                unsafe { block.finished(tiles).flush(ctx.isa, out, shift) };
            }
        });
        if self.pieces > 1 {
            let biases = Line::sums_mut(biases);
            if narrow {
                // What pieces add up to has its biases added up.
                for biases in biases.chunks_exact_mut(self.pieces * self.columns) {
                    let (first, others) = biases.split_at_mut(self.columns);
                    for other in others.chunks_exact(self.columns) {
                        first.iter_mut().zip(other).for_each(|(sum, other)| *sum += *other);
                    }
                }
            }
            let biases = &*biases;
            let parts = self.threads.div_ceil(blocks).min(tiles);
            ctx.pool.run(blocks * parts, &|task, _| {
                let (block, part) = (task / parts, task % parts);
                let some = part * tiles / parts..(part + 1) * tiles / parts;
                let finished = |piece: usize, sums| {
                    let biases = &biases[(block * self.pieces + piece) * self.columns..][..self.columns];
                    Finished { plan: self, channels: self.channels(block), tiles: some.clone(), biases, sums }
                };
                let first = sums_of(block * self.pieces, some.clone());
                for piece in 1..self.pieces {
                    let sums = sums_of(block * self.pieces + piece, some.clone());
                    if narrow {
                        ctx.isa.vectorize(
                            #[inline(always)]
                            || first.iter_mut().zip(sums).for_each(|(sum, other)| *sum += *other),
                        );
                    } else {
                        // SAFETY: tasks have disjoint channels or tiles.
                        unsafe { finished(piece, sums).flush(ctx.isa, out, shift) };
                    }
                }
                // SAFETY: as above.
                unsafe { finished(0, first).flush(ctx.isa, out, shift) };
            });
        }
    }

    /// First and number of the input and of the output channels of a block.
    fn channels(&self, index: usize) -> [[usize; 2]; 2] {
        let row = index / self.blocks[1] * self.rows;
        let column = index % self.blocks[1] * self.columns;
        [[row, self.rows.min(self.g.c_in - row)], [column, self.columns.min(self.g.c_out - column)]]
    }

    /// The block of pixels of that number.
    fn pixels(&self, index: usize) -> Option<Pixels> {
        let per_four = self.strip_rows.div_ceil(self.block_rows);
        let first = index / per_four * self.block_fours;
        let fours = (self.g.batch * self.strips / 4).checked_sub(first).filter(|&left| left > 0)?;
        let row = index % per_four * self.block_rows;
        let rows = self.block_rows.min(self.strip_rows - row);
        Some(Pixels { four: first, fours: fours.min(self.block_fours), row, rows })
    }
}
