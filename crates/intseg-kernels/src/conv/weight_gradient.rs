//! The weight gradient: a sum over pixels.
//!
//! With four pixels in place of four channels this is the product that the convolution's micro-kernels compute, so
//! they serve here too. For each tap, only output pixels whose source lies inside the image count; they are taken in
//! blocks, in which input and error are interleaved four pixels at a time: `[pixels / 4][channel][4]`.

use super::gather::{MAX_MR, MicroKernel, Reads, Start, Tap};
use super::receive::{Added, Learnt, Receive, Sum};
use super::shared_taps::{AHEAD_WEIGHTS, Plan, RowKernel};
use super::{Conv2d, Input, Line};
use crate::bytes::as_u8;
use crate::interleave::interleave;
use crate::masters::WeightMasters;
use crate::pool::{Disjoint, fetch_all};
use crate::sgd::Update;
use crate::{Context, Dither, Isa, scalar};
#[cfg(target_arch = "x86_64")]
use crate::{avx2, avx512vnni, avx512vnni::convolution::Kernel};
use core::ops::Range;

/// Pixels of a block, a multiple of 4.
const PIXELS: usize = 384;
/// Groups of four pixels that are fetched ahead: from one to the next lie all channels, of which a block takes some.
const GROUPS_AHEAD: usize = 4;
/// Channels of a block of input and of error. With the block's sums they fill half of a 1 MiB second-level cache.
pub(super) const CHANNELS: usize = 256;
/// Pixels after which i32 sums could wrap: `255 · 128 · 65 536 < 2^31`.
pub(super) const FLUSH: usize = 65_536 / PIXELS * PIXELS;

/// The weight gradient of a convolution:
/// `dw[kh, kw, ci, co] = Σ input[n, y·s − p + kh·d, x·s − p + kw·d, ci] · error[n, y, x, co]`.
#[derive(Clone, Copy, Debug)]
pub struct WeightGradient {
    /// The geometry, in forward terms.
    pub geometry: Conv2d,
    /// Whether the input is [`Input::I8`].
    pub signed: bool,
}

/// The blocks that a run is cut into: tasks are the blocks of every tap.
#[derive(Clone, Copy)]
struct Blocks {
    /// Input channels of a block, a multiple of the micro-kernel's rows.
    rows: usize,
    /// Output channels of a block, a multiple of the micro-kernel's columns.
    columns: usize,
    row_blocks: usize,
    column_blocks: usize,
}

impl Blocks {
    fn new(g: &Conv2d, [mr, nr]: [usize; 2], threads: usize) -> Self {
        let up = |value: usize, unit: usize| value.div_ceil(unit) * unit;
        // Few pixels are packed in no time, and memory is read and written fastest in long rows.
        let few = g.batch * g.out_h() * g.out_w() <= PIXELS;
        let widest = if few { 4 * CHANNELS } else { CHANNELS };
        let columns = up(g.c_out.min(widest), nr);
        let most_rows = CHANNELS * CHANNELS / columns.max(CHANNELS);
        let column_blocks = g.c_out.div_ceil(columns);
        // Few taps and channels make few tasks: smaller blocks then keep all threads busy.
        let others = g.kernel[0] * g.kernel[1] * column_blocks;
        let wanted = (4 * threads).div_ceil(others).clamp(g.c_in.div_ceil(most_rows), g.c_in.div_ceil(mr));
        let rows = up(g.c_in.div_ceil(wanted), mr);
        Blocks { rows, columns, row_blocks: g.c_in.div_ceil(rows), column_blocks }
    }

    /// i32 of packed input, packed error, sums and sums of errors, with room to align them.
    fn scratch_per_worker(&self) -> usize {
        (self.rows + self.columns) * PIXELS / 4 + self.rows * self.columns + self.columns + 16
    }
}

