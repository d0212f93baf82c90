//! `Resize` and its predecessor `Upsample`.

use super::builder::{Builder, Value};
use super::call::Call;
use super::numbers::Numbers;
use crate::graph::{FloatOp, Interpolation, ResizeTarget};
use crate::read::Problem;

/// Where the size or the factor comes from.
#[derive(Clone, Copy)]
enum Goal {
    /// Input of sizes.
    Sizes(usize),
    /// Input of factors.
    Scales(usize),
}

/// `Resize` or `Upsample`. What it goes to is found when the whole network is known: until then it is [`ResizeTarget::Like`]
/// with one input.
pub fn resize<'m>(call: Call<'m>, builder: &mut Builder<'m>) -> Result<Value<'m>, Problem> {
    let input = builder.feature(call, 0)?;
    let interpolation = interpolation(call)?;
    let goal = goal(call)?;
    let constant_factor = match goal {
        Goal::Scales(index) => builder.constant_numbers(call, index).is_ok(),
        Goal::Sizes(_) => false,
    };
    let channels = builder.drafts[input].channels;
    let op = FloatOp::Resize { target: ResizeTarget::Like, interpolation };
    let value = builder.emit(call, op, vec![input], channels, |builder, probe| {
        let size = builder.drafts[input].sizes[probe];
        let out = match goal {
            Goal::Sizes(index) => sizes(call, &builder.numbers(call, index, probe)?, channels)?,
            Goal::Scales(index) => scaled(call, &builder.numbers(call, index, probe)?, size)?,
        };
        // Frameworks differ in where a single pixel lies.
        match (0..2).any(|axis| out[axis] == 1 && size[axis] != 1) {
            true => Err(call.refuse(format!("size {out:?} of an input of {size:?} is not understood"))),
            false => Ok(out),
        }
    })?;
    if let Some(draft) = builder.drafts.last_mut() {
        draft.constant_factor = constant_factor;
    }
    Ok(value)
}

/// How values are found, where the operator's coordinates are ones that the integer networks have.
fn interpolation(call: Call) -> Result<Interpolation, Problem> {
    // Coefficients and limits of cubic interpolation and of crops, neither of which is understood.
    const OF_OTHER_MODES: [&str; 3] = ["cubic_coeff_a", "exclude_outside", "extrapolation_value"];
    const USED: [&str; 6] =
        ["antialias", "coordinate_transformation_mode", "keep_aspect_ratio_policy", "mode", "nearest_mode", "scales"];
    call.understands(&[&OF_OTHER_MODES[..], &USED].concat())?;
    call.only_int("antialias", 0, 0)?;
    let policy = call.text("keep_aspect_ratio_policy", "stretch");
    if policy != "stretch" {
        return Err(call.refuse(format!("keep_aspect_ratio_policy {policy} is not understood")));
    }
    // Before version 11 coordinates were a multiple of the output's.
    let default = if call.operator() == "Upsample" || call.opset < 11 { "asymmetric" } else { "half_pixel" };
    let coordinates = call.text("coordinate_transformation_mode", default);
    let rounding = call.text("nearest_mode", if default == "asymmetric" { "floor" } else { "round_prefer_floor" });
    match (call.text("mode", "nearest"), coordinates, rounding) {
        ("linear" | "bilinear", "half_pixel" | "pytorch_half_pixel", _) => Ok(Interpolation::Linear),
        ("linear" | "bilinear", "align_corners", _) => Ok(Interpolation::LinearAligned),
        // At an integer factor these are all the value that an output pixel lies in.
        ("nearest", "asymmetric", "floor") => Ok(Interpolation::Nearest),
        ("nearest", "half_pixel" | "pytorch_half_pixel", "round_prefer_floor" | "round_prefer_ceil") => {
            Ok(Interpolation::Nearest)
        }
        (mode, coordinates, rounding) => {
            let reason =
                format!("mode {mode} with coordinates {coordinates} and nearest_mode {rounding} is not understood");
            Err(call.refuse(reason))
        }
    }
}

fn goal(call: Call) -> Result<Goal, Problem> {
    if call.operator() == "Upsample" || call.opset < 11 {
        return Ok(Goal::Scales(1));
    }
    match (call.input(2), call.input(3)) {
        // Some exporters leave an empty tensor of factors beside the sizes.
        (_, Some(_)) => Ok(Goal::Sizes(3)),
        (Some(_), None) => Ok(Goal::Scales(2)),
        (None, None) => Err(call.refuse("it has neither factors nor sizes")),
    }
}

/// Rows and columns of `[1, C, H, W]`.
fn sizes(call: Call, sizes: &Numbers, channels: usize) -> Result<[usize; 2], Problem> {
    match sizes.values[..] {
        [1.0, c, rows, columns] if c == channels as f64 && rows >= 1.0 && columns >= 1.0 => {
            Ok([rows as usize, columns as usize])
        }
        _ => Err(call.refuse(format!("sizes {:?} are not understood", sizes.values))),
    }
}

/// Rows and columns times the factors `[1, 1, y, x]`.
fn scaled(call: Call, scales: &Numbers, size: [usize; 2]) -> Result<[usize; 2], Problem> {
    match scales.values[..] {
        [1.0, 1.0, y, x] if y > 0.0 && x > 0.0 => {
            let goal = [size[0] as f64 * y, size[1] as f64 * x];
            // Where a factor does not give whole rows, the coordinates are not those of the size; a factor that was
            // computed from sizes in 32 bits is as good as whole.
            match goal.iter().all(|side| (side - side.round()).abs() < 1e-4 * side) {
                true => Ok(goal.map(|side| side.round() as usize)),
                false => Err(call.refuse(format!("factors [{y}, {x}] of a size {size:?} that they do not divide"))),
            }
        }
        _ => Err(call.refuse(format!("factors {:?} are not understood", scales.values))),
    }
}
