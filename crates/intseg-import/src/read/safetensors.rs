//! Safetensors: a JSON header with every tensor's type, shape and place, and then the values.

use super::error::{Problem, TensorFault};
use super::limits::{self, Budget};
use super::values::Element;
use super::{Weights, insert};
use crate::tensor::FloatTensor;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// Float tensors of a safetensors file; those of integers are left out.
///
/// # Errors
/// When the file is damaged, a name occurs twice, or a tensor cannot be used.
pub fn read(bytes: &[u8]) -> Result<Weights, Problem> {
    check_header(bytes)?;
    let damaged = |e: safetensors::SafeTensorError| Problem::damaged("the safetensors header", e);
    let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let (mut weights, mut budget) = (Weights::new(), Budget::default());
    for (name, view) in file.iter() {
        let element = match view.dtype() {
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            Dtype::BOOL | Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16 => continue,
            Dtype::U32 | Dtype::I32 | Dtype::U64 | Dtype::I64 => continue,
            other => return Err(Problem::tensor(name, TensorFault::Elements(format!("{other:?}")))),
        };
        let shape: Vec<u64> = view.shape().iter().map(|&size| size as u64).collect();
        // The library has held the number of bytes to the shape.
        budget.tensor(name, &shape)?;
        let data = element.decode(name, view.data())?;
        insert(&mut weights, name, FloatTensor { shape: view.shape().to_vec(), data })?;
    }
    Ok(weights)
}

/// Checks what the library does not: that the header is of a sane size, and that names differ, since a JSON object's
/// second entry of a name replaces the first.
fn check_header(bytes: &[u8]) -> Result<(), Problem> {
    let damaged = |message: String| Problem::damaged("the safetensors header", message);
    let (length, rest) = bytes.split_first_chunk().ok_or_else(|| damaged("the file ends in its length".into()))?;
    let length = u64::from_le_bytes(*length);
    if length > limits::DESCRIPTION {
        let what = "bytes of the safetensors header".into();
        return Err(Problem::Limit { what, claimed: length.into(), limit: limits::DESCRIPTION });
    }
    let header = rest.get(..length as usize);
    let header = header.ok_or_else(|| damaged(format!("it claims {length} bytes and has {}", rest.len())))?;
    let mut json = serde_json::Deserializer::from_slice(header);
    match json.deserialize_map(Names).map_err(|e| damaged(e.to_string()))? {
        Some(name) => Err(Problem::tensor(name, TensorFault::Repeated)),
        None => Ok(()),
    }
}

/// Finds a name that a JSON object has twice.
struct Names;

impl<'a> Visitor<'a> for Names {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Option<String>, A::Error> {
        let (mut names, mut repeated) = (HashSet::new(), None);
        while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
            if names.contains(&name) {
                repeated.get_or_insert(name);
            } else {
                names.insert(name);
            }
        }
        Ok(repeated)
    }
}
