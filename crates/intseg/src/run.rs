//! A training run: from a configuration and a folder to `best.iseg` and `last.iseg`.

use crate::checkpoint::{self, Checkpoint, CheckpointError, Progress};
use crate::class_weights::class_weights;
use crate::config::{Config, ConfigError};
use crate::data::image::write_atomically;
use crate::data::loader::{Loader, Source};
use crate::data::{Batch, DataError, Dataset, Entry};
use crate::evaluate::{EvaluateError, evaluate};
use crate::fold::{Metadata, fold};
use crate::frozen::Frozen;
use crate::graph::GraphError;
use crate::init::{InitError, Report as InitReport, Start, settle};
use crate::metrics::{Absent, Report};
use crate::network::{Network, Recipe, StepOutcome};
use crate::networks::UnknownNetwork;
use crate::schedule::Schedule;
use crate::tensor::Shape;
use crate::threads::{Threads, ThreadsError};
use intseg_kernels::{Context, Isa};
use intseg_runtime::Engine;
use serde_json::json;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The checkpoint's name in a run's folder.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The log's name in a run's folder.
pub const LOG: &str = "log.jsonl";

/// Where and how a run happens; what it computes does not depend on threads or instruction set.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The data set.
    pub data: PathBuf,
    /// The run's folder.
    pub out: PathBuf,
    /// Whether to continue from the folder's checkpoint.
    pub resume: bool,
    /// Threads; 0 for all cores.
    pub threads: usize,
    /// Instruction set.
    pub isa: Isa,
    /// Once set, the run saves a checkpoint after the current step and returns.
    pub stop: Arc<AtomicBool>,
}

/// What happens in a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// Trained weights were taken over.
    Initialized(InitReport),
    /// Data and network are ready.
    Started {
        /// Number of the first step: above 0 when resumed.
        first_step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Images to train on.
        train_images: usize,
        /// Images to evaluate on.
        val_images: usize,
        /// Trained values.
        parameters: usize,
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Mean loss a pixel, in nats.
        loss: f64,
        /// Learning rate.
        lr: f64,
        /// Speed since the start or resume.
        images_per_second: f64,
    },
    /// A step was compared with its reference.
    Diagnosed {
        /// Steps done.
        step: u64,
        /// What the diagnosis says, for a person.
        summary: String,
    },
    /// The deployed model was scored on the validation split.
    Evaluated {
        /// Steps done.
        step: u64,
        /// The scores.
        report: Report,
    },
    /// A file was written.
    Saved {
        /// Steps done.
        step: u64,
        /// The file.
        path: PathBuf,
    },
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Whether all steps were done; false when stopped.
    pub finished: bool,
    /// Steps done.
    pub step: u64,
    /// The best evaluation.
    pub best_miou: Option<f64>,
    /// The best model.
    pub best: PathBuf,
    /// The last model.
    pub last: PathBuf,
    /// Time of this process's part.
    pub seconds: f64,
}

/// Why a run cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The network's name.
    #[error(transparent)]
    Network(#[from] UnknownNetwork),
    /// The network's shapes.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The data, or a file that cannot be written.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights to start from.
    #[error(transparent)]
    Init(#[from] InitError),
    /// An evaluation.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// Threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// There is already a run in the folder.
    #[error("{} already holds a run; continue it with --resume, or choose another --out", .0.display())]
    Exists(PathBuf),
    /// There is nothing to resume.
    #[error("there is no checkpoint {} to resume from; leave out --resume to start", .0.display())]
    NothingToResume(PathBuf),
    /// The run in the folder was started with another configuration.
    #[error("the run in {} was started with another configuration; use its config.toml, or another --out", .0.display())]
    OtherConfig(PathBuf),
}

/// Trains. Events are handed to `observe` as they happen.
///
/// # Errors
/// When configuration, data or folder cannot be used. What was written before stays whole.
pub fn train(
    config: &Config,
    options: &RunOptions,
    observe: &mut (dyn FnMut(&Event) + Send),
) -> Result<Summary, RunError> {
    train_with(config, options, Extras::default(), observe)
}

/// What a run may be given besides its configuration.
#[derive(Default)]
pub struct Extras<'a> {
    /// Trained weights to start from, unless the run is resumed.
    pub init: Option<Start>,
    /// A look at some of its steps.
    pub diagnostics: Option<Diagnostics<'a>>,
}

