//! The description of a training run: one TOML file, every key with a default, any key overridable.
//!
//! Numbers that a person writes as decimals (learning rate, width, scales) are floats here and nowhere else: each is
//! turned into an integer once, by the `*_q*` methods, before training begins.

use crate::data::Layout;
use crate::graph::Graph;
use crate::networks::{self, Settings, UnknownNetwork};
use crate::ops::Bits;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which network.
    pub network: Network,
    /// Which data.
    pub data: Data,
    /// How images are varied.
    pub augment: Augment,
    /// How long and how fast to learn.
    pub train: Train,
    /// How a trained network becomes a model.
    pub deploy: Deploy,
    /// Bit widths.
    pub bits: Bits,
}

/// `[network]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Name of the architecture, one of [`crate::networks::NETWORKS`].
    pub arch: String,
    /// Width multiplier, 0.01 to 4.
    pub width: f64,
    /// Number of classes, 2 to 255.
    pub classes: usize,
    /// Whether to train an auxiliary head, where the network has one.
    pub auxiliary: bool,
    /// Share of elements that dropout zeroes, 0 to 0.9, where the network has it.
    pub dropout: f64,
    /// Whether resizing aligns the corner pixels' centres instead of half-pixel centres.
    pub align_corners: bool,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            arch: "fcn8s-vgg16-bn".into(),
            width: 1.0,
            classes: 21,
            auxiliary: false,
            dropout: 0.5,
            align_corners: false,
        }
    }
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Layout of the folder; found out when absent.
    pub layout: Option<Layout>,
    /// Split to train on.
    pub train: String,
    /// Split to evaluate on.
    pub val: String,
}

impl Default for Data {
    fn default() -> Self {
        Data { layout: None, train: "train".into(), val: "val".into() }
    }
}

/// `[augment]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Rows and columns of a crop.
    pub crop: [usize; 2],
    /// Smallest and largest random scale.
    pub scale: [f64; 2],
    /// Whether half of the crops are mirrored.
    pub flip: bool,
    /// Largest random change of brightness, as a share of the full range.
    pub brightness: f64,
    /// Largest random change of contrast, as a share.
    pub contrast: f64,
}

impl Default for Augment {
    fn default() -> Self {
        Augment { crop: [512, 512], scale: [0.5, 2.0], flip: true, brightness: 0.1, contrast: 0.1 }
    }
}

/// How the learning rate falls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// It stays.
    Constant,
    /// `lr · (1 − step/steps)^0.9`.
    Poly,
    /// It halves at each of these steps.
    Halve(Vec<u64>),
}

/// Weights of classes in the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClassWeights {
    /// All alike.
    Uniform,
    /// From the pixel counts of the training split: `(median frequency / frequency)^½`, at most 8.
    Balanced,
    /// One a class, 0 to 255.
    List(Vec<f64>),
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Number of updates.
    pub steps: u64,
    /// Images a step.
    pub batch: usize,
    /// Learning rate at the start (after warm-up).
    pub lr: f64,
    /// Momentum, 0 to 0.999.
    pub momentum: f64,
    /// Weight decay, on convolution weights alone.
    pub weight_decay: f64,
    /// How the learning rate falls.
    pub decay: Decay,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Weights of classes in the loss.
    pub class_weights: ClassWeights,
    /// Weight of the auxiliary head's loss.
    pub auxiliary_weight: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Steps between evaluations on the validation split; 0: at the end alone.
    pub eval_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Steps between log lines.
    pub log_every: u64,
}

impl Default for Train {
    fn default() -> Self {
        Train {
            steps: 30_000,
            batch: 8,
            lr: 0.02,
            momentum: 0.9,
            weight_decay: 1e-4,
            decay: Decay::Poly,
            warmup: 0,
            class_weights: ClassWeights::Uniform,
            auxiliary_weight: 0.4,
            seed: 0,
            eval_every: 1000,
            save_every: 500,
            log_every: 20,
        }
    }
}

