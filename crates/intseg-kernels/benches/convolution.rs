//! The three passes of convolution at the shapes of real layers. The figure beside each time is
//! multiply-accumulates a second on two threads.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use intseg_kernels::{Context, Conv2d, Convolution, Direction, Input, Isa, Line, Pool, WeightGradient, Weights};
use rayon::prelude::*;
use std::hint::black_box;

struct Rayon(rayon::ThreadPool);

impl Pool for Rayon {
    fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        let worker = || rayon::current_thread_index().expect("inside the pool");
        self.0.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(|index| task(index, worker())));
    }
}

fn layer(batch: usize, size: [usize; 2], c: [usize; 2], kernel: usize, stride: usize, dilation: usize) -> Conv2d {
    Conv2d {
        batch,
        in_h: size[0],
        in_w: size[1],
        c_in: c[0],
        c_out: c[1],
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [dilation; 2],
        padding: [dilation * (kernel - 1) / 2; 2],
    }
}

fn convolution(criterion: &mut Criterion) {
    let pool = Rayon(rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads"));
    let ctx = Context { isa: Isa::detect(), pool: &pool };
    let layers = [
        ("vgg_conv1_1_513x513x3", layer(1, [513; 2], [3, 64], 3, 1, 1)),
        ("vgg_conv1_2_513x513x64", layer(1, [513; 2], [64, 64], 3, 1, 1)),
        ("vgg_conv3_2_129x129x256", layer(1, [129; 2], [256, 256], 3, 1, 1)),
        ("vgg_conv4_2_65x65x512", layer(1, [65; 2], [512, 512], 3, 1, 1)),
        ("fcn_fc6_17x17x512", layer(1, [17; 2], [512, 4096], 7, 1, 1)),
        ("resnet_conv1_513x513x3", layer(1, [513; 2], [3, 64], 7, 2, 1)),
        ("resnet_1x1_65x65x2048", layer(1, [65; 2], [2048, 512], 1, 1, 1)),
        ("resnet_3x3_d4_65x65x512", layer(1, [65; 2], [512, 512], 3, 1, 4)),
        ("deeplab_aspp_r12_65x65x2048", layer(1, [65; 2], [2048, 256], 3, 1, 12)),
        ("vgg_quarter_conv1_2_b8_240x320x16", layer(8, [240, 320], [16, 16], 3, 1, 1)),
        ("vgg_quarter_conv3_2_b8_60x80x64", layer(8, [60, 80], [64, 64], 3, 1, 1)),
    ];
    for (name, g) in layers {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).throughput(Throughput::Elements(g.macs()));
        let weights: Vec<i8> = (0..g.weights_len()).map(|i| (i * 37 % 255) as u8 as i8).collect();
        let input: Vec<u8> = (0..g.input_len()).map(|i| (i * 31 % 256) as u8).collect();
        let signed: Vec<i8> = input.iter().map(|&v| v as i8).collect();
        let error: Vec<i8> = (0..g.output_len()).map(|i| (i * 29 % 255) as u8 as i8).collect();
        let is_image = g.c_in == 3;
        let input = if is_image { Input::I8(&signed) } else { Input::U8(&input) };
        let passes = [("forward", Direction::Forward, input), ("data", Direction::Transposed, Input::I8(&error))];
        for (pass, direction, input) in passes {
            if is_image && direction == Direction::Transposed {
                continue;
            }
            let plan = Convolution { geometry: g, direction, signed: is_image || direction == Direction::Transposed };
            let mut packed = vec![Line::ZERO; plan.packed_len(ctx.isa)];
            plan.pack(ctx, &mut packed, &weights);
            let mut scratch = vec![0; plan.scratch_len(ctx)];
            let mut out = vec![0; if direction == Direction::Forward { g.output_len() } else { g.input_len() }];
            let weights = Weights { raw: &weights, packed: &packed };
            group.bench_function(pass, |b| b.iter(|| plan.run(ctx, black_box(&mut out), input, weights, &mut scratch)));
        }
        let plan = WeightGradient { geometry: g, signed: is_image };
        let mut scratch = vec![0; plan.scratch_len(ctx, 0..g.kernel[0] * g.kernel[1])];
        let mut out = vec![0; g.weights_len()];
        group.bench_function("weight_gradient", |b| {
            b.iter(|| plan.run(ctx, black_box(&mut out), 0..g.kernel[0] * g.kernel[1], input, &error, 0, &mut scratch));
        });
        group.finish();
    }
}

criterion_group!(benches, convolution);
criterion_main!(benches);
