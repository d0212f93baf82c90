//! Winograd's minimal filtering for 3 × 3 convolutions of stride 1, without rounding.
//!
//! A tile of 4 × 4 sums needs 36 products a pair of channels where the definition has 144. Input and weights are
//! transformed to 16 bits, so that products run at half the rate of bytes: half of the time is left. Lavin and Gray
//! (arXiv 1509.09308) have the scheme for floats, where it rounds. Here nothing is lost: the points of [`transform`] are
//! chosen such that the sums come out multiplied by 900 = 4 · 225, known modulo 2^32, from which a sum below 2^29 can be
//! had again exactly. So whether a convolution takes this way is a question of time alone.
//!
//! Weights are transformed anew in each run, from their packed form: that costs little beside their products and saves
//! eight times their size. Dilated convolutions are tiles over every `dilation`-th pixel.

pub(crate) mod transform;

use super::phase::phases;
use super::store::Store;
use super::{Convolution, Direction, Input, Line};
use crate::Context;
use crate::bytes::{as_i8, as_u8};
use crate::pool::Disjoint;
use crate::vector::{LANES, Loop, Vector, WORD_LANES, Words};
use core::ops::Range;
use transform::{OUTPUTS, POINTS, TAPS, divide};

/// Products of a pair of channels in a tile.
const PRODUCTS: usize = POINTS * POINTS;
/// The most groups of tiles of a block, and the bytes of its transformed input: what a thread works on with one panel of
/// weights after the other. Larger blocks transform weights more rarely; smaller ones stay in cache.
const BLOCK_GROUPS: usize = 6;
const BLOCK_BYTES: usize = 4 << 20;
/// Source channels up to which every sum stays below 2^29: `9 · 1800 · 255 · 128`.
const MAX_CHANNELS: usize = 1800;

/// The innermost loop of one instruction set.
pub(crate) trait Multiply: Copy + Sync {
    /// Tiles of a group.
    const MR: usize;
    /// Channels of a panel, as packed for gathering.
    const NR: usize;
    /// The bits that packing flips in the weights of a signed input.
    const FLIP: i8;

    /// Writes `[tiles][NR]` sums over `pairs` pairs of channels: tile `t` reads the words of lines `t, MR + t, …` of
    /// `input`, 16 pairs a line, and pair `p` the `NR` pairs of words of `weights` from line `p · NR / 16` on.
    ///
    /// # Panics
    /// When a slice is too short, or `tiles` not within `1..=MR`.
    fn multiply(self, sums: &mut [i32], tiles: usize, pairs: usize, input: &[Line], weights: &[Line]);
}

/// Where tiles lie along an axis: each phase of the dilation is cut by itself.
#[derive(Clone, Copy)]
struct Axis {
    outputs: usize,
    inputs: usize,
    dilation: usize,
    padding: isize,
    /// How many phases have the larger number of outputs, and tiles of such a phase and of the others.
    large: usize,
    tiles: [usize; 2],
}

impl Axis {
    fn new(plan: &Convolution, axis: usize) -> Self {
        let (g, outputs, inputs) = (&plan.geometry, plan.target()[axis], plan.source()[axis]);
        let (dilation, padding) = (g.dilation[axis], g.padding[axis] as isize);
        // The adjoint reads backwards from the other end of the window.
        let padding = match plan.direction {
            Direction::Forward => padding,
            Direction::Transposed => (dilation * (TAPS - 1)) as isize - padding,
        };
        let tiles = [outputs.div_ceil(dilation), outputs / dilation].map(|count| count.div_ceil(OUTPUTS));
        Axis { outputs, inputs, dilation, padding, large: outputs % dilation, tiles }
    }

    fn len(&self) -> usize {
        self.large * self.tiles[0] + (self.dilation - self.large) * self.tiles[1]
    }

    /// The first output of a tile. Tiles are in the order of these, so that neighbours read neighbours and a thread's
    /// part of the input is in one place.
    fn first(&self, tile: usize) -> usize {
        let in_all = self.dilation * self.tiles[1];
        let (phase, within) = match tile.checked_sub(in_all) {
            None => (tile % self.dilation, tile / self.dilation),
            // The last tiles of the phases that have one more.
            Some(tile) => (tile % self.large, self.tiles[1] + tile / self.large),
        };
        phase + within * OUTPUTS * self.dilation
    }

    /// The outputs of a tile that exist: they come first.
    fn outputs(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        (first..self.outputs).step_by(self.dilation).take(OUTPUTS)
    }

