//! Checkpoints: everything that a run needs to continue to the bit-identical result.
//!
//! A checkpoint is a safetensors file, so that other tools can open it: masters, momenta and means as I32, running
//! statistics as I64, and in its metadata the step, the exponents, and a BLAKE3 hash over all tensors. It is written under a
//! temporary name and renamed.

use crate::config::Deploy;
use crate::data::DataError;
use crate::data::image::write_atomically;
use crate::masters::Masters;
use crate::network::{ExponentRange, Network};
use crate::parameter::{Kind, Parameter};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The version of the format.
const VERSION: u32 = 1;
/// The metadata's key.
const KEY: &str = "intseg";

/// What a checkpoint says besides its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// The best mIoU of the evaluations so far.
    pub best_miou: Option<f64>,
    /// The configuration that the run was started with.
    pub config: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    progress: Progress,
    exponents: Vec<i32>,
    ranges: Vec<[i32; 2]>,
    /// Steps whose masters are in the means; without any, there are no means.
    #[serde(default)]
    averaged: u32,
    hash: String,
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] DataError),
    /// The file cannot be read.
    #[error("cannot read the checkpoint {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no checkpoint, or is damaged, or belongs to another network.
    #[error("the checkpoint {} cannot be used: {message}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// A tensor's name, type, shape, and values, little-endian.
pub(crate) type NamedTensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// The name, type and shape of every tensor of a network, in the order of [`tensors`].
fn layout(network: &mut Network, averaged: bool) -> Vec<(String, Dtype, Vec<usize>)> {
    let kinds = if averaged { &["master", "momentum", "mean"][..] } else { &["master", "momentum"] };
    let parameters = network.parameters();
    let named = |p: &Parameter, kind: &&str| (format!("{}.{kind}", p.name), Dtype::I32, p.shape.clone());
    let mut all: Vec<_> =
        parameters.flat_map(|p| kinds.iter().map(|kind| named(p, kind)).collect::<Vec<_>>()).collect();
    let states = network.state().enumerate();
    all.extend(states.map(|(index, state)| (format!("state.{index:04}"), Dtype::I64, vec![state.len()])));
    all
}

/// The tensors of a network.
fn tensors(network: &mut Network) -> Vec<NamedTensor> {
    let layout = layout(network, network.averaged > 0);
    let mut values: Vec<Vec<u8>> = Vec::with_capacity(layout.len());
    let bytes = |masters: &Masters| masters.iter().flat_map(i32::to_le_bytes).collect();
    for parameter in network.parameters() {
        values.push(bytes(&parameter.master));
        values.push(parameter.momentum.iter().flat_map(|v| v.to_le_bytes()).collect());
        values.extend((!parameter.mean.is_empty()).then(|| bytes(&parameter.mean)));
    }
    values.extend(network.state().map(|state| state.iter().flat_map(|v| v.to_le_bytes()).collect()));
    layout.into_iter().zip(values).map(|((name, dtype, shape), bytes)| (name, dtype, shape, bytes)).collect()
}

fn hash_of<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in tensors {
        hasher.update(name.as_bytes()).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    hasher.finalize().to_hex().to_string()
}

/// Writes a checkpoint.
///
/// # Errors
/// When the file cannot be written; what was there before stays.
pub fn save(path: &Path, network: &mut Network, progress: &Progress) -> Result<(), CheckpointError> {
    let unusable = |message: String| CheckpointError::Unusable { path: path.to_owned(), message };
    let tensors = tensors(network);
    let header = Header {
        version: VERSION,
        progress: progress.clone(),
        exponents: network.parameters().map(|p| p.exponent).collect(),
        ranges: network.ranges.iter().map(|r| [r.current, r.previous]).collect(),
        averaged: network.averaged,
        hash: hash_of(tensors.iter().map(|(name, .., bytes)| (name.as_str(), bytes.as_slice()))),
    };
    let text = serde_json::to_string(&header).map_err(|e| unusable(e.to_string()))?;
    write(path, &tensors, Some(HashMap::from([(KEY.to_owned(), text)])))
}

/// Writes a safetensors file.
pub(crate) fn write(
    path: &Path,
    tensors: &[NamedTensor],
    metadata: Option<HashMap<String, String>>,
) -> Result<(), CheckpointError> {
    let unusable = |message: String| CheckpointError::Unusable { path: path.to_owned(), message };
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(|e| unusable(e.to_string()))?;
    let bytes = serialize(views, metadata).map_err(|e| unusable(e.to_string()))?;
    Ok(write_atomically(path, &bytes)?)
}

/// A checkpoint's file, read once.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    bytes: Vec<u8>,
    header: Header,
}