impl WeightGradient {
    /// How many i32 of scratch a run over some taps takes.
    pub fn scratch_len(&self, ctx: Context, taps: Range<usize>) -> usize {
        if let Some(plan) = self.shared(ctx, taps) {
            return plan.scratch_len();
        }
        let threads = ctx.pool.threads();
        let tile = match ctx.isa {
            Isa::Scalar => return 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => [avx2::convolution::MR, avx2::convolution::NR],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) => self.tile(),
        };
        Blocks::new(&self.geometry, tile, threads).scratch_per_worker() * threads
    }

    /// How several taps share a packing, where that is better.
    fn shared(&self, ctx: Context, taps: Range<usize>) -> Option<Plan> {
        // So few pixels are packed in no time, and tap by tap those on padding are left out and blocks have long rows.
        let g = &self.geometry;
        if g.batch * g.out_h() * g.out_w() <= PIXELS && g.c_out >= CHANNELS {
            return None;
        }
        let kernels: &[RowKernel] = match ctx.isa {
            Isa::Scalar => return None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(isa) => avx2::weight_gradient::kernels(isa),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(isa) => avx512vnni::weight_gradient::kernels(isa, self.geometry.c_out),
        };
        Plan::new(&self.geometry, self.signed, taps, kernels, ctx.pool.threads())
    }

    /// Whether the sums over all pixels fit 32 bits.
    pub fn is_narrow(&self) -> bool {
        let pixels = self.geometry.batch * self.geometry.out_h() * self.geometry.out_w();
        pixels <= FLUSH
    }

    /// Rows and columns of the AVX-512 micro-kernel that wastes least.
    fn tile(&self) -> [usize; 2] {
        let waste = |mr: &usize| self.geometry.c_in.div_ceil(*mr) * (mr + 1);
        let mr = [14, 12, 8].into_iter().min_by_key(waste).unwrap_or(14);
        [mr, if self.geometry.c_out <= 16 { 16 } else { 32 }]
    }

    /// Adds the `sums << shift` of some taps to `out`, `[taps, C_in, C_out]` with the taps of the kernel row by row.
    /// `error` is `[N, out_h, out_w, c_out]`, −128..=127.
    /// 32-bit partial sums are flushed before they can wrap. `out` may have 32 bits where [`WeightGradient::is_narrow`].
    ///
    /// # Panics
    /// When a slice has another length than the geometry says, or the input another sign than the plan.
    #[allow(clippy::too_many_arguments, reason = "the operands of the product")]
    pub fn run<S: Sum>(
        &self,
        ctx: Context,
        out: &mut [S],
        taps: Range<usize>,
        input: Input,
        error: &[i8],
        shift: u32,
        scratch: &mut [i32],
    ) {
        self.check(ctx, [out.len(); 2], taps.clone(), input, error, scratch);
        match ctx.isa {
            Isa::Scalar => scalar::weight_gradient::run(&self.geometry, ctx, out, taps, input, error, shift),
            #[cfg(target_arch = "x86_64")]
            _ => self.hand_over(ctx, &Added(Disjoint::new(out)), Operands { taps, input, error, shift }, scratch),
        }
    }

    /// Whether [`WeightGradient::learn`] can run: where 32 bits hold the sums, on every instruction set but portable code.
    pub fn learns(&self, ctx: Context) -> bool {
        self.is_narrow() && ctx.isa != Isa::Scalar
    }

    /// Updates the masters and the momenta of some taps from their gradient, as [`WeightGradient::run`] and then
    /// [`crate::sgd::update`] do: the gradient itself is never in memory. Returns how many masters lie beyond the limit.
    ///
    /// # Panics
    /// As [`WeightGradient::run`]; where [`WeightGradient::learns`] is false; and when gradients are to be rounded, which
    /// needs the largest of them.
    #[allow(clippy::too_many_arguments, reason = "the operands of the product, and what is learnt")]
    pub fn learn(
        &self,
        ctx: Context,
        masters: WeightMasters,
        momenta: &mut [i32],
        taps: Range<usize>,
        input: Input,
        error: &[i8],
        update: &Update,
        dithers: [Dither; 2],
        scratch: &mut [i32],
    ) -> usize {
        assert!(self.learns(ctx) && update.gradient_shift == 0, "the gradient is needed as a whole");
        self.check(ctx, [masters.steps.len(), momenta.len()], taps.clone(), input, error, scratch);
        let learnt = Learnt::new(masters, momenta, update, dithers);
        #[cfg(target_arch = "x86_64")]
        self.hand_over(ctx, &learnt, Operands { taps, input, error, shift: 0 }, scratch);
        learnt.outside()
    }

    /// Panics when a slice has another length than the geometry says, or the input another sign than the plan.
    fn check(&self, ctx: Context, out: [usize; 2], taps: Range<usize>, input: Input, error: &[i8], scratch: &[i32]) {
        let (len, signed) = match input {
            Input::U8(data) => (data.len(), false),
            Input::I8(data) => (data.len(), true),
        };
        assert_eq!(len, self.geometry.input_len(), "input");
        assert_eq!(signed, self.signed, "the input's sign");
        assert_eq!(error.len(), self.geometry.output_len(), "error");
        let [kh, kw] = self.geometry.kernel;
        assert!(taps.end <= kh * kw, "taps");
        assert_eq!(out, [taps.len() * self.geometry.c_in * self.geometry.c_out; 2], "weight gradient");
        assert!(scratch.len() >= self.scratch_len(ctx, taps), "scratch");
    }

    #[cfg(target_arch = "x86_64")]
    fn hand_over<R: Receive>(&self, ctx: Context, out: &R, operands: Operands, scratch: &mut [i32]) {
        if let Some(plan) = self.shared(ctx, operands.taps.clone()) {
            let (input, flip) = unsigned(operands.input);
            return plan.run(ctx, out, input, flip, operands.error, operands.shift, scratch);
        }
        match ctx.isa {
            Isa::Scalar => unreachable!("portable code adds sums by itself"),
            Isa::Avx2(isa) => {
                self.run_with(avx2::convolution::Kernel::new(isa, false), ctx, out, operands, scratch);
            }
            Isa::Avx512Vnni(isa) => match self.tile() {
                [14, 32] => self.run_with(Kernel::<14, 2, false>(isa), ctx, out, operands, scratch),
                [12, 32] => self.run_with(Kernel::<12, 2, false>(isa), ctx, out, operands, scratch),
                [8, 32] => self.run_with(Kernel::<8, 2, false>(isa), ctx, out, operands, scratch),
                [14, _] => self.run_with(Kernel::<14, 1, false>(isa), ctx, out, operands, scratch),
                [12, _] => self.run_with(Kernel::<12, 1, false>(isa), ctx, out, operands, scratch),
                _ => self.run_with(Kernel::<8, 1, false>(isa), ctx, out, operands, scratch),
            },
        }
    }

    fn run_with<K: MicroKernel, R: Receive>(
        &self,
        kernel: K,
        ctx: Context,
        out: &R,
        operands: Operands,
        scratch: &mut [i32],
    ) {
        let (Operands { taps, input, error, shift }, g) = (operands, self.geometry);
        let blocks = Blocks::new(&g, [K::MR, K::NR], ctx.pool.threads());
        let scratch = Disjoint::new(scratch);
        let per_tap = blocks.row_blocks * blocks.column_blocks;
        ctx.pool.run(taps.len() * per_tap, &|task, worker| {
            let len = blocks.scratch_per_worker();
            // SAFETY: each worker has its own part, and runs one task at a time.
            let scratch = unsafe { scratch.piece(worker * len, (worker + 1) * len) };
            let mut block = Block::new(&g, &blocks, task / per_tap, task % per_tap, scratch);
            let mut pixels = Pixels::new(&g, taps.start + task / per_tap);
            let mut since_flush = 0;
            loop {
                let len = pixels.advance();
                if len == 0 || since_flush == FLUSH {
                    // SAFETY: tasks have disjoint taps or disjoint blocks of channels.
                    ctx.isa.vectorize(
                        #[inline(always)]
                        || unsafe { block.flush(out, [K::MR, K::NR], shift) },
                    );
                    since_flush = 0;
                }
                if len == 0 {
                    break;
                }
                since_flush += PIXELS;
                block.pack(ctx.isa, &pixels, len, input, error, K::NR);
                block.multiply(kernel, len.div_ceil(4));
            }
        });
    }
}

