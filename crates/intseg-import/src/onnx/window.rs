//! Operators with windows: convolutions and pooling.

use super::builder::{Builder, Value};
use super::call::Call;
use crate::graph::{FloatOp, Window};
use crate::read::Problem;
use crate::tensor::FloatTensor;

/// Settings that every operator with a window has.
const WINDOW: [&str; 5] = ["auto_pad", "dilations", "kernel_shape", "pads", "strides"];

/// Groups of a convolution that is made a dense one, with zeros: more would waste too much.
const MOST_GROUPS: usize = 8;

fn understands(call: Call, more: &[&str]) -> Result<(), Problem> {
    call.understands(&[&WINDOW, more].concat())
}

/// The geometry of a node whose weights, if any, have this kernel.
fn window(call: Call, weights: Option<[usize; 2]>) -> Result<Window, Problem> {
    let kernel = call.pair("kernel_shape", weights.unwrap_or_default())?;
    if weights.is_some_and(|weights| weights != kernel) {
        return Err(
            call.refuse(format!("its kernel is {kernel:?} and that of its weights {:?}", weights.unwrap_or_default()))
        );
    }
    let (stride, dilation) = (call.pair("strides", [1; 2])?, call.pair("dilations", [1; 2])?);
    if [kernel, stride, dilation].concat().contains(&0) {
        return Err(call.refuse("its kernel, stride or dilation is 0"));
    }
    let padding = match call.text("auto_pad", "NOTSET") {
        "NOTSET" => explicit_padding(call)?,
        "VALID" => [0; 2],
        "SAME_UPPER" | "SAME_LOWER" => same_padding(call, kernel, stride, dilation)?,
        other => return Err(call.refuse(format!("auto_pad {other} is not understood"))),
    };
    Ok(Window { kernel, stride, dilation, padding })
}

fn explicit_padding(call: Call) -> Result<[usize; 2], Problem> {
    match call.attribute("pads").map(|a| a.ints.as_slice()) {
        None => Ok([0; 2]),
        Some(&[top, left, bottom, right]) if top == bottom && left == right => {
            Ok([call.size("pads", top)?, call.size("pads", left)?])
        }
        Some(pads) => {
            Err(call.refuse(format!("pads {pads:?} are not the same on both sides, which is not understood")))
        }
    }
}

/// The padding that keeps the size, where it is the same on both sides whatever the image's size.
fn same_padding(
    call: Call,
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
) -> Result<[usize; 2], Problem> {
    let total = [0, 1].map(|axis| dilation[axis] * (kernel[axis] - 1));
    match stride == [1, 1] && total.iter().all(|t| t % 2 == 0) {
        true => Ok(total.map(|t| t / 2)),
        false => {
            let reason = "auto_pad SAME of a stride or an even kernel pads one side more, which is not understood";
            Err(call.refuse(reason))
        }
    }
}

/// Rows or columns that a window has places for.
fn places(call: Call, window: Window, axis: usize, input: usize, ceil: bool) -> Result<usize, Problem> {
    let (stride, padding) = (window.stride[axis], window.padding[axis]);
    let reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
    let Some(room) = (input + 2 * padding).checked_sub(reach) else {
        return Err(call.refuse(format!("its window of {reach} does not fit into {input} padded by {padding}")));
    };
    let last = if ceil { room.div_ceil(stride) } else { room / stride };
    // A window that would begin in the padding behind the input is left out.
    Ok(if ceil && last * stride >= input + padding { last } else { last + 1 })
}

/// A convolution's weights, all of whose four dimensions have a size, and its geometry.
fn weights<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<(FloatTensor, Window), Problem> {
    let weights = builder.floats(call, 1)?;
    match weights.shape[..] {
        [a, b, y, x] if a * b * y * x > 0 => Ok((weights, window(call, Some([y, x]))?)),
        _ => Err(call.refuse(format!("weights of shape {:?} are not understood", weights.shape))),
    }
}

fn bias<'m>(call: Call<'m>, builder: &mut Builder<'m>, channels: usize) -> Result<Vec<f32>, Problem> {
    if call.input(2).is_none() {
        return Ok(vec![0.0; channels]);
    }
    let bias = builder.floats(call, 2)?;
    match bias.shape == [channels] {
        true => Ok(bias.data),
        false => Err(call.refuse(format!("its bias has shape {:?}, and it has {channels} channels", bias.shape))),
    }
}

fn check_channels(call: Call, builder: &Builder, input: usize, wanted: usize) -> Result<(), Problem> {
    match builder.drafts[input].channels {
        found if found == wanted => Ok(()),
        found => Err(call.refuse(format!("its weights take {wanted} channels and its input has {found}"))),
    }
}

