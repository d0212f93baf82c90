//! Functions of one value, and products of maps.

use super::builder::{Builder, Value};
use super::call::Call;
use crate::graph::{FloatOp, Function};
use crate::read::Problem;

/// `HardSwish`, `HardSigmoid`, `Sigmoid`, `LeakyRelu`, and `Swish` with its usual factor.
pub fn function<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    let float = |name: &str, default: f32| call.attribute(name).map_or(default, |a| a.f);
    let attributes: &[&str] = match call.operator() {
        "HardSigmoid" => &["alpha", "beta"],
        "LeakyRelu" | "Swish" => &["alpha"],
        _ => &[],
    };
    call.understands(attributes)?;
    let (alpha, beta) = (float("alpha", 0.2), float("beta", 0.5));
    let function = match call.operator() {
        "HardSwish" => Function::HardSwish,
        "HardSigmoid" if alpha.is_normal() && alpha > 0.0 && (0.0..=1.0).contains(&beta) => {
            Function::HardSigmoid { alpha, beta }
        }
        "HardSigmoid" => return Err(call.refuse(format!("alpha {alpha} and beta {beta} are not understood"))),
        "LeakyRelu" => match float("alpha", 0.01) {
            slope if slope.abs() <= 1.0 => Function::LeakyRelu { slope },
            slope => return Err(call.refuse(format!("alpha {slope} is not understood: −1 to 1 is"))),
        },
        "Swish" if float("alpha", 1.0) != 1.0 => return Err(call.refuse("alpha is understood as 1 only")),
        "Swish" => Function::Silu,
        _ => Function::Sigmoid,
    };
    let input = builder.feature(call, 0)?;
    builder.emit_pointwise(call, FloatOp::Function { function, input: 1.0, output: 1.0 }, input)
}

/// The function that the product of `input` and a function of it is, as exporters write functions that their version of
/// ONNX does not have.
fn self_gated(builder: &Builder, input: usize, gate: usize) -> Option<Function> {
    let node = &builder.drafts[gate].node;
    match node.op {
        FloatOp::Function { function, .. } if node.inputs == [input] => match function {
            Function::Sigmoid => Some(Function::Silu),
            Function::HardSigmoid { alpha, beta: 0.5 } if (alpha - 1.0 / 6.0).abs() < 1e-6 => Some(Function::HardSwish),
            _ => None,
        },
        _ => None,
    }
}

/// `Mul` of two feature maps, of one shape or one of them with a single position.
pub fn product<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    let inputs = [builder.feature(call, 0)?, builder.feature(call, 1)?];
    for [input, gate] in [inputs, [inputs[1], inputs[0]]] {
        if let Some(function) = self_gated(builder, input, gate) {
            let op = FloatOp::Function { function, input: 1.0, output: 1.0 };
            return builder.emit_pointwise(call, op, input);
        }
    }
    let [a, b] = inputs.map(|input| builder.drafts[input].channels);
    if a != b {
        return Err(call.refuse(format!("its inputs have {a} and {b} channels")));
    }
    // The first of the two is the map, if the other is a value a channel. One that is so for some image sizes only is
    // one for none.
    let is_gate =
        |builder: &Builder, input: usize| builder.probes().all(|probe| builder.drafts[input].sizes[probe] == [1, 1]);
    let [map, gate] = if is_gate(builder, inputs[0]) { [inputs[1], inputs[0]] } else { inputs };
    let everywhere = is_gate(builder, gate);
    builder.budget.tensor(call.name(), &[a as u64])?;
    let op = FloatOp::Product { scale: vec![1.0; a] };
    builder.emit(call, op, vec![map, gate], a, |builder, probe| {
        let [size, other] = [map, gate].map(|input| builder.drafts[input].sizes[probe]);
        match size == other || everywhere {
            true => Ok(size),
            false => Err(call.refuse(format!("its inputs have sizes {size:?} and {other:?}"))),
        }
    })
}