    /// The input at each point of a tile; `None` on padding.
    fn inputs(&self, first: usize) -> [Option<usize>; POINTS] {
        let start = first as isize - self.padding;
        core::array::from_fn(|k| {
            usize::try_from(start + (k * self.dilation) as isize).ok().filter(|&at| at < self.inputs)
        })
    }
}

/// How a convolution is cut.
#[derive(Clone, Copy)]
struct Tiling {
    axes: [Axis; 2],
    tiles: usize,
    /// Source channels, in lines of 32 and pairs.
    lines: usize,
    pairs: usize,
    /// Panels of target channels.
    panels: usize,
    /// Tiles of a group, and groups.
    mr: usize,
    groups: usize,
    /// The most groups of a block.
    block_groups: usize,
    /// Lines of 16 channels in a panel.
    width: usize,
}

impl Tiling {
    fn new<K: Multiply>(plan: &Convolution) -> Self {
        let ([.., c], [.., target]) = (plan.source(), plan.target());
        let axes = [Axis::new(plan, 0), Axis::new(plan, 1)];
        let tiles = plan.geometry.batch * axes[0].len() * axes[1].len();
        let (lines, groups) = (c.div_ceil(WORD_LANES), tiles.div_ceil(K::MR));
        let group_bytes = PRODUCTS * lines * K::MR * 64;
        Tiling {
            axes,
            tiles,
            lines,
            pairs: 2 * c.div_ceil(4),
            panels: target.div_ceil(K::NR),
            mr: K::MR,
            groups,
            block_groups: (BLOCK_BYTES / group_bytes).clamp(1, BLOCK_GROUPS.min(groups.max(1))),
            width: K::NR / LANES,
        }
    }

    /// Lines from one product to the next in a panel's transformed weights, in a block's transformed input and in its
    /// products. Odd, so that the 36 of them spread over all sets of a cache.
    fn strides(&self) -> [usize; 3] {
        let tiles = self.block_groups * self.mr;
        [self.pairs * self.width, tiles * self.lines, tiles * self.width].map(|lines| lines | 1)
    }

    /// What a thread needs.
    fn worker_lines(&self) -> usize {
        PRODUCTS * self.strides().iter().sum::<usize>()
    }

    /// Blocks: as many for each thread, unless there are fewer groups.
    fn blocks(&self, threads: usize) -> usize {
        self.groups.div_ceil(self.block_groups).next_multiple_of(threads).min(self.groups)
    }

    /// The tiles of a block.
    fn block(&self, index: usize, blocks: usize) -> Range<usize> {
        let first = |block: usize| (block * self.groups / blocks * self.mr).min(self.tiles);
        first(index)..first(index + 1)
    }
}

/// Whether a convolution can take this way.
pub(crate) fn fits(plan: &Convolution) -> bool {
    let g = &plan.geometry;
    let [h, w, c] = plan.source();
    let outputs: usize = plan.target().iter().product();
    // Thin outputs are packed in panels of another width.
    let thin = plan.target()[2] <= MAX_NR / 2;
    !thin
        && g.kernel == [TAPS; 2]
        && g.stride == [1; 2]
        && (1..=MAX_CHANNELS).contains(&c)
        && g.batch * h * w * outputs > 0
}

/// Whether this way takes less time than gathering, as far as an estimate tells: cycles of a core that does 128 products
/// of bytes or 64 of words in each, and of the transforms as measured.
pub(crate) fn pays<K: Multiply>(plan: &Convolution) -> bool {
    if !fits(plan) {
        return false;
    }
    let ([.., c], [.., target]) = (plan.source(), plan.target());
    let tiling = Tiling::new::<K>(plan);
    let inside: usize = phases(&plan.geometry, plan.direction).map(|phase| phase.inside(0) * phase.inside(1)).sum();
    let gathered = plan.geometry.batch * inside * c * target.next_multiple_of(K::NR) / 128;
    let products = PRODUCTS * c * target.next_multiple_of(K::NR) / 64;
    // Several threads take the same number of blocks each, so that one thread's blocks stand for all.
    let weights = 6 * c * target * tiling.blocks(1);
    let transformed = tiling.tiles * (products + 6 * c + 12 * target) + weights;
    // An estimate that is nearly a tie is no reason to take more memory.
    transformed + transformed / 16 < gathered
}

/// How many i32 of scratch a run takes.
pub(crate) fn scratch_len<K: Multiply>(plan: &Convolution, threads: usize) -> usize {
    let tiling = Tiling::new::<K>(plan);
    Line::words(threads * tiling.worker_lines())
}