/// Every so many steps, a step that is compared with something else as it is done.
pub struct Diagnostics<'a> {
    /// Steps from one diagnosed step to the next; the first step is diagnosed.
    pub every: u64,
    /// Does the step, exactly as [`Network::train_step`], and says how it went.
    pub step: &'a mut DiagnosedStep<'a>,
}

/// See [`Diagnostics::step`].
pub type DiagnosedStep<'a> = dyn FnMut(&mut Network, &Batch, &Recipe) -> Diagnosed + Send + 'a;

/// A diagnosed step.
pub struct Diagnosed {
    /// What it did.
    pub outcome: StepOutcome,
    /// How it went, for a person.
    pub summary: String,
    /// How it went, for the log.
    pub details: serde_json::Value,
}

/// As [`train`], with extras.
///
/// # Errors
/// As [`train`].
pub fn train_with(
    config: &Config,
    options: &RunOptions,
    extras: Extras,
    observe: &mut (dyn FnMut(&Event) + Send),
) -> Result<Summary, RunError> {
    config.validate()?;
    let threads = Threads::new(options.threads)?;
    let mut run = Run::prepare(config, options, extras.init, &threads)?;
    run.train(extras.diagnostics, observe)
}

struct Run<'a> {
    config: &'a Config,
    options: &'a RunOptions,
    ctx: Context<'a>,
    dataset: Dataset,
    train: Vec<Entry>,
    val: Vec<Entry>,
    network: Network,
    initialized: Option<InitReport>,
    schedule: Schedule,
    /// Class weights in 256ths, of the main and the auxiliary loss.
    class_weights: [Vec<u16>; 2],
    progress: Progress,
    /// The step whose model was scored last, and the model.
    scored: Option<(u64, Vec<u8>)>,
    started: Instant,
}

