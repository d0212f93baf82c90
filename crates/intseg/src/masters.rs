//! Masters of a trained tensor, as large as its kind needs them.

use crate::buffers::with_room;
use crate::parameter::Kind;
use intseg_kernels::masters::{WeightMasters, joined, parted};
use intseg_kernels::sgd;
use intseg_kernels::{Context, Dither};

/// Masters: integers whose low bits lie below the step of the integers in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Masters {
    /// Of weights, in the method's 24 bits: most of a large network's memory.
    Weight {
        /// The integers in use.
        steps: Vec<i8>,
        /// What they leave, in units of 2^-16 steps.
        fractions: Vec<i16>,
    },
    /// Of biases, scales and offsets, in 32 bits.
    Affine(Vec<i32>),
}

impl Masters {
    /// Masters of these values; those of weights are held within ±127 steps and what rounds to them.
    pub fn new(kind: Kind, values: impl ExactSizeIterator<Item = i32>) -> Self {
        match kind {
            Kind::Weight => {
                let (mut steps, mut fractions) = (with_room(values.len()), with_room(values.len()));
                for (step, fraction) in values.map(parted) {
                    steps.push(step);
                    fractions.push(fraction);
                }
                Masters::Weight { steps, fractions }
            }
            Kind::Affine => Masters::Affine(values.collect()),
        }
    }

    /// None.
    pub fn none(kind: Kind) -> Self {
        Masters::new(kind, std::iter::empty())
    }

    /// Their number.
    pub fn len(&self) -> usize {
        match self {
            Masters::Weight { steps, .. } => steps.len(),
            Masters::Affine(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    ///
    /// # Panics
    /// When there is none of this index.
    pub fn at(&self, index: usize) -> i32 {
        match self {
            Masters::Weight { steps, fractions } => joined(steps[index], fractions[index]),
            Masters::Affine(values) => values[index],
        }
    }

    /// Replaces one of them; a weight's is held as in [`Masters::new`].
    ///
    /// # Panics
    /// When there is none of this index.
    pub fn set(&mut self, index: usize, value: i32) {
        match self {
            Masters::Weight { steps, fractions } => (steps[index], fractions[index]) = parted(value),
            Masters::Affine(values) => values[index] = value,
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = i32> {
        (0..self.len()).map(|index| self.at(index))
    }

    /// Takes other masters into these, the mean of all `count` but these others.
    ///
    /// # Panics
    /// When they are of another kind or number.
    pub fn average(&mut self, ctx: Context, others: &Masters, count: u32) {
        match (self, others) {
            (Masters::Weight { steps: kept, fractions: rest }, Masters::Weight { steps, fractions }) => {
                sgd::average(ctx, WeightMasters { steps: kept, fractions: rest }, steps, fractions, count);
            }
            (Masters::Affine(means), Masters::Affine(values)) => {
                assert_eq!(means.len(), values.len(), "lengths");
                means.iter_mut().zip(values).for_each(|(mean, &value)| *mean = sgd::mean(*mean, value, count));
            }
            _ => panic!("masters of one kind have a mean"),
        }
    }

    /// Halves weights' masters and momenta, stochastically.
    pub fn halve(&mut self, ctx: Context, momentum: &mut [i32], dithers: [Dither; 2]) {
        if let Masters::Weight { steps, fractions } = self {
            sgd::halve(ctx, WeightMasters { steps, fractions }, momentum, dithers);
        }
    }
}