/// What a weight gradient is made of.
struct Operands<'a> {
    /// The taps whose weights' gradient is meant.
    taps: Range<usize>,
    input: Input<'a>,
    error: &'a [i8],
    /// How far sums are shifted to the left.
    shift: u32,
}

/// The output pixels whose source for one tap lies inside the image, a block at a time.
struct Pixels {
    g: Conv2d,
    tap: [usize; 2],
    /// First and one past the last valid output row and column.
    valid: [[usize; 2]; 2],
    next: [usize; 3],
    input: [usize; PIXELS],
    error: [usize; PIXELS],
}

impl Pixels {
    fn new(g: &Conv2d, tap: usize) -> Self {
        let tap = [tap / g.kernel[1], tap % g.kernel[1]];
        let valid = [(g.in_h, g.out_h()), (g.in_w, g.out_w())];
        let valid = [0, 1].map(|axis| {
            let (size, count) = valid[axis];
            let reach = tap[axis] * g.dilation[axis];
            // o · stride + reach − padding lies in 0..size.
            let first = g.padding[axis].saturating_sub(reach).div_ceil(g.stride[axis]);
            let end = (size + g.padding[axis]).saturating_sub(reach).div_ceil(g.stride[axis]);
            [first, end.clamp(first, count.max(first))]
        });
        let next = [0, valid[0][0], valid[1][0]];
        Pixels { g: *g, tap, valid, next, input: [0; PIXELS], error: [0; PIXELS] }
    }