/// Runs a convolution that [`fits`].
pub(crate) fn run<K: Multiply, S: Store>(
    kernel: K,
    plan: &Convolution,
    ctx: Context,
    store: &S,
    input: Input,
    packed: &[Line],
    scratch: &mut [i32],
) {
    let tiling = Tiling::new::<K>(plan);
    let lines = Disjoint::new(Line::in_words(scratch));
    let input = match input {
        Input::U8(data) => data,
        Input::I8(data) => as_u8(data),
    };
    let job = Job { kernel, plan, ctx, tiling: &tiling, input, packed };
    let blocks = tiling.blocks(ctx.pool.threads());
    // A block is a thread's own from its input to its sums, transformed weights included: what one core writes no other
    // reads, which takes longer than to do it again.
    ctx.pool.run(blocks, &|block, worker| {
        let len = tiling.worker_lines();
        // SAFETY: each worker has its own part, and runs one task at a time.
        let lines = unsafe { lines.piece(worker * len, (worker + 1) * len) };
        job.block(store, tiling.block(block, blocks), lines);
    });
}

/// What all blocks share.
#[derive(Clone, Copy)]
struct Job<'a, K> {
    kernel: K,
    plan: &'a Convolution,
    ctx: Context<'a>,
    tiling: &'a Tiling,
    input: &'a [u8],
    packed: &'a [Line],
}

impl<K: Multiply> Job<'_, K> {
    /// Computes a block of tiles.
    fn block<S: Store>(&self, store: &S, tiles: Range<usize>, lines: &mut [Line]) {
        let tiling = self.tiling;
        let [weight_stride, input_stride, _] = tiling.strides();
        let (weights, rest) = lines.split_at_mut(PRODUCTS * weight_stride);
        let (input, products) = rest.split_at_mut(PRODUCTS * input_stride);
        let products = Line::sums_mut(products);
        self.ctx.isa.run_loop(TransformInput {
            plan: self.plan,
            tiling,
            input: self.input,
            out: input,
            tiles: tiles.clone(),
        });
        let per_panel = TAPS * TAPS * tiling.pairs / 2 * tiling.width;
        for panel in 0..tiling.panels {
            self.ctx.isa.run_loop(TransformWeights {
                packed: &self.packed[panel * per_panel..][..per_panel],
                out: weights,
                tiling,
                flip: if self.plan.signed { K::FLIP } else { 0 },
                backwards: self.plan.direction == Direction::Transposed,
            });
            self.multiply(products, weights, input, tiles.len());
            let first = panel * K::NR;
            self.ctx.isa.run_loop(TransformOutput {
                plan: self.plan,
                tiling,
                store,
                products,
                tiles: tiles.clone(),
                first,
                channels: K::NR.min(self.plan.target()[2] - first),
            });
        }
    }

    /// Fills `[product][tile][NR]` from `[product][group][line][tile]` and `[product][pair][NR]`.
    fn multiply(&self, products: &mut [i32], weights: &[Line], input: &[Line], tiles: usize) {
        let Tiling { lines, pairs, width, .. } = *self.tiling;
        let [weight_stride, input_stride, product_stride] = self.tiling.strides();
        for product in 0..PRODUCTS {
            let weights = &weights[product * weight_stride..][..pairs * width];
            let input = &input[product * input_stride..][..input_stride];
            let products = &mut products[product * product_stride * LANES..][..tiles * K::NR];
            for (sums, input) in products.chunks_mut(K::MR * K::NR).zip(input.chunks(lines * K::MR)) {
                self.kernel.multiply(sums, sums.len() / K::NR, pairs, input, weights);
            }
        }
    }
}

/// The weights of a panel.
struct TransformWeights<'a> {
    packed: &'a [Line],
    /// `[product][pair][NR]` pairs of words.
    out: &'a mut [Line],
    tiling: &'a Tiling,
    flip: i8,
    backwards: bool,
}

impl Loop for TransformWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (Tiling { pairs, width, .. }, [stride, ..]) = (*self.tiling, self.tiling.strides());
        for group in 0..pairs / 2 {
            for line in 0..width {
                let [a, b, c] = [
                    self.column::<V>(group, line, 0),
                    self.column::<V>(group, line, 1),
                    self.column::<V>(group, line, 2),
                ];
                // The two pairs of each group of four channels.
                for half in 0..2 {
                    let mut out = self.out[(2 * group + half) * width + line..].iter_mut().step_by(stride);
                    for y in 0..POINTS {
                        for words in transform::weights([a[half][y], b[half][y], c[half][y]]) {
                            words.store(out.next().expect("a line for each product").words_mut());
                        }
                    }
                }
            }
        }
    }
}

