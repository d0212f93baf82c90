//! What calibration images show of a network's activations.

use super::QuantizeError;
use crate::float;
use crate::graph::{FloatGraph, FloatNode, FloatOp};
use intseg::data::image::Rgb;
use intseg_reference::Map;
use rayon::prelude::*;

/// Values of a channel that are enough to have seen how far it reaches.
const ENOUGH: f64 = 65_536.0;
/// Values of a channel of which nothing but the largest can be said.
const FEW: usize = 1024;

/// Extremes of each channel of a node's output.
#[derive(Clone, Debug)]
pub struct Channels {
    /// The smallest value, at most 0.
    low: Vec<f32>,
    /// The largest value, at least 0.
    high: Vec<f32>,
    sums: Vec<f64>,
    /// Values of a channel.
    count: usize,
    /// What no value can be beyond.
    bounds: [f64; 2],
    finite: bool,
}

impl Channels {
    fn new(channels: usize, node: &FloatNode) -> Self {
        let bounds = match node.op {
            FloatOp::Clip { low, high } => [low.into(), high.into()],
            FloatOp::Function { function, .. } => function.bounds(),
            _ => [f64::NEG_INFINITY, f64::INFINITY],
        };
        let zeros = vec![0.0; channels];
        Channels { low: zeros.clone(), high: zeros, sums: vec![0.0; channels], count: 0, bounds, finite: true }
    }

    fn add(&mut self, map: &Map) {
        let channels = self.low.len();
        for pixel in map.data.chunks_exact(channels) {
            for (k, &v) in pixel.iter().enumerate() {
                self.low[k] = self.low[k].min(v);
                self.high[k] = self.high[k].max(v);
                self.sums[k] += f64::from(v);
            }
            self.count += 1;
        }
        self.finite &= map.data.iter().all(|v| v.is_finite());
    }

    fn merge(&mut self, other: &Channels) {
        for k in 0..self.low.len() {
            self.low[k] = self.low[k].min(other.low[k]);
            self.high[k] = self.high[k].max(other.high[k]);
            self.sums[k] += other.sums[k];
        }
        self.count += other.count;
        self.finite &= other.finite;
    }

    /// Whether so few values were seen that their distribution is not known: behind global pooling there is one an image.
    pub fn are_few(&self) -> bool {
        self.count < FEW
    }

    /// How far a channel is expected to reach of what it was seen to. The largest of n values of a normal distribution is
    /// about √(2 ln n) deviations from its mean.
    fn expected(&self, k: usize, seen: f32) -> f64 {
        // Nothing below 0 is seen of what cannot be.
        if seen == 0.0 || self.count as f64 >= ENOUGH {
            return seen.into();
        }
        let (count, mean) = (self.count.max(2) as f64, self.sums[k] / self.count.max(1) as f64);
        let further = mean + (f64::from(seen) - mean) * (ENOUGH.ln() / count.ln()).sqrt();
        further.max(self.bounds[0]).min(self.bounds[1])
    }

    /// How far a channel goes below 0.
    pub fn below_zero(&self, k: usize) -> f64 {
        -self.expected(k, self.low[k])
    }

    /// A channel's largest magnitude.
    pub fn magnitude(&self, k: usize) -> f64 {
        self.expected(k, self.high[k]).max(self.below_zero(k))
    }
}

/// Bins of a histogram.
const BINS: usize = 2048;

/// How often magnitudes of a node's output occur, and their power.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// The largest magnitude.
    pub largest: f64,
    counts: Vec<u64>,
    /// Sum of squares.
    power: f64,
    zeros: u64,
}

impl Histogram {
    /// An empty one of magnitudes up to `largest`.
    pub fn new(largest: f64) -> Self {
        Histogram { largest, counts: vec![0; BINS], power: 0.0, zeros: 0 }
    }

    /// Counts a magnitude.
    pub fn add(&mut self, magnitude: f64) {
        if magnitude == 0.0 {
            self.zeros += 1;
            return;
        }
        let bin = (magnitude / self.largest * BINS as f64) as usize;
        self.counts[bin.min(BINS - 1)] += 1;
        self.power += magnitude * magnitude;
    }

    fn merge(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.power += other.power;
        self.zeros += other.zeros;
    }

    /// The power of the error of `levels` steps of size `step`, over the power of the values: a uniform error of a
    /// step's width inside, and what is cut off beyond.
    pub fn noise(&self, step: f64, levels: f64) -> f64 {
        let (width, limit) = (self.largest / BINS as f64, step * levels);
        let inside = step * step / 12.0;
        let error = |bin: usize| {
            let beyond = (bin as f64 + 0.5) * width - limit;
            if beyond > 0.0 { inside.max(beyond * beyond) } else { inside }
        };
        let sum: f64 =
            self.counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(bin, &n)| n as f64 * error(bin)).sum();
        sum / self.power.max(f64::MIN_POSITIVE)
    }

    /// The magnitude that this share of all values does not exceed.
    pub fn percentile(&self, share: f64) -> f64 {
        let total = self.zeros + self.counts.iter().sum::<u64>();
        let mut left = ((1.0 - share) * total as f64) as u64;
        for (bin, &count) in self.counts.iter().enumerate().rev() {
            if count > left {
                return (bin + 1) as f64 / BINS as f64 * self.largest;
            }
            left -= count;
        }
        self.largest
    }
}

