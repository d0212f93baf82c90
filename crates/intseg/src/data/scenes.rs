//! Generated scenes: textured shapes that occlude each other on a textured ground, with noise, and labels whose
//! borders are ignored. Anybody can train on them without a data set.

use super::image::{Label, Rgb, write_atomically, write_label, write_rgb};
use super::{DataError, IGNORE, Sample, palette};
use intseg_kernels::{Dither, Role};
use std::path::Path;

/// The classes of a scene, ground first.
pub const CLASSES: [&str; 6] = ["ground", "disc", "box", "triangle", "ring", "cross"];

/// Base colours of the classes; each object shifts its own, and the ranges overlap, so colour alone does not decide.
const COLOURS: [[i32; 3]; 6] =
    [[110, 120, 100], [190, 80, 70], [70, 110, 190], [200, 180, 70], [90, 170, 90], [160, 90, 180]];

/// One object of a scene.
struct Object {
    class: usize,
    centre: [i32; 2],
    radius: i32,
    colour: [i32; 3],
    /// Stripes run along x, y, or a diagonal.
    texture: u32,
    period: i32,
}

impl Object {
    fn draw(bits: Dither, at: usize, size: [usize; 2]) -> Self {
        let below = |k: usize, bound: usize| bits.below(at + k, bound as u32) as i32;
        let class = 1 + below(0, CLASSES.len() - 1) as usize;
        let small = size[0].min(size[1]);
        Object {
            class,
            centre: [below(1, size[0]), below(2, size[1])],
            radius: (small / 9) as i32 + below(3, small / 6 + 1),
            colour: [0, 1, 2].map(|c| COLOURS[class][c] + below(4 + c, 81) - 40),
            texture: bits.below(at + 7, 4),
            period: 4 + below(8, 8),
        }
    }

    fn covers(&self, y: i32, x: i32) -> bool {
        let (dy, dx, r) = (y - self.centre[0], x - self.centre[1], self.radius);
        let square = dy * dy + dx * dx;
        match self.class {
            1 => square <= r * r,
            2 => dy.abs() <= r * 4 / 5 && dx.abs() <= r,
            3 => dy >= -r && dy <= r && 2 * dx.abs() <= dy + r,
            4 => square <= r * r && square * 4 >= r * r,
            _ => (dy.abs() <= r / 3 && dx.abs() <= r) || (dx.abs() <= r / 3 && dy.abs() <= r),
        }
    }

    fn shade(&self, y: i32, x: i32) -> i32 {
        let along = [x, y, x + y, 0][self.texture as usize];
        if along.rem_euclid(2 * self.period) < self.period { 18 } else { -18 }
    }
}

/// The scene of a number: rows and columns as given, at least 16 each.
pub fn scene(size: [usize; 2], seed: u64, number: u64) -> Sample {
    let [height, width] = size;
    let bits = Dither::new(seed, number, 1, Role::Scene);
    let noise = Dither::new(seed, number, 2, Role::Scene);
    let objects: Vec<Object> =
        (0..4 + bits.below(0, 5) as usize).map(|i| Object::draw(bits, 16 * (i + 1), size)).collect();
    let ground = [1, 2, 3].map(|k| COLOURS[0][k - 1] + bits.below(k, 81) as i32 - 40);
    let tilt = bits.below(4, 41) as i32 - 20;
    let class_at = |y: i32, x: i32| objects.iter().rev().find(|o| o.covers(y, x));
    let mut sample = Sample {
        image: Rgb { width, height, data: vec![0; 3 * width * height] },
        label: Label { width, height, values: vec![0; width * height] },
    };
    for y in 0..height as i32 {
        for x in 0..width as i32 {
            let index = y as usize * width + x as usize;
            let top = class_at(y, x);
            let class = |o: Option<&Object>| o.map_or(0, |o| o.class) as u8;
            // A pixel whose neighbour belongs to another object is ignored, as annotators leave borders.
            let border = [(0, 1), (1, 0)].iter().any(|(dy, dx)| class(class_at(y + dy, x + dx)) != class(top));
            sample.label.values[index] = if border { IGNORE } else { class(top) };
            for (channel, ground) in ground.iter().enumerate() {
                let base = match top {
                    Some(object) => object.colour[channel] + object.shade(y, x),
                    None => ground + tilt * y / height as i32 + ((x ^ y) & 8),
                };
                let grain = noise.below(3 * index + channel, 49) as i32 - 24;
                sample.image.data[3 * index + channel] = (base + grain).clamp(0, 255) as u8;
            }
        }
    }
    sample
}

/// Writes scenes in VOC's layout: `[train, val]` of them, of `[rows, columns]`.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write(dir: &Path, counts: [usize; 2], size: [usize; 2], seed: u64) -> Result<(), DataError> {
    for folder in ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation"] {
        let path = dir.join(folder);
        std::fs::create_dir_all(&path).map_err(|source| DataError::Io { path, source })?;
    }
    let colours = palette::voc(CLASSES.len());
    let mut number = 0;
    for (split, count) in ["train", "val"].into_iter().zip(counts) {
        let mut list = String::new();
        for _ in 0..count {
            let name = format!("scene_{number:05}");
            let Sample { image, label } = scene(size, seed, number);
            write_rgb(&dir.join("JPEGImages").join(format!("{name}.png")), &image)?;
            write_label(&dir.join("SegmentationClass").join(format!("{name}.png")), &label, &colours)?;
            list.push_str(&name);
            list.push('\n');
            number += 1;
        }
        write_atomically(&dir.join("ImageSets/Segmentation").join(format!("{split}.txt")), list.as_bytes())?;
    }
    write_atomically(&dir.join("classes.txt"), format!("{}\n", CLASSES.join("\n")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_hold_all_classes_and_depend_on_their_number_alone() {
        let mut seen = [0usize; 256];
        for number in 0..40 {
            let sample = scene([64, 80], 1, number);
            sample.label.values.iter().for_each(|&v| seen[usize::from(v)] += 1);
            assert_eq!(sample, scene([64, 80], 1, number));
        }
        assert!((0..CLASSES.len()).all(|class| seen[class] > 1000), "{:?}", &seen[..7]);
        assert!(seen[255] > 1000 && seen[255] < 40 * 64 * 80 / 5);
        assert_eq!(seen.iter().sum::<usize>(), 40 * 64 * 80);
    }
}
