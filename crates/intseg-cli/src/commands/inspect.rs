//! `intseg inspect`: the layers of a model or an architecture.

use crate::machine::Size;
use crate::output::{json, si, table, text};
use clap::Args;
use intseg::networks::{Settings, build};
use intseg::predictor::Predictor;
use intseg::summary::{LayerSummary, layers};
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `intseg inspect`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  intseg inspect run/best.iseg\n  intseg inspect --arch fcn8s-vgg16 --size 513x513 --json"
)]
pub struct Inspect {
    /// A model file
    #[arg(required_unless_present = "arch", conflicts_with = "arch")]
    model: Option<PathBuf>,
    /// An architecture instead of a model
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Rows x columns of the image to count for
    #[arg(long, value_name = "HxW", default_value = "513x513")]
    size: Size,
    /// Number of classes of the architecture
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = clap::value_parser!(u16).range(2..=255))]
    classes: u16,
    /// Width multiplier of the architecture
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = width)]
    width: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A width multiplier of 0.01 to 4.
pub fn width(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|w| (0.01..=4.0).contains(w)).ok_or_else(|| "it must be 0.01 to 4".into())
}

/// What is printed.
#[derive(Serialize)]
struct Summary {
    network: String,
    input: String,
    classes: Vec<String>,
    macs: u64,
    weight_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_bytes: Option<u64>,
    layers: Vec<LayerSummary>,
}

impl Inspect {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let summary = self.summary()?;
        match self.json {
            true => json(&summary),
            false => text(summary.describe()),
        }
    }

    fn summary(&self) -> anyhow::Result<Summary> {
        let (network, classes, file_bytes, layers) = match (&self.model, &self.arch) {
            (Some(path), _) => {
                let predictor = Predictor::load(path, intseg_kernels::Isa::Scalar)?;
                let bytes = std::fs::metadata(path).map(|m| m.len()).ok();
                let layers = predictor.layers(self.size.0)?;
                let metadata = predictor.metadata();
                (metadata.arch.clone(), metadata.classes.clone(), bytes, layers)
            }
            (None, arch) => {
                let arch = arch.as_deref().unwrap_or_default();
                let width_1000 = intseg::config::fixed(self.width, 1000) as usize;
                let graph = build(arch, &Settings { width_1000, ..Settings::new(usize::from(self.classes)) })?;
                let names = (0..self.classes).map(|class| format!("class {class}")).collect();
                (arch.to_owned(), names, None, layers(&graph, self.size.0)?)
            }
        };
        Ok(Summary {
            network,
            input: self.size.to_string(),
            classes,
            macs: layers.iter().map(|layer| layer.macs).sum(),
            weight_bytes: layers.iter().map(|layer| layer.weight_bytes).sum(),
            file_bytes,
            layers,
        })
    }
}

impl Summary {
    fn describe(&self) -> String {
        let dash = || "–".to_owned();
        let rows: Vec<Vec<String>> = (self.layers.iter())
            .map(|layer| {
                let [h, w, c] = layer.shape;
                let bits = layer.accumulator_bits().map(|bits| format!("{bits} bits"));
                vec![
                    layer.name.clone(),
                    layer.op.clone(),
                    format!("{h}×{w}×{c}"),
                    if layer.macs > 0 { si(layer.macs) } else { dash() },
                    if layer.weight_bytes > 0 { layer.weight_bytes.to_string() } else { dash() },
                    layer.exponent.map_or_else(dash, |e| e.to_string()),
                    bits.unwrap_or_else(dash),
                ]
            })
            .collect();
        let head = ["layer", "operator", "output", "MACs", "weight bytes", "exponent", "accumulator"];
        let file = self.file_bytes.map_or(String::new(), |bytes| format!(", file of {} bytes", bytes));
        format!(
            "{} at {}: {} classes, {}MAC, {} bytes of weights{file}\n\n{}",
            self.network,
            self.input,
            self.classes.len(),
            si(self.macs),
            self.weight_bytes,
            table(&head, &rows)
        )
    }
}