impl Checkpoint {
    /// Reads a checkpoint's file, whatever its network.
    ///
    /// # Errors
    /// When the file cannot be read, is no checkpoint, or is newer.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let path = path.to_owned();
        match std::fs::read(&path) {
            Err(source) => Err(CheckpointError::Read { path, source }),
            Ok(bytes) => Self::from_bytes(bytes, &path),
        }
    }

    /// Takes a checkpoint's bytes; `path` is for messages.
    ///
    /// # Errors
    /// When they are no checkpoint, or a newer one.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self, CheckpointError> {
        let path = path.to_owned();
        match header(&bytes) {
            Err(message) => Err(CheckpointError::Unusable { path, message }),
            Ok(header) => Ok(Checkpoint { path, bytes, header }),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says besides its tensors.
    pub fn progress(&self) -> &Progress {
        &self.header.progress
    }

    /// Takes its state over into a network of the same graph.
    ///
    /// # Errors
    /// When it is damaged, or does not fit the network.
    pub fn load(self, network: &mut Network) -> Result<Progress, CheckpointError> {
        let Checkpoint { path, bytes, header } = self;
        parse(&bytes, header, network).map_err(|message| CheckpointError::Unusable { path, message })
    }
}

fn header(bytes: &[u8]) -> Result<Header, String> {
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|e| format!("it is damaged or no checkpoint ({e})"))?;
    let text = metadata.metadata().as_ref().and_then(|m| m.get(KEY)).ok_or("it is no intseg checkpoint")?;
    let version: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if version["version"] != VERSION {
        return Err(format!("it has version {}, this program reads {VERSION}", version["version"]));
    }
    serde_json::from_str(text).map_err(|e| e.to_string())
}

fn parse(bytes: &[u8], header: Header, network: &mut Network) -> Result<Progress, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let wanted = layout(network, header.averaged > 0);
    let mut found = Vec::with_capacity(wanted.len());
    for (name, dtype, shape) in &wanted {
        let view = file.tensor(name).map_err(|_| format!("{name} is missing: it is of another network"))?;
        // Running statistics are empty before the first step.
        if view.dtype() != *dtype || (*dtype == Dtype::I32 && view.shape() != shape) {
            return Err(format!("{name} has shape {:?} where the network has {shape:?}", view.shape()));
        }
        found.push((name.as_str(), view.data()));
    }
    if hash_of(found.iter().copied()) != header.hash {
        return Err("its checksum is wrong: it is damaged; start again, or use another checkpoint".into());
    }
    let parameters = network.parameters().count();
    if header.exponents.len() != parameters || header.ranges.len() != network.ranges.len() {
        return Err("it is of another network".into());
    }
    check_values(&header, network, found.iter().map(|(_, data)| *data))?;
    let mut values = found.into_iter().map(|(_, data)| data);
    let mut next = || values.next().unwrap_or_default().as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b));
    for (parameter, exponent) in network.parameters().zip(&header.exponents) {
        parameter.exponent = *exponent;
        parameter.master = Masters::new(parameter.kind, next());
        parameter.momentum.clear();
        parameter.momentum.extend(next());
        parameter.mean = match header.averaged {
            0 => Masters::none(parameter.kind),
            _ => Masters::new(parameter.kind, next()),
        };
    }
    network.averaged = header.averaged;
    for state in network.state() {
        let data = values.next().unwrap_or_default();
        *state = data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    }
    for (range, [current, previous]) in network.ranges.iter_mut().zip(header.ranges) {
        *range = ExponentRange { current, previous };
    }
    Ok(header.progress)
}

/// The smallest and the largest exponent that training can arrive at, with room to spare.
const EXPONENTS: std::ops::RangeInclusive<i32> = -100..=100;
/// The largest magnitude of running statistics, in units of 2^-24.
const LARGEST_STATISTIC: u64 = 1 << 46;
/// The largest magnitude of a master.
const LARGEST_MASTER: u32 = 1 << 30;

