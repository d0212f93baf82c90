//! What the deployed model computes is what the training graph's inference mode computes, bit for bit.

use intseg::config::Config;
use intseg::data::Batch;
use intseg::fold::{Metadata, fold};
use intseg::infer;
use intseg::network::{Network, Recipe};
use intseg::networks::{NETWORKS, Settings, build};
use intseg::threads::Threads;
use intseg_kernels::{Context, Dither, Isa, Role};
use intseg_runtime::Engine;

const CLASSES: usize = 7;

fn random_bytes(len: usize, stream: u32) -> Vec<u8> {
    let bits = Dither::new(3, 0, stream, Role::Scene);
    // Smooth enough that classes form regions.
    (0..len).map(|i| (bits.at(i / 24) >> 24) as u8 / 2 + (bits.at(i) >> 25) as u8).collect()
}

/// A network after a few steps, so that its ranges and statistics are those of real activations.
fn trained(name: &str, ctx: Context) -> Network {
    let settings = Settings { width_1000: 125, auxiliary: true, ..Settings::new(CLASSES) };
    let mut network = Network::new(build(name, &settings).unwrap(), 5).unwrap();
    let config = Config::default();
    for step in 0..3 {
        let size = [48, 64];
        let images = random_bytes(2 * 48 * 64 * 3, step).iter().map(|&v| (i16::from(v) - 128) as i8).collect();
        let labels = (0..2 * 48 * 64).map(|i| (i / 9 % CLASSES) as u8).collect();
        let batch = Batch { images, labels, count: 2, size };
        let recipe = Recipe {
            kernels: ctx,
            bits: config.bits,
            seed: 1,
            step: step.into(),
            class_weights: [&[], &[]],
            lr_q32: 1 << 26,
            decay_q32: 0,
            momentum_q15: 29_491,
        };
        network.train_step(&batch, &recipe);
    }
    network
}

#[test]
fn every_network_is_deployed_bit_for_bit_on_every_instruction_set() {
    let two = Threads::new(2).unwrap();
    let ctx = Context { isa: Isa::detect(), pool: &two };
    let bits = Config::default().bits;
    for (name, ..) in NETWORKS {
        let network = trained(name, ctx);
        let file = fold(&network, bits, &Metadata::default()).to_bytes();
        let mut engine = Engine::new(file).unwrap();
        for (stream, size) in [[40, 56], [33, 65], [1, 1]].into_iter().enumerate() {
            let pixels = size[0] * size[1];
            let image = random_bytes(3 * pixels, 100 + stream as u32);
            let want = infer::class_map(&network, bits, ctx, &image, size);
            for isa in Isa::available() {
                for pool in [&Threads::One, &two] {
                    let mut got = vec![0; pixels];
                    engine.run(Context { isa, pool }, size, &image, &mut got).unwrap();
                    assert!(got == want, "{name} at {size:?} on {}", isa.name());
                }
            }
            if pixels > 1000 {
                let first = want[0];
                assert!(want.iter().any(|&class| class != first), "{name} predicts one class alone: too easy a test");
            }
        }
    }
}
