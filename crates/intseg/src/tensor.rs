//! Quantised tensors: integer mantissas with one power-of-two exponent.

use crate::buffers::Buffer;
use std::fmt;

/// The shape of an activation, `[N, H, W, C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// Images.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// The shape `[n, h, w, c]`.
    pub const fn new(n: usize, h: usize, w: usize, c: usize) -> Self {
        Shape { n, h, w, c }
    }

    /// Number of elements.
    pub const fn len(self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Whether there are no elements.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Number of positions, `N·H·W`.
    pub const fn positions(self) -> usize {
        self.n * self.h * self.w
    }

    /// The same positions with `c` channels.
    pub const fn with_channels(self, c: usize) -> Self {
        Shape { c, ..self }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}, {}, {}]", self.n, self.h, self.w, self.c)
    }
}

/// The mantissas of a tensor, NHWC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mantissas {
    /// Activations after ReLU, 0..=255.
    U8(Buffer<u8>),
    /// Other activations and errors, −127..=127.
    I8(Buffer<i8>),
    /// Residual streams, logits, 16-bit errors, ±32767.
    I16(Buffer<i16>),
    /// Accumulators.
    I32(Buffer<i32>),
}

/// A quantised tensor: `value = mantissa · 2^exponent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// `[N, H, W, C]`.
    pub shape: Shape,
    /// The exponent shared by all elements.
    pub exponent: i32,
    /// `shape.len()` mantissas.
    pub mantissas: Mantissas,
}

impl Tensor {
    /// A tensor of unsigned 8-bit mantissas.
    pub fn u8(shape: Shape, exponent: i32, mantissas: Buffer<u8>) -> Self {
        debug_assert_eq!(shape.len(), mantissas.len());
        Tensor { shape, exponent, mantissas: Mantissas::U8(mantissas) }
    }

    /// A tensor of signed 8-bit mantissas.
    pub fn i8(shape: Shape, exponent: i32, mantissas: Buffer<i8>) -> Self {
        debug_assert_eq!(shape.len(), mantissas.len());
        Tensor { shape, exponent, mantissas: Mantissas::I8(mantissas) }
    }

    /// A tensor of 16-bit mantissas.
    pub fn i16(shape: Shape, exponent: i32, mantissas: Buffer<i16>) -> Self {
        debug_assert_eq!(shape.len(), mantissas.len());
        Tensor { shape, exponent, mantissas: Mantissas::I16(mantissas) }
    }

    /// A tensor of 32-bit mantissas.
    pub fn i32(shape: Shape, exponent: i32, mantissas: Buffer<i32>) -> Self {
        debug_assert_eq!(shape.len(), mantissas.len());
        Tensor { shape, exponent, mantissas: Mantissas::I32(mantissas) }
    }

    /// The mantissas as numbers, for tests and diagnostics.
    pub fn to_i64(&self) -> Vec<i64> {
        match &self.mantissas {
            Mantissas::U8(m) => m.iter().map(|&v| v.into()).collect(),
            Mantissas::I8(m) => m.iter().map(|&v| v.into()).collect(),
            Mantissas::I16(m) => m.iter().map(|&v| v.into()).collect(),
            Mantissas::I32(m) => m.iter().map(|&v| v.into()).collect(),
        }
    }
}
