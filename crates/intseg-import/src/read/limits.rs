//! How much a file may ask for, whatever it claims.
//!
//! The largest network here has 134 million weights in a few hundred tensors. Readers take what they allocate from a
//! [`Budget`] first, and no buffer is sized by a number that only the file vouches for.

use super::error::{Problem, TensorFault};
use std::path::Path;

/// Values in all tensors of a file: 2 GiB as 32-bit floats.
pub const VALUES: u64 = 1 << 29;
/// Bytes of a file, and of all that its archive inflates to.
pub const BYTES: u64 = 1 << 32;
/// Bytes of a part that describes tensors: a pickle, a header.
pub const DESCRIPTION: u64 = 8 << 20;
/// Bytes of an ONNX model beside its initialisers: the graph, with the names that exporters are generous with.
pub const GRAPH: u64 = 8 << 20;
/// Values of a pickle; a tensor takes about a dozen.
pub const PICKLED: usize = 1 << 20;
/// Tensors in a file, and entries in an archive.
pub const TENSORS: usize = 1 << 16;
/// Dimensions of a tensor.
pub const DIMENSIONS: usize = 8;

/// What is left for the tensors of one file.
pub struct Budget {
    values: u64,
    bytes: u64,
    tensors: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { values: VALUES, bytes: BYTES, tensors: TENSORS }
    }
}

impl Budget {
    /// Takes a tensor of this shape and returns how many values it has.
    ///
    /// # Errors
    /// When the shape is impossible or the file's tensors together are too large.
    pub fn tensor(&mut self, name: &str, shape: &[u64]) -> Result<usize, Problem> {
        let count = count(name, shape)?;
        let limit = |what: &str, claimed: u128, limit| {
            Err(Problem::Limit { what: format!("{what} up to tensor {name}"), claimed, limit })
        };
        let Some(values) = self.values.checked_sub(count) else {
            return limit("values", u128::from(VALUES - self.values) + u128::from(count), VALUES);
        };
        let Some(tensors) = self.tensors.checked_sub(1) else {
            return limit("tensors", TENSORS as u128 + 1, TENSORS as u64);
        };
        (self.values, self.tensors) = (values, tensors);
        usize::try_from(count).map_err(|_| Problem::tensor(name, TensorFault::Shape(shape.to_vec())))
    }

    /// Takes a part of an archive that inflates to so many bytes.
    ///
    /// # Errors
    /// When the parts together are too large.
    pub fn bytes(&mut self, part: &str, bytes: u64) -> Result<(), Problem> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(|| Problem::Limit {
            what: format!("bytes up to {part}"),
            claimed: u128::from(BYTES - self.bytes) + u128::from(bytes),
            limit: BYTES,
        })?;
        Ok(())
    }
}

/// The number of values of a shape.
///
/// # Errors
/// When there are too many dimensions or their product does not fit.
pub fn count(name: &str, shape: &[u64]) -> Result<u64, Problem> {
    // A zero beside huge sizes would hide them from the product.
    let product = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size.max(1)));
    match product {
        Some(_) if shape.contains(&0) => Ok(0),
        Some(product) if shape.len() <= DIMENSIONS => Ok(product),
        _ => Err(Problem::tensor(name, TensorFault::Shape(shape.iter().take(DIMENSIONS + 1).copied().collect()))),
    }
}

/// A file's bytes.
///
/// # Errors
/// When it cannot be read or is too large.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Problem> {
    let length = std::fs::metadata(path)?.len();
    if length > BYTES {
        return Err(Problem::Limit { what: "bytes of the file".into(), claimed: length.into(), limit: BYTES });
    }
    Ok(std::fs::read(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_whose_product_overflows_are_refused() {
        for shape in [&[1 << 40, 1 << 40][..], &[u64::MAX, 2], &[0, u64::MAX, 2], &[1; 9]] {
            let problem = Budget::default().tensor("w", shape).unwrap_err().to_string();
            assert!(problem.contains("tensor w has an impossible shape"), "{problem}");
        }
    }

    #[test]
    fn tensors_are_counted_together() {
        let mut budget = Budget::default();
        assert_eq!(budget.tensor("a", &[VALUES / 2]).unwrap() as u64, VALUES / 2);
        assert_eq!(budget.tensor("b", &[VALUES / 2]).unwrap() as u64, VALUES / 2);
        let problem = budget.tensor("c", &[3]).unwrap_err().to_string();
        assert_eq!(problem, format!("values up to tensor c: {}, where at most {VALUES} are read", VALUES + 3));
        let mut budget = Budget::default();
        (0..TENSORS).for_each(|_| assert_eq!(budget.tensor("", &[0]).unwrap(), 0));
        assert!(matches!(budget.tensor("last", &[1]), Err(Problem::Limit { .. })));
    }

    #[test]
    fn inflated_bytes_are_counted_together() {
        let mut budget = Budget::default();
        budget.bytes("a", BYTES).unwrap();
        assert!(matches!(budget.bytes("b", 1), Err(Problem::Limit { .. })));
    }
}
