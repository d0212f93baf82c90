//! Arithmetic on shapes, carried out.

use super::call::Call;
use super::proto::Tensor;
use super::tensor;
use crate::read::Problem;
use crate::read::limits::{self, Budget};

/// Numbers that arithmetic on shapes may take: eight dimensions, begin and end, and some to spare.
const MOST: usize = 64;

/// A small tensor. Integers are whole numbers in `values`, which are exact up to 2^53.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbers {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Values, rows first.
    pub values: Vec<f64>,
    /// Whether they are integers.
    pub integer: bool,
}

impl Numbers {
    /// Integers in a row.
    pub fn integers(values: impl IntoIterator<Item = usize>) -> Numbers {
        let values: Vec<f64> = values.into_iter().map(|v| v as f64).collect();
        Numbers { shape: vec![values.len()], values, integer: true }
    }

    /// A small tensor of the file.
    ///
    /// # Errors
    /// When it is damaged or not small.
    pub fn of_tensor(name: &str, tensor: &Tensor) -> Result<Numbers, Problem> {
        let shape = tensor::shape(name, tensor)?;
        let count = limits::count(name, &shape)?;
        if count > MOST as u64 {
            let what = format!("values of tensor {name}, which is computed with as shapes are");
            return Err(Problem::Limit { what, claimed: count.into(), limit: MOST as u64 });
        }
        let mut budget = Budget::default();
        if tensor::float_element(tensor.data_type).is_some() {
            let floats = tensor::floats(name, tensor, &mut budget)?;
            let values = floats.data.iter().map(|&v| v.into()).collect();
            return Ok(Numbers { shape: floats.shape, values, integer: false });
        }
        let (shape, values) = tensor::integers(name, tensor, &mut budget)?;
        Ok(Numbers { shape, values: values.iter().map(|&v| v as f64).collect(), integer: true })
    }

    /// One value.
    fn scalar(&self) -> Option<f64> {
        if let [value] = self.values[..] { Some(value) } else { None }
    }

    /// Values as indices or axes.
    pub fn indices(&self) -> Vec<i64> {
        self.values.iter().map(|&v| v as i64).collect()
    }
}

/// Whether an operator of constants and shapes is carried out here.
pub fn is_arithmetic(operator: &str) -> bool {
    const OPERATORS: [&str; 15] = [
        "Add",
        "Cast",
        "Ceil",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Floor",
        "Gather",
        "Mul",
        "Reshape",
        "Shape",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
    ];
    OPERATORS.contains(&operator)
}

/// What an operator makes of small tensors.
///
/// # Errors
/// When the operator is not one of arithmetic, or its inputs do not fit.
pub fn evaluate(call: Call, inputs: &[Numbers]) -> Result<Numbers, Problem> {
    let result = match (call.operator(), inputs) {
        ("Shape", [data]) => shape_of(call, &data.shape)?,
        ("Cast", [data]) => cast(call, data)?,
        ("Floor", [data]) => map(data, f64::floor),
        ("Ceil", [data]) => map(data, f64::ceil),
        ("Add", [a, b]) => combine(call, a, b, |a, b| a + b)?,
        ("Sub", [a, b]) => combine(call, a, b, |a, b| a - b)?,
        ("Mul", [a, b]) => combine(call, a, b, |a, b| a * b)?,
        ("Div", [_, b]) if b.values.contains(&0.0) => return Err(call.refuse("it divides by 0")),
        ("Div", [a, b]) => combine(call, a, b, |a, b| a / b)?,
        ("Concat", [_, ..]) => concat(call, inputs)?,
        ("ConstantOfShape", [shape]) => constant_of_shape(call, shape)?,
        ("Gather", [data, indices]) => gather(call, data, indices)?,
        ("Reshape", [data, shape]) => reshape(call, data, shape)?,
        ("Slice", [data, rest @ ..]) => slice(call, data, rest)?,
        ("Squeeze", [data, rest @ ..]) => squeeze(call, data, rest.first())?,
        ("Unsqueeze", [data, rest @ ..]) => unsqueeze(call, data, rest.first())?,
        _ => return Err(call.refuse("it is not understood in arithmetic on shapes")),
    };
    match result.values.len() <= MOST && result.shape.len() <= limits::DIMENSIONS {
        true => Ok(result),
        false => Err(call.refuse(format!("shape arithmetic of {} values is not understood", result.values.len()))),
    }
}

