//! Batches from background threads, in order.
//!
//! A batch is a function of the seed and the step's number alone, whatever the number of threads and wherever a run
//! was interrupted.

use super::augment::{Augmentation, augment};
use super::{Batch, DataError, Dataset, Entry, Sample};
use crate::config::Config;
use intseg_kernels::{Dither, Role};
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// Bytes of decoded images that are kept in memory.
const CACHE_BYTES: usize = 1 << 30;

/// What batches are made of.
#[derive(Clone, Debug)]
pub struct Source {
    /// The data set that the entries belong to.
    pub dataset: Dataset,
    /// The images of the split, at least one.
    pub entries: Vec<Entry>,
    /// Number of classes.
    pub classes: usize,
    /// How images are varied.
    pub augmentation: Augmentation,
    /// Images a batch.
    pub batch: usize,
    /// Seed of order and variation.
    pub seed: u64,
}

impl Source {
    /// What a configuration makes of the entries of its training split.
    pub fn new(config: &Config, dataset: Dataset, entries: Vec<Entry>) -> Self {
        let [brightness, contrast_q8] = config.jitter();
        let augmentation = Augmentation {
            crop: config.augment.crop,
            scale_q8: config.scale_q8(),
            flip: config.augment.flip,
            brightness,
            contrast_q8,
        };
        let (classes, batch, seed) = (config.network.classes, config.train.batch, config.train.seed);
        Source { dataset, entries, classes, augmentation, batch, seed }
    }

    /// The same images as a deployed model sees them: crops at scale 1, neither mirrored nor changed in brightness.
    pub fn unvaried(self) -> Self {
        let crop = self.augmentation.crop;
        Source {
            augmentation: Augmentation { crop, scale_q8: [256; 2], flip: false, brightness: 0, contrast_q8: 0 },
            ..self
        }
    }
}

/// Hands out batches in the order of steps.
pub struct Loader {
    batches: Vec<Receiver<Result<Batch, DataError>>>,
    threads: Vec<JoinHandle<()>>,
    next: usize,
}

impl Loader {
    /// Starts `workers` threads that prepare the batches from step `first` on.
    pub fn start(source: Source, first: u64, workers: usize) -> Self {
        let shared = Arc::new(Shared { source, cache: Mutex::default() });
        let (batches, threads) = (0..workers.max(1) as u64)
            .map(|worker| {
                // Two batches wait at a worker; a dropped receiver ends its thread.
                let (send, receive) = sync_channel(2);
                let (shared, stride) = (Arc::clone(&shared), workers.max(1));
                let thread = thread::spawn(move || {
                    let mut order = Order::default();
                    for step in (first + worker..).step_by(stride) {
                        if send.send(shared.batch(step, &mut order)).is_err() {
                            return;
                        }
                    }
                });
                (receive, thread)
            })
            .unzip();
        Loader { batches, threads, next: 0 }
    }

    /// The next step's batch.
    ///
    /// # Errors
    /// When an image or a label map of it cannot be used. The steps after it can still be asked for.
    #[allow(clippy::should_implement_trait, reason = "batches never end")]
    pub fn next(&mut self) -> Result<Batch, DataError> {
        let worker = &self.batches[self.next % self.batches.len()];
        self.next += 1;
        worker.recv().expect("a worker runs as long as its receiver")
    }
}

