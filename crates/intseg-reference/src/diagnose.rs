//! An integer step beside its float reference.

use crate::step::Reference;
use crate::{Map, conv};
use intseg::data::Batch;
use intseg::graph::OpSpec;
use intseg::network::{Network, Probe, Recipe, StepOutcome};
use intseg::tensor::{Mantissas, Tensor};
use serde::Serialize;
use std::fmt;

/// How one layer fared in one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LayerDiagnosis {
    /// The layer's name.
    pub name: String,
    /// Share of outputs at the end of their range.
    pub saturated: f64,
    /// Share of outputs that are 0.
    pub zeros: f64,
    /// Share of errors at the output that are 0; absent where no error arrives.
    pub error_zeros: Option<f64>,
    /// Cosine between the output and the float reference's.
    pub output_cosine: f64,
    /// Cosine between the error at the output and the float reference's.
    pub error_cosine: Option<f64>,
    /// Cosine between the weight gradient and the float reference's; convolutions alone.
    pub gradient_cosine: Option<f64>,
}

/// How a step compares with its float reference.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The graph's nodes but the image, in their order.
    pub layers: Vec<LayerDiagnosis>,
}

impl Diagnosis {
    /// The convolutions and the cosines of their gradients, the furthest from float first.
    pub fn worst(&self) -> Vec<(f64, &LayerDiagnosis)> {
        let mut layers: Vec<(f64, &LayerDiagnosis)> =
            self.layers.iter().filter_map(|layer| Some((layer.gradient_cosine?, layer))).collect();
        layers.sort_by(|a, b| a.0.total_cmp(&b.0));
        layers
    }
}

impl fmt::Display for Diagnosis {
    /// The mean cosine of the weight gradients, and the layers that are furthest from float.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.worst();
        let mean = layers.iter().map(|(cosine, _)| cosine).sum::<f64>() / layers.len().max(1) as f64;
        write!(f, "weight gradients against float: mean cosine {mean:.3}; furthest away:")?;
        for (cosine, layer) in layers.iter().take(5) {
            write!(
                f,
                "\n  {}: gradient {cosine:.3}, error {:.3}, output {:.3}; {:.2} % saturated, {:.1} % of errors 0",
                layer.name,
                layer.error_cosine.unwrap_or_default(),
                layer.output_cosine,
                100.0 * layer.saturated,
                100.0 * layer.error_zeros.unwrap_or_default(),
            )?;
        }
        Ok(())
    }
}

/// Does the integer step, exactly as [`Network::train_step`], and compares it with float.
///
/// Memory: all outputs and errors of the network in float32.
pub fn diagnose(network: &mut Network, batch: &Batch, recipe: &Recipe) -> (StepOutcome, Diagnosis) {
    let reference = Reference::of(network, batch, recipe);
    let graph = network.graph.clone();
    let mut layers: Vec<LayerDiagnosis> =
        graph.nodes.iter().map(|node| LayerDiagnosis { name: node.name.clone(), ..Default::default() }).collect();
    let outcome = network.probed_step(batch, recipe, &mut |probe| match probe {
        Probe::Output { node, output } => {
            let layer = &mut layers[node];
            layer.saturated = share(output, |m, limit| m.abs() >= limit);
            layer.zeros = share(output, |m, _| m == 0);
            layer.output_cosine = cosine(&real(output).data, &reference.values[node].data);
        }
        Probe::Error { node, error } => {
            let layer = &mut layers[node];
            layer.error_zeros = Some(share(error, |m, _| m == 0));
            layer.error_cosine = Some(cosine(&real(error).data, &reference.errors[node].data));
        }
        Probe::Convolved { node, input, error } => {
            let OpSpec::Conv(spec) = &graph.nodes[node].op else { return };
            // The integer gradient is the exact sum over these integers, whatever computes it.
            let input = real(input);
            let (gradient, _) = conv::backward(&spec.geometry(input.shape), &input, &[], &real(&error), false);
            layers[node].gradient_cosine = Some(cosine(&gradient, &reference.gradients[node]));
        }
    });
    layers.remove(0);
    (outcome, Diagnosis { layers })
}

fn real(tensor: &Tensor) -> Map {
    let unit = 2f32.powi(tensor.exponent);
    Map { shape: tensor.shape, data: tensor.to_i64().into_iter().map(|m| m as f32 * unit).collect() }
}