/// The sizes of a shape, or those from `start` to `end`.
///
/// # Errors
/// When another setting is given.
pub fn shape_of(call: Call, shape: &[usize]) -> Result<Numbers, Problem> {
    call.understands(&["start", "end"])?;
    let rank = shape.len() as i64;
    let clamp = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
    let (start, end) = (clamp(call.int("start", 0)), clamp(call.int("end", rank)));
    Ok(Numbers::integers(shape.get(start..end).unwrap_or_default().iter().copied()))
}

fn map(data: &Numbers, f: impl Fn(f64) -> f64) -> Numbers {
    Numbers { values: data.values.iter().map(|&v| f(v)).collect(), ..data.clone() }
}

fn cast(call: Call, data: &Numbers) -> Result<Numbers, Problem> {
    call.understands(&["to", "saturate", "round_mode"])?;
    let to = i32::try_from(call.int("to", 0)).unwrap_or_default();
    match (tensor::float_element(to).is_some(), tensor::is_integer(to)) {
        (true, _) => Ok(Numbers { integer: false, ..data.clone() }),
        (_, true) => Ok(Numbers { integer: true, ..map(data, f64::trunc) }),
        _ => Err(call.refuse(format!("type {to} is not understood"))),
    }
}

/// Two tensors, value by value, one of which may be a single value. Integers divide towards zero.
fn combine(call: Call, a: &Numbers, b: &Numbers, f: impl Fn(f64, f64) -> f64) -> Result<Numbers, Problem> {
    let integer = a.integer && b.integer;
    let f = |a: f64, b: f64| if integer { f(a, b).trunc() } else { f(a, b) };
    // A single value takes the other's shape; of two single values the one of more dimensions decides.
    let (shape, values) = match (a.scalar(), b.scalar()) {
        (Some(a), Some(b_value)) if !b.shape.is_empty() => (&b.shape, vec![f(a, b_value)]),
        (_, Some(b)) => (&a.shape, a.values.iter().map(|&a| f(a, b)).collect()),
        (Some(a), _) => (&b.shape, b.values.iter().map(|&b| f(a, b)).collect()),
        _ if a.shape == b.shape => (&a.shape, a.values.iter().zip(&b.values).map(|(&a, &b)| f(a, b)).collect()),
        _ => return Err(call.refuse(format!("shapes {:?} and {:?} do not go together", a.shape, b.shape))),
    };
    Ok(Numbers { shape: shape.clone(), values, integer })
}

/// Rows of numbers, one after another.
fn concat(call: Call, inputs: &[Numbers]) -> Result<Numbers, Problem> {
    call.understands(&["axis"])?;
    if inputs.iter().any(|row| row.shape.len() != 1) || !matches!(call.int("axis", 0), 0 | -1) {
        return Err(call.refuse("only rows of numbers are understood"));
    }
    let values: Vec<f64> = inputs.iter().flat_map(|row| row.values.iter().copied()).collect();
    Ok(Numbers { shape: vec![values.len()], values, integer: inputs.iter().all(|row| row.integer) })
}

fn constant_of_shape(call: Call, shape: &Numbers) -> Result<Numbers, Problem> {
    call.understands(&["value"])?;
    let value = match call.attribute("value").and_then(|a| a.t.as_ref()) {
        Some(tensor) => Numbers::of_tensor("value", tensor)?,
        None => Numbers { shape: vec![], values: vec![0.0], integer: false },
    };
    let sizes: Vec<u64> = shape.values.iter().map(|&size| size as u64).collect();
    let count = limits::count(call.name(), &sizes)?;
    match (value.scalar(), count) {
        (Some(scalar), 0..=64) => Ok(Numbers {
            shape: sizes.iter().map(|&size| size as usize).collect(),
            values: vec![scalar; count as usize],
            integer: value.integer,
        }),
        _ => Err(call.refuse(format!("shape arithmetic of {count} values is not understood"))),
    }
}

/// Values of a row at indices, of which negative ones count from the end.
fn gather(call: Call, data: &Numbers, indices: &Numbers) -> Result<Numbers, Problem> {
    call.understands(&["axis"])?;
    let at = |index: i64| {
        let index = if index < 0 { index.checked_add(data.values.len() as i64)? } else { index };
        data.values.get(usize::try_from(index).ok()?).copied()
    };
    let values = indices.indices().into_iter().map(at).collect::<Option<_>>();
    match (values, &data.shape[..], call.int("axis", 0)) {
        (Some(values), [_], 0 | -1) => Ok(Numbers { shape: indices.shape.clone(), values, integer: data.integer }),
        _ => Err(call.refuse("an index is out of range, or the data is no row of numbers")),
    }
}

