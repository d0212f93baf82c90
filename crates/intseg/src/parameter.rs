//! Trained parameters: the integers in use, their masters and their momentum.

/// How a parameter is stored and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Convolution weights: i8 in use, masters with 16 fractional bits below the i8 step; the grid may grow; decays.
    Weight,
    /// Biases of convolutions that no batch normalisation follows, as i32 in use; no decay.
    Bias,
    /// γ and β of batch normalisation, Q12 in use (fixed exponent −12); no decay.
    Norm,
}

/// A trained tensor.
///
/// `value = master · 2^(exponent − 16)`: the master holds 16 fractional bits below the step `2^exponent` of the
/// integers in use, and the momentum holds 8 more (DESIGN §3.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Unique in its network, such as `conv1_1.weight`.
    pub name: String,
    /// `[KH, KW, C_in, C_out]` for weights, `[C]` else.
    pub shape: Vec<usize>,
    /// How it is stored and used.
    pub kind: Kind,
    /// Exponent of the step of the integers in use.
    pub exponent: i32,
    /// Masters.
    pub master: Vec<i32>,
    /// Momentum.
    pub momentum: Vec<i32>,
    /// Exact gradient sums of this step.
    pub gradient: Vec<i64>,
    /// `gradient` is in units of `2^gradient_exponent`.
    pub gradient_exponent: i32,
}