/// Checks what a file with a right checksum can still say wrongly: what no training arrives at, and arithmetic is not
/// made for.
fn check_values<'a>(
    header: &Header,
    network: &mut Network,
    mut values: impl Iterator<Item = &'a [u8]>,
) -> Result<(), String> {
    let forged = |name: &str, what: &str| Err(format!("{name}: {what}: no training wrote it"));
    if u64::from(header.averaged) > Deploy::AVERAGED {
        return forged("means", "they are of more steps than a run takes");
    }
    for (parameter, exponent) in network.parameters().zip(&header.exponents) {
        let right = match parameter.kind {
            Kind::Weight => EXPONENTS.contains(exponent),
            Kind::Affine => *exponent == parameter.exponent,
        };
        if !right {
            return forged(&parameter.name, "its exponent is out of range");
        }
        let mut next = || values.next().unwrap_or_default().as_chunks::<4>().0;
        let (masters, _momenta) = (next(), next());
        let means = if header.averaged > 0 { next() } else { &[] };
        let too_large = |b: &[u8; 4]| i32::from_le_bytes(*b).unsigned_abs() > LARGEST_MASTER;
        if masters.iter().chain(means).any(too_large) {
            return forged(&parameter.name, "a value is out of range");
        }
    }
    for (name, channels) in network.normalizations() {
        let statistics = values.next().unwrap_or_default().as_chunks::<8>().0;
        if !statistics.is_empty() && statistics.len() != 2 * channels {
            return forged(&name, "its running statistics have the wrong length");
        }
        let read = |b: &[u8; 8]| i64::from_le_bytes(*b);
        let (means, deviations) = statistics.split_at(statistics.len() / 2);
        let mut deviations = deviations.iter().map(read);
        let largest = means.iter().map(|b| read(b).unsigned_abs()).max().unwrap_or(0);
        if largest > LARGEST_STATISTIC || deviations.any(|v| v < 0 || v.unsigned_abs() > LARGEST_STATISTIC) {
            return forged(&name, "its running statistics are out of range");
        }
    }
    let known = |exponent: i32| exponent == i32::MIN || EXPONENTS.contains(&exponent);
    match header.ranges.iter().flatten().all(|&exponent| known(exponent)) {
        true => Ok(()),
        false => forged("activations", "an exponent is out of range"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::{Settings, build};

    fn network() -> Network {
        Network::new(build("fcn8s-vgg16-bn", &Settings { width_1000: 125, ..Settings::new(3) }).unwrap(), 1).unwrap()
    }

    /// What loading says of a checkpoint of a network that was changed on purpose.
    fn loaded(change: impl FnOnce(&mut Network)) -> Result<Progress, String> {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut network) = (dir.path().join("forged.safetensors"), network());
        change(&mut network);
        save(&path, &mut network, &Progress::default()).unwrap();
        Checkpoint::open(&path).unwrap().load(&mut self::network()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_no_training_writes_is_refused_with_the_layers_name() {
        let channels = |network: &mut Network| network.normalizations()[0].1;
        assert!(loaded(|_| {}).is_ok());
        let fine = |network: &mut Network| {
            let channels = channels(network);
            *network.state().next().unwrap() = vec![1 << 20; 2 * channels];
        };
        assert!(loaded(fine).is_ok());
        type Change = Box<dyn Fn(&mut Network)>;
        let state = |state: fn(usize) -> Vec<i64>| -> Change {
            Box::new(move |network| {
                let channels = channels(network);
                *network.state().next().unwrap() = state(channels);
            })
        };
        let parameter = |change: fn(&mut crate::parameter::Parameter)| -> Change {
            Box::new(move |network| network.parameters().take(2).for_each(change))
        };
        let forgeries: [(Change, [&str; 2]); 7] = [
            (state(|c| vec![0; c]), ["conv1_1.bn", "wrong length"]),
            (state(|c| vec![-1; 2 * c]), ["conv1_1.bn", "out of range"]),
            (state(|c| vec![i64::MAX; 2 * c]), ["conv1_1.bn", "out of range"]),
            (parameter(|p| p.exponent = 4000), ["conv1_1.weight", "its exponent"]),
            (parameter(|p| p.exponent = i32::MIN), ["conv1_1.weight", "its exponent"]),
            (parameter(|p| p.master = Masters::Affine(vec![i32::MIN; p.master.len()])), ["conv1_1.weight", "a value"]),
            (Box::new(|network| network.ranges[1].current = 2000), ["activations", "an exponent"]),
        ];
        for (change, parts) in forgeries {
            let error = loaded(change).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn a_checkpoint_that_is_refused_leaves_the_network_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut forged) = (dir.path().join("forged.safetensors"), network());
        forged.ranges[1].current = 2000;
        save(&path, &mut forged, &Progress::default()).unwrap();
        let averaged = || {
            let mut network = network();
            network.average(intseg_kernels::Context::reference());
            network
        };
        let (mut target, mut before) = (averaged(), averaged());
        Checkpoint::open(&path).unwrap().load(&mut target).unwrap_err();
        assert!(target.parameters().eq(before.parameters()) && target.averaged == before.averaged);
    }

    #[test]
    fn masters_and_their_means_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut network) = (dir.path().join("checkpoint.safetensors"), network());
        network.parameters().for_each(|p| p.master.set(0, -99_999));
        network.average(intseg_kernels::Context::reference());
        network.parameters().for_each(|p| p.master.set(1, 77_777));
        save(&path, &mut network, &Progress::default()).unwrap();
        let mut again = self::network();
        Checkpoint::open(&path).unwrap().load(&mut again).unwrap();
        assert!(again.parameters().eq(network.parameters()) && again.averaged == 1);
    }
}
