//! Starting a run from trained weights: those of another run, of a deployable model, or of another framework.
//!
//! Tensors are taken by name. What does not fit stays at its initial value, so a backbone trained on one set of classes
//! starts a network for another; the report says which tensor went where.

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::Config;
use crate::data::DataError;
use crate::data::loader::{Loader, Source};
use crate::graph::Graph;
use crate::masters::Masters;
use crate::network::{ExponentRange, Layer, Network, Recipe};
use crate::ops::batch_norm::ChannelAffine;
use intseg_kernels::Context;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// A tensor that a parameter can start from: `value = master · 2^(exponent − fraction bits)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// `[KH, KW, C_in, C_out]` or `[C]`.
    pub shape: Vec<usize>,
    /// See [`crate::parameter::Parameter::exponent`].
    pub exponent: i32,
    /// See [`crate::parameter::Parameter::master`].
    pub master: Vec<i32>,
}

/// Trained weights by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Parameters by their names in a network, such as `conv1_1.weight`.
    pub parameters: BTreeMap<String, Given>,
    /// Running statistics by the name of the node that they belong to: means, then mean absolute deviations, in units
    /// of 2^-24.
    pub statistics: BTreeMap<String, Vec<i64>>,
    /// What normalisations of a deployable model were folded to, by node, one entry a channel. Their γ and β depend on
    /// statistics, which [`settle`] finds.
    pub maps: BTreeMap<String, Vec<ChannelAffine>>,
    /// Exponents of nodes' outputs, to deploy with until training has shown others.
    pub exponents: BTreeMap<String, i32>,
}

/// What became of each tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Parameters that were loaded.
    pub loaded: Vec<String>,
    /// Parameters that stay at their initial values, and why.
    pub initial: Vec<(String, String)>,
    /// Tensors of the file that the network has no use for.
    pub ignored: Vec<String>,
}

/// Why a run cannot start from a file.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The file is no usable checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model is damaged, or of no network that can be trained.
    #[error("the model {} cannot be trained further: {message}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// Its network cannot be built.
    #[error("{}: its network cannot be built: {message}", path.display())]
    Network {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// No tensor of the file has the name and shape of a parameter.
    #[error(
        "no tensor of the file fits this network: it has {}, the network wants {}; check network.arch and network.width",
        .file, .network
    )]
    NothingFits {
        /// One of the file's tensors.
        file: String,
        /// One of the network's.
        network: String,
    },
}

impl Start {
    /// The weights of another run, whatever its network.
    ///
    /// # Errors
    /// When the checkpoint is damaged, or its network cannot be built.
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Result<Self, InitError> {
        let path = checkpoint.path();
        let unusable = |e: &dyn fmt::Display| InitError::Network { path: path.to_owned(), message: e.to_string() };
        let config = Config::parse(&checkpoint.progress().config, path, &[]).map_err(|e| unusable(&e))?;
        let graph = config.graph().map_err(|e| unusable(&e))?;
        let mut network = Network::new(graph, config.train.seed).map_err(|e| unusable(&e))?;
        checkpoint.load(&mut network)?;
        let mut start = Start::default();
        for parameter in network.parameters() {
            let given = Given {
                shape: parameter.shape.clone(),
                exponent: parameter.exponent,
                master: parameter.master.iter().collect(),
            };
            start.parameters.insert(parameter.name.clone(), given);
        }
        let names = stateful(&network.graph);
        for (name, state) in names.into_iter().zip(network.state()) {
            start.statistics.insert(name, std::mem::take(state));
        }
        Ok(start)
    }

    /// Takes over every tensor that fits; momenta stay zero.
    ///
    /// # Errors
    /// When nothing fits.
    pub fn apply(mut self, network: &mut Network) -> Result<Report, InitError> {
        let mut report = Report::default();
        let file =
            self.parameters.iter().next().map_or("nothing".into(), |(name, given)| described(name, &given.shape));
        let mut wanted = String::from("nothing");
        for parameter in network.parameters() {
            let given = self.parameters.remove(&parameter.name);
            match given {
                Some(given) if given.shape == parameter.shape => {
                    parameter.exponent = given.exponent;
                    parameter.master = Masters::new(parameter.kind, given.master.into_iter());
                    report.loaded.push(parameter.name.clone());
                }
                Some(given) => {
                    let why = format!("{:?} in the file, {:?} in the network", given.shape, parameter.shape);
                    report.initial.push((parameter.name.clone(), why));
                }
                None => report.initial.push((parameter.name.clone(), "not in the file".into())),
            }
            wanted = described(&parameter.name, &parameter.shape);
        }
        if report.loaded.is_empty() {
            return Err(InitError::NothingFits { file, network: wanted });
        }
        let names = stateful(&network.graph);
        let channels: BTreeMap<String, usize> = network.normalizations().into_iter().collect();
        for (name, state) in names.into_iter().zip(network.state()) {
            let fits = |found: &Vec<i64>| found.is_empty() || Some(found.len()) == channels.get(&name).map(|c| 2 * c);
            if let Some(found) = self.statistics.remove(&name).filter(fits) {
                *state = found;
            }
        }
        for (node, layer) in network.graph.nodes.iter().zip(&mut network.layers) {
            let Layer::BatchNorm(norm) = layer else { continue };
            let map = self.maps.remove(&node.name).filter(|map| Some(&map.len()) == channels.get(&node.name));
            if let Some(map) = map {
                norm.adopt(map);
            }
        }
        for (node, range) in network.graph.nodes.iter().zip(&mut network.ranges) {
            if let Some(&exponent) = self.exponents.get(&node.name) {
                *range = ExponentRange { current: exponent, previous: exponent };
            }
        }
        report.ignored = self.parameters.into_keys().collect();
        Ok(report)
    }
}

