//! Values of ONNX tensors.

use super::proto::Tensor;
use crate::read::limits::Budget;
use crate::read::values::{Element, bf16_value, f16_value, finite};
use crate::read::{Problem, TensorFault};
use crate::tensor::FloatTensor;

// ONNX's numbers of the types of elements.
pub const FLOAT: i32 = 1;
pub const UINT8: i32 = 2;
pub const INT8: i32 = 3;
const UINT16: i32 = 4;
pub const INT16: i32 = 5;
pub const INT32: i32 = 6;
pub const INT64: i32 = 7;
const BOOL: i32 = 9;
const FLOAT16: i32 = 10;
pub const DOUBLE: i32 = 11;
const UINT32: i32 = 12;
const UINT64: i32 = 13;
const BFLOAT16: i32 = 16;

/// The kind of float of ONNX's number for it.
pub fn float_element(data_type: i32) -> Option<Element> {
    match data_type {
        FLOAT => Some(Element::F32),
        FLOAT16 => Some(Element::F16),
        BFLOAT16 => Some(Element::Bf16),
        DOUBLE => Some(Element::F64),
        _ => None,
    }
}

/// Whether ONNX's number is that of a kind of integers or truth values.
pub fn is_integer(data_type: i32) -> bool {
    matches!(data_type, UINT8 | INT8 | UINT16 | INT16 | INT32 | INT64 | BOOL | UINT32 | UINT64)
}

/// A tensor's sizes.
///
/// # Errors
/// When one is negative.
pub fn shape(name: &str, tensor: &Tensor) -> Result<Vec<u64>, Problem> {
    let sizes = tensor.dims.iter().map(|&size| u64::try_from(size));
    let refused = |_| Problem::damaged(format!("tensor {name}"), "a size is negative");
    sizes.collect::<Result<_, _>>().map_err(refused)
}

/// A tensor of floats.
///
/// # Errors
/// When it cannot be used, or is of another type.
pub fn floats(name: &str, tensor: &Tensor, budget: &mut Budget) -> Result<FloatTensor, Problem> {
    let Some(element) = float_element(tensor.data_type) else {
        return Err(unknown_elements(name, tensor.data_type));
    };
    let (shape, count) = size(name, tensor, budget)?;
    let bits = || tensor.int32_data.iter().map(|&bits| bits as u16);
    let data = if !tensor.raw_data.is_empty() {
        check_length(name, &shape, count, element.size(), tensor.raw_data.len())?;
        element.decode(name, &tensor.raw_data)?
    } else {
        let data: Vec<f32> = match element {
            Element::F32 => tensor.float_data.clone(),
            Element::F16 => bits().map(f16_value).collect(),
            Element::Bf16 => bits().map(bf16_value).collect(),
            Element::F64 => tensor.double_data.iter().map(|&v| v as f32).collect(),
        };
        check_length(name, &shape, count, element.size(), data.len() * element.size())?;
        finite(name, data)?
    };
    Ok(FloatTensor { shape: shape.iter().map(|&size| size as usize).collect(), data })
}

/// A tensor of integers, as 64-bit ones, and its shape.
///
/// # Errors
/// When it cannot be used, or is of another type.
pub fn integers(name: &str, tensor: &Tensor, budget: &mut Budget) -> Result<(Vec<usize>, Vec<i64>), Problem> {
    let (shape, count) = size(name, tensor, budget)?;
    let raw = &tensor.raw_data;
    let (values, size): (Vec<i64>, usize) = match tensor.data_type {
        INT64 if raw.is_empty() => (tensor.int64_data.clone(), 8),
        INT64 => (raw.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(), 8),
        INT32 if raw.is_empty() => (tensor.int32_data.iter().map(|&v| v.into()).collect(), 4),
        INT32 => (raw.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(), 4),
        BOOL | UINT8 if raw.is_empty() => (tensor.int32_data.iter().map(|&v| v.into()).collect(), 1),
        BOOL | UINT8 => (raw.iter().map(|&b| b.into()).collect(), 1),
        other => return Err(unknown_elements(name, other)),
    };
    let found = if raw.is_empty() { values.len() * size } else { raw.len() };
    check_length(name, &shape, count, size, found)?;
    Ok((shape.iter().map(|&size| size as usize).collect(), values))
}

fn unknown_elements(name: &str, data_type: i32) -> Problem {
    Problem::tensor(name, TensorFault::Elements(format!("{data_type} (of ONNX's numbering)")))
}

fn size(name: &str, tensor: &Tensor, budget: &mut Budget) -> Result<(Vec<u64>, usize), Problem> {
    if tensor.data_location != 0 {
        return Err(Problem::tensor(name, TensorFault::External));
    }
    let shape = shape(name, tensor)?;
    let count = budget.tensor(name, &shape)?;
    Ok((shape, count))
}

fn check_length(name: &str, shape: &[u64], count: usize, size: usize, found: usize) -> Result<(), Problem> {
    let wanted = (count * size) as u64;
    match found as u64 == wanted {
        true => Ok(()),
        false => {
            let (shape, found) = (shape.to_vec(), found as u64);
            Err(Problem::tensor(name, TensorFault::Length { shape, wanted, found }))
        }
    }
}