impl TransformWeights<'_> {
    /// A column of taps, transformed.
    #[inline(always)]
    fn column<V: Vector>(&self, group: usize, line: usize, x: usize) -> [[V::Words; POINTS]; 2] {
        let tap = |y: usize| if self.backwards { TAPS * TAPS - 1 - (y * TAPS + x) } else { y * TAPS + x };
        let place = |tap: usize| &self.packed[(tap * (self.tiling.pairs / 2) + group) * self.tiling.width + line];
        let taps = [place(tap(0)), place(tap(1)), place(tap(2))];
        let [a, b, c] = [
            V::Words::load_pairs(&taps[0].flipped(self.flip)),
            V::Words::load_pairs(&taps[1].flipped(self.flip)),
            V::Words::load_pairs(&taps[2].flipped(self.flip)),
        ];
        [transform::weights([a[0], b[0], c[0]]), transform::weights([a[1], b[1], c[1]])]
    }
}

/// The input of a block of tiles.
struct TransformInput<'a> {
    plan: &'a Convolution,
    tiling: &'a Tiling,
    input: &'a [u8],
    /// `[product][group][line][tile]`.
    out: &'a mut [Line],
    tiles: Range<usize>,
}

/// Where the points of a tile are read.
type Sources<'a> = [[&'a [u8]; POINTS]; POINTS];

/// A pixel on padding.
static ZEROS: [u8; MAX_CHANNELS] = [0; MAX_CHANNELS];

impl Loop for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        for (index, tile) in self.tiles.clone().enumerate() {
            let sources = self.sources(tile);
            match self.plan.signed {
                false => self.tile::<V::Words, false>(index, &sources),
                true => self.tile::<V::Words, true>(index, &sources),
            }
        }
    }
}

impl<'a> TransformInput<'a> {
    /// The channels of the pixel at each point of a tile.
    #[inline(always)]
    fn sources(&self, tile: usize) -> Sources<'a> {
        let ([h, w, c], [rows, columns]) = (self.plan.source(), self.tiling.axes);
        let (image, tile) = (tile / (rows.len() * columns.len()), tile % (rows.len() * columns.len()));
        let ys = rows.inputs(rows.first(tile / columns.len()));
        let xs = columns.inputs(columns.first(tile % columns.len()));
        let mut sources = [[&ZEROS[..c]; POINTS]; POINTS];
        for (sources, y) in sources.iter_mut().zip(ys) {
            let Some(y) = y else { continue };
            for (source, x) in sources.iter_mut().zip(xs) {
                let Some(x) = x else { continue };
                *source = &self.input[((image * h + y) * w + x) * c..][..c];
            }
        }
        sources
    }

    #[inline(always)]
    fn tile<W: Words, const SIGNED: bool>(&mut self, index: usize, sources: &Sources) {
        let Tiling { lines, mr, .. } = *self.tiling;
        let whole = sources[0][0].len() / WORD_LANES;
        let [_, stride, _] = self.tiling.strides();
        let first = index / mr * lines * mr + index % mr;
        for line in 0..lines {
            let mut rest = [[[0; WORD_LANES]; POINTS]; POINTS];
            let mut points = [[&[0; WORD_LANES]; POINTS]; POINTS];
            if line == whole {
                for (rest, source) in rest.as_flattened_mut().iter_mut().zip(sources.as_flattened()) {
                    let from = &source[line * WORD_LANES..];
                    rest[..from.len()].copy_from_slice(from);
                }
                let points = points.as_flattened_mut().iter_mut();
                points.zip(rest.as_flattened()).for_each(|(point, rest)| *point = rest);
            } else {
                for (point, source) in points.as_flattened_mut().iter_mut().zip(sources.as_flattened()) {
                    *point = source[line * WORD_LANES..].first_chunk().expect("a whole block");
                }
            }
            let columns = [
                column::<W, SIGNED>(&points, 0),
                column::<W, SIGNED>(&points, 1),
                column::<W, SIGNED>(&points, 2),
                column::<W, SIGNED>(&points, 3),
                column::<W, SIGNED>(&points, 4),
                column::<W, SIGNED>(&points, 5),
            ];
            let mut out = self.out[first + line * mr..].iter_mut().step_by(stride);
            for y in 0..POINTS {
                for words in transform::input(transform::row(&columns, y)) {
                    words.store(out.next().expect("a line for each product").words_mut());
                }
            }
        }
    }
}

