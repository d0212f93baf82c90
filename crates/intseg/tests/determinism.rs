//! One seed and one configuration give one model, whatever the threads and the instruction set.

use intseg::checkpoint::Checkpoint;
use intseg::config::Config;
use intseg::data::scenes;
use intseg::masters::Masters;
use intseg::network::Network;
use intseg::run::{CHECKPOINT, RunOptions, train};
use intseg_kernels::Isa;
use std::path::Path;

fn config(arch: &str) -> Config {
    let text = format!(
        "[network]\narch = \"{arch}\"\nwidth = 0.07\nclasses = 6\n[augment]\ncrop = [32, 32]\n\
         [train]\nsteps = 3\nbatch = 2\nsave_every = 2\nclass_weights = \"balanced\"\n"
    );
    Config::parse(&text, Path::new("test.toml"), &[]).unwrap()
}

fn model(data: &Path, config: &Config, threads: usize, isa: Isa) -> Vec<u8> {
    run(data, config, threads, isa).0
}

/// The last model of a run, and the network of its checkpoint.
fn run(data: &Path, config: &Config, threads: usize, isa: Isa) -> (Vec<u8>, Network) {
    let out = tempfile::tempdir().unwrap();
    let options = RunOptions {
        data: data.to_owned(),
        out: out.path().to_owned(),
        resume: false,
        threads,
        isa,
        stop: Default::default(),
    };
    let summary = train(config, &options, &mut |_| {}).unwrap();
    let mut network = Network::new(config.graph().unwrap(), 0).unwrap();
    Checkpoint::open(&out.path().join(CHECKPOINT)).unwrap().load(&mut network).unwrap();
    (std::fs::read(summary.last).unwrap(), network)
}

#[test]
fn what_is_measured_and_averaged_for_deployment_changes_the_model_and_nothing_that_is_trained() {
    let data = tempfile::tempdir().unwrap();
    scenes::write(data.path(), [8, 2], [48, 64], 1).unwrap();
    for arch in ["fcn8s-vgg16-bn", "deeplabv3-resnet50"] {
        let runs = [(0, 1.0), (3, 0.0), (3, 1.0)].map(|(batches, average)| {
            let mut config = config(arch);
            (config.deploy.batches, config.deploy.average, config.train.eval_every) = (batches, average, 1);
            run(data.path(), &config, 2, Isa::detect())
        });
        let [(running, mut a), (measured, mut b), (averaged, mut c)] = runs;
        assert!(running != measured && measured != averaged, "{arch}");
        assert!(a.parameters().eq(b.parameters()) && a.state().eq(b.state()) && a.ranges == b.ranges, "{arch}");
        assert_eq!((b.averaged, c.averaged), (0, 3));
        c.parameters().for_each(|parameter| parameter.mean = Masters::none(parameter.kind));
        assert!(b.parameters().eq(c.parameters()) && b.state().eq(c.state()) && b.ranges == c.ranges, "{arch}");
    }
}

#[test]
fn threads_and_instruction_sets_do_not_change_a_byte() {
    let data = tempfile::tempdir().unwrap();
    scenes::write(data.path(), [8, 2], [48, 64], 1).unwrap();
    for arch in ["fcn-tiny", "fcn8s-vgg16-bn", "fcn16s-vgg16", "deeplabv3-resnet50v2", "deeplabv3-resnet50"] {
        let config = config(arch);
        let want = model(data.path(), &config, 2, Isa::detect());
        assert!(model(data.path(), &config, 2, Isa::detect()) == want, "{arch}: the same run twice");
        for isa in Isa::available() {
            assert!(model(data.path(), &config, 1, isa) == want, "{arch}: one thread on {}", isa.name());
        }
        let other = Config { train: intseg::config::Train { seed: 1, ..config.train.clone() }, ..config };
        assert!(model(data.path(), &other, 2, Isa::detect()) != want, "{arch}: another seed is another model");
    }
}

#[test]
fn sixteen_bit_errors_and_narrow_settings_train_the_same_everywhere() {
    let data = tempfile::tempdir().unwrap();
    scenes::write(data.path(), [4, 1], [48, 64], 1).unwrap();
    let mut config = config("fcn-tiny");
    let paper = "w = 8\na = 8\ng = 8\ne1 = 8\ne2 = 16\nbn_x = 12\ngamma = 8\nbeta = 8\nupdate = 20\nresidual = 12\n";
    let flag = "e2 = 15\ne2_flag = true\ng = 8\nrounding = { e1 = 'nearest', g = 'nearest', update = 'nearest' }\n";
    let mut models = Vec::new();
    for bits in [paper, flag] {
        config.bits = toml::from_str(bits).unwrap();
        let want = model(data.path(), &config, 2, Isa::detect());
        for isa in Isa::available() {
            assert!(model(data.path(), &config, 1, isa) == want, "{}: {bits}", isa.name());
        }
        models.push(want);
    }
    assert!(models[0] != models[1]);
}
