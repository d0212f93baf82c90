//! NumPy's `.npz`: a zip archive with one `.npy` file an array.
//!
//! An `.npy` file is a magic number, a version, and the text of a Python dictionary such as
//! `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, and then the values.

use super::archive::Archive;
use super::error::{Problem, TensorFault};
use super::limits::{self, Budget};
use super::values::Element;
use super::{Weights, insert};
use crate::tensor::FloatTensor;
use std::io::{Read, Seek};

/// Bytes that a header may take.
const HEADER: u64 = 1 << 16;

/// Float arrays of an archive; those of integers are left out.
///
/// # Errors
/// When the archive or an array is damaged or cannot be used.
pub fn read<R: Read + Seek>(mut archive: Archive<R>) -> Result<Weights, Problem> {
    let (mut weights, mut budget) = (Weights::new(), Budget::default());
    for entry in archive.names().to_vec() {
        let name = entry.strip_suffix(".npy").ok_or_else(|| Problem::damaged(&entry, "it is no .npy array"))?;
        let size = archive.claimed_size(&entry)?;
        budget.bytes(&entry, size)?;
        let bytes = archive.read(&entry, limits::VALUES * 8 + HEADER)?;
        if let Some(tensor) = array(name, &bytes, &mut budget)? {
            insert(&mut weights, name, tensor)?;
        }
    }
    Ok(weights)
}

/// What an array's header says.
#[derive(Debug, PartialEq)]
struct Header<'a> {
    descr: &'a str,
    fortran_order: bool,
    shape: Vec<u64>,
}

/// An array, unless it is of integers.
fn array(name: &str, bytes: &[u8], budget: &mut Budget) -> Result<Option<FloatTensor>, Problem> {
    let damaged = |message: &str| Problem::damaged(format!("the header of {name}.npy"), message);
    let (text, values) = split(bytes).ok_or_else(|| damaged("the magic number or length is wrong"))?;
    let text = std::str::from_utf8(text).map_err(|_| damaged("it is no text"))?;
    let header = Text(text).header().ok_or_else(|| damaged("it is no dictionary of descr, fortran_order and shape"))?;
    let element = match header.descr {
        "<f2" => Element::F16,
        "<f4" => Element::F32,
        "<f8" => Element::F64,
        "|b1" | "|i1" | "|u1" | "<i2" | "<u2" | "<i4" | "<u4" | "<i8" | "<u8" => return Ok(None),
        other => return Err(Problem::tensor(name, TensorFault::Elements(other.to_owned()))),
    };
    let count = budget.tensor(name, &header.shape)?;
    if values.len() != count * element.size() {
        let (wanted, found) = ((count * element.size()) as u64, values.len() as u64);
        return Err(Problem::tensor(name, TensorFault::Length { shape: header.shape, wanted, found }));
    }
    let mut data = element.decode(name, values)?;
    let shape: Vec<usize> = header.shape.iter().map(|&size| size as usize).collect();
    if header.fortran_order {
        data = rows_first(&data, &shape);
    }
    Ok(Some(FloatTensor { shape, data }))
}

/// The header's text, and the bytes after it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk()?;
            rest.split_at_checked(u16::from_le_bytes(*length).into())
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk()?;
            rest.split_at_checked(u32::from_le_bytes(*length) as usize)
        }
        _ => None,
    }
}

/// Values stored columns first, rows first.
fn rows_first(data: &[f32], shape: &[usize]) -> Vec<f32> {
    let mut index = vec![0; shape.len()];
    let mut strides = vec![1; shape.len()];
    for axis in 1..shape.len() {
        strides[axis] = strides[axis - 1] * shape[axis - 1];
    }
    let mut rows = Vec::with_capacity(data.len());
    for _ in 0..data.len() {
        rows.push(data[index.iter().zip(&strides).map(|(i, stride)| i * stride).sum::<usize>()]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    rows
}

/// What is left of a header's text.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn header(mut self) -> Option<Header<'a>> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        self.token("{")?;
        while self.token("}").is_none() {
            let key = self.quoted()?;
            self.token(":")?;
            match key {
                "descr" if descr.is_none() => descr = Some(self.quoted()?),
                "fortran_order" if fortran_order.is_none() => fortran_order = Some(self.boolean()?),
                "shape" if shape.is_none() => shape = Some(self.tuple()?),
                _ => return None,
            }
            if self.token(",").is_none() {
                self.token("}")?;
                break;
            }
        }
        self.0.trim_start().is_empty().then_some(())?;
        Some(Header { descr: descr?, fortran_order: fortran_order?, shape: shape? })
    }

    fn token(&mut self, token: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn quoted(&mut self) -> Option<&'a str> {
        let quote = ["'", "\""].into_iter().find(|quote| self.token(quote).is_some())?;
        let (text, rest) = self.0.split_once(quote)?;
        self.0 = rest;
        Some(text)
    }

    fn boolean(&mut self) -> Option<bool> {
        if self.token("True").is_some() {
            return Some(true);
        }
        self.token("False").map(|()| false)
    }

    fn tuple(&mut self) -> Option<Vec<u64>> {
        let mut sizes = Vec::new();
        self.token("(")?;
        while self.token(")").is_none() {
            self.0 = self.0.trim_start();
            let digits = self.0.bytes().take_while(u8::is_ascii_digit).count();
            let (size, rest) = self.0.split_at(digits);
            sizes.push(size.parse().ok()?);
            self.0 = rest;
            if self.token(",").is_none() {
                self.token(")")?;
                break;
            }
        }
        // More than this is refused by the budget with the tensor's name.
        (sizes.len() <= 2 * limits::DIMENSIONS).then_some(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_numpy_writes_them() {
        let header = |descr, fortran_order, shape| Some(Header { descr, fortran_order, shape });
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }      \n";
        assert_eq!(Text(text).header(), header("<f4", false, vec![3, 4]));
        let text = "{\"shape\": (), 'fortran_order': True, 'descr': '<f8'}\n";
        assert_eq!(Text(text).header(), header("<f8", true, vec![]));
        assert_eq!(Text("{'descr':'<f2','fortran_order':False,'shape':(7,)}").header(), header("<f2", false, vec![7]));
        for text in [
            "",
            "{",
            "{'descr': '<f4'}",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': ()} import os",
        ] {
            assert_eq!(Text(text).header(), None, "{text}");
        }
    }

    #[test]
    fn columns_first_becomes_rows_first() {
        assert_eq!(rows_first(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0], &[2, 3]), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(rows_first(&[1.0], &[]), [1.0]);
    }
}
