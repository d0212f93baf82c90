//! Random variation of training images, in integers.
//!
//! What is drawn depends on the seed and the sample's number alone. Scaling and cropping are one pass: only pixels
//! that end up in the crop are computed.

use super::{IGNORE, Sample};
use intseg_kernels::{Dither, Role};

/// How images are varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Augmentation {
    /// Rows and columns of a crop.
    pub crop: [usize; 2],
    /// Smallest and largest scale, in 256ths.
    pub scale_q8: [u32; 2],
    /// Whether half of the crops are mirrored.
    pub flip: bool,
    /// Largest change of brightness, in grey levels.
    pub brightness: u32,
    /// Largest change of contrast, in 256ths.
    pub contrast_q8: u32,
}

/// One variation.
#[derive(Clone, Copy, Debug)]
struct Variation {
    /// Rows and columns of the scaled image.
    scaled: [usize; 2],
    /// Where the crop begins in the scaled image; negative where padding comes first.
    start: [isize; 2],
    flip: bool,
    brightness: i32,
    contrast_q8: i32,
}

impl Variation {
    fn draw(how: &Augmentation, size: [usize; 2], seed: u64, sample: u64) -> Self {
        let bits = Dither::new(seed, sample, 0, Role::Augmentation);
        let [low, high] = how.scale_q8;
        let scale = low as usize + bits.below(0, high - low + 1) as usize;
        let scaled = size.map(|side| (side * scale / 256).max(1));
        let start = [0, 1].map(|axis| {
            let room = scaled[axis] as isize - how.crop[axis] as isize;
            let offset = bits.below(1 + axis, room.unsigned_abs() as u32 + 1) as isize;
            if room >= 0 { offset } else { -offset }
        });
        let around_zero = |index: usize, range: u32| bits.below(index, 2 * range + 1) as i32 - range as i32;
        Variation {
            scaled,
            start,
            flip: how.flip && bits.below(3, 2) == 1,
            brightness: around_zero(4, how.brightness),
            contrast_q8: 256 + around_zero(5, how.contrast_q8),
        }
    }
}

/// Where a crop's row or column reads: two neighbours, the second's weight in 256ths, and the nearest.
#[derive(Clone, Copy)]
struct Source {
    first: usize,
    second: usize,
    weight: i32,
    nearest: usize,
}

/// The sources of each row or column of a crop; `None` on padding.
fn sources(crop: usize, start: isize, scaled: usize, size: usize, flip: bool) -> Vec<Option<Source>> {
    let source = |at: usize| {
        let at = if flip { crop - 1 - at } else { at };
        let at = usize::try_from(at as isize + start).ok().filter(|&at| at < scaled)?;
        // The centre of pixel `at`, (2·at + 1)/2, scaled back: half-pixel centres.
        let centre = (2 * at + 1) * size;
        let position_q8 = (centre * 128 / scaled).saturating_sub(128);
        let first = (position_q8 >> 8).min(size - 1);
        Some(Source {
            first,
            second: (first + 1).min(size - 1),
            weight: (position_q8 & 255) as i32,
            nearest: (centre / (2 * scaled)).min(size - 1),
        })
    };
    (0..crop).map(source).collect()
}

