//! The driver of the SIMD convolutions: tiles of output pixels gather their input tap by tap.
//!
//! A tile is up to `MR` output pixels of one [`Phase`] and `NR` output channels. For each tap the driver looks up
//! where each pixel reads; a tap that falls on padding for the whole tile is skipped, and one that does for some
//! pixels reads zeros there. A micro-kernel then accumulates all taps and input channels without leaving registers.
//!
//! Weights are packed in panels of `NR` output channels ([`super::pack`]).

mod pixels;

use super::phase::{Phase, Regions, phases};
use super::store::Store;
use super::{Convolution, Input, Line};
use crate::pool::for_each_piece;
use crate::{Context, Isa};
use core::ops::Range;
use pixels::Pixels;

/// The most pixels that any micro-kernel's tile has.
pub(crate) const MAX_MR: usize = 28;
/// The most sums that any micro-kernel's tile has.
pub(crate) const MAX_TILE: usize = 14 * 32;
/// Taps handed to a micro-kernel at once; larger kernels run in several rounds over the same tile.
pub(crate) const MAX_TAPS: usize = 64;
/// Windows of up to so many taps have small tables: clearing those for [`MAX_TAPS`] takes as long as a thin layer's tile.
const FEW_TAPS: usize = 9;
/// Bytes of packed weights that should stay in the second-level cache while pixels stream past them.
const PANEL_BYTES: usize = 384 << 10;

/// Where each pixel of a tile reads.
pub(crate) type Sources = [*const u8; MAX_MR];

/// One tap of a tile: which one, and where each pixel reads.
#[derive(Clone, Copy)]
pub(crate) struct Tap {
    /// Its place in the panel: its weights are `c4 · NR · 4` bytes at `index` times as many.
    pub index: usize,
    /// Index of its sources in the tile's table.
    pub sources: usize,
    /// Bytes between those and what this tap reads: taps inside the image share the sources of a tap at offset 0.
    pub offset: isize,
}

/// What a tile reads: its taps, and the table of their sources.
#[derive(Clone, Copy)]
pub(crate) struct Reads<'a> {
    pub taps: &'a [Tap],
    pub sources: &'a [Sources],
    /// Bytes from each source of the first table to the next, where they are as far apart all along.
    pub along: Option<usize>,
}

/// What the sums of a tile start from.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// Nothing.
    Zero,
    /// What is in the tile.
    Tile,
    /// `[NR]` values, the same for every pixel.
    Row(&'a [i32]),
}

/// The innermost loops of one instruction set.
pub(crate) trait MicroKernel: Copy + Sync {
    /// Pixels of a tile.
    const MR: usize;
    /// Channels of a tile.
    const NR: usize;
    /// Whether a signed input is handled by biased weights, so that `128 · Σ input` is to be subtracted.
    const BIASED: bool;

    /// Writes what the sums start from and the products of `taps` over `c4` groups of four input channels to the tile
    /// `[MR][NR]`.
    /// `panel` is the panel's packed weights; a source's groups are `step` bytes apart.
    ///
    /// # Safety
    /// Every source of every tap must have four readable bytes at `offset + 0, step, … (c4 − 1) · step`.
    ///
    /// # Panics
    /// When the panel is too short for a tap's index, or the table for a tap's sources.
    unsafe fn accumulate(self, tile: &mut [i32], start: Start, panel: &[Line], reads: Reads, c4: usize, step: usize);
}

/// Scratch: a pixel of zeros, a padded copy of the input's end, and for signed input the sum of each pixel's channels with
/// that of a pixel on padding behind them.
pub(crate) fn scratch_len(plan: &Convolution) -> usize {
    let [h, w, c] = plan.source();
    let sums = if plan.signed { plan.geometry.batch * h * w + 1 } else { 0 };
    3 * c.div_ceil(4) + sums
}