impl<'a> Run<'a> {
    fn prepare(
        config: &'a Config,
        options: &'a RunOptions,
        init: Option<Start>,
        threads: &'a Threads,
    ) -> Result<Self, RunError> {
        let graph = config.graph()?;
        let [h, w] = config.augment.crop;
        graph.shapes(Shape::new(config.train.batch, h, w, 3))?;
        let dataset = Dataset::open(&options.data, config.data.layout)?;
        let (train, val) = (dataset.split(&config.data.train)?, dataset.split(&config.data.val)?);
        let mut network = Network::new(graph, config.train.seed)?;
        let initialized = init.filter(|_| !options.resume).map(|start| start.apply(&mut network)).transpose()?;
        let ctx = Context { isa: options.isa, pool: threads };
        let source = Source::new(config, dataset.clone(), train.clone());
        settle(&mut network, config, source, ctx)?;
        let progress = open_folder(options, config, &mut network)?;
        let class_weights = class_weights(config, &dataset, &train)?;
        let schedule = Schedule::of(config);
        let started = Instant::now();
        Ok(Run {
            config,
            options,
            ctx,
            dataset,
            train,
            val,
            network,
            initialized,
            schedule,
            class_weights,
            progress,
            scored: None,
            started,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.options.out.join(name)
    }

    fn train(
        &mut self,
        mut diagnostics: Option<Diagnostics>,
        observe: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<Summary, RunError> {
        let (config, first_step) = (self.config, self.progress.step);
        let steps = config.train.steps;
        observe(&Event::Started {
            first_step,
            steps,
            train_images: self.train.len(),
            val_images: self.val.len(),
            parameters: self.network.parameter_count(),
        });
        if let Some(report) = self.initialized.take() {
            self.log(&json!({ "event": "init", "step": 0, "report": report }))?;
            observe(&Event::Initialized(report));
        }
        let source = Source::new(config, self.dataset.clone(), self.train.clone());
        let mut loader = Loader::start(source, first_step, 2);
        let mut window = StepOutcome::default();
        while self.progress.step < steps && !self.options.stop.load(Ordering::Relaxed) {
            let batch = loader.next()?;
            let recipe = Recipe {
                kernels: self.ctx,
                bits: config.bits,
                seed: config.train.seed,
                step: self.progress.step,
                class_weights: [&self.class_weights[0], &self.class_weights[1]],
                lr_q32: self.schedule.rate_q32(self.progress.step),
                decay_q32: config.decay_q32(),
                momentum_q15: config.momentum_q15(),
            };
            let due = |d: &&mut Diagnostics| self.progress.step.is_multiple_of(d.every.max(1));
            let outcome = match diagnostics.as_mut().filter(due) {
                None => self.network.train_step(&batch, &recipe),
                Some(diagnostics) => {
                    let Diagnosed { outcome, summary, details } =
                        (diagnostics.step)(&mut self.network, &batch, &recipe);
                    let step = self.progress.step + 1;
                    self.log(&json!({ "event": "diagnosis", "step": step, "diagnosis": details }))?;
                    observe(&Event::Diagnosed { step, summary });
                    outcome
                }
            };
            self.progress.step += 1;
            let step = self.progress.step;
            if config.deploy.averages(step, steps) {
                self.network.average(self.ctx);
            }
            window.add(&outcome);
            let images_per_second = speed((step - first_step) * config.train.batch as u64, self.started);
            let lr = real(self.schedule.rate_q32(step - 1) as i64, 32);
            observe(&Event::Step { step, steps, loss: mean_loss(&outcome), lr, images_per_second });
            if step.is_multiple_of(config.train.log_every) || step == steps {
                self.log_step(&window, lr, images_per_second)?;
                window = StepOutcome::default();
            }
            let evaluates = config.train.eval_every > 0 && step.is_multiple_of(config.train.eval_every);
            if evaluates || step == steps {
                self.evaluate(observe)?;
            }
            if step.is_multiple_of(config.train.save_every) || step == steps {
                self.save(observe)?;
            }
        }
        let finished = self.progress.step == steps;
        if !finished {
            self.save(observe)?;
        }
        Ok(Summary {
            finished,
            step: self.progress.step,
            best_miou: self.progress.best_miou,
            best: self.path("best.iseg"),
            last: self.path("last.iseg"),
            seconds: self.started.elapsed().as_secs_f64(),
        })
    }

    /// The deployable model of the current weights.
    fn model(&self, frozen: &Frozen) -> Vec<u8> {
        let classes = self.config.network.classes;
        let metadata = Metadata {
            arch: self.config.network.arch.clone(),
            classes: self.dataset.class_names(classes),
            palette: self.dataset.palette(classes),
            first_value: self.dataset.layout.value_of(0),
            steps: self.progress.step,
            config: self.config.to_toml(),
        };
        fold(&self.network, frozen, self.config.bits, &metadata).to_bytes()
    }

    /// What a deployed model of the current weights freezes: measured over the images that would follow the run's last.
    fn measured(&mut self) -> Result<Frozen, RunError> {
        let (config, ctx) = (self.config, self.ctx);
        if config.deploy.batches == 0 {
            return Ok(Frozen::running(&self.network));
        }
        let source = Source::new(config, self.dataset.clone(), self.train.clone()).unvaried();
        let mut loader = Loader::start(source, config.train.steps, 2);
        let batches = (0..config.deploy.batches).map(|_| loader.next());
        Ok(Frozen::measure(&mut self.network, ctx, config.bits, batches)?)
    }

    /// Scores the deployable model, of averaged weights if there are any, on the validation split, and keeps it if it is
    /// the best so far.
    fn evaluate(&mut self, observe: &mut (dyn FnMut(&Event) + Send)) -> Result<(), RunError> {
        self.network.swap_averages();
        let model = self.measured().map(|frozen| self.model(&frozen));
        self.network.swap_averages();
        let model = model?;
        let mut engine = Engine::open(&model[..], model.len() as u64, self.ctx).expect("a folded model is a model");
        let classes = self.config.network.classes;
        let matrix = evaluate(&mut engine, self.ctx, &self.dataset, &self.val, classes, |_| {})?;
        let report = matrix.report(Absent::Skip);
        let step = self.progress.step;
        let way = match (self.config.deploy.batches, self.network.averaged) {
            (0, _) => "running",
            (_, 0) => "measured",
            _ => "averaged",
        };
        self.log(&json!({
            "event": "eval", "step": step, "way": way, "miou": report.miou, "pixel_accuracy": report.pixel_accuracy,
            "mean_accuracy": report.mean_accuracy, "fw_iou": report.fw_iou, "iou": report.iou,
            "confusion": matrix.counts, "seconds": self.started.elapsed().as_secs_f64(),
        }))?;
        if self.progress.best_miou.is_none_or(|best| report.miou > best) {
            self.progress.best_miou = Some(report.miou);
            let path = self.path("best.iseg");
            write_atomically(&path, &model)?;
            observe(&Event::Saved { step, path });
        }
        observe(&Event::Evaluated { step, report });
        self.scored = Some((step, model));
        Ok(())
    }

    /// Writes the last model and then the checkpoint, from which the rest can be computed again. A model that was not
    /// scored has the last step's weights and running statistics: measuring takes as long as some steps.
    fn save(&mut self, observe: &mut (dyn FnMut(&Event) + Send)) -> Result<(), RunError> {
        let step = self.progress.step;
        let path = self.path("last.iseg");
        let model = match self.scored.take().filter(|(scored, _)| *scored == step) {
            Some((_, model)) => model,
            None => self.model(&Frozen::running(&self.network)),
        };
        write_atomically(&path, &model)?;
        observe(&Event::Saved { step, path });
        let path = self.path(CHECKPOINT);
        checkpoint::save(&path, &mut self.network, &self.progress)?;
        observe(&Event::Saved { step, path });
        Ok(())
    }

    fn log_step(&mut self, window: &StepOutcome, lr: f64, images_per_second: f64) -> Result<(), RunError> {
        let layers = self.network.layer_states();
        self.log(&json!({
            "event": "step", "step": self.progress.step, "loss": mean_loss(window), "lr": lr,
            "pixel_accuracy": ratio(window.correct, window.valid), "images_per_second": images_per_second,
            "seconds": self.started.elapsed().as_secs_f64(), "layers": layers,
        }))
    }

    fn log(&self, line: &serde_json::Value) -> Result<(), RunError> {
        let path = self.path(LOG);
        let write = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            writeln!(file, "{line}")
        };
        write().map_err(|source| DataError::Io { path: path.clone(), source }.into())
    }
}

/// Prepares the run's folder: starts a new run, or reads the checkpoint and drops what the log says of steps after it.
fn open_folder(options: &RunOptions, config: &Config, network: &mut Network) -> Result<Progress, RunError> {
    let (out, text) = (&options.out, config.to_toml());
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::Data(DataError::Io { path, source })
    };
    std::fs::create_dir_all(out).map_err(io(out))?;
    let (checkpoint, log) = (out.join(CHECKPOINT), out.join(LOG));
    if options.resume {
        if !checkpoint.is_file() {
            return Err(RunError::NothingToResume(checkpoint));
        }
        let progress = Checkpoint::open(&checkpoint)?.load(network)?;
        // A key that an earlier version did not have has its default.
        if Config::parse(&progress.config, &checkpoint, &[])? != *config {
            return Err(RunError::OtherConfig(out.clone()));
        }
        let lines = std::fs::read_to_string(&log).unwrap_or_default();
        let kept = lines.lines().filter(|line| {
            let step = serde_json::from_str::<serde_json::Value>(line).ok().and_then(|v| v["step"].as_u64());
            step.is_some_and(|step| step <= progress.step)
        });
        let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
        write_atomically(&log, kept.as_bytes())?;
        return Ok(progress);
    }
    if checkpoint.exists() || log.exists() || out.join("last.iseg").exists() {
        return Err(RunError::Exists(out.clone()));
    }
    write_atomically(&out.join("config.toml"), text.as_bytes())?;
    let progress = Progress { step: 0, best_miou: None, config: text };
    // A run that is killed before its first checkpoint resumes from here.
    checkpoint::save(&checkpoint, network, &progress)?;
    Ok(progress)
}

#[allow(clippy::float_arithmetic, reason = "for a person to read")]
mod reading {
    use super::{Instant, StepOutcome};

    /// An integer with fractional bits.
    pub fn real(value: i64, fraction: i32) -> f64 {
        value as f64 / 2f64.powi(fraction)
    }

    pub fn ratio(a: u64, b: u64) -> f64 {
        if b == 0 { 0.0 } else { a as f64 / b as f64 }
    }

    pub fn speed(images: u64, since: Instant) -> f64 {
        images as f64 / since.elapsed().as_secs_f64().max(1e-9)
    }

    /// The mean loss a pixel, in nats.
    pub fn mean_loss(outcome: &StepOutcome) -> f64 {
        ratio(outcome.loss_q16.unsigned_abs(), outcome.weight_q8) / 256.0 * std::f64::consts::LN_2
    }
}
use reading::{mean_loss, ratio, real, speed};
