//! The passes over a tensor that batch normalisation with the mean absolute deviation takes.
//!
//! A tensor is `[P, C]`: positions by channels. What is computed per channel in between is the caller's
//! (`intseg::ops::batch_norm`). Per-channel constants come in groups of 16 channels, one [`Lanes`](crate::vector::Lanes)
//! a constant; lanes behind the last channel hold whatever the caller put there.

mod backward;
mod forward;

pub use backward::{Error, ErrorStatistics, GradientGroup, Gradients, error_statistics, gradient, wide};
pub use forward::{
    Channel, ChannelGroup, Rounding, Source, Statistics, Target, absolute_deviations, normalize, statistics,
};

use crate::Context;
use crate::pool::Disjoint;
use crate::vector::LANES;
use core::ops::Range;

/// Elements that one task handles, at least.
const PIECE: usize = 1 << 15;
/// The most tasks of a reduction for each thread.
const TASKS: usize = 8;
/// Rows between two flushes of 32-bit partial sums into 64 bits.
const FLUSH_ROWS: usize = 256;
/// Rows that share one load of a group's constants.
const TILE_ROWS: usize = 4;
/// Elements that are fetched ahead, at least.
const AHEAD: usize = 1024;
/// Groups whose partial sums are kept at hand together.
const BLOCK: usize = 32;

/// Groups of channels.
pub fn groups(channels: usize) -> usize {
    channels.div_ceil(LANES)
}

/// Rows of `channels` elements that one task handles.
fn rows_of(channels: usize) -> usize {
    (PIECE / channels).next_multiple_of(TILE_ROWS).max(2 * TILE_ROWS)
}

/// How many elements ahead of their use a loop over tiles fetches: the same channels of the next tile. Processors fetch
/// what lies behind one address after the other by themselves, but not where several rows of several tensors take turns.
fn ahead(channels: usize) -> usize {
    (TILE_ROWS * channels).max(AHEAD)
}

/// A few rows of one group of channels.
#[derive(Clone)]
struct Tile {
    /// Which group.
    group: usize,
    /// Its channels that exist.
    lanes: usize,
    /// Index of its first channel in the tile's first row.
    at: usize,
    /// Rows.
    rows: usize,
}

/// Calls `visit` for every tile of `rows` rows and some groups of channels, a few rows of all groups after the other:
/// memory is read in order, constants are read once a tile.
#[inline(always)]
fn for_each_tile(rows: Range<usize>, channels: usize, groups: Range<usize>, mut visit: impl FnMut(Tile)) {
    let mut row = rows.start;
    while row < rows.end {
        let count = TILE_ROWS.min(rows.end - row);
        for group in groups.clone() {
            let lanes = LANES.min(channels - group * LANES);
            visit(Tile { group, lanes, at: row * channels + group * LANES, rows: count });
        }
        row += count;
    }
}

/// How the partial results of two threads are joined.
#[derive(Clone, Copy, PartialEq)]
enum Join {
    Sum,
    Max,
    Min,
}

impl Join {
    fn start(self) -> i64 {
        match self {
            Join::Sum => 0,
            Join::Max => i64::MIN,
            Join::Min => i64::MAX,
        }
    }

    #[inline(always)]
    fn join(self, a: i64, b: i64) -> i64 {
        match self {
            Join::Sum => a + b,
            Join::Max => b.max(a),
            Join::Min => b.min(a),
        }
    }
}

/// Reduces rows to `joins.len()` values a channel: `visit(partial, rows)` adds a task's rows to its thread's partial
/// results, `[joins.len()][groups · 16]`. `partial` holds one such block a thread; the first is the result.
fn reduce(
    ctx: Context,
    partial: &mut [i64],
    joins: &[Join],
    rows: usize,
    channels: usize,
    visit: impl Fn(&mut [i64], Range<usize>) + Sync,
) {
    let (threads, row) = (ctx.pool.threads(), groups(channels) * LANES);
    // Adding a task's results of each channel to those of its thread takes as long as some rows do.
    let step = rows_of(channels).max(rows.div_ceil(TASKS * threads).next_multiple_of(TILE_ROWS));
    let width = joins.len() * row;
    assert_eq!(partial.len(), threads * width, "partial results");
    for part in partial.chunks_exact_mut(width) {
        part.chunks_exact_mut(row).zip(joins).for_each(|(values, join)| values.fill(join.start()));
    }
    let shared = Disjoint::new(partial);
    ctx.pool.run(rows.div_ceil(step), &|task, worker| {
        // SAFETY: each worker has its own part, and runs one task at a time.
        let part = unsafe { shared.piece(worker * width, (worker + 1) * width) };
        visit(part, task * step..rows.min((task + 1) * step));
    });
    let (first, others) = partial.split_at_mut(width);
    for other in others.chunks_exact(width) {
        for ((values, others), join) in first.chunks_exact_mut(row).zip(other.chunks_exact(row)).zip(joins) {
            values.iter_mut().zip(others).for_each(|(a, &b)| *a = join.join(*a, b));
        }
    }
}

/// How many i64 of scratch a reduction to `values` numbers a channel takes.
fn partial_len(ctx: Context, values: usize, channels: usize) -> usize {
    ctx.pool.threads() * values * groups(channels) * LANES
}
