//! Quick training check.
use intseg::config::Config;
use intseg::data::{
    Dataset,
    augment::Augmentation,
    loader::{Loader, Source},
};
use intseg::network::{Network, Recipe};
use intseg::schedule::Schedule;
use intseg::threads::{Threads, isa_from_env};
use intseg_kernels::Context;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let config = Config::load(args[1].as_ref(), &args[3..]).unwrap();
    let dataset = Dataset::open(args[2].as_ref(), None).unwrap();
    let entries = dataset.split("train").unwrap();
    let graph = intseg::networks::build(&config.network.arch, &config.settings()).unwrap();
    let mut net = Network::new(graph, config.train.seed).unwrap();
    eprintln!("{} parameters", net.parameter_count());
    let threads = Threads::new(0).unwrap();
    let isa = isa_from_env().unwrap();
    let [b, c] = config.jitter();
    let mut loader = Loader::start(
        Source {
            dataset,
            entries,
            classes: config.network.classes,
            augmentation: Augmentation {
                crop: config.augment.crop,
                scale_q8: config.scale_q8(),
                flip: config.augment.flip,
                brightness: b,
                contrast_q8: c,
            },
            batch: config.train.batch,
            seed: config.train.seed,
        },
        0,
        1,
    );
    let schedule = Schedule::new(config.lr_q32(), config.train.steps, config.train.warmup, config.train.decay.clone());
    threads.install(|| {
        let t = std::time::Instant::now();
        let (mut loss, mut n, mut ok, mut valid) = (0i64, 0u64, 0u64, 0u64);
        for step in 0..config.train.steps {
            let batch = loader.next().unwrap();
            let recipe = Recipe {
                kernels: Context { isa, pool: &threads },
                bits: config.bits,
                seed: config.train.seed,
                step,
                class_weights: [&[], &[]],
                lr_q32: schedule.rate_q32(step),
                decay_q32: config.decay_q32(),
                momentum_q15: config.momentum_q15(),
            };
            let o = net.train_step(&batch, &recipe);
            loss += o.loss_q16;
            n += o.weight_q8;
            ok += o.correct;
            valid += o.valid;
            if step % config.train.log_every == config.train.log_every - 1 {
                println!(
                    "{} loss {:.4} acc {:.4} t {:.1}s",
                    step + 1,
                    loss as f64 / 256.0 / n as f64 * 0.6931,
                    ok as f64 / valid as f64,
                    t.elapsed().as_secs_f64()
                );
                (loss, n, ok, valid) = (0, 0, 0, 0);
            }
        }
    });
}