/// What all tiles share.
struct Job<'a> {
    isa: Isa,
    plan: &'a Convolution,
    input: *const u8,
    zeros: *const u8,
    /// A copy of the input from byte `tail_start` on, with zeros behind it.
    tail: *const u8,
    tail_start: usize,
    pixel_sums: &'a [i32],
    packed: &'a [Line],
    /// Those whose weights `packed` has.
    taps: Range<usize>,
    c4: usize,
    panel_lines: usize,
}

// SAFETY: the pointers are read alone, and what they point to outlives the job (it is built and dropped in `run`).
unsafe impl Sync for Job<'_> {}

/// Runs a convolution, or that part of its sums that some taps contribute, whose weights alone `packed` then has.
#[allow(clippy::too_many_arguments, reason = "a convolution's operands, and which of its taps")]
pub(crate) fn run<K: MicroKernel, S: Store>(
    kernel: K,
    plan: &Convolution,
    taps: Range<usize>,
    ctx: Context,
    store: &S,
    input: Input,
    packed: &[Line],
    scratch: &mut [i32],
) {
    let [h, w, c] = plan.source();
    let pixels = plan.geometry.batch * h * w;
    let c4 = c.div_ceil(4);
    let (zeros, rest) = scratch.split_at_mut(c4);
    let (tail, pixel_sums) = rest.split_at_mut(2 * c4);
    zeros.fill(0);
    let tail_start = (pixels * c).saturating_sub(4 * c4);
    fill_tail(tail, input, tail_start);
    let pixel_sums: &[i32] = match input {
        Input::I8(data) if K::BIASED => {
            let sums = &mut pixel_sums[..pixels + 1];
            sum_pixels(ctx, &mut sums[..pixels], data, c);
            sums[pixels] = 0;
            sums
        }
        _ => &[],
    };
    let bytes = match input {
        Input::U8(data) => data.as_ptr(),
        Input::I8(data) => data.as_ptr().cast(),
    };
    let job = Job {
        isa: ctx.isa,
        plan,
        input: bytes,
        zeros: zeros.as_ptr().cast(),
        tail: tail.as_ptr().cast(),
        tail_start,
        pixel_sums,
        packed,
        c4,
        panel_lines: taps.len() * c4 * K::NR * 4 / 64,
        taps,
    };
    let [.., target] = plan.target();
    let panels = target.div_ceil(K::NR);
    let group = (PANEL_BYTES / (job.panel_lines * 64).max(1)).clamp(1, panels);
    let groups = panels.div_ceil(group);
    let tiles_of = |phase: &Phase| (plan.geometry.batch * phase.count[0] * phase.count[1]).div_ceil(K::MR);
    match Regions::new(&plan.geometry, plan.direction, K::MR) {
        Some(regions) => {
            // One run for all: threads then wait for each other once.
            let total: usize = regions.iter().map(tiles_of).sum();
            let chunk = chunk_of(total, groups, ctx.pool.threads());
            let chunks: usize = regions.iter().map(|phase| tiles_of(phase).div_ceil(chunk)).sum();
            ctx.pool.run(groups * chunks, &|task, _| {
                let first_panel = task % groups * group;
                let panels = first_panel..(first_panel + group).min(panels);
                let mut number = task / groups;
                for phase in regions.iter() {
                    let tiles = tiles_of(phase);
                    if number < tiles.div_ceil(chunk) {
                        let tiles = number * chunk..tiles.min((number + 1) * chunk);
                        // SAFETY: tasks cover disjoint tiles or disjoint panels, so no two store to the same place.
                        unsafe { job.tiles(kernel, store, phase, tiles, panels) };
                        break;
                    }
                    number -= tiles.div_ceil(chunk);
                }
            });
        }
        None => {
            for phase in phases(&plan.geometry, plan.direction) {
                let tiles = tiles_of(&phase);
                let chunk = chunk_of(tiles, groups, ctx.pool.threads());
                let chunks = tiles.div_ceil(chunk);
                ctx.pool.run(groups * chunks, &|task, _| {
                    let (first_panel, first_tile) = (task % groups * group, task / groups * chunk);
                    let panels = first_panel..(first_panel + group).min(panels);
                    let tiles = first_tile..(first_tile + chunk).min(tiles);
                    // SAFETY: as above.
                    unsafe { job.tiles(kernel, store, &phase, tiles, panels) };
                });
            }
        }
    }
}

