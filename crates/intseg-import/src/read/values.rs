//! Elements of files as 32-bit floats.

use super::error::{Problem, TensorFault};

/// A kind of element that weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
}

impl Element {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Element::F16 | Element::Bf16 => 2,
            Element::F32 => 4,
            Element::F64 => 8,
        }
    }

    /// Little-endian elements as floats; bytes beyond the last whole element are not looked at.
    ///
    /// # Errors
    /// When a value is not finite as a 32-bit float.
    pub fn decode(self, name: &str, bytes: &[u8]) -> Result<Vec<f32>, Problem> {
        let values = match self {
            Element::F16 => bytes.as_chunks().0.iter().map(|b| f16_value(u16::from_le_bytes(*b))).collect(),
            Element::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16_value(u16::from_le_bytes(*b))).collect(),
            Element::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Element::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        };
        finite(name, values)
    }
}

/// The values, when all of them are finite.
///
/// # Errors
/// Otherwise, with the first that is not.
pub fn finite(name: &str, values: Vec<f32>) -> Result<Vec<f32>, Problem> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(index) => Err(Problem::tensor(name, TensorFault::NotFinite { index, value: values[index].into() })),
    }
}

/// The value of a half-precision float's bits.
pub fn f16_value(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    match magnitude {
        // Subnormals count in units of 2^-24.
        0..0x400 => f32::from_bits(sign | (magnitude as f32 * 2f32.powi(-24)).to_bits()),
        // The exponent's bias grows from 15 to 127.
        0x400..0x7c00 => f32::from_bits(sign | ((magnitude << 13) + ((127 - 15) << 23))),
        _ => f32::from_bits(sign | 0x7f80_0000 | ((magnitude & 0x3ff) << 13)),
    }
}

/// The value of a bfloat16's bits.
pub fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_float_has_the_value_of_its_definition() {
        for bits in 0..=u16::MAX {
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            let value = f16_value(bits);
            match exponent {
                0 => assert_eq!(f64::from(value), sign * fraction * 2f64.powi(-24)),
                31 if fraction == 0.0 => assert_eq!(f64::from(value), sign * f64::INFINITY),
                31 => assert!(value.is_nan()),
                _ => assert_eq!(f64::from(value), sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15)),
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_named_with_its_index() {
        let bytes: Vec<u8> = [1.0f32, -2.0, f32::NAN, f32::INFINITY].iter().flat_map(|v| v.to_le_bytes()).collect();
        let problem = Element::F32.decode("conv.weight", &bytes).unwrap_err().to_string();
        assert_eq!(problem, "tensor conv.weight holds NaN at index 2; no network computes with that");
        assert_eq!(Element::F32.decode("conv.weight", &bytes[..8]).unwrap(), [1.0, -2.0]);
        let problem = Element::F64.decode("w", &1e300f64.to_le_bytes()).unwrap_err().to_string();
        assert_eq!(problem, "tensor w holds inf at index 0; no network computes with that");
    }
}
