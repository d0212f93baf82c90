//! What the deployed model computes is what the training graph's inference mode computes, bit for bit.

use intseg::config::Config;
use intseg::fold::{Metadata, fold};
use intseg::frozen::Frozen;
use intseg::infer;
use intseg::networks::NETWORKS;
use intseg::threads::Threads;
use intseg_kernels::{Context, Isa};
use intseg_runtime::Engine;

mod common;
use common::{random_bytes, trained};

#[test]
fn every_network_is_deployed_bit_for_bit_on_every_instruction_set() {
    let two = Threads::new(2).unwrap();
    let ctx = Context { isa: Isa::detect(), pool: &two };
    let bits = Config::default().bits;
    for (name, ..) in NETWORKS {
        let network = trained(name, ctx);
        let frozen = Frozen::running(&network);
        let file = fold(&network, &frozen, bits, &Metadata::default()).to_bytes();
        let mut engine = Engine::new(file).unwrap();
        for (stream, size) in [[40, 56], [33, 65], [1, 1]].into_iter().enumerate() {
            let pixels = size[0] * size[1];
            let image = random_bytes(3 * pixels, 100 + stream as u32);
            let want = infer::class_map(&network, &frozen, bits, ctx, &image, size);
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
