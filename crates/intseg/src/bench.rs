//! Times a training step on random data.

use crate::data::Batch;
use crate::graph::{Graph, GraphError};
use crate::network::{Network, Recipe};
use crate::ops::Bits;
use crate::threads::Threads;
use intseg_kernels::{Context, Dither, Isa, Role};
use std::time::{Duration, Instant};

/// What to time.
#[derive(Clone, Copy, Debug)]
pub struct StepSpec {
    /// Rows and columns of the images.
    pub size: [usize; 2],
    /// Images a step.
    pub batch: usize,
    /// Steps to time, after one that is not.
    pub steps: usize,
    /// Bit widths.
    pub bits: Bits,
    /// Seed of weights and data.
    pub seed: u64,
}

/// The times of training steps with random weights, images and labels.
///
/// # Errors
/// When a layer does not fit its input, or an accumulator could overflow.
pub fn training_steps(graph: Graph, spec: &StepSpec, isa: Isa, threads: &Threads) -> Result<Vec<Duration>, GraphError> {
    let batch = random_batch(spec, graph.classes());
    graph.shapes(batch.shape())?;
    let mut network = Network::new(graph, spec.seed)?;
    let mut times = Vec::with_capacity(spec.steps + 1);
    for step in 0..=spec.steps as u64 {
        let recipe = Recipe {
            kernels: Context { isa, pool: threads },
            bits: spec.bits,
            seed: spec.seed,
            step,
            class_weights: [&[], &[]],
            lr_q32: 1 << 26,
            decay_q32: 1 << 18,
            momentum_q15: 29_491,
        };
        let start = Instant::now();
        network.train_step(&batch, &recipe);
        times.push(start.elapsed());
    }
    times.remove(0);
    Ok(times)
}

fn random_batch(spec: &StepSpec, classes: usize) -> Batch {
    let pixels = spec.batch * spec.size[0] * spec.size[1];
    let bits = Dither::new(spec.seed, 0, 0, Role::Scene);
    Batch {
        images: (0..3 * pixels).map(|i| (bits.below(i, 256) as i32 - 128) as i8).collect(),
        labels: (0..pixels).map(|i| bits.below(3 * pixels + i, classes as u32) as u8).collect(),
        count: spec.batch,
        size: spec.size,
    }
}