/// The share of mantissas for which `of(mantissa, largest of the type)` holds.
fn share(tensor: &Tensor, of: impl Fn(i64, i64) -> bool) -> f64 {
    let limit = match &tensor.mantissas {
        Mantissas::U8(_) => 255,
        Mantissas::I8(_) => 127,
        Mantissas::I16(_) => 32_767,
        Mantissas::I32(_) => i64::from(i32::MAX),
    };
    let mantissas = tensor.to_i64();
    mantissas.iter().filter(|&&m| of(m, limit)).count() as f64 / mantissas.len().max(1) as f64
}

/// The cosine of the angle between two tensors; 1 where both are 0.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f64; 3];
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        sums[0] += a * b;
        sums[1] += a * a;
        sums[2] += b * b;
    }
    match sums[1] * sums[2] {
        0.0 => f64::from(u8::from(sums[1] == sums[2])),
        squares => sums[0] / squares.sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use intseg::networks::{Settings, build};
    use intseg::ops::{Bits, Mode, Rounding};
    use intseg_kernels::{Context, Dither, Isa, Role};

    fn batch(size: [usize; 2], classes: u32) -> Batch {
        let pixels = 4 * size[0] * size[1];
        let bits = Dither::new(3, 0, 0, Role::Scene);
        // Coarse blobs: neighbouring pixels are alike, as in images.
        let blob = |i: usize| bits.below(i / 6 % size[1] + i / (6 * size[1]) * 1000, classes);
        Batch {
            images: (0..3 * pixels).map(|i| (40 * blob(i / 3) as i32 - 100 + bits.below(i, 20) as i32) as i8).collect(),
            labels: (0..pixels).map(|i| blob(i) as u8).collect(),
            count: 4,
            size,
        }
    }

    fn diagnosed(arch: &str, bits: Bits) -> (StepOutcome, Diagnosis, Vec<i32>) {
        let settings = Settings { width_1000: 125, drop_256: 64, ..Settings::new(5) };
        let mut network = Network::new(build(arch, &settings).unwrap(), 1).unwrap();
        let kernels = Context { isa: Isa::detect(), pool: &intseg_kernels::Inline };
        let recipe = Recipe {
            kernels,
            bits,
            seed: 1,
            step: 0,
            class_weights: [&[], &[]],
            lr_q32: 1 << 26,
            decay_q32: 0,
            momentum_q15: 29_491,
        };
        let (outcome, diagnosis) = diagnose(&mut network, &batch([64, 96], 5), &recipe);
        let masters = network.parameters().flat_map(|p| p.master.iter().collect::<Vec<_>>()).collect();
        let mut twin = Network::new(build(arch, &settings).unwrap(), 1).unwrap();
        assert_eq!(twin.train_step(&batch([64, 96], 5), &recipe), outcome, "a diagnosed step is a step");
        assert_eq!(twin.parameters().flat_map(|p| p.master.iter().collect::<Vec<_>>()).collect::<Vec<_>>(), masters);
        (outcome, diagnosis, masters)
    }

    #[test]
    fn integers_agree_with_float_in_every_kind_of_network() {
        // Maps of a few pixels at the end of many untrained layers amplify every rounding: real crops agree better, and
        // deep networks worse than shallow ones.
        for (arch, outputs, backward) in [
            ("fcn-tiny", 0.99, 0.9),
            ("fcn8s-vgg16-bn", 0.97, 0.55),
            ("deeplabv3-resnet50v2", 0.85, 0.05),
            ("deeplabv3-resnet50", 0.85, 0.05),
        ] {
            let (_, diagnosis, _) = diagnosed(arch, Bits::default());
            let mean = |of: fn(&LayerDiagnosis) -> Option<f64>| {
                let all: Vec<f64> = diagnosis.layers.iter().filter_map(of).collect();
                all.iter().sum::<f64>() / all.len() as f64
            };
            let found = [mean(|l| Some(l.output_cosine)), mean(|l| l.error_cosine), mean(|l| l.gradient_cosine)];
            let fits = found[0] > outputs && found[1] > backward && found[2] > backward;
            assert!(fits, "{arch}: outputs, errors, gradients {found:?}");
            let last = diagnosis.layers.last().unwrap();
            assert!(last.error_cosine > Some(0.7), "the error starts out close: {last:?}");
        }
    }

    #[test]
    fn few_bits_show_in_the_layers() {
        let gradient = |bits| {
            let (_, diagnosis, _) = diagnosed("fcn-tiny", bits);
            diagnosis.worst()[0].0
        };
        let rounding = Rounding { e2: Mode::Nearest, ..Rounding::default() };
        let (full, few) = (gradient(Bits::default()), gradient(Bits { e2: 3, rounding, ..Bits::default() }));
        assert!(full > few + 0.05, "{full} with 8 bits, {few} with 3");
    }
}