/// `[deploy]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deploy {
    /// Batches of unvaried training images over which the statistics of batch normalisation and the exponents of activations are measured
    /// for the weights of a model that is scored, 0 to 1024; 0: running statistics and the largest exponents of the last
    /// steps.
    pub batches: u64,
    /// Share of the run's steps, the last, over which the weights of models that are scored are averaged, 0 to 1; 0: the
    /// last step's weights. Without batches nothing is averaged: running statistics are not the averages'.
    pub average: f64,
}

impl Default for Deploy {
    fn default() -> Self {
        Deploy { batches: 16, average: 0.05 }
    }
}

impl Deploy {
    /// Steps that are averaged over, at most: in a longer window, every so many.
    pub const AVERAGED: u64 = 32;

    /// Whether the weights that `step` of `steps` steps left are one of those that are averaged; the last step's are.
    pub fn averages(&self, step: u64, steps: u64) -> bool {
        let window = if self.batches == 0 {
            0
        } else {
            ((u128::from(steps) * u128::from(fixed(self.average, 1 << 16))) >> 16) as u64
        };
        let period = window.div_ceil(Self::AVERAGED).max(1);
        steps - step < window && (steps - step).is_multiple_of(period)
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or has a key that does not exist, or a value of the wrong type.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and known keys.
        message: String,
    },
    /// An override is not `key=value`, or its key does not exist.
    #[error("--set {assignment}: {message}")]
    Override {
        /// The override.
        assignment: String,
        /// What is wrong.
        message: String,
    },
    /// A value out of its range.
    #[error("{key} = {value}: it must be {range}")]
    Range {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What would be right.
        range: &'static str,
    },
}