/// `Conv`
pub fn conv<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    understands(call, &["group"])?;
    let groups = call.size("group", call.int("group", 1))?;
    let input = builder.feature(call, 0)?;
    let (weights, window) = weights(call, builder)?;
    let [c_in, c_out] = [weights.shape[1].saturating_mul(groups), weights.shape[0]];
    check_channels(call, builder, input, c_in)?;
    let bias = bias(call, builder, c_out)?;
    let op = match groups {
        1 => FloatOp::Conv { window, weights: weights.permuted([2, 3, 1, 0]), channels: [c_in, c_out], bias },
        // Filters of one channel each, in the order of the channels.
        _ if weights.shape[1] == 1 && c_out == groups => {
            FloatOp::Depthwise { window, weights: weights.permuted([2, 3, 1, 0]), bias }
        }
        2..=MOST_GROUPS if c_out.is_multiple_of(groups) => {
            let weights = ungrouped(call, builder, &weights, groups)?;
            FloatOp::Conv { window, weights, channels: [c_in, c_out], bias }
        }
        _ => {
            let reason = format!(
                "group {groups} of {c_in} to {c_out} channels is not understood: 1 to {MOST_GROUPS} groups are, and one a channel"
            );
            return Err(call.refuse(reason));
        }
    };
    emit_window(call, builder, op, input, c_out, window, false)
}

/// Weights `[KH, KW, C_in, C_out]` in which filters do not read the channels of other groups.
fn ungrouped(call: Call, builder: &mut Builder, weights: &FloatTensor, groups: usize) -> Result<Vec<f32>, Problem> {
    let [c_out, each, rows, columns] = [0, 1, 2, 3].map(|axis| weights.shape[axis]);
    let (taps, c_in) = (rows * columns, each * groups);
    builder.budget.tensor(call.name(), &[c_out as u64, c_in as u64, taps as u64])?;
    let mut dense = vec![0.0; taps * c_in * c_out];
    for (index, &weight) in weights.data.iter().enumerate() {
        let (output, input, tap) = (index / (each * taps), index / taps % each, index % taps);
        let input = output / (c_out / groups) * each + input;
        dense[(tap * c_in + input) * c_out + output] = weight;
    }
    Ok(dense)
}

/// `ConvTranspose`
pub fn conv_transpose<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    understands(call, &["group", "output_padding"])?;
    call.only_int("group", 1, 1)?;
    if !matches!(call.text("auto_pad", "NOTSET"), "NOTSET" | "VALID") {
        return Err(call.refuse("auto_pad SAME is not understood"));
    }
    let input = builder.feature(call, 0)?;
    let (weights, window) = weights(call, builder)?;
    let output_padding = call.pair("output_padding", [0; 2])?;
    let channels = [weights.shape[0], weights.shape[1]];
    check_channels(call, builder, input, channels[0])?;
    let bias = bias(call, builder, channels[1])?;
    let weights = weights.permuted([2, 3, 0, 1]);
    let op = FloatOp::ConvTranspose { window, output_padding, weights, channels, bias };
    builder.emit(call, op, vec![input], channels[1], |builder, probe| {
        let side = |axis: usize| {
            let reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
            let full =
                (builder.drafts[input].sizes[probe][axis] - 1) * window.stride[axis] + reach + output_padding[axis];
            let left = full.checked_sub(2 * window.padding[axis]);
            left.ok_or_else(|| call.refuse(format!("its padding takes more than its output of {full}")))
        };
        Ok([side(0)?, side(1)?])
    })
}

/// `MaxPool`
pub fn max_pool<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    // The order of indices matters to the second output only, which nothing reads.
    understands(call, &["ceil_mode", "storage_order"])?;
    let (input, ceil) = (builder.feature(call, 0)?, call.int("ceil_mode", 0) != 0);
    let window = pool_window(call)?;
    let channels = builder.drafts[input].channels;
    emit_window(call, builder, FloatOp::MaxPool { window, ceil }, input, channels, window, ceil)
}

/// `AveragePool`
pub fn average_pool<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    understands(call, &["ceil_mode", "count_include_pad"])?;
    let (input, ceil) = (builder.feature(call, 0)?, call.int("ceil_mode", 0) != 0);
    let window = pool_window(call)?;
    let channels = builder.drafts[input].channels;
    let op = FloatOp::AveragePool { window, ceil, count_padding: call.int("count_include_pad", 0) != 0 };
    emit_window(call, builder, op, input, channels, window, ceil)
}

/// A pool's geometry: some of the input is under every window.
fn pool_window(call: Call) -> Result<Window, Problem> {
    let window = window(call, None)?;
    let reach = [0, 1].map(|axis| window.dilation[axis] * (window.kernel[axis] - 1));
    match (0..2).all(|axis| window.padding[axis] <= reach[axis] / 2 + reach[axis] % 2) {
        true => Ok(window),
        false => Err(call.refuse(format!("padding {:?} is more than half of its window", window.padding))),
    }
}

fn emit_window<'m>(
    call: Call<'m>,
    builder: &mut Builder<'m>,
    op: FloatOp,
    input: usize,
    channels: usize,
    window: Window,
    ceil: bool,
) -> Result<Value<'m>, Problem> {
    builder.emit(call, op, vec![input], channels, |builder, probe| {
        let size = builder.drafts[input].sizes[probe];
        Ok([places(call, window, 0, size[0], ceil)?, places(call, window, 1, size[1], ceil)?])
    })
}
