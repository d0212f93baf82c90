//! Operators that leave positions alone: normalisation, clamps, sums, concatenation, and the mean over all positions.

use super::builder::{Builder, Value};
use super::call::Call;
use super::functions;
use crate::graph::FloatOp;
use crate::read::Problem;

/// `BatchNormalization`
pub fn batch_normalization<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    call.understands(&["epsilon", "momentum", "spatial", "training_mode"])?;
    call.only_int("training_mode", 0, 0)?;
    call.only_int("spatial", 1, 1)?;
    let input = builder.feature(call, 0)?;
    let channels = builder.drafts[input].channels;
    let mut parameters = [const { Vec::new() }; 4];
    for (index, parameter) in parameters.iter_mut().enumerate() {
        let tensor = builder.floats(call, index + 1)?;
        if tensor.shape != [channels] {
            let shape = tensor.shape;
            return Err(call.refuse(format!("its input {} has shape {shape:?} for {channels} channels", index + 1)));
        }
        *parameter = tensor.data;
    }
    let epsilon = call.attribute("epsilon").map_or(1e-5, |a| f64::from(a.f));
    let [gamma, beta, mean, variance] = parameters;
    let (mut scale, mut offset) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
    for channel in 0..channels {
        let factor = f64::from(gamma[channel]) / (f64::from(variance[channel]) + epsilon).sqrt();
        scale.push(factor as f32);
        offset.push((f64::from(beta[channel]) - f64::from(mean[channel]) * factor) as f32);
    }
    affine(call, builder, input, scale, offset)
}

/// `Relu`
pub fn relu<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    call.understands(&[])?;
    let input = builder.feature(call, 0)?;
    builder.emit_pointwise(call, FloatOp::Clip { low: 0.0, high: f32::INFINITY }, input)
}

/// `Clip`, whose bounds are inputs or, before version 11, settings.
pub fn clip<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    call.understands(&["min", "max"])?;
    let input = builder.feature(call, 0)?;
    let mut bounds = [f32::NEG_INFINITY, f32::INFINITY];
    for (index, name) in ["min", "max"].into_iter().enumerate() {
        if let Some(setting) = call.attribute(name) {
            bounds[index] = setting.f;
        }
        if call.input(index + 1).is_some() {
            let tensor = builder.floats(call, index + 1)?;
            let [bound] = tensor.data[..] else {
                return Err(call.refuse(format!("its {name} has shape {:?}", tensor.shape)));
            };
            bounds[index] = bound;
        }
    }
    let [low, high] = bounds;
    if low.is_nan() || high.is_nan() || low > high {
        return Err(call.refuse(format!("its bounds {low} and {high} are in no order")));
    }
    builder.emit_pointwise(call, FloatOp::Clip { low, high }, input)
}

/// `Add`, `Sub`, `Mul` and `Div`: the sum of two feature maps, or a feature map and a constant for each channel.
pub fn arithmetic<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    call.understands(&[])?;
    let is_feature = |index| matches!(builder.value(call, index), Ok(Value::Feature(_)));
    match (call.operator(), is_feature(0), is_feature(1)) {
        ("Add", true, true) => add(call, builder),
        ("Mul", true, true) => functions::product(call, builder),
        (operator, true, true) => Err(call.refuse(format!("{operator} of two feature maps is not understood"))),
        (_, true, false) => with_constant(call, builder, 0, 1),
        ("Div", false, true) => Err(call.refuse("division by a feature map is not understood")),
        _ => with_constant(call, builder, 1, 0),
    }
}

fn add<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    let inputs = [builder.feature(call, 0)?, builder.feature(call, 1)?];
    let [a, b] = inputs.map(|input| builder.drafts[input].channels);
    if a != b {
        return Err(call.refuse(format!("its inputs have {a} and {b} channels")));
    }
    builder.emit(call, FloatOp::Add, inputs.to_vec(), a, |builder, probe| common_size(call, builder, &inputs, probe))
}