    /// Looks up the next block; returns its length, 0 at the end.
    fn advance(&mut self) -> usize {
        let g = &self.g;
        let [[top, bottom], [left, right]] = self.valid;
        let (out_h, out_w) = (g.out_h(), g.out_w());
        if left >= right || top >= bottom {
            return 0;
        }
        let source = |axis: usize, at: usize| at * g.stride[axis] + self.tap[axis] * g.dilation[axis] - g.padding[axis];
        let [mut n, mut y, mut x] = self.next;
        let mut len = 0;
        while n < g.batch && len < PIXELS {
            let run = (right - x).min(PIXELS - len);
            let input_row = (n * g.in_h + source(0, y)) * g.in_w;
            let error_row = (n * out_h + y) * out_w;
            for i in 0..run {
                self.input[len + i] = input_row + source(1, x + i);
                self.error[len + i] = error_row + x + i;
            }
            len += run;
            x += run;
            if x == right {
                (x, y) = (left, y + 1);
            }
            if y == bottom {
                (y, n) = (top, n + 1);
            }
        }
        self.next = [n, y, x];
        len
    }
}

/// One task: a tap's sums for a block of input channels and a block of output channels.
struct Block<'a> {
    c_in: usize,
    c_out: usize,
    /// Counted from the first tap of the run.
    tap: usize,
    /// First and number of input channels.
    rows: [usize; 2],
    /// First and number of output channels.
    columns: [usize; 2],
    /// Rows of the packed input.
    packed_rows: usize,
    /// `[pixels / 4][packed_rows][4]`.
    input: &'a mut [u8],
    /// `[panel][PIXELS / 4][NR][4]`.
    error: &'a mut [Line],
    /// `[panel][row tile][MR][NR]`, of any value while there are none.
    sums: &'a mut [i32],
    /// Whether there are sums.
    begun: bool,
    /// For signed input, the sum of each output channel's errors since the last flush.
    error_sums: &'a mut [i32],
    signed: bool,
}

