//! Softmax cross entropy at the image's resolution.

use crate::Map;
use crate::maps::Resize;
use intseg::data::{Batch, IGNORE};

/// The error at the logits: `p − onehot` times the class's weight at each pixel, through the adjoint of the upsampling.
/// Like the integer network's it is not divided by the number of pixels.
pub fn error(logits: &Map, batch: &Batch, align_corners: bool, class_weights_q8: &[u16]) -> Map {
    let resize = Resize::new(logits.shape, batch.size, align_corners);
    let mut scores = resize.forward(logits);
    for (scores, &label) in scores.data.chunks_exact_mut(logits.shape.c).zip(&batch.labels) {
        if label == IGNORE {
            scores.fill(0.0);
            continue;
        }
        let class = usize::from(label);
        let weight = f32::from(class_weights_q8.get(class).copied().unwrap_or(256)) / 256.0;
        let largest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        scores.iter_mut().for_each(|z| *z = (*z - largest).exp());
        let sum: f32 = scores.iter().sum();
        for (k, p) in scores.iter_mut().enumerate() {
            *p = weight * (*p / sum - f32::from(u8::from(k == class)));
        }
    }
    resize.backward(&scores)
}