fn reshape(call: Call, data: &Numbers, shape: &Numbers) -> Result<Numbers, Problem> {
    call.understands(&["allowzero"])?;
    let count = data.values.len();
    let known: f64 = shape.values.iter().filter(|&&size| size != -1.0).product();
    let size = |&size: &f64| match size {
        -1.0 if known > 0.0 => count / known as usize,
        size => size as usize,
    };
    // More dimensions than this cannot come of a shape's arithmetic.
    let sizes: Vec<usize> = shape.values.iter().take(limits::DIMENSIONS).map(size).collect();
    let product = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    match product == Some(count) && sizes.len() == shape.values.len() {
        true => Ok(Numbers { shape: sizes, ..data.clone() }),
        false => Err(call.refuse(format!("{count} values do not have the shape {:?}", shape.values))),
    }
}

/// A part of a row: with inputs start, end, axes and steps, or before version 10 with settings.
fn slice(call: Call, data: &Numbers, rest: &[Numbers]) -> Result<Numbers, Problem> {
    call.understands(&["starts", "ends", "axes"])?;
    let ints = |name| call.attribute(name).map(|a| a.ints.clone());
    let part = |index: usize, name| rest.get(index).map(Numbers::indices).or_else(|| ints(name));
    let (starts, ends) = (part(0, "starts").unwrap_or_default(), part(1, "ends").unwrap_or_default());
    let axes = part(2, "axes").unwrap_or_else(|| vec![0]);
    let steps = rest.get(3).map_or_else(|| vec![1], Numbers::indices);
    let ([start], [end], [0 | -1], [1], [length]) = (&starts[..], &ends[..], &axes[..], &steps[..], &data.shape[..])
    else {
        return Err(call.refuse("only a part of a row of numbers, in steps of 1, is understood"));
    };
    let length = *length as i64;
    let clamp = |at: i64| (if at < 0 { at.saturating_add(length) } else { at }).clamp(0, length) as usize;
    let values = data.values.get(clamp(*start)..clamp(*end)).unwrap_or_default().to_vec();
    Ok(Numbers { shape: vec![values.len()], values, integer: data.integer })
}

/// The axes of an input or, before version 13, a setting.
fn axes(call: Call, input: Option<&Numbers>) -> Result<Option<Vec<i64>>, Problem> {
    call.understands(&["axes"])?;
    Ok(input.map(Numbers::indices).or_else(|| call.attribute("axes").map(|a| a.ints.clone())))
}

fn squeeze(call: Call, data: &Numbers, input: Option<&Numbers>) -> Result<Numbers, Problem> {
    let rank = data.shape.len() as i64;
    let axes = axes(call, input)?;
    let removed = |axis: i64| axes.as_ref().is_none_or(|axes| axes.iter().any(|&a| a == axis || a == axis - rank));
    let kept = data.shape.iter().enumerate().filter(|&(axis, &size)| size != 1 || !removed(axis as i64));
    Ok(Numbers { shape: kept.map(|(_, &size)| size).collect(), ..data.clone() })
}

