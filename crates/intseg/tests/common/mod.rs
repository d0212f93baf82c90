//! What tests of whole networks share.

use intseg::config::Config;
use intseg::data::Batch;
use intseg::network::{Network, Recipe};
use intseg::networks::{Settings, build};
use intseg_kernels::{Context, Dither, Role};

/// Classes of the networks.
pub const CLASSES: usize = 7;

/// Values of an image.
pub fn random_bytes(len: usize, stream: u32) -> Vec<u8> {
    let bits = Dither::new(3, 0, stream, Role::Scene);
    // Smooth enough that classes form regions.
    (0..len).map(|i| (bits.at(i / 24) >> 24) as u8 / 2 + (bits.at(i) >> 25) as u8).collect()
}

/// A network after a few steps, so that its ranges and statistics are those of real activations.
pub fn trained(name: &str, ctx: Context) -> Network {
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
