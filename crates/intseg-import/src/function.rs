//! Functions of one value, which become tables of 256 entries.

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// `x · clamp(x / 6 + 1/2, 0, 1)`.
    HardSwish,
    /// `clamp(alpha · x + beta, 0, 1)`.
    HardSigmoid {
        /// Slope, positive.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// `x · sigmoid(x)`: also called swish.
    Silu,
    /// `x` where it is positive, `slope · x` elsewhere.
    LeakyRelu {
        /// Slope of the negative side.
        slope: f32,
    },
}

impl Function {
    /// What torch calls hardsigmoid.
    pub const HARD_SIGMOID: Function = Function::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 };

    /// Its value.
    pub fn at(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Function::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Function::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
            Function::Sigmoid => sigmoid(x),
            Function::Silu => x * sigmoid(x),
            Function::LeakyRelu { slope } => x * if x > 0.0 { 1.0 } else { slope.into() },
        }
    }

    /// The range beyond which it is constant, if it ends below: what calls it may clamp to that.
    pub fn domain(self) -> Option<[f32; 2]> {
        match self {
            Function::HardSwish => Some([-3.0, f32::INFINITY]),
            Function::HardSigmoid { alpha, beta } => Some([-beta / alpha, (1.0 - beta) / alpha]),
            Function::Sigmoid | Function::Silu | Function::LeakyRelu { .. } => None,
        }
    }

    /// What none of its values is beyond.
    pub fn bounds(self) -> [f64; 2] {
        let highest = match self {
            Function::HardSigmoid { .. } | Function::Sigmoid => 1.0,
            Function::HardSwish | Function::Silu | Function::LeakyRelu { .. } => f64::INFINITY,
        };
        [self.lowest().unwrap_or(f64::NEG_INFINITY), highest]
    }

    /// Its smallest value, where that is not far below 0: what is added to make it unsigned.
    pub fn lowest(self) -> Option<f64> {
        match self {
            Function::HardSwish => Some(-0.375),
            Function::Silu => Some(-0.278_464_542_761_074),
            Function::HardSigmoid { .. } | Function::Sigmoid => Some(0.0),
            Function::LeakyRelu { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_the_values_and_the_ends_that_they_say() {
        assert_eq!([-4.0, -1.5, 0.0, 1.5, 4.0].map(|x| Function::HardSwish.at(x)), [0.0, -0.375, 0.0, 1.125, 4.0]);
        assert_eq!([-3.5, 0.0, 3.5].map(|x| Function::HARD_SIGMOID.at(x)), [0.0, 0.5, 1.0]);
        assert!((Function::Sigmoid.at(2.0) - 0.880_797).abs() < 1e-6);
        assert!((Function::LeakyRelu { slope: 0.25 }.at(-2.0) + 0.5).abs() < 1e-12);
        for function in [Function::HardSwish, Function::HARD_SIGMOID, Function::Sigmoid, Function::Silu] {
            let values = (-1000..1000).map(|x| function.at(f64::from(x) / 100.0));
            let lowest = values.fold(f64::INFINITY, f64::min);
            let said = function.lowest().unwrap();
            assert!((0.0..1e-4).contains(&(lowest - said)), "{function:?}: {lowest} {said}");
            assert_eq!(function.bounds()[0], said);
            assert!((function.at(1e9) - function.bounds()[1]).abs() < 1e-9 || function.at(1e9) > 1e8, "{function:?}");
            if let Some([low, high]) = function.domain() {
                let same = |end: f32, beyond: f64| (function.at(end.into()) - function.at(beyond)).abs() < 1e-6;
                assert!(same(low, -100.0) && (high == f32::INFINITY || same(high, 100.0)), "{function:?}");
            }
        }
    }
}