impl Config {
    /// Reads a file and applies `key=value` overrides such as `train.lr=0.01`.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, a key does not exist, or a value is out of range.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path, overrides)
    }

    /// Parses the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let wrong = |e: toml::de::Error| ConfigError::Parse { path: path.to_owned(), message: e.to_string() };
        let mut table: toml::Table = toml::from_str(text).map_err(wrong)?;
        // The file alone is checked first, so that an error in it is not blamed on an override.
        toml::from_str::<Config>(text).map_err(wrong)?;
        for assignment in overrides {
            let fail = |message: String| ConfigError::Override { assignment: assignment.clone(), message };
            assign(&mut table, assignment).map_err(fail)?;
            toml::Value::Table(table.clone()).try_into::<Config>().map_err(|e| fail(e.to_string()))?;
        }
        let config: Config = toml::Value::Table(table).try_into().map_err(|e: toml::de::Error| wrong(e))?;
        config.validate()?;
        Ok(config)
    }

    /// The whole configuration as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a configuration holds tables, lists, numbers and strings")
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`ConfigError::Range`] for the first value out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        fn check<T: ToString>(ok: bool, key: &'static str, value: T, range: &'static str) -> Result<(), ConfigError> {
            if ok { Ok(()) } else { Err(ConfigError::Range { key, value: value.to_string(), range }) }
        }
        let Config { network, augment, train, bits, deploy, .. } = self;
        check((2..=255).contains(&network.classes), "network.classes", network.classes, "2 to 255")?;
        check((0.01..=4.0).contains(&network.width), "network.width", network.width, "0.01 to 4")?;
        check((0.0..=0.9).contains(&network.dropout), "network.dropout", network.dropout, "0 to 0.9")?;
        for size in augment.crop {
            check((8..=4096).contains(&size), "augment.crop", size, "two sizes of 8 to 4096 pixels")?;
        }
        let [low, high] = augment.scale;
        check(
            low >= 0.1 && low <= high && high <= 8.0,
            "augment.scale",
            format!("{:?}", augment.scale),
            "two rising numbers of 0.1 to 8",
        )?;
        check((0.0..=1.0).contains(&augment.brightness), "augment.brightness", augment.brightness, "0 to 1")?;
        check((0.0..=1.0).contains(&augment.contrast), "augment.contrast", augment.contrast, "0 to 1")?;
        check(train.steps > 0, "train.steps", train.steps, "at least 1")?;
        check((1..=1024).contains(&train.batch), "train.batch", train.batch, "1 to 1024")?;
        check(train.lr > 0.0 && train.lr < 16.0, "train.lr", train.lr, "above 0 and below 16")?;
        check((0.0..=0.999).contains(&train.momentum), "train.momentum", train.momentum, "0 to 0.999")?;
        check((0.0..=0.1).contains(&train.weight_decay), "train.weight_decay", train.weight_decay, "0 to 0.1")?;
        check(
            (0.0..=4.0).contains(&train.auxiliary_weight),
            "train.auxiliary_weight",
            train.auxiliary_weight,
            "0 to 4",
        )?;
        check(train.save_every > 0, "train.save_every", train.save_every, "at least 1")?;
        check(deploy.batches <= 1024, "deploy.batches", deploy.batches, "0 to 1024")?;
        check((0.0..=1.0).contains(&deploy.average), "deploy.average", deploy.average, "0 to 1")?;
        check(train.log_every > 0, "train.log_every", train.log_every, "at least 1")?;
        if let ClassWeights::List(list) = &train.class_weights {
            let fits = list.len() == network.classes && list.iter().all(|w| (0.0..256.0).contains(w));
            check(fits, "train.class_weights.list", format!("{list:?}"), "one number of 0 to 255 for each class")?;
        }
        for (key, value, low, high, range) in [
            ("bits.w", bits.w, 2, 8, "2 to 8"),
            ("bits.a", bits.a, 2, 8, "2 to 8"),
            ("bits.e1", bits.e1, 2, 16, "2 to 16"),
            ("bits.e2", bits.e2, 2, 16, "2 to 16"),
            ("bits.bn_x", bits.bn_x, 8, 16, "8 to 16"),
            ("bits.gamma", bits.gamma, 4, 16, "4 to 16"),
            ("bits.beta", bits.beta, 4, 16, "4 to 16"),
            ("bits.update", bits.update, 9, 24, "9 to 24"),
            ("bits.residual", bits.residual, 8, 16, "8 to 16"),
        ] {
            check((low..=high).contains(&value), key, value, range)?;
        }
        check(!bits.e2_flag || bits.e2 == 15, "bits.e2", bits.e2, "15 with bits.e2_flag")?;
        check((2..=8).contains(&bits.g) || bits.g == 32, "bits.g", bits.g, "2 to 8, or 32 for exact gradients")
    }

    /// What the network is built from.
    pub fn settings(&self) -> Settings {
        Settings {
            classes: self.network.classes,
            width_1000: fixed(self.network.width, 1000) as usize,
            auxiliary: self.network.auxiliary,
            drop_256: fixed(self.network.dropout, 256) as u32,
            align_corners: self.network.align_corners,
        }
    }

    /// The network.
    ///
    /// # Errors
    /// When there is none of its name.
    pub fn graph(&self) -> Result<Graph, UnknownNetwork> {
        networks::build(&self.network.arch, &self.settings())
    }

    /// The learning rate in units of 2^-32.
    pub fn lr_q32(&self) -> u64 {
        fixed(self.train.lr, 1 << 32)
    }

    /// Weight decay in units of 2^-32.
    pub fn decay_q32(&self) -> u64 {
        fixed(self.train.weight_decay, 1 << 32)
    }

    /// Momentum in units of 2^-15.
    pub fn momentum_q15(&self) -> u32 {
        fixed(self.train.momentum, 1 << 15) as u32
    }

    /// The auxiliary loss's weight in 256ths.
    pub fn auxiliary_q8(&self) -> u32 {
        fixed(self.train.auxiliary_weight, 256) as u32
    }

    /// The random scale's range in 256ths.
    pub fn scale_q8(&self) -> [u32; 2] {
        self.augment.scale.map(|s| fixed(s, 256) as u32)
    }

    /// The largest change of brightness in grey levels, and of contrast in 256ths.
    pub fn jitter(&self) -> [u32; 2] {
        [fixed(self.augment.brightness, 255) as u32, fixed(self.augment.contrast, 256) as u32]
    }
}