/// Each node's [`Channels`] over some images.
///
/// # Errors
/// When the network cannot run on one of them, or computes what is not finite.
pub fn channels(
    graph: &FloatGraph,
    images: &[Rgb],
    counts: &[usize],
    observe: &mut dyn FnMut(usize),
) -> Result<Vec<Channels>, QuantizeError> {
    let empty = || counts.iter().zip(&graph.nodes).map(|(&count, node)| Channels::new(count, node)).collect::<Vec<_>>();
    let one = |image: &Rgb| {
        let mut all = empty();
        float::run(graph, image, |index, map| all[index].add(map))?;
        Ok::<_, QuantizeError>(all)
    };
    let merged =
        merged(images, one, |a, b| a.iter_mut().zip(&b).for_each(|(a, b)| a.merge(b)), observe)?.unwrap_or_else(empty);
    for (node, channels) in graph.nodes.iter().zip(&merged) {
        if !channels.finite {
            return Err(QuantizeError::NotFinite { layer: node.name.clone() });
        }
    }
    Ok(merged)
}

/// The histograms of some nodes' outputs, with an offset added to each, over some images; `largest` says which nodes, and their largest magnitude.
///
/// # Errors
/// When the network cannot run on one of the images.
pub fn histograms(
    graph: &FloatGraph,
    images: &[Rgb],
    (largest, offsets): (&[Option<f64>], &[f64]),
    observe: &mut dyn FnMut(usize),
) -> Result<Vec<Option<Histogram>>, QuantizeError> {
    let empty = || largest.iter().map(|largest| largest.map(Histogram::new)).collect::<Vec<_>>();
    let one = |image: &Rgb| {
        let mut all = empty();
        float::run(graph, image, |index, map| {
            if let Some(histogram) = &mut all[index] {
                let offset = offsets[index];
                map.data.iter().for_each(|&v| histogram.add((f64::from(v) + offset).abs()));
            }
        })?;
        Ok::<_, QuantizeError>(all)
    };
    let merge = |a: &mut Vec<Option<Histogram>>, b: Vec<Option<Histogram>>| {
        a.iter_mut().zip(&b).filter_map(|(a, b)| a.as_mut().zip(b.as_ref())).for_each(|(a, b)| a.merge(b));
    };
    Ok(merged(images, one, merge, observe)?.unwrap_or_else(empty))
}

/// The results of every image, a few images at a time and `observe` told how many are done, merged in their order: the same for any number of threads.
fn merged<T: Send>(
    images: &[Rgb],
    one: impl Fn(&Rgb) -> Result<T, QuantizeError> + Sync,
    merge: impl Fn(&mut T, T),
    observe: &mut dyn FnMut(usize),
) -> Result<Option<T>, QuantizeError> {
    let (mut total, mut done): (Option<T>, usize) = (None, 0);
    for some in images.chunks(rayon::current_num_threads()) {
        for part in some.par_iter().map(&one).collect::<Result<Vec<_>, _>>()? {
            match &mut total {
                Some(total) => merge(total, part),
                None => total = Some(part),
            }
        }
        done += some.len();
        observe(done);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use intseg::tensor::Shape;

    fn seen(op: FloatOp, values: impl Iterator<Item = f32>) -> Channels {
        let mut channels = Channels::new(1, &FloatNode { name: String::new(), op, inputs: vec![] });
        let data: Vec<f32> = values.collect();
        channels.add(&Map { shape: Shape::new(1, 1, data.len(), 1), data });
        channels
    }

    #[test]
    fn of_few_values_a_range_reaches_further_than_they_do_and_of_many_it_does_not() {
        // Sixteen values: twice as far from their mean as they were seen to be.
        let few = || (0..16).map(|i| if i % 2 == 0 { 3.0 } else { 5.0 });
        assert!((seen(FloatOp::Add, few()).magnitude(0) - 6.0).abs() < 1e-9);
        assert_eq!(seen(FloatOp::Add, few()).below_zero(0), 0.0);
        assert_eq!(seen(FloatOp::Clip { low: 0.0, high: 5.5 }, few()).magnitude(0), 5.5);
        let many = seen(FloatOp::Add, (0..1 << 16).map(|i| if i % 2 == 0 { 3.0 } else { 5.0 }));
        assert_eq!((many.magnitude(0), many.are_few()), (5.0, false));
        let signed = seen(FloatOp::Add, (0..16).map(|i| if i % 2 == 0 { -1.0 } else { 1.0 }));
        assert!((signed.below_zero(0) - 2.0).abs() < 1e-9);
    }
}
