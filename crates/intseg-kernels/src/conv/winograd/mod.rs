//! Winograd's minimal filtering for 3 × 3 convolutions of stride 1, without rounding.
//!
//! A tile of 4 × 4 sums needs 36 products a pair of channels where the definition has 144. Input and weights are
//! transformed to 16 bits, so that products run at half the rate of bytes: half of the time is left. Lavin and Gray
//! (arXiv 1509.09308) have the scheme for floats, where it rounds. Here nothing is lost: the points of [`transform`] are
//! chosen such that the sums come out multiplied by 900 = 4 · 225, known modulo 2^32, from which a sum below 2^29 can be
//! had again exactly. So whether a convolution takes this way is a question of time alone.
//!
//! Weights are transformed anew in each run, from their packed form: that costs little beside their products and saves
//! eight times their size. Where tiles are few, threads share out the weights instead of the tiles.
//!
//! Dilated convolutions are tiles over every `dilation`-th pixel. Where a map's phases are no multiples of four, tiles with
//! one or two outputs along an axis need four of its points: they are classes of their own.

mod loops;
mod transform;

use super::phase::phases;
use super::rows;
use super::store::Store;
use super::{Convolution, Direction, Input, Line};
use crate::Context;
use crate::bytes::as_u8;
use crate::pool::Disjoint;
use crate::vector::{LANES, WORD_LANES};
use core::iter::StepBy;
use core::ops::Range;
use loops::{MAX_NR, TransformInput, TransformOutput, TransformWeights};
use transform::{NARROW, OUTPUTS, POINTS, TAPS};