fn unsqueeze(call: Call, data: &Numbers, input: Option<&Numbers>) -> Result<Numbers, Problem> {
    // A single number becomes a row of one; other new dimensions do not occur in shapes.
    match (axes(call, input)?.as_deref(), &data.shape[..]) {
        (Some([0 | -1]), []) => Ok(Numbers { shape: vec![1], ..data.clone() }),
        _ => Err(call.refuse("only a single number is made a row")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::{Attribute, Node};
    use super::*;

    fn row(values: &[f64]) -> Numbers {
        Numbers { shape: vec![values.len()], values: values.to_vec(), integer: true }
    }

    fn run(operator: &str, settings: &[(&str, &[i64])], inputs: &[Numbers]) -> Result<Numbers, String> {
        let setting = |(name, ints): &(&str, &[i64])| Attribute {
            name: (*name).into(),
            i: ints.first().copied().unwrap_or_default(),
            ints: ints.to_vec(),
            ..Attribute::default()
        };
        let attribute = settings.iter().map(setting).collect();
        let node = Node { op_type: operator.into(), name: "n".into(), attribute, ..Node::default() };
        evaluate(Call { node: &node, opset: 20 }, inputs).map_err(|e| e.to_string())
    }

    #[test]
    fn the_size_that_an_exporter_computes_is_found() {
        // (97 − 1) / 8 + 1 = 13, as rows of a map of stride 8, joined to a batch and channels.
        let rows = Numbers { shape: vec![], ..row(&[97.0]) };
        let less = run("Add", &[], &[Numbers { shape: vec![], ..row(&[-1.0]) }, rows]).unwrap();
        let divided = run("Div", &[], &[less, Numbers { shape: vec![], ..row(&[8.0]) }]).unwrap();
        let size = run("Add", &[], &[divided, Numbers { shape: vec![], ..row(&[1.0]) }]).unwrap();
        let size = run("Reshape", &[], &[size, row(&[-1.0])]).unwrap();
        assert_eq!(run("Concat", &[("axis", &[0])], &[row(&[1.0, 5.0]), size]).unwrap(), row(&[1.0, 5.0, 13.0]));
    }

    #[test]
    fn integers_divide_towards_zero_and_floats_do_not() {
        assert_eq!(run("Div", &[], &[row(&[-7.0, 7.0]), row(&[2.0])]).unwrap(), row(&[-3.0, 3.0]));
        let floats = Numbers { integer: false, ..row(&[7.0]) };
        let half = run("Div", &[], &[floats, row(&[2.0])]).unwrap();
        assert_eq!((half.values[0], half.integer), (3.5, false));
        assert_eq!(run("Floor", &[], std::slice::from_ref(&half)).unwrap().values, [3.0]);
        assert_eq!(run("Cast", &[("to", &[7])], &[half]).unwrap(), row(&[3.0]));
        assert!(run("Div", &[], &[row(&[1.0]), row(&[0.0])]).unwrap_err().contains("Div n: it divides by 0"));
    }

    #[test]
    fn parts_of_shapes_are_found() {
        let shape = row(&[1.0, 3.0, 32.0, 48.0]);
        let slice = |start, end| run("Slice", &[], &[shape.clone(), row(&[start]), row(&[end]), row(&[0.0])]);
        assert_eq!(slice(2.0, i64::MAX as f64).unwrap(), row(&[32.0, 48.0]));
        assert_eq!(slice(-1.0, 4.0).unwrap(), row(&[48.0]));
        assert_eq!(slice(3.0, 2.0).unwrap(), row(&[]));
        assert_eq!(
            run("Slice", &[("starts", &[0]), ("ends", &[2])], std::slice::from_ref(&shape)).unwrap(),
            row(&[1.0, 3.0])
        );
        let at = |index| run("Gather", &[], &[shape.clone(), Numbers { shape: vec![], ..row(&[index]) }]);
        assert_eq!(at(-2.0).unwrap(), Numbers { shape: vec![], ..row(&[32.0]) });
        assert!(at(4.0).unwrap_err().contains("out of range"));
        assert!(at(i64::MIN as f64).is_err());
        assert_eq!(
            run("Shape", &[("start", &[-2])], &[Numbers { shape: vec![1, 2, 3, 4], ..row(&[]) }]).unwrap(),
            row(&[3.0, 4.0])
        );
        assert_eq!(run("Squeeze", &[], &[row(&[5.0])]).unwrap().shape, [0; 0]);
        assert_eq!(
            run("Unsqueeze", &[("axes", &[0])], &[Numbers { shape: vec![], ..row(&[5.0]) }]).unwrap(),
            row(&[5.0])
        );
    }

    #[test]
    fn what_grows_or_does_not_fit_is_refused() {
        assert!(run("ConstantOfShape", &[], &[row(&[1e6, 1e6])]).unwrap_err().contains("1000000000000 values"));
        assert!(run("ConstantOfShape", &[], &[row(&[1e18, 1e18])]).unwrap_err().contains("impossible shape"));
        assert!(
            run("Concat", &[("axis", &[0])], &[row(&[0.0; 40]), row(&[0.0; 40])]).unwrap_err().contains("80 values")
        );
        assert!(
            run("Add", &[], &[row(&[1.0, 2.0]), row(&[1.0, 2.0, 3.0])]).unwrap_err().contains("do not go together")
        );
        assert!(run("Reshape", &[], &[row(&[1.0, 2.0]), row(&[1e300, -1.0])]).is_err());
        assert!(run("Tile", &[], &[row(&[1.0])]).unwrap_err().contains("not understood in arithmetic on shapes"));
    }
}