impl Drop for Loader {
    /// Ends the threads and waits for them, so that none still reads the folder.
    fn drop(&mut self) {
        self.batches.clear();
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// The order of one epoch.
#[derive(Default)]
struct Order {
    epoch: Option<u64>,
    indices: Vec<usize>,
}

impl Order {
    /// The entry of a sample's number: every epoch is a permutation keyed by seed and epoch.
    fn entry(&mut self, seed: u64, count: usize, number: u64) -> usize {
        let epoch = number / count as u64;
        if self.epoch != Some(epoch) {
            self.epoch = Some(epoch);
            self.indices = (0..count).collect();
            let bits = Dither::new(seed, epoch, 0, Role::Shuffle);
            for i in (1..count).rev() {
                self.indices.swap(i, bits.below(i, i as u32 + 1) as usize);
            }
        }
        self.indices[(number % count as u64) as usize]
    }
}

struct Shared {
    source: Source,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    samples: HashMap<usize, Arc<Sample>>,
    bytes: usize,
}

impl Shared {
    fn sample(&self, index: usize) -> Result<Arc<Sample>, DataError> {
        let lock = || self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(sample) = lock().samples.get(&index) {
            return Ok(Arc::clone(sample));
        }
        let Source { dataset, entries, classes, .. } = &self.source;
        let sample = Arc::new(dataset.read(&entries[index], *classes)?);
        let bytes = sample.image.data.len() + sample.label.values.len();
        let mut cache = lock();
        if cache.bytes + bytes <= CACHE_BYTES && cache.samples.insert(index, Arc::clone(&sample)).is_none() {
            cache.bytes += bytes;
        }
        Ok(sample)
    }

    fn batch(&self, step: u64, order: &mut Order) -> Result<Batch, DataError> {
        let Source { entries, augmentation, batch: count, seed, .. } = &self.source;
        let pixels = augmentation.crop[0] * augmentation.crop[1];
        let mut batch = Batch {
            images: vec![0; count * pixels * 3],
            labels: vec![0; count * pixels],
            count: *count,
            size: augmentation.crop,
        };
        let slots = batch.images.chunks_exact_mut(3 * pixels).zip(batch.labels.chunks_exact_mut(pixels));
        for (i, (image, label)) in slots.enumerate() {
            let number = step * *count as u64 + i as u64;
            let sample = self.sample(order.entry(*seed, entries.len(), number))?;
            augment(augmentation, &sample, *seed, number, image, label);
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes;
    use super::*;
    use std::collections::HashSet;

    fn source(dir: &std::path::Path) -> Source {
        scenes::write(dir, [7, 2], [40, 32], 3).unwrap();
        let dataset = Dataset::open(dir, None).unwrap();
        let augmentation =
            Augmentation { crop: [24, 24], scale_q8: [128, 512], flip: true, brightness: 20, contrast_q8: 20 };
        let entries = dataset.split("train").unwrap();
        Source { dataset, entries, classes: scenes::CLASSES.len(), augmentation, batch: 3, seed: 5 }
    }

    #[test]
    fn unvaried_crops_of_an_images_size_are_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = source(dir.path()).unvaried();
        source.augmentation.crop = [40, 32];
        let samples: Vec<Sample> =
            source.entries.iter().map(|entry| source.dataset.read(entry, source.classes).unwrap()).collect();
        let Batch { images, labels, .. } = Loader::start(source, 3, 1).next().unwrap();
        let crops = images.chunks_exact(40 * 32 * 3).zip(labels.chunks_exact(40 * 32));
        for (image, label) in crops {
            let image: Vec<u8> = image.iter().map(|&v| (i16::from(v) + 128) as u8).collect();
            assert!(samples.iter().any(|sample| sample.image.data == image && sample.label.values == label));
        }
    }

    #[test]
    fn batches_depend_on_the_step_alone() {
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path());
        let take = |first: u64, workers: usize, count: usize| -> Vec<Batch> {
            let mut loader = Loader::start(source.clone(), first, workers);
            (0..count).map(|_| loader.next().unwrap()).collect()
        };
        let all = take(0, 1, 10);
        for workers in 2..=4 {
            assert!(take(0, workers, 10) == all, "{workers} workers");
        }
        assert!(take(4, 3, 6) == all[4..]);
    }

    #[test]
    fn every_epoch_visits_every_image_once_in_its_own_order() {
        let mut order = Order::default();
        let epochs: Vec<Vec<usize>> =
            (0..3).map(|epoch| (0..50).map(|i| order.entry(1, 50, epoch * 50 + i)).collect()).collect();
        for epoch in &epochs {
            assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), 50);
        }
        assert_ne!(epochs[0], epochs[1]);
    }

    #[test]
    fn a_bad_file_is_reported_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path());
        for entry in &source.entries {
            std::fs::write(&entry.image, b"no image").unwrap();
        }
        let mut loader = Loader::start(source, 0, 2);
        for _ in 0..5 {
            let message = loader.next().unwrap_err().to_string();
            assert!(message.contains("JPEGImages") && message.contains("neither a JPEG nor a PNG"), "{message}");
        }
    }
}