/// Writes a variation of `sample`, the `number`th of the run: `image` is `[H, W, 3]` of value − 128 with padding of 0,
/// `label` is `[H, W]` with padding of [`IGNORE`].
///
/// # Panics
/// When a slice has not the crop's size.
pub fn augment(how: &Augmentation, sample: &Sample, seed: u64, number: u64, image: &mut [i8], label: &mut [u8]) {
    let [height, width] = how.crop;
    assert!(label.len() == height * width && image.len() == 3 * height * width, "the crop's size");
    let size = [sample.image.height, sample.image.width];
    let v = Variation::draw(how, size, seed, number);
    let rows = sources(height, v.start[0], v.scaled[0], size[0], false);
    let columns = sources(width, v.start[1], v.scaled[1], size[1], v.flip);
    for (y, row) in rows.iter().enumerate() {
        let image = &mut image[3 * y * width..][..3 * width];
        let label = &mut label[y * width..][..width];
        let Some(row) = row else {
            image.fill(0);
            label.fill(IGNORE);
            continue;
        };
        let [above, below] = [row.first, row.second].map(|y| &sample.image.data[3 * y * size[1]..][..3 * size[1]]);
        let labels = &sample.label.values[row.nearest * size[1]..][..size[1]];
        for ((pixel, label), column) in image.as_chunks_mut::<3>().0.iter_mut().zip(label).zip(&columns) {
            let Some(column) = column else {
                *pixel = [0; 3];
                *label = IGNORE;
                continue;
            };
            *label = labels[column.nearest];
            for (channel, out) in pixel.iter_mut().enumerate() {
                let across = |row: &[u8]| {
                    let [a, b] = [column.first, column.second].map(|x| i32::from(row[3 * x + channel]));
                    a * 256 + (b - a) * column.weight
                };
                let (a, b) = (across(above), across(below));
                let value = (a * 256 + (b - a) * row.weight + (1 << 15)) >> 16;
                let value = (((value - 128) * v.contrast_q8 + 128) >> 8) + v.brightness;
                *out = value.clamp(-128, 127) as i8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::{Label, Rgb};
    use super::*;

    fn plain(crop: [usize; 2]) -> Augmentation {
        Augmentation { crop, scale_q8: [256, 256], flip: false, brightness: 0, contrast_q8: 0 }
    }

    /// An image whose red tells the label.
    fn sample(width: usize, height: usize) -> Sample {
        let values: Vec<u8> = (0..width * height).map(|i| (i % width / 8 + i / width / 8) as u8 % 4).collect();
        let data = values.iter().flat_map(|&v| [v * 60, 200, 7]).collect();
        Sample { image: Rgb { width, height, data }, label: Label { width, height, values } }
    }

    fn run(how: &Augmentation, sample: &Sample, number: u64) -> (Vec<i8>, Vec<u8>) {
        let pixels = how.crop[0] * how.crop[1];
        let (mut image, mut label) = (vec![1; 3 * pixels], vec![1; pixels]);
        augment(how, sample, 9, number, &mut image, &mut label);
        (image, label)
    }

    #[test]
    fn without_variation_the_image_passes_unchanged() {
        let sample = sample(20, 12);
        let (image, label) = run(&plain([12, 20]), &sample, 0);
        assert_eq!(label, sample.label.values);
        assert!(image.iter().zip(&sample.image.data).all(|(&a, &b)| i32::from(a) == i32::from(b) - 128));
    }

    #[test]
    fn labels_stay_with_their_pixels_under_scale_flip_and_crop() {
        let sample = sample(64, 48);
        let how = Augmentation { scale_q8: [128, 512], flip: true, ..plain([40, 56]) };
        let mut seen = 0;
        for number in 0..50 {
            let (image, label) = run(&how, &sample, number);
            for (pixel, &label) in image.as_chunks::<3>().0.iter().zip(&label) {
                if label == IGNORE {
                    assert_eq!(*pixel, [0; 3]);
                    continue;
                }
                // Interpolation blends near borders; elsewhere red is exactly the label's.
                let red = i32::from(pixel[0]) + 128;
                if red % 60 == 0 && red / 60 == i32::from(label) {
                    seen += 1;
                }
                assert!((red - 60 * i32::from(label)).abs() <= 180);
            }
        }
        assert!(seen > 50 * 40 * 56 / 2, "{seen}");
    }

    #[test]
    fn flips_mirror_and_padding_surrounds_small_images() {
        let sample = sample(10, 10);
        let how = Augmentation { flip: true, ..plain([10, 10]) };
        let results: Vec<_> = (0..20).map(|number| run(&how, &sample, number).1).collect();
        let mirrored: Vec<u8> = sample.label.values.chunks(10).flat_map(|row| row.iter().rev().copied()).collect();
        assert!(results.contains(&sample.label.values) && results.contains(&mirrored));
        let (_, label) = run(&plain([30, 30]), &sample, 3);
        assert_eq!(label.iter().filter(|&&l| l != IGNORE).count(), 100);
    }

    #[test]
    fn labels_and_pixels_never_part_by_more_than_half_a_pixel() {
        // Two halves: interpolation mixes them where they meet, and the label must be that of the larger share.
        for (width, height, across) in [(64, 48, true), (37, 51, false), (5, 3, true), (2, 2, false), (97, 80, true)] {
            let class = |i: usize| u8::from(if across { i % width >= width / 2 } else { i / width >= height / 2 });
            let values: Vec<u8> = (0..width * height).map(class).collect();
            let data = values.iter().flat_map(|&v| [v * 240; 3]).collect();
            let sample = Sample { image: Rgb { width, height, data }, label: Label { width, height, values } };
            let how = Augmentation { scale_q8: [128, 512], flip: true, ..plain([40, 56]) };
            for number in 0..60 {
                let (image, label) = run(&how, &sample, number);
                for (pixel, &label) in
                    image.as_chunks::<3>().0.iter().zip(&label).filter(|(_, label)| **label != IGNORE)
                {
                    let share = i32::from(pixel[0]) + 128 - 120;
                    assert!(share.abs() <= 1 || (share > 0) == (label == 1), "{width}×{height}: {share} {label}");
                }
            }
        }
    }
}
