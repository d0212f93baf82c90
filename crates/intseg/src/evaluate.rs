//! Scoring a model on a split, at the images' own sizes.

use crate::data::{DataError, Dataset, Entry, Sample};
use crate::metrics::{ConfusionMatrix, OutOfRange};
use intseg_kernels::Context;
use intseg_runtime::{Engine, EngineError};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

/// Why a split cannot be scored.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// An image or label map cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An image's size cannot be used.
    #[error("{}: {source}", path.display())]
    Engine {
        /// The image.
        path: PathBuf,
        /// Why.
        source: EngineError,
    },
    /// The model's classes are not the data's.
    #[error(transparent)]
    Classes(#[from] OutOfRange),
}

/// Runs a model over the entries of a data set. Decoding overlaps with computing; `progress` is told the number of
/// images done.
///
/// # Errors
/// When an image or a label map cannot be used.
pub fn evaluate(
    engine: &mut Engine,
    ctx: Context,
    dataset: &Dataset,
    entries: &[Entry],
    classes: usize,
    mut progress: impl FnMut(usize),
) -> Result<ConfusionMatrix, EvaluateError> {
    let mut matrix = ConfusionMatrix::new(classes);
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Result<Sample, DataError>>(4);
        scope.spawn(move || {
            for entry in entries {
                if send.send(dataset.read(entry, classes)).is_err() {
                    return;
                }
            }
        });
        let mut class_map = Vec::new();
        for (done, (entry, sample)) in entries.iter().zip(receive).enumerate() {
            let Sample { image, label } = sample?;
            class_map.resize(label.values.len(), 0);
            engine
                .run(ctx, [image.height, image.width], &image.data, &mut class_map)
                .map_err(|source| EvaluateError::Engine { path: entry.image.clone(), source })?;
            matrix.add(&class_map, &label.values)?;
            progress(done + 1);
        }
        Ok(matrix)
    })
}
