//! Trained parameters: the integers in use, their masters and their momentum.

/// How a parameter is stored and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Convolution weights: i8 in use, masters with 16 fractional bits below the i8 step; the grid may grow; decays.
    Weight,
    /// Biases, and γ and β of batch normalisation: 12 fractional bits in use (exponent −12) and masters with 8 more;
    /// no decay.
    Affine,
}

impl Kind {
    /// Fractional bits of a master below the step of the integers in use.
    pub fn fraction_bits(self) -> u32 {
        match self {
            Kind::Weight => 16,
            Kind::Affine => 8,
        }
    }
}

/// A trained tensor.
///
/// `value = master · 2^(exponent − fraction_bits)`: the master holds fractional bits below the step `2^exponent` of
/// the integers in use, and the momentum holds 8 more (DESIGN §3.7).
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