/// A column of points, transformed.
#[inline(always)]
fn column<W: Words, const SIGNED: bool>(points: &[[&[u8; WORD_LANES]; POINTS]; POINTS], x: usize) -> [W; POINTS] {
    let [a, b, c, d, e, f] = points;
    transform::input([
        widened::<W, SIGNED>(a[x]),
        widened::<W, SIGNED>(b[x]),
        widened::<W, SIGNED>(c[x]),
        widened::<W, SIGNED>(d[x]),
        widened::<W, SIGNED>(e[x]),
        widened::<W, SIGNED>(f[x]),
    ])
}

#[inline(always)]
fn widened<W: Words, const SIGNED: bool>(bytes: &[u8; WORD_LANES]) -> W {
    match SIGNED {
        false => W::load_u8(bytes),
        true => W::load_i8(as_i8(bytes).first_chunk().expect("as many bytes")),
    }
}

/// Some tiles' products of a panel.
struct TransformOutput<'a, S> {
    plan: &'a Convolution,
    tiling: &'a Tiling,
    store: &'a S,
    products: &'a [i32],
    tiles: Range<usize>,
    first: usize,
    channels: usize,
}

/// The sums of a tile, at most 32 channels.
#[repr(align(64))]
struct Sums([i32; OUTPUTS * OUTPUTS * MAX_NR]);

/// The most channels of a panel.
const MAX_NR: usize = 32;

impl<S: Store> Loop for TransformOutput<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let nr = self.tiling.width * LANES;
        let ([h, w, _], [rows, columns]) = (self.plan.target(), self.tiling.axes);
        let mut sums = Sums([0; OUTPUTS * OUTPUTS * MAX_NR]);
        for (row, tile) in self.tiles.clone().enumerate() {
            for line in 0..self.tiling.width {
                let columns = [
                    self.column::<V>(row, line, 0),
                    self.column::<V>(row, line, 1),
                    self.column::<V>(row, line, 2),
                    self.column::<V>(row, line, 3),
                    self.column::<V>(row, line, 4),
                    self.column::<V>(row, line, 5),
                ];
                for y in 0..OUTPUTS {
                    for (x, &sum) in transform::output(transform::row(&columns, y)).iter().enumerate() {
                        let at = (y * OUTPUTS + x) * nr + line * LANES;
                        divide(sum).store_i32(sums.0[at..].first_chunk_mut().expect("a row of sums"));
                    }
                }
            }
            let (image, tile) = (tile / (rows.len() * columns.len()), tile % (rows.len() * columns.len()));
            let (y, x) = (rows.first(tile / columns.len()), columns.first(tile % columns.len()));
            // The outputs that exist, moved together.
            let (mut pixels, mut len) = ([0; OUTPUTS * OUTPUTS], 0);
            for (row, y) in rows.outputs(y).enumerate() {
                for (column, x) in columns.outputs(x).enumerate() {
                    let from = row * OUTPUTS + column;
                    if from != len {
                        sums.0.copy_within(from * nr..(from + 1) * nr, len * nr);
                    }
                    pixels[len] = (image * h + y) * w + x;
                    len += 1;
                }
            }
            // SAFETY: each tile's outputs and each panel's channels are one task's alone.
            unsafe { self.store.store(&sums.0, nr, &pixels[..len], self.first, self.channels) };
        }
    }
}

impl<S> TransformOutput<'_, S> {
    /// A column of products of a tile, transformed.
    #[inline(always)]
    fn column<V: Vector>(&self, row: usize, line: usize, x: usize) -> [V; OUTPUTS] {
        let [.., stride] = self.tiling.strides();
        let products = &self.products[(x * stride + row * self.tiling.width + line) * LANES..];
        transform::output([
            product(products, 0, stride),
            product(products, 1, stride),
            product(products, 2, stride),
            product(products, 3, stride),
            product(products, 4, stride),
            product(products, 5, stride),
        ])
    }
}

/// Sixteen channels of row `y` of the points' products, which are `stride` lines apart.
#[inline(always)]
fn product<V: Vector>(products: &[i32], y: usize, stride: usize) -> V {
    V::load_i32(products[y * POINTS * stride * LANES..].first_chunk().expect("a row of products"))
}