/// Tiles of a task: enough tasks for balance, each long enough to be worth handing out. Where groups of panels make
/// enough tasks, each has all tiles: weights are then read from memory once.
pub(super) fn chunk_of(tiles: usize, groups: usize, threads: usize) -> usize {
    tiles.div_ceil((threads * 48).div_ceil(groups)).max(2)
}

impl Job<'_> {
    /// Computes some tiles of a rectangle of pixels for some panels of channels.
    ///
    /// # Safety
    /// No other call that overlaps in time may have the same rectangle, a common tile and a common panel.
    unsafe fn tiles<K: MicroKernel, S: Store>(
        &self,
        kernel: K,
        store: &S,
        phase: &Phase,
        tiles: Range<usize>,
        panels: Range<usize>,
    ) {
        match self.taps.len() {
            // SAFETY: the caller's promise is handed on.
            0..=FEW_TAPS => unsafe { self.tiles_with::<{ FEW_TAPS + 1 }, K, S>(kernel, store, phase, tiles, panels) },
            // SAFETY: the caller's promise is handed on.
            _ => unsafe { self.tiles_with::<{ MAX_TAPS + 1 }, K, S>(kernel, store, phase, tiles, panels) },
        }
    }

    /// As [`Job::tiles`], with so many tables: one more than there are taps at once.
    ///
    /// # Safety
    /// As [`Job::tiles`].
    unsafe fn tiles_with<const TABLES: usize, K: MicroKernel, S: Store>(
        &self,
        kernel: K,
        store: &S,
        phase: &Phase,
        tiles: Range<usize>,
        panels: Range<usize>,
    ) {
        // For all tiles: clearing them for each would cost time.
        let mut gathered = Gathered::<TABLES> {
            taps: [Tap { index: 0, sources: 0, offset: 0 }; TABLES],
            sources: [[self.zeros; MAX_MR]; TABLES],
            len: 0,
            tables: 1,
            along: None,
            corrections: [0; MAX_MR],
        };
        let mut sums = Sums([0; MAX_TILE]);
        self.isa.vectorize(
            #[inline(always)]
            || {
                // With few taps, and that is all but kernels beyond 8 × 8, one list serves all tiles.
                let mut list = Steps::<TABLES> { steps: [[0; 3]; TABLES], len: 0 };
                if self.taps.len() < TABLES {
                    list.find(self.plan, phase, self.taps.clone());
                }
                for tile in tiles {
                    let sums = &mut sums.0[..K::MR * K::NR];
                    // SAFETY: the caller's promise is handed on.
                    unsafe { self.tile(kernel, store, phase, tile, panels.clone(), &mut list, &mut gathered, sums) };
                }
            },
        );
    }

    /// Computes one tile of pixels for some panels of channels.
    ///
    /// # Safety
    /// No other call that overlaps in time may have the same phase, tile and a common panel.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "what and where")]
    unsafe fn tile<const TABLES: usize, K: MicroKernel, S: Store>(
        &self,
        kernel: K,
        store: &S,
        phase: &Phase,
        tile: usize,
        panels: Range<usize>,
        list: &mut Steps<TABLES>,
        gathered: &mut Gathered<TABLES>,
        sums: &mut [i32],
    ) {
        let [.., target] = self.plan.target();
        let pixels = Pixels::new(self.plan, phase, tile * K::MR, K::MR);
        // One table then serves all panels.
        let Range { start, end } = self.taps;
        let single = self.taps.len() < TABLES;
        if single {
            self.gather::<TABLES, K>(&pixels, list, gathered);
        }
        for panel in panels {
            let weights = &self.packed[panel * self.panel_lines..][..self.panel_lines];
            let first = panel * K::NR;
            store.prepare(&pixels.out[..pixels.len], first, K::NR.min(target - first));
            let (mut from, mut sums_from) = (start, Start::Zero);
            while from < end {
                let to = (from + TABLES - 1).min(end);
                if !single {
                    list.find(self.plan, phase, from..to);
                    self.gather::<TABLES, K>(&pixels, list, gathered);
                }
                // SAFETY: sources point to a pixel's `c4 · 4` bytes inside the input, to its padded copy, or to zeros
                // (see `gather`); the weights' panel has `taps · c4 · NR · 4` bytes.
                unsafe { kernel.accumulate(sums, sums_from, weights, gathered.reads(), self.c4, 4) };
                if !self.pixel_sums.is_empty() {
                    gathered.correct(sums, K::NR);
                }
                (from, sums_from) = (to, Start::Tile);
            }
            // SAFETY: this tile's pixels and this panel's channels are this call's alone, as the caller promises.
            unsafe { store.store(sums, K::NR, &pixels.out[..pixels.len], first, K::NR.min(target - first)) };
        }
    }

    /// Looks up where the tile's pixels read for each tap of a list.
    #[inline(always)]
    fn gather<const TABLES: usize, K: MicroKernel>(
        &self,
        pixels: &Pixels,
        list: &Steps<TABLES>,
        gathered: &mut Gathered<TABLES>,
    ) {
        let [h, w, c] = self.plan.source();
        let len = self.plan.geometry.batch * h * w * c;
        let biased = !self.pixel_sums.is_empty();
        gathered.len = 0;
        gathered.tables = 1;
        gathered.along = pixels.along.map(|along| along * c);
        gathered.corrections = [0; MAX_MR];
        for m in 0..K::MR {
            gathered.sources[0][m] = self.input.wrapping_offset(pixels.source[m] * c as isize);
        }
        for &[tap, dy, dx] in &list.steps[..list.len] {
            let step = dy * w as isize + dx;
            let interior = pixels.low[0] + dy >= 0
                && pixels.low[1] + dx >= 0
                && pixels.high[0] + dy < h as isize
                && pixels.high[1] + dx < w as isize
                && (pixels.last + step) as usize * c + self.c4 * 4 <= len;
            let mut inside = interior;
            let (mut table, mut offset) = (0, step * c as isize);
            if interior {
                // Every pixel reads the image: its source is as far from that of a tap at offset 0 as everyone's.
                let row = (pixels.source[0] + step) as usize..(pixels.last + step) as usize + 1;
                if biased && row.len() == pixels.len {
                    let sums = &self.pixel_sums[row];
                    gathered.corrections.iter_mut().zip(sums).for_each(|(correction, sum)| *correction += sum);
                } else if biased {
                    for m in 0..pixels.len {
                        gathered.corrections[m] += self.pixel_sums[(pixels.source[m] + step) as usize];
                    }
                }
            } else {
                (table, offset) = (gathered.tables, 0);
                let (first, others) = gathered.sources.split_at_mut(1);
                let sources = &mut others[table - 1];
                let zeros = self.pixel_sums.len() as isize - 1;
                // Which pixel is read; on padding, what follows the last one.
                let mut reads = [zeros; MAX_MR];
                for m in 0..K::MR {
                    let (y, x) = (pixels.y[m] + dy, pixels.x[m] + dx);
                    let on_image = (y as usize) < h && (x as usize) < w;
                    inside |= on_image;
                    let source = first[0][m].wrapping_offset(step * c as isize);
                    sources[m] = if on_image { source } else { self.zeros };
                    reads[m] = if on_image { pixels.source[m] + step } else { zeros };
                }
                if biased {
                    for (correction, &read) in gathered.corrections[..K::MR].iter_mut().zip(&reads) {
                        *correction += self.pixel_sums[read as usize];
                    }
                }
                // Near the end a padded copy is read, since `c4 · 4` bytes may reach over it: those of the last pixel, and
                // with one channel those of the last three.
                if (pixels.last + step).max(0) as usize * c + self.c4 * 4 > len {
                    for (source, &pixel) in sources[..K::MR].iter_mut().zip(&pixels.source) {
                        let at = (pixel + step) * c as isize;
                        if *source != self.zeros && at as usize + self.c4 * 4 > len {
                            // SAFETY: `tail_start <= at < len`, and `c4 · 4` bytes follow every such place in the copy.
                            *source = unsafe { self.tail.add(at as usize - self.tail_start) };
                        }
                    }
                }
            }
            if inside {
                gathered.taps[gathered.len] = Tap { index: tap as usize - self.taps.start, sources: table, offset };
                gathered.len += 1;
                gathered.tables = gathered.tables.max(table + 1);
            }
        }
    }
}

