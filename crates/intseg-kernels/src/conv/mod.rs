//! Two-dimensional convolution in its four directions.
//!
//! Forward convolution and its adjoint (backward-data, which is also transposed convolution forward) are one kernel,
//! [`Convolution`], that gathers input pixels tap by tap; [`WeightGradient`] is the third pass. All are exact: they
//! return i32 or i64 sums, or requantise such sums once.

/// The geometry of a convolution, always described in its forward direction.
///
/// The input is `[batch, in_h, in_w, c_in]`, the output `[batch, out_h, out_w, c_out]`, the weights
/// `[kernel_h, kernel_w, c_in, c_out]`. Pairs are `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    /// Images in the batch (N).
    pub batch: usize,
    /// Input rows.
    pub in_h: usize,
    /// Input columns.
    pub in_w: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Kernel rows and columns.
    pub kernel: [usize; 2],
    /// Step between neighbouring output pixels, in input pixels.
    pub stride: [usize; 2],
    /// Step between neighbouring taps, in input pixels.
    pub dilation: [usize; 2],
    /// Zero pixels assumed before the first and after the last row and column.
    pub padding: [usize; 2],
}

impl Conv2d {
    /// Output rows and columns, or `None` when the padded input is smaller than the dilated kernel or a parameter
    /// is 0.
    pub fn output_size(&self) -> Option<[usize; 2]> {
        let along = |size: usize, axis: usize| {
            let reach = self.dilation[axis].checked_mul(self.kernel[axis].checked_sub(1)?)? + 1;
            let room = (size + 2 * self.padding[axis]).checked_sub(reach)?;
            (self.dilation[axis] > 0).then_some(room.checked_div(self.stride[axis])? + 1)
        };
        Some([along(self.in_h, 0)?, along(self.in_w, 1)?])
    }

    /// Output rows; 0 when there is no output.
    pub fn out_h(&self) -> usize {
        self.output_size().map_or(0, |[h, _]| h)
    }

    /// Output columns; 0 when there is no output.
    pub fn out_w(&self) -> usize {
        self.output_size().map_or(0, |[_, w]| w)
    }

    /// Number of input elements.
    pub fn input_len(&self) -> usize {
        self.batch * self.in_h * self.in_w * self.c_in
    }

    /// Number of output elements.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_h() * self.out_w() * self.c_out
    }

    /// Number of weights.
    pub fn weights_len(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.c_in * self.c_out
    }

    /// Multiply-accumulates of the whole convolution, taps on padding included.
    pub fn macs(&self) -> u64 {
        (self.output_len() * self.kernel[0] * self.kernel[1] * self.c_in) as u64
    }
}
