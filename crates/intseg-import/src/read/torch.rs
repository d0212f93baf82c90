//! What `torch.save` writes: a pickle, and a storage of values for each tensor or several of them.
//!
//! Since PyTorch 1.6 the file is a zip archive with the pickle as `data.pkl` and a file `data/KEY` for each storage; before,
//! pickles and storages followed each other (`legacy.rs`).

use super::archive::Archive;
use super::error::{Problem, TensorFault};
use super::limits::{self, Budget};
use super::pickle::{ElementKind, Id, Pickle, Value, View};
use super::values::Element;
use super::{Weights, insert};
use crate::tensor::FloatTensor;
use std::io::{Read, Seek};

/// Keys under which training programs keep the state dict in a checkpoint.
const STATE_DICTS: [&str; 2] = ["state_dict", "model"];

/// Float tensors of a state dict; those of integers are left out.
///
/// # Errors
/// When the archive is damaged, its pickle asks for more than tensors, or a tensor cannot be used.
pub fn read<R: Read + Seek>(mut archive: Archive<R>) -> Result<Weights, Problem> {
    let folder = folder(&archive)?;
    let order = format!("{folder}byteorder");
    if archive.names().contains(&order) && archive.read(&order, 16)? != b"little" {
        return Err(Problem::damaged(order, "values of another byte order than little-endian are not read"));
    }
    let part = format!("{folder}data.pkl");
    let bytes = archive.read(&part, limits::DESCRIPTION)?;
    let (pickle, _) = Pickle::parse(&part, &bytes)?;
    let mut inflated = Budget::default();
    tensors(&pickle, |view, element| {
        let part = format!("{folder}data/{}", view.storage.key);
        let limit = view.storage.count.saturating_mul(element.size() as u64);
        inflated.bytes(&part, limit)?;
        archive.read(&part, limit)
    })
}

/// A state dict's float tensors, of storages whose bytes `storage` finds.
///
/// # Errors
/// When there is no state dict, or a tensor cannot be used.
pub fn tensors(
    pickle: &Pickle,
    mut storage: impl FnMut(&View, Element) -> Result<Vec<u8>, Problem>,
) -> Result<Weights, Problem> {
    let mut views = views(pickle, &mut Budget::default())?;
    // Tensors of one storage beside each other, so that each is read once.
    views.sort_by_key(|(_, view, _)| view.storage.key);
    let mut weights = Weights::new();
    for group in views.chunk_by(|(_, a, _), (_, b, _)| a.storage.key == b.storage.key) {
        let bytes = storage(group[0].1, group[0].2)?;
        for (name, view, element) in group {
            let found = (bytes.len() / element.size()) as u64;
            if view.storage.count > found {
                return Err(Problem::tensor(*name, TensorFault::View { wanted: view.storage.count, found }));
            }
            let data = materialise(name, view, *element, &bytes)?;
            let shape = view.shape.iter().map(|&size| size as usize).collect();
            insert(&mut weights, name, FloatTensor { shape, data })?;
        }
    }
    Ok(weights)
}

/// The folder that holds the archive's `data.pkl`, with a slash.
fn folder<R: Read + Seek>(archive: &Archive<R>) -> Result<String, Problem> {
    let mut pickles = archive.names().iter().filter_map(|name| name.strip_suffix("data.pkl"));
    match (pickles.next(), pickles.next()) {
        (Some(folder), None) if folder.ends_with('/') => Ok(folder.to_owned()),
        _ => Err(Problem::damaged(
            "the zip archive",
            "it does not hold one folder with data.pkl, so torch.save did not write it",
        )),
    }
}

/// The state dict's float tensors.
fn views<'a, 'p>(
    pickle: &'p Pickle<'a>,
    budget: &mut Budget,
) -> Result<Vec<(&'a str, &'p View<'a>, Element)>, Problem> {
    let mut views = Vec::new();
    for &(key, value) in state_dict(pickle)? {
        let Value::Text(name) = *pickle.value(key) else {
            return Err(Problem::NoStateDict { found: "a dictionary whose keys are no strings".into() });
        };
        let Value::Tensor(view) = pickle.value(value) else {
            return Err(Problem::tensor(name, TensorFault::NoTensor));
        };
        let ElementKind::Float(element) = view.storage.kind else { continue };
        check(name, view, budget)?;
        views.push((name, view, element));
    }
    Ok(views)
}

/// The entries of the state dict: the pickle's value, or what it has under one of [`STATE_DICTS`].
fn state_dict<'p>(pickle: &'p Pickle) -> Result<&'p [(Id, Id)], Problem> {
    let none = |found: String| Err(Problem::NoStateDict { found });
    let Value::Dict(root) = pickle.root() else {
        return none("its value is no dictionary".into());
    };
    for wanted in STATE_DICTS {
        let entry = root.iter().find(|(key, _)| matches!(pickle.value(*key), Value::Text(key) if *key == wanted));
        if let Some((_, value)) = entry
            && let Value::Dict(entries) = pickle.value(*value)
        {
            return Ok(entries);
        }
    }
    if root.is_empty() || root.iter().any(|(_, value)| matches!(pickle.value(*value), Value::Tensor(_))) {
        return Ok(root);
    }
    let keys = root.iter().take(8).map(|(key, _)| match pickle.value(*key) {
        Value::Text(key) => format!("{key:.40?}"),
        _ => "no string".into(),
    });
    none(format!("its keys are {}", keys.collect::<Vec<_>>().join(", ")))
}

/// Checks that a view stays in its storage and does not repeat its values, so that memory is bounded by the file.
fn check(name: &str, view: &View, budget: &mut Budget) -> Result<(), Problem> {
    let count = budget.tensor(name, &view.shape)? as u64;
    if view.strides.len() != view.shape.len() {
        return Err(Problem::tensor(name, TensorFault::Shape(view.shape.clone())));
    }
    let steps = view.shape.iter().zip(&view.strides);
    let last = steps.fold(u128::from(view.offset), |last, (&size, &stride)| {
        last.saturating_add(u128::from(size.saturating_sub(1)) * u128::from(stride))
    });
    let wanted = if count == 0 { 0 } else { (last + 1).max(count.into()) };
    if wanted > u128::from(view.storage.count) {
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        return Err(Problem::tensor(name, TensorFault::View { wanted, found: view.storage.count }));
    }
    Ok(())
}

/// A view's values, rows first.
fn materialise(name: &str, view: &View, element: Element, bytes: &[u8]) -> Result<Vec<f32>, Problem> {
    let (size, count) = (element.size(), view.shape.iter().product::<u64>() as usize);
    if count == 0 {
        return Ok(vec![]);
    }
    if is_contiguous(view) {
        let start = view.offset as usize * size;
        return element.decode(name, &bytes[start..start + count * size]);
    }
    let mut packed = Vec::with_capacity(count * size);
    let mut index = vec![0; view.shape.len()];
    for _ in 0..count {
        let at = index.iter().zip(&view.strides).fold(view.offset, |at, (i, stride)| at + i * stride) as usize * size;
        packed.extend_from_slice(&bytes[at..at + size]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < view.shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    element.decode(name, &packed)
}

fn is_contiguous(view: &View) -> bool {
    let mut expected = 1;
    view.shape.iter().zip(&view.strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected *= size;
        fits
    })
}