/// Products of a pair of channels in a tile.
const PRODUCTS: usize = POINTS * POINTS;
/// The most groups of tiles of a block, and the bytes of its transformed input: what a thread works on with one panel of
/// weights after the other. Larger blocks transform weights more rarely; smaller ones stay in cache.
const BLOCK_GROUPS: usize = 7;
const BLOCK_BYTES: usize = 4 << 20;
/// The most groups and bytes of transformed input where one block is all tiles: threads then share out its panels.
const WHOLE_GROUPS: usize = 12;
const WHOLE_BYTES: usize = 6 << 20;
/// Up to so many outputs along an axis a tile is narrow.
const NARROW_OUTPUTS: usize = 2;
/// Up to so many blocks have groups of every class.
const EVEN_BLOCKS: usize = 32;
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

    /// How many tiles have more outputs than a narrow one: they come first, since tiles of later rounds have fewer.
    fn wide(&self) -> usize {
        (0..self.len())
            .rev()
            .find(|&tile| self.outputs(self.first(tile)).count() > NARROW_OUTPUTS)
            .map_or(0, |last| last + 1)
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

/// Tiles that need the same products: a rectangle of them in each image.
#[derive(Clone, Copy)]
struct Class {
    /// The rows and columns of tiles.
    rows: [usize; 2],
    columns: [usize; 2],
    tiles: usize,
    groups: usize,
    /// Whether they are narrow along each axis: then they need fewer points.
    narrow: [bool; 2],
}

impl Class {
    /// Products of a pair of channels.
    fn products(&self) -> usize {
        self.narrow.iter().map(|&narrow| if narrow { NARROW.len() } else { POINTS }).product()
    }

    /// Whether they need a product.
    fn needs(&self, product: usize) -> bool {
        let points = [product / POINTS, product % POINTS];
        self.narrow.iter().zip(points).all(|(&narrow, point)| !narrow || NARROW.contains(&point))
    }
}

/// Up to `mr` tiles of a class.
#[derive(Clone, Copy)]
struct Group {
    class: Class,
    /// Its first tile in the class, and how many.
    first: usize,
    len: usize,
}

/// How a convolution is cut.
#[derive(Clone, Copy)]
struct Tiling {
    axes: [Axis; 2],
    classes: [Class; 4],
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
    /// Parts that the panels of a block are cut into.
    parts: usize,
    /// Lines of 16 channels in a panel.
    width: usize,
}

impl Tiling {
    fn new<K: Multiply>(plan: &Convolution, threads: usize) -> Self {
        let ([.., c], [.., target]) = (plan.source(), plan.target());
        let axes = [Axis::new(plan, 0), Axis::new(plan, 1)];
        // So many tiles from the first on are wide along each axis.
        let cut = |wide: [usize; 2]| {
            [[false, false], [true, false], [false, true], [true, true]].map(|narrow| {
                let [rows, columns] = [0, 1].map(|k| if narrow[k] { [wide[k], axes[k].len()] } else { [0, wide[k]] });
                let tiles = plan.geometry.batch * (rows[1] - rows[0]) * (columns[1] - columns[0]);
                Class { rows, columns, tiles, groups: tiles.div_ceil(K::MR), narrow }
            })
        };
        let work = |classes: &[Class]| classes.iter().map(|class| class.tiles * class.products()).sum::<usize>();
        let [one, several] = [cut([0, 1].map(|k| axes[k].len())), cut([0, 1].map(|k| axes[k].wide()))];
        // Classes end with groups that are not full, and make work harder to share: that has to be worth it.
        let classes = if 10 * work(&several) < 9 * work(&one) { several } else { one };
        let groups = classes.iter().map(|class| class.groups).sum::<usize>();
        let lines = c.div_ceil(WORD_LANES);
        let group_bytes = PRODUCTS * lines * K::MR * 64;
        let panels = target.div_ceil(K::NR);
        // Input is then transformed by every thread, and weights once; else weights by every thread. Either takes about as
        // long for each value.
        let tiles = classes.iter().map(|class| class.tiles).sum::<usize>();
        let whole = groups <= WHOLE_GROUPS && groups * group_bytes <= WHOLE_BYTES && tiles < target;
        let parts = if whole { threads.min(panels) } else { 1 };
        // No larger than a thread's share, so that many threads take no more memory than their tiles do, and than so many
        // blocks need.
        let share = BLOCK_GROUPS.min(groups.div_ceil(threads).max(1));
        let blocks = groups.div_ceil((BLOCK_BYTES / group_bytes).clamp(1, share)).next_multiple_of(threads);
        Tiling {
            axes,
            classes,
            lines,
            pairs: 2 * c.div_ceil(4),
            panels,
            mr: K::MR,
            groups,
            block_groups: if whole { groups } else { groups.div_ceil(blocks.max(1)).max(1) },
            parts,
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

    /// Blocks: with their parts as many for each thread, unless there are fewer groups.
    fn blocks(&self, threads: usize) -> usize {
        self.groups.div_ceil(self.block_groups).next_multiple_of(threads.div_ceil(self.parts)).min(self.groups)
    }

    /// A tile's image, and row and column of its first output.
    #[inline(always)]
    fn place(&self, class: &Class, tile: usize) -> [usize; 3] {
        let [rows, columns] = &self.axes;
        let [height, width] = [class.rows, class.columns].map(|[from, to]| to - from);
        let (row, column) = (tile / width, class.columns[0] + tile % width);
        [row / height, rows.first(class.rows[0] + row % height), columns.first(column)]
    }

    /// A group.
    fn group(&self, mut index: usize) -> Group {
        for class in self.classes {
            if let Some(next) = index.checked_sub(class.groups) {
                index = next;
                continue;
            }
            let first = index * self.mr;
            return Group { class, first, len: self.mr.min(class.tiles - first) };
        }
        unreachable!("a group of the tiling")
    }

    /// The groups of a block.
    fn block(&self, index: usize, blocks: usize) -> Groups {
        let mixed = self.classes.iter().filter(|class| class.groups > 0).count() > 1;
        match mixed && blocks <= EVEN_BLOCKS {
            // Some of each class, so that blocks have the same work.
            true => (index..self.groups).step_by(blocks),
            // Neighbours, which read the same input. Many blocks are handed out as threads become free.
            false => (index * self.groups / blocks..(index + 1) * self.groups / blocks).step_by(1),
        }
    }
}

/// The groups of a block.
type Groups = StepBy<Range<usize>>;

/// Whether a convolution can take this way.
pub(crate) fn fits(plan: &Convolution) -> bool {
    let g = &plan.geometry;
    let [h, w, c] = plan.source();
    let outputs: usize = plan.target().iter().product();
    // Thin outputs are packed in panels of another width.
    let thin = plan.target()[2] <= MAX_NR / 2;
    !thin
        && !rows::fits(plan)
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
    let tiling = Tiling::new::<K>(plan, 1);
    let inside: usize = phases(&plan.geometry, plan.direction).map(|phase| phase.inside(0) * phase.inside(1)).sum();
    let gathered = plan.geometry.batch * inside * c * target.next_multiple_of(K::NR) / 128;
    let products = |class: &Class| class.products() * c * target.next_multiple_of(K::NR) / 64;
    // Several threads take the same number of blocks each, so that one thread's blocks stand for all.
    let weights = 6 * c * target * tiling.blocks(1);
    let tiles = tiling.classes.iter().map(|class| class.tiles * (products(class) + 6 * c + 12 * target));
    let transformed = tiles.sum::<usize>() + weights;
    // An estimate that is nearly a tie is no reason to take more memory.
    transformed + transformed / 16 < gathered
}

/// How many i32 of scratch a run takes.
pub(crate) fn scratch_len<K: Multiply>(plan: &Convolution, threads: usize) -> usize {
    let tiling = Tiling::new::<K>(plan, threads);
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
    let tiling = Tiling::new::<K>(plan, ctx.pool.threads());
    let lines = Disjoint::new(Line::in_words(scratch));
    let input = match input {
        Input::U8(data) => data,
        Input::I8(data) => as_u8(data),
    };
    let job = Job { kernel, plan, ctx, tiling: &tiling, input, packed };
    let (parts, panels) = (tiling.parts, tiling.panels);
    let blocks = tiling.blocks(ctx.pool.threads());
    // A block is a thread's own from its input to its sums, transformed weights included: what one core writes no other
    // reads, which takes longer than to do it again.
    ctx.pool.run(blocks * parts, &|task, worker| {
        let len = tiling.worker_lines();
        // SAFETY: each worker has its own part, and runs one task at a time.
        let lines = unsafe { lines.piece(worker * len, (worker + 1) * len) };
        let (block, part) = (task / parts, task % parts);
        job.block(store, tiling.block(block, blocks), part * panels / parts..(part + 1) * panels / parts, lines);
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
    /// Computes some panels of a block of groups.
    fn block<S: Store>(&self, store: &S, groups: Groups, panels: Range<usize>, lines: &mut [Line]) {
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
            groups: groups.clone(),
        });
        let per_panel = TAPS * TAPS * tiling.pairs / 2 * tiling.width;
        for panel in panels {
            self.ctx.isa.run_loop(TransformWeights {
                packed: &self.packed[panel * per_panel..][..per_panel],
                out: weights,
                tiling,
                flip: if self.plan.signed { K::FLIP } else { 0 },
                backwards: self.plan.direction == Direction::Transposed,
            });
            self.multiply(products, weights, input, groups.clone());
            let first = panel * K::NR;
            self.ctx.isa.run_loop(TransformOutput {
                plan: self.plan,
                tiling,
                store,
                products,
                groups: groups.clone(),
                first,
                channels: K::NR.min(self.plan.target()[2] - first),
            });
        }
    }

    /// Fills `[product][group][tile][NR]` from `[product][group][line][tile]` and `[product][pair][NR]`.
    fn multiply(&self, products: &mut [i32], weights: &[Line], input: &[Line], groups: Groups) {
        let Tiling { lines, pairs, width, .. } = *self.tiling;
        let [weight_stride, input_stride, product_stride] = self.tiling.strides();
        for product in 0..PRODUCTS {
            let weights = &weights[product * weight_stride..][..pairs * width];
            let input = &input[product * input_stride..][..input_stride];
            let products = &mut products[product * product_stride * LANES..][..groups.len() * K::MR * K::NR];
            let places = products.chunks_exact_mut(K::MR * K::NR).zip(input.chunks(lines * K::MR));
            for (index, (sums, input)) in groups.clone().zip(places) {
                let Group { class, len, .. } = self.tiling.group(index);
                if class.needs(product) {
                    self.kernel.multiply(&mut sums[..len * K::NR], len, pairs, input, weights);
                }
            }
        }
    }
}
