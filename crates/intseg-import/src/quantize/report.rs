//! How far a quantised model and its float network agree, layer by layer and in what they say.

use super::{QuantizeError, Quantized};
use crate::float;
use crate::graph::FloatGraph;
use intseg::data::image::Rgb;
use intseg_kernels::{Context, bytes::as_i8};
use intseg_runtime::{Element, Engine};
use serde::Serialize;

/// A layer of the model beside the float network's.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Its name.
    pub name: String,
    /// Its type: u8, i8 or i16.
    pub element: &'static str,
    /// Its step is two to this power.
    pub exponent: i32,
    /// The signal-to-noise ratio of its output against float's, in decibels.
    pub snr_db: f64,
    /// The share of its values that are at an end of the type's range.
    pub saturated: f64,
}

/// A model beside its float network on some images.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Images compared.
    pub images: usize,
    /// The share of pixels to which both give the same class.
    pub agreement: f64,
    /// Every layer.
    pub layers: Vec<LayerReport>,
}

#[derive(Clone, Default)]
struct Sums {
    signal: f64,
    noise: f64,
    saturated: usize,
    count: usize,
}

impl Quantized {
    /// Runs the model and the float network that it came from on images. `ctx` is what the model runs on.
    ///
    /// # Errors
    /// When one of them cannot run on an image.
    pub fn report(&self, graph: &FloatGraph, images: &[Rgb], ctx: Context) -> Result<Report, QuantizeError> {
        let failed = |e: &dyn std::fmt::Display| QuantizeError::Model(e.to_string());
        let mut engine = Engine::new(self.spec.to_bytes()).map_err(|e| failed(&e))?;
        let mut sums = vec![Sums::default(); self.spec.nodes.len()];
        let (mut same, mut pixels) = (0, 0);
        for image in images {
            let size = [image.height, image.width];
            let mut classes = vec![0; image.width * image.height];
            let mut outputs: Vec<Vec<i16>> = Vec::new();
            let keep = |index: usize, slot: &intseg_runtime::Slot, memory: &intseg_runtime::Memory| {
                let bytes = || &memory.bytes[slot.range()];
                outputs.push(match self.spec.nodes[index].element {
                    Element::U8 => bytes().iter().map(|&v| v.into()).collect(),
                    Element::I8 => as_i8(bytes()).iter().map(|&v| v.into()).collect(),
                    Element::I16 => memory.words[slot.range()].to_vec(),
                });
            };
            engine.run_with(ctx, size, &image.data, &mut classes, keep).map_err(|e| failed(&e))?;
            let mut compare = |index: usize, values: &[f32]| {
                let Some(node) = self.origin.iter().position(|&origin| origin == index) else { return };
                let (spec, sums) = (&self.spec.nodes[node], &mut sums[node]);
                let (step, zero) = (2f64.powi(spec.exponent), self.zeros[index]);
                // A clamp that an operator was asked for is no loss.
                let ends = [if spec.clamp[0] == 0 { i32::MIN } else { spec.clamp[0] }, spec.clamp[1]];
                for (&wanted, &got) in values.iter().zip(&outputs[node]) {
                    let wanted = f64::from(wanted);
                    sums.signal += wanted * wanted;
                    sums.noise += (wanted - (f64::from(got) - zero) * step).powi(2);
                    sums.saturated += usize::from(ends.contains(&got.into()));
                }
                sums.count += values.len();
            };
            float::run(&self.scaled, image, |index, map| compare(index, &map.data))?;
            let wanted = float::class_map(graph, image)?;
            same += wanted.iter().zip(&classes).filter(|(a, b)| a == b).count();
            pixels += classes.len();
        }
        let layers = self.spec.nodes.iter().zip(&sums).map(|(node, sums)| LayerReport {
            name: node.name.clone(),
            element: match node.element {
                Element::U8 => "u8",
                Element::I8 => "i8",
                Element::I16 => "i16",
            },
            exponent: node.exponent,
            snr_db: 10.0 * (sums.signal.max(1e-30) / sums.noise.max(1e-30)).log10(),
            saturated: sums.saturated as f64 / sums.count.max(1) as f64,
        });
        Ok(Report { images: images.len(), agreement: same as f64 / pixels.max(1) as f64, layers: layers.collect() })
    }
}