/// The size of inputs that must have the same.
fn common_size(call: Call, builder: &Builder, inputs: &[usize], probe: usize) -> Result<[usize; 2], Problem> {
    let size = builder.drafts[inputs[0]].sizes[probe];
    match inputs.iter().map(|&input| builder.drafts[input].sizes[probe]).find(|&other| other != size) {
        Some(other) => Err(call.refuse(format!("its inputs have sizes {size:?} and {other:?}"))),
        None => Ok(size),
    }
}

/// A feature map and a constant: `scale · x + offset`.
fn with_constant<'m>(
    call: Call<'m>,
    builder: &mut Builder<'m>,
    map: usize,
    constant: usize,
) -> Result<Value<'m>, Problem> {
    let input = builder.feature(call, map)?;
    let channels = builder.drafts[input].channels;
    let tensor = builder.floats(call, constant)?;
    let values = match (&tensor.data[..], &tensor.shape[..]) {
        // Of a feature map's dimensions, batch, rows and columns are one.
        (data, [1, c, 1, 1] | [c, 1, 1]) if *c == channels => data.to_vec(),
        (&[value], shape) if shape.len() <= 4 => {
            // A number in the file becomes one for each channel.
            builder.budget.tensor(call.name(), &[channels as u64])?;
            vec![value; channels]
        }
        (_, shape) => return Err(call.refuse(format!("a constant of shape {shape:?} for {channels} channels"))),
    };
    let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
    let each = |f: fn(f32) -> f32| values.iter().copied().map(f).collect::<Vec<_>>();
    let (scale, offset) = match (call.operator(), map) {
        ("Add", _) => (ones, values),
        ("Sub", 0) => (ones, each(|v| -v)),
        ("Sub", _) => (vec![-1.0; channels], values),
        ("Mul", _) => (values, zeros),
        _ => (each(|v| 1.0 / v), zeros),
    };
    affine(call, builder, input, scale, offset)
}

fn affine<'m>(
    call: Call<'m>,
    builder: &mut Builder<'m>,
    input: usize,
    scale: Vec<f32>,
    offset: Vec<f32>,
) -> Result<Value<'m>, Problem> {
    match scale.iter().zip(&offset).position(|(s, o)| !(s.is_finite() && o.is_finite())) {
        Some(channel) => {
            Err(call.refuse(format!("channel {channel} is not finite: it divides by 0 or a root of less")))
        }
        None => builder.emit_pointwise(call, FloatOp::Affine { scale, offset }, input),
    }
}

/// `Concat` of feature maps.
pub fn concat<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    call.understands(&["axis"])?;
    if !matches!(call.int("axis", 0), 1 | -3) {
        return Err(call.refuse(format!("axis {} is not understood, only that of channels, 1", call.int("axis", 0))));
    }
    let inputs = (0..call.node.input.len()).map(|index| builder.feature(call, index));
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    // Each is at most 2^20, and there are fewer than 2^40 of them.
    let channels = inputs.iter().map(|&input| builder.drafts[input].channels).sum();
    let sizes = inputs.clone();
    builder.emit(call, FloatOp::Concat, inputs, channels, |builder, probe| common_size(call, builder, &sizes, probe))
}

/// `GlobalAveragePool`, and `ReduceMean` over rows and columns.
pub fn global_average_pool<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    let input = builder.feature(call, 0)?;
    if call.operator() == "ReduceMean" {
        call.understands(&["axes", "keepdims", "noop_with_empty_axes"])?;
        call.only_int("keepdims", 1, 1)?;
        let mut axes = match call.attribute("axes") {
            Some(setting) => setting.ints.clone(),
            None => builder.constant_numbers(call, 1)?.indices(),
        };
        axes.iter_mut().for_each(|axis| *axis += if *axis < 0 { 4 } else { 0 });
        axes.sort_unstable();
        if axes != [2, 3] {
            return Err(call.refuse(format!("axes {axes:?} are not understood, only those of rows and columns")));
        }
    } else {
        call.understands(&[])?;
    }
    let channels = builder.drafts[input].channels;
    builder.emit(call, FloatOp::GlobalAveragePool, vec![input], channels, |_, _| Ok([1, 1]))
}
