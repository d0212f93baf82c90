//! The three loops around the products: weights, input and sums of a block of tiles.

use super::transform::{self, OUTPUTS, POINTS, TAPS, divide};
use super::{Class, Group, Groups, MAX_CHANNELS, Tiling};
use crate::bytes::as_i8;
use crate::conv::store::Store;
use crate::conv::{Convolution, Line};
use crate::vector::{LANES, Loop, Vector, WORD_LANES, Words};

/// The weights of a panel.
pub(super) struct TransformWeights<'a> {
    pub packed: &'a [Line],
    /// `[product][pair][NR]` pairs of words.
    pub out: &'a mut [Line],
    pub tiling: &'a Tiling,
    pub flip: i8,
    pub backwards: bool,
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
pub(super) struct TransformInput<'a> {
    pub plan: &'a Convolution,
    pub tiling: &'a Tiling,
    pub input: &'a [u8],
    /// `[product][group][line][tile]`.
    pub out: &'a mut [Line],
    pub groups: Groups,
}

/// Where the points of a tile are read.
type Sources<'a> = [[&'a [u8]; POINTS]; POINTS];

/// A pixel on padding.
static ZEROS: [u8; MAX_CHANNELS] = [0; MAX_CHANNELS];

impl Loop for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        for (slot, index) in self.groups.clone().enumerate() {
            let Group { class, first, len } = self.tiling.group(index);
            for t in 0..len {
                let sources = self.sources(&class, first + t);
                let at = slot * self.tiling.lines * self.tiling.mr + t;
                match self.plan.signed {
                    false => self.tile::<V::Words, false>(&class, at, &sources),
                    true => self.tile::<V::Words, true>(&class, at, &sources),
                }
            }
        }
    }
}

impl<'a> TransformInput<'a> {
    /// The channels of the pixel at each point of a tile.
    #[inline(always)]
    fn sources(&self, class: &Class, tile: usize) -> Sources<'a> {
        let ([h, w, c], [rows, columns]) = (self.plan.source(), self.tiling.axes);
        let [image, y, x] = self.tiling.place(class, tile);
        let (ys, xs) = (rows.inputs(y), columns.inputs(x));
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

    /// Transforms a tile to the lines from `first` on.
    #[inline(always)]
    fn tile<W: Words, const SIGNED: bool>(&mut self, class: &Class, first: usize, sources: &Sources) {
        let Tiling { lines, mr, .. } = *self.tiling;
        let whole = sources[0][0].len() / WORD_LANES;
        let [_, stride, _] = self.tiling.strides();
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
            let [narrow_y, narrow_x] = class.narrow;
            let columns = [
                column::<W, SIGNED>(&points, 0, narrow_y),
                column::<W, SIGNED>(&points, 1, narrow_y),
                column::<W, SIGNED>(&points, 2, narrow_y),
                column::<W, SIGNED>(&points, 3, narrow_y),
                column::<W, SIGNED>(&points, 4, narrow_y),
                column::<W, SIGNED>(&points, 5, narrow_y),
            ];
            let mut out = self.out[first + line * mr..].iter_mut().step_by(stride);
            for y in 0..POINTS {
                let row = transform::row(&columns, y);
                for words in if narrow_x { transform::narrow_input(row) } else { transform::input(row) } {
                    words.store(out.next().expect("a line for each product").words_mut());
                }
            }
        }
    }
}

/// A column of points, transformed.
#[inline(always)]
fn column<W: Words, const SIGNED: bool>(
    points: &[[&[u8; WORD_LANES]; POINTS]; POINTS],
    x: usize,
    narrow: bool,
) -> [W; POINTS] {
    let [a, b, c, d, e, f] = points;
    let values = [
        widened::<W, SIGNED>(a[x]),
        widened::<W, SIGNED>(b[x]),
        widened::<W, SIGNED>(c[x]),
        widened::<W, SIGNED>(d[x]),
        widened::<W, SIGNED>(e[x]),
        widened::<W, SIGNED>(f[x]),
    ];
    if narrow { transform::narrow_input(values) } else { transform::input(values) }
}

#[inline(always)]
fn widened<W: Words, const SIGNED: bool>(bytes: &[u8; WORD_LANES]) -> W {
    match SIGNED {
        false => W::load_u8(bytes),
        true => W::load_i8(as_i8(bytes).first_chunk().expect("as many bytes")),
    }
}

/// Some tiles' products of a panel.
pub(super) struct TransformOutput<'a, S> {
    pub plan: &'a Convolution,
    pub tiling: &'a Tiling,
    pub store: &'a S,
    pub products: &'a [i32],
    pub groups: Groups,
    pub first: usize,
    pub channels: usize,
}

/// The sums of a tile, at most 32 channels.
#[repr(align(64))]
struct Sums([i32; OUTPUTS * OUTPUTS * MAX_NR]);

/// The most channels of a panel.
pub(super) const MAX_NR: usize = 32;

impl<S: Store> Loop for TransformOutput<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let nr = self.tiling.width * LANES;
        let ([h, w, _], [rows, columns]) = (self.plan.target(), self.tiling.axes);
        let mut sums = Sums([0; OUTPUTS * OUTPUTS * MAX_NR]);
        let tiles = self.groups.clone().enumerate().flat_map(|(slot, index)| {
            let Group { class, first, len } = self.tiling.group(index);
            (0..len).map(move |t| (slot * self.tiling.mr + t, class, first + t))
        });
        for (row, class, tile) in tiles {
            let [narrow_y, narrow_x] = class.narrow;
            for line in 0..self.tiling.width {
                let columns = [
                    self.column::<V>(row, line, 0, narrow_y),
                    self.column::<V>(row, line, 1, narrow_y),
                    self.column::<V>(row, line, 2, narrow_y),
                    self.column::<V>(row, line, 3, narrow_y),
                    self.column::<V>(row, line, 4, narrow_y),
                    self.column::<V>(row, line, 5, narrow_y),
                ];
                for y in 0..OUTPUTS {
                    let points = transform::row(&columns, y);
                    let row = if narrow_x { transform::narrow_output(points) } else { transform::output(points) };
                    for (x, &sum) in row.iter().enumerate() {
                        let at = (y * OUTPUTS + x) * nr + line * LANES;
                        divide(sum).store_i32(sums.0[at..].first_chunk_mut().expect("a row of sums"));
                    }
                }
            }
            let [image, y, x] = self.tiling.place(&class, tile);
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
    fn column<V: Vector>(&self, row: usize, line: usize, x: usize, narrow: bool) -> [V; OUTPUTS] {
        let [.., stride] = self.tiling.strides();
        let products = &self.products[(x * stride + row * self.tiling.width + line) * LANES..];
        let points = [
            product(products, 0, stride),
            product(products, 1, stride),
            product(products, 2, stride),
            product(products, 3, stride),
            product(products, 4, stride),
            product(products, 5, stride),
        ];
        if narrow { transform::narrow_output(points) } else { transform::output(points) }
    }
}

/// Sixteen channels of row `y` of the points' products, which are `stride` lines apart.
#[inline(always)]
fn product<V: Vector>(products: &[i32], y: usize, stride: usize) -> V {
    V::load_i32(products[y * POINTS * stride * LANES..].first_chunk().expect("a row of products"))
}