impl<'a> Block<'a> {
    fn new(g: &Conv2d, blocks: &Blocks, tap: usize, index: usize, scratch: &'a mut [i32]) -> Self {
        let row = index / blocks.column_blocks * blocks.rows;
        let column = index % blocks.column_blocks * blocks.columns;
        // SAFETY: a line is 64 bytes of integers, any bits are valid for both.
        let (_, lines, _) = unsafe { scratch.align_to_mut::<Line>() };
        let (error, rest) = lines.split_at_mut(blocks.columns * PIXELS / 64);
        let (input, rest) = rest.split_at_mut(blocks.rows * PIXELS / 64);
        // SAFETY: as above.
        let (_, input, _) = unsafe { input.align_to_mut::<u8>() };
        // SAFETY: as above.
        let (_, rest, _) = unsafe { rest.align_to_mut::<i32>() };
        let (sums, rest) = rest.split_at_mut(blocks.rows * blocks.columns);
        let error_sums = &mut rest[..blocks.columns];
        error_sums.fill(0);
        Block {
            c_in: g.c_in,
            c_out: g.c_out,
            tap,
            rows: [row, blocks.rows.min(g.c_in - row)],
            columns: [column, blocks.columns.min(g.c_out - column)],
            packed_rows: blocks.rows,
            input,
            error,
            sums,
            begun: false,
            error_sums,
            signed: false,
        }
    }

    /// Interleaves a block's input and error.
    fn pack(&mut self, isa: Isa, pixels: &Pixels, len: usize, input: Input, error: &[i8], nr: usize) {
        self.signed = matches!(input, Input::I8(_));
        let [row, rows] = self.rows;
        let [column, columns] = self.columns;
        let (c_in, c_out) = (self.c_in, self.c_out);
        let (input, flip) = unsigned(input);
        let error = as_u8(error);
        let errors = Line::bytes_mut(self.error);
        isa.vectorize(
            #[inline(always)]
            || {
                for group in 0..len.div_ceil(4) {
                    let later = (group + GROUPS_AHEAD) * 4;
                    for pixel in later..len.min(later + 4) {
                        fetch_all(&input[pixels.input[pixel] * c_in + row..][..rows]);
                        fetch_all(&error[pixels.error[pixel] * c_out + column..][..columns]);
                    }
                    let count = (len - group * 4).min(4);
                    let out = &mut self.input[group * self.packed_rows * 4..][..rows * 4];
                    let at = |lane: usize| pixels.input[group * 4 + lane] * c_in + row;
                    interleave_some(out, count, |lane| &input[at(lane)..][..rows], flip);
                    let at = |lane: usize| pixels.error[group * 4 + lane] * c_out + column;
                    for panel in 0..columns.div_ceil(nr) {
                        let width = nr.min(columns - panel * nr);
                        let out = &mut errors[(panel * PIXELS / 4 + group) * nr * 4..][..nr * 4];
                        let (out, unused) = out.split_at_mut(width * 4);
                        interleave_some(out, count, |lane| &error[at(lane) + panel * nr..][..width], 0);
                        unused.fill(0);
                    }
                    if self.signed {
                        for lane in 0..count {
                            let errors = &error[at(lane)..][..columns];
                            self.error_sums.iter_mut().zip(errors).for_each(|(sum, &e)| *sum += i32::from(e as i8));
                        }
                    }
                }
            },
        );
    }