/// Taps that a phase reads: which one, and how many source rows and columns from the pixel at offset 0.
struct Steps<const TABLES: usize> {
    steps: [[isize; 3]; TABLES],
    len: usize,
}

impl<const TABLES: usize> Steps<TABLES> {
    #[inline(always)]
    fn find(&mut self, plan: &Convolution, phase: &Phase, taps: Range<usize>) {
        let [_, kw] = plan.geometry.kernel;
        self.len = 0;
        for tap in taps {
            if let (Some(dy), Some(dx)) = (phase.source(0, tap / kw), phase.source(1, tap % kw)) {
                self.steps[self.len] = [tap as isize, dy, dx];
                self.len += 1;
            }
        }
    }
}

/// The taps that a tile reads.
struct Gathered<const TABLES: usize> {
    taps: [Tap; TABLES],
    /// How many taps there are.
    len: usize,
    /// Where pixels read: for taps inside the image, then for each of the others.
    sources: [Sources; TABLES],
    /// How many of those there are.
    tables: usize,
    /// See [`Reads::along`].
    along: Option<usize>,
    /// For each pixel, the sum of all input that its taps read.
    corrections: [i32; MAX_MR],
}

impl<const TABLES: usize> Gathered<TABLES> {
    fn reads(&self) -> Reads<'_> {
        Reads { taps: &self.taps[..self.len], sources: &self.sources[..self.tables], along: self.along }
    }

    /// Takes back what the bias of 128 on the weights added.
    #[inline(always)]
    fn correct(&self, sums: &mut [i32], nr: usize) {
        for (row, &correction) in sums.chunks_exact_mut(nr).zip(&self.corrections) {
            if correction != 0 {
                row.iter_mut().for_each(|sum| *sum = sum.wrapping_sub(correction.wrapping_mul(128)));
            }
        }
    }
}

#[repr(align(64))]
pub(crate) struct Sums(pub [i32; MAX_TILE]);

/// A copy of the input from byte `start` on, and zeros behind it.
fn fill_tail(tail: &mut [i32], input: Input, start: usize) {
    let byte = |at: usize| match input {
        Input::U8(data) => data.get(at).copied().unwrap_or(0),
        Input::I8(data) => data.get(at).map_or(0, |&value| value as u8),
    };
    for (group, word) in tail.iter_mut().enumerate() {
        *word = i32::from_ne_bytes([0, 1, 2, 3].map(|lane| byte(start + group * 4 + lane)));
    }
}

/// The sum of each pixel's channels.
fn sum_pixels(ctx: Context, sums: &mut [i32], data: &[i8], c: usize) {
    const PIXELS: usize = 1024;
    for_each_piece(ctx.pool, sums, PIXELS, |piece, sums, _| {
        let data = &data[piece * PIXELS * c..][..sums.len() * c];
        ctx.isa.vectorize(
            #[inline(always)]
            || {
                for (sum, pixel) in sums.iter_mut().zip(data.chunks_exact(c)) {
                    *sum = pixel.iter().map(|&v| i32::from(v)).sum();
                }
            },
        );
    });
}