/// Batches that statistics are found on.
const SETTLED: usize = 8;

/// Finds the statistics, γ and β of normalisations that were taken from a deployable model, on the first batches that the
/// run trains on. Nothing happens to a network without such.
///
/// # Errors
/// When an image cannot be read.
pub fn settle(network: &mut Network, config: &Config, source: Source, ctx: Context) -> Result<(), DataError> {
    if !network.is_adopting() {
        return Ok(());
    }
    let mut loader = Loader::start(source, 0, 2);
    for step in 0..SETTLED as u64 {
        let batch = loader.next()?;
        let recipe = Recipe::forward_alone(ctx, config.bits, config.train.seed, step);
        network.show(&batch, &recipe, &mut None);
    }
    network.end_adoption();
    Ok(())
}

fn described(name: &str, shape: &[usize]) -> String {
    format!("{name} {shape:?}")
}

/// The nodes with running statistics, in the graph's order.
fn stateful(graph: &Graph) -> Vec<String> {
    let norms = graph.nodes.iter().filter(|node| matches!(node.op, crate::graph::OpSpec::BatchNorm { .. }));
    norms.map(|node| node.name.clone()).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { loaded, initial, ignored } = self;
        write!(
            f,
            "{} tensors loaded, {} left at their initial values, {} ignored",
            loaded.len(),
            initial.len(),
            ignored.len()
        )?;
        for (name, why) in initial {
            write!(f, "\n  {name} stays at its initial value: {why}")?;
        }
        for name in ignored {
            write!(f, "\n  {name} is in the file and not in the network: ignored")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Progress, save};
    use std::path::Path;

    fn config(set: &[&str]) -> Config {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Config::parse("", "run.toml".as_ref(), &set).unwrap()
    }

    fn network(config: &Config) -> Network {
        let graph = config.graph().unwrap();
        Network::new(graph, config.train.seed).unwrap()
    }

    fn read(path: &Path) -> Result<Start, InitError> {
        Start::from_checkpoint(Checkpoint::open(path)?)
    }

    /// Writes a checkpoint of that configuration's initial weights.
    fn written(config: &Config, path: &Path) -> Network {
        let mut network = network(config);
        let channels = network.normalizations();
        network.state().zip(channels).for_each(|(state, (_, channels))| *state = vec![7; 2 * channels]);
        let progress = Progress { step: 3, best_miou: None, config: config.to_toml() };
        save(path, &mut network, &progress).unwrap();
        network
    }

    #[test]
    fn a_network_for_other_classes_takes_everything_but_its_classifier() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        let mut source = written(&config(&["network.arch=fcn8s-vgg16-bn", "network.width=0.125"]), &path);
        let other = ["network.arch=fcn8s-vgg16-bn", "network.width=0.125", "network.classes=5", "train.seed=9"];
        let mut target = network(&config(&other));
        let report = read(&path).unwrap().apply(&mut target).unwrap();
        assert!(report.ignored.is_empty());
        let names: Vec<&str> = report.initial.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.len(), 6, "weights and biases of three classifiers: {names:?}");
        assert!(names.iter().all(|name| name.starts_with("score_")), "{names:?}");
        assert!(report.initial[0].1.contains("21] in the file") && report.initial[0].1.contains("5] in the network"));
        for (a, b) in source.parameters().zip(target.parameters()) {
            assert_eq!(
                report.loaded.contains(&a.name),
                (a.exponent, &a.master) == (b.exponent, &b.master),
                "{}",
                a.name
            );
        }
        assert!(report.to_string().contains("score_fr.weight stays at its initial value"), "{report}");
    }

    #[test]
    fn another_width_is_refused_with_a_tensor_of_each_side() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        written(&config(&["network.arch=fcn-tiny"]), &path);
        let mut target = network(&config(&["network.arch=deeplabv3-resnet50", "network.width=0.125"]));
        let error = read(&path).unwrap().apply(&mut target).unwrap_err().to_string();
        assert!(error.contains("no tensor of the file fits") && error.contains("logits.bias [21]"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_checkpoint_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        std::fs::write(&path, b"nothing").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("weights.safetensors") && error.contains("no checkpoint"), "{error}");
    }
}