    /// Adds a packed block's products to the sums.
    fn multiply<K: MicroKernel>(&mut self, kernel: K, groups: usize) {
        let tile = K::MR * K::NR;
        let row_tiles = self.packed_rows / K::MR;
        let used_tiles = self.rows[1].div_ceil(K::MR);
        let panel_lines = PIXELS / 4 * K::NR * 4 / 64;
        let start = if self.begun { Start::Tile } else { Start::Zero };
        for panel in 0..self.columns[1].div_ceil(K::NR) {
            let error = &self.error[panel * panel_lines..][..panel_lines];
            for row_tile in 0..used_tiles {
                let sums = &mut self.sums[(panel * row_tiles + row_tile) * tile..][..tile];
                let mut sources = [self.input.as_ptr(); MAX_MR];
                for (m, source) in sources[..K::MR].iter_mut().enumerate() {
                    *source = self.input[(row_tile * K::MR + m) * 4..].as_ptr();
                }
                let (taps, sources) = (&[Tap { index: 0, sources: 0, offset: 0 }], &[sources]);
                let reads = Reads { taps, sources, along: Some(4) };
                // SAFETY: row `m` of every group lies in the packed input, `4 · packed_rows` bytes after that of the
                // group before.
                unsafe { kernel.accumulate(sums, start, error, reads, groups, self.packed_rows * 4) };
            }
        }
        self.begun = true;
    }

    /// Hands the sums over and starts over.
    ///
    /// # Safety
    /// No other block of the same tap and channels may flush at the same time.
    #[inline(always)]
    unsafe fn flush<R: Receive>(&mut self, out: &R, [mr, nr]: [usize; 2], shift: u32) {
        if !self.begun {
            // No pixel reads the image.
            self.sums.fill(0);
        }
        let row_tiles = self.packed_rows / mr;
        let columns = self.columns[1];
        let place = |row: usize| (self.tap * self.c_in + self.rows[0] + row) * self.c_out + self.columns[0];
        let ahead = (AHEAD_WEIGHTS / columns).clamp(1, self.rows[1]);
        for row in 0..ahead {
            out.expect(place(row), columns);
        }
        let mut total = 0;
        for row in 0..self.rows[1] {
            if row + ahead < self.rows[1] {
                out.expect(place(row + ahead), columns);
            }
            for first in (0..columns).step_by(CHANNELS) {
                let mut part = [0; CHANNELS];
                let part = &mut part[..CHANNELS.min(columns - first)];
                let biases = self.error_sums[first..].chunks(nr);
                for (panel, (out, biases)) in (first / nr..).zip(part.chunks_mut(nr).zip(biases)) {
                    let sums = &self.sums[((panel * row_tiles + row / mr) * mr + row % mr) * nr..];
                    unbiased(out, sums, biases);
                }
                // SAFETY: these weights are this block's alone, as the caller promises.
                total += unsafe { out.take(place(row) + first, part, shift) };
            }
        }
        out.done(total);
        self.begun = false;
        self.error_sums.fill(0);
    }
}

/// Sums of pixels without what the bias of signed input added. The result fits 32 bits: there are at most [`FLUSH`] pixels.
#[inline(always)]
pub(super) fn unbiased(out: &mut [i32], sums: &[i32], biases: &[i32]) {
    for ((out, &sum), &bias) in out.iter_mut().zip(sums).zip(biases) {
        *out = sum.wrapping_sub(bias.wrapping_mul(128));
    }
}

/// The input as the unsigned operand, and what to flip for it: a bias that `flush` takes back.
fn unsigned(input: Input<'_>) -> (&[u8], u8) {
    match input {
        Input::U8(data) => (data, 0),
        Input::I8(data) => (as_u8(data), 0x80),
    }
}

/// As [`interleave`], with rows from `count` on holding 0.
#[inline(always)]
fn interleave_some<'a>(out: &mut [u8], count: usize, row: impl Fn(usize) -> &'a [u8], flip: u8) {
    if count == 4 {
        return interleave(out, [row(0), row(1), row(2), row(3)], flip);
    }
    for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *out = core::array::from_fn(|lane| if lane < count { row(lane)[i] ^ flip } else { 0 });
    }
}
