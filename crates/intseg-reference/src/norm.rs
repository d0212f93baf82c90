//! Batch normalisation with the mean absolute deviation (DESIGN §3.4).

use crate::Map;

/// √(π/2).
const C: f32 = 1.253_314_1;
/// The integer network takes smaller deviations for this one.
const LEAST: f32 = 1.0 / 1024.0;

/// What backward needs of forward.
pub struct Saved {
    x_hat: Vec<f32>,
    sigma: Vec<f32>,
}

fn means(data: &[f32], channels: usize, of: impl Fn(usize, f32) -> f32) -> Vec<f32> {
    let mut sums = vec![0f64; channels];
    for pixel in data.chunks_exact(channels) {
        sums.iter_mut().zip(pixel).enumerate().for_each(|(k, (sum, &v))| *sum += f64::from(of(k, v)));
    }
    let count = (data.len() / channels).max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// `γ·x̂ + β`.
pub fn forward(input: &Map, gamma: &[f32], beta: &[f32]) -> (Map, Saved) {
    let channels = gamma.len();
    let mean = means(&input.data, channels, |_, v| v);
    let deviation = means(&input.data, channels, |k, v| (v - mean[k]).abs());
    let sigma: Vec<f32> = deviation.iter().map(|d| C * d.max(LEAST)).collect();
    let x_hat: Vec<f32> =
        input.data.iter().enumerate().map(|(i, v)| (v - mean[i % channels]) / sigma[i % channels]).collect();
    let data = x_hat.iter().enumerate().map(|(i, x)| gamma[i % channels] * x + beta[i % channels]).collect();
    (Map { shape: input.shape, data }, Saved { x_hat, sigma })
}

/// The gradient with respect to the input.
pub fn backward(saved: &Saved, gamma: &[f32], error: &Map) -> Map {
    let channels = gamma.len();
    let Saved { x_hat, sigma } = saved;
    let sign = |x: f32| if x < 0.0 { -1.0 } else { 1.0 };
    let mean_error = means(&error.data, channels, |_, e| e);
    let products: Vec<f32> = error.data.iter().zip(x_hat).map(|(e, x)| e * x).collect();
    let mean_product = means(&products, channels, |_, v| v);
    let mean_sign = means(x_hat, channels, |_, x| sign(x));
    let data = error.data.iter().zip(x_hat).enumerate().map(|(i, (e, &x))| {
        let k = i % channels;
        gamma[k] / sigma[k] * (e - mean_error[k] - C * (sign(x) - mean_sign[k]) * mean_product[k])
    });
    Map { shape: error.shape, data: data.collect() }
}