/// A person's decimal as an integer over `unit`: the one place where a configuration's float becomes an integer.
#[allow(clippy::float_arithmetic, reason = "the edge where a person's decimal becomes an integer")]
pub fn fixed(value: f64, unit: u64) -> u64 {
    (value * unit as f64).round() as u64
}

/// Sets the key of `key=value` in `table`; the value is TOML, or else a string.
fn assign(table: &mut toml::Table, assignment: &str) -> Result<(), String> {
    let (key, value) = assignment.split_once('=').ok_or("write it as key=value, such as train.lr=0.01")?;
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok().and_then(|mut t| t.remove("value"));
    let value = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let (path, last) = key.trim().rsplit_once('.').ok_or("name the section too, such as train.lr=0.01")?;
    let mut section = table;
    for part in path.split('.') {
        let entry = section.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        section = entry.as_table_mut().ok_or_else(|| format!("{part} is not a section"))?;
    }
    section.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, overrides: &[&str]) -> Result<Config, String> {
        let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
        Config::parse(text, Path::new("run.toml"), &overrides).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_is_all_defaults_and_survives_a_round_trip() {
        let config = parse("", &[]).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(parse(&config.to_toml(), &[]).unwrap(), config);
    }

    #[test]
    fn overrides_take_numbers_strings_and_lists() {
        let set = ["train.lr=0.5", "network.arch=fcn-tiny", "augment.crop=[64, 96]", "train.decay={halve=[5]}"];
        let config = parse("[train]\nlr = 0.1\n", &set).unwrap();
        assert_eq!((config.train.lr, config.network.arch.as_str(), config.augment.crop), (0.5, "fcn-tiny", [64, 96]));
        assert_eq!(config.train.decay, Decay::Halve(vec![5]));
    }

    #[test]
    fn an_unknown_key_is_named_with_the_known_ones() {
        let message = parse("[train]\nlearning_rate = 0.1\n", &[]).unwrap_err();
        assert!(message.contains("learning_rate") && message.contains("weight_decay"), "{message}");
        let message = parse("", &["train.learning_rate=1"]).unwrap_err();
        assert!(message.contains("--set train.learning_rate=1") && message.contains("unknown field"), "{message}");
    }

    #[test]
    fn a_value_out_of_range_says_the_range() {
        for (set, part) in [
            ("train.batch=0", "1 to 1024"),
            ("network.width=100", "0.01 to 4"),
            ("bits.g=9", "exact"),
            ("train.class_weights={list=[1.0]}", "each class"),
        ] {
            let message = parse("", &[set]).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_last_steps_are_averaged_thirty_two_of_them_at_most() {
        let taken = |average: f64, steps: u64| -> Vec<u64> {
            let deploy = Deploy { average, ..Deploy::default() };
            (1..=steps).filter(|&step| deploy.averages(step, steps)).collect()
        };
        assert_eq!(taken(0.05, 100), [96, 97, 98, 99, 100]);
        assert_eq!(taken(0.5, 256), (132..=256).step_by(4).collect::<Vec<_>>());
        assert_eq!((taken(1.0, 3), taken(0.0, 3), taken(0.05, 19)), (vec![1, 2, 3], vec![], vec![]));
        assert!(!Deploy { batches: 0, average: 1.0 }.averages(3, 3));
    }

    #[test]
    fn decimals_become_the_nearest_integers() {
        let config = parse("", &["train.lr=0.0625", "train.momentum=0.9", "network.width=0.25"]).unwrap();
        assert_eq!((config.lr_q32(), config.momentum_q15(), config.settings().width_1000), (1 << 28, 29491, 250));
    }
}
