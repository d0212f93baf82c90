//! The onnx package's own test vectors through intseg's kernels, where the definitions coincide.
//!
//! `INTSEG_PEERS_PYTHON` names a Python with `tests/peers/requirements.txt`; without it the test is skipped.
//! `scripts/peer-tests.sh` makes one and runs it. What coincides, and why the rest does not, is in `docs/conformance.md`,
//! which the test keeps true; `INTSEG_WRITE=1` writes it anew.

use intseg_kernels::average_pool::AveragePool;
use intseg_kernels::max_pool::{self, MaxPool};
use intseg_kernels::resize::{Interpolation, Resize, Tap};
use intseg_kernels::{Context, Conv2d, Convolution, Direction, Input, Line, Requantizer, Weights, deploy};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Deserialize)]
struct Case {
    name: String,
    operator: String,
    attributes: Map<String, Value>,
    inputs: Vec<Option<Tensor>>,
    outputs: Vec<Tensor>,
}

#[derive(Clone, Deserialize)]
struct Tensor {
    r#type: String,
    shape: Vec<usize>,
    data: Vec<f64>,
}

/// Why a case cannot be run by intseg.
type Differs = &'static str;

/// What intseg computes, as real numbers in ONNX's layout, and how far each may be off: half a unit in which it counts.
type Outcome = Result<(Vec<f64>, f64), Differs>;

/// The fraction bits that random floats get.
const FRACTION: f64 = 4096.0;

impl Tensor {
    fn map(&self) -> Result<[usize; 4], Differs> {
        <[usize; 4]>::try_from(&self.shape[..]).map_err(|_| "not two-dimensional")
    }

    /// `[N, C, H, W]` as `[N, H, W, C]`, in whole units of `1 / unit`.
    fn nhwc<T: TryFrom<i64>>(&self, unit: f64) -> Result<Vec<T>, Differs> {
        let [n, c, h, w] = self.map()?;
        let mut values = Vec::with_capacity(self.data.len());
        for at in 0..n * h * w * c {
            let (k, pixel) = (at % c, at / c);
            let value = self.data[(pixel / (h * w) * c + k) * h * w + pixel % (h * w)] * unit;
            values.push(T::try_from(value.round_ties_even() as i64).map_err(|_| "values beyond the type")?);
        }
        Ok(values)
    }

    fn whole(&self) -> bool {
        self.data.iter().all(|v| v.fract() == 0.0)
    }
}

/// `[N, H, W, C]` as ONNX's `[N, C, H, W]`, in reals.
fn nchw<T: Copy + Into<i64>>(values: &[T], [c, h, w]: [usize; 3], unit: f64) -> Vec<f64> {
    let image = c * h * w;
    let place = |at: usize| (at / image * image) + (at % (h * w)) * c + at % image / (h * w);
    (0..values.len()).map(|at| values[place(at)].into() as f64 / unit).collect()
}

impl Case {
    fn input(&self, k: usize) -> Option<&Tensor> {
        self.inputs.get(k)?.as_ref()
    }

    fn text(&self, name: &str) -> &str {
        self.attributes.get(name).and_then(Value::as_str).unwrap_or("")
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.attributes.get(name).and_then(Value::as_i64).unwrap_or(default)
    }

    fn ints(&self, name: &str) -> Option<Vec<usize>> {
        let values = self.attributes.get(name)?.as_array()?;
        Some(values.iter().filter_map(|v| v.as_u64().map(|v| v as usize)).collect())
    }

    fn pair(&self, name: &str, default: [usize; 2]) -> [usize; 2] {
        self.ints(name).and_then(|values| values.try_into().ok()).unwrap_or(default)
    }

    /// Padding that is the same on both sides.
    fn padding(&self) -> Result<[usize; 2], Differs> {
        if !matches!(self.text("auto_pad"), "" | "NOTSET") {
            return Err("padding that the operator chooses (auto_pad)");
        }
        match self.ints("pads").as_deref() {
            None => Ok([0; 2]),
            Some(&[a, b, c, d]) if [a, b] == [c, d] => Ok([a, b]),
            Some(_) => Err("padding that differs from side to side"),
        }
    }

    fn run(&self) -> Outcome {
        let first = self.input(0).ok_or("no input")?;
        if self.inputs.iter().flatten().chain(&self.outputs).any(|tensor| tensor.r#type == "object") {
            return Err("types of 2 or 4 bits, or 8-bit floats");
        }
        if self.outputs.len() > 1 {
            return Err("the places of the maxima as a second output");
        }
        match self.operator.as_str() {
            "Conv" | "ConvInteger" | "QLinearConv" => self.conv(first),
            "ConvTranspose" => self.conv_transpose(first),
            "MaxPool" | "AveragePool" => self.pool(first),
            "GlobalAveragePool" => self.global_average(first),
            "Resize" => self.resize(first),
            "QuantizeLinear" | "DequantizeLinear" => self.linear(first),
            _ => Err("no operator of intseg"),
        }
    }

    /// An input less its zero point, which the third or a later input gives.
    fn centred(&self, k: usize, zero: usize) -> Result<Tensor, Differs> {
        let mut tensor = self.input(k).ok_or("no input")?.clone();
        let zeros = self.input(zero).map_or(&[][..], |zero| &zero.data[..]);
        // One for all, or one for each output channel, the outermost dimension of weights.
        let channel = tensor.data.len() / zeros.len().max(1);
        for (values, zero) in tensor.data.chunks_mut(channel.max(1)).zip(zeros) {
            values.iter_mut().for_each(|v| *v -= zero);
        }
        Ok(tensor)
    }

    fn conv(&self, first: &Tensor) -> Outcome {
        let (x, w) = match self.operator.as_str() {
            "QLinearConv" => (self.centred(0, 2)?, self.centred(3, 5)?),
            "ConvInteger" => (self.centred(0, 2)?, self.centred(1, 3)?),
            _ => (first.clone(), self.input(1).ok_or("no weights")?.clone()),
        };
        let ([batch, c_in, in_h, in_w], [c_out, _, kh, kw]) = (x.map()?, w.map()?);
        if !x.whole() || !w.whole() {
            return Err("random floats as weights");
        }
        let geometry = Conv2d {
            batch,
            in_h,
            in_w,
            c_in,
            c_out,
            kernel: [kh, kw],
            stride: self.pair("strides", [1; 2]),
            dilation: self.pair("dilations", [1; 2]),
            padding: self.padding()?,
        };
        let weights = weights(&w, [kh, kw, c_in, c_out], |[y, x, i, o]| ((o * c_in + i) * kh + y) * kw + x)?;
        let sums = convolve(geometry, Direction::Forward, &x, &weights)?;
        if self.operator == "QLinearConv" {
            return Err("scales that are no powers of two between 8-bit types of other ranges");
        }
        Ok((nchw(&sums, [c_out, geometry.out_h(), geometry.out_w()], 1.0), 0.0))
    }

    fn conv_transpose(&self, x: &Tensor) -> Outcome {
        let w = self.input(1).ok_or("no weights")?;
        let ([batch, c_in, h, w_in], [_, c_out, kh, kw]) = (x.map()?, w.map()?);
        if self.int("group", 1) != 1 {
            return Err("groups");
        }
        if self.ints("output_shape").is_some() {
            return Err("padding that follows from a wanted size (output_shape)");
        }
        let (stride, dilation) = (self.pair("strides", [1; 2]), self.pair("dilations", [1; 2]));
        let (padding, extra) = (self.padding()?, self.pair("output_padding", [0; 2]));
        let size = |axis: usize, size: usize, kernel: usize| {
            (size - 1) * stride[axis] + dilation[axis] * (kernel - 1) + 1 + extra[axis] - 2 * padding[axis]
        };
        let (in_h, in_w, kernel) = (size(0, h, kh), size(1, w_in, kw), [kh, kw]);
        let geometry = Conv2d { batch, in_h, in_w, c_in: c_out, c_out: c_in, kernel, stride, dilation, padding };
        let weights = weights(w, [kh, kw, c_out, c_in], |[y, x, o, i]| ((i * c_out + o) * kh + y) * kw + x)?;
        let sums = convolve(geometry, Direction::Transposed, x, &weights)?;
        Ok((nchw(&sums, [c_out, in_h, in_w], 1.0), 0.0))
    }

    fn pool(&self, x: &Tensor) -> Outcome {
        let [batch, channels, h, w] = x.map()?;
        if self.ints("dilations").is_some_and(|dilations| dilations.iter().any(|&d| d != 1)) {
            return Err("dilated windows of pooling");
        }
        let kernel = self.pair("kernel_shape", [1; 2]);
        let (stride, padding) = (self.pair("strides", [1; 2]), self.padding()?);
        let (input, ceil) = ([h, w], self.int("ceil_mode", 0) == 1);
        let output = max_pool::output_size(input, kernel, stride, padding, ceil).ok_or("a window beyond the input")?;
        let values: Vec<i16> = x.nhwc(FRACTION / 4.0)?;
        let mut out = vec![0i16; batch * output[0] * output[1] * channels];
        let ctx = Context::reference();
        let shape = [channels, output[0], output[1]];
        if self.operator == "MaxPool" {
            MaxPool { batch, input, output, channels, kernel, stride, padding }.forward(
                ctx,
                &mut out,
                &mut [],
                &values,
            );
            return Ok((nchw(&out, shape, FRACTION / 4.0), 2.0 / FRACTION));
        }
        let count_padding = self.int("count_include_pad", 0) == 1;
        AveragePool { batch, input, output, channels, kernel, stride, padding, count_padding }
            .forward(ctx, &mut out, &values);
        // Half a unit of the inputs, and half of the mean.
        Ok((nchw(&out, shape, FRACTION / 4.0), 4.0 / FRACTION))
    }

    fn global_average(&self, x: &Tensor) -> Outcome {
        let [batch, channels, h, w] = x.map()?;
        let values: Vec<i16> = x.nhwc(FRACTION / 4.0)?;
        let input = [h, w];
        let pool = AveragePool {
            batch,
            input,
            output: [1; 2],
            channels,
            kernel: input,
            stride: [1; 2],
            padding: [0; 2],
            count_padding: false,
        };
        let mut out = vec![0i16; batch * channels];
        pool.forward(Context::reference(), &mut out, &values);
        Ok((nchw(&out, [channels, 1, 1], FRACTION / 4.0), 4.0 / FRACTION))
    }

    fn resize(&self, x: &Tensor) -> Outcome {
        let [_, channels, h, w] = x.map()?;
        let mode = match self.text("mode") {
            "" => "nearest",
            mode => mode,
        };
        let coordinates = match self.text("coordinate_transformation_mode") {
            "" => "half_pixel",
            mode => mode,
        };
        let [_, _, out_h, out_w] = self.outputs[0].map()?;
        let input = [h, w];
        let whole = out_h.is_multiple_of(h) && out_w.is_multiple_of(w);
        let exact = match self.input(2) {
            Some(scales) => {
                let [y, x] = [scales.data[scales.data.len() - 2], scales.data[scales.data.len() - 1]];
                // Scales may be given by axes, in any order; both are then the sizes' too.
                self.ints("axes").is_some() || (y * h as f64, x * w as f64) == (out_h as f64, out_w as f64)
            }
            None => true,
        };
        match mode {
            "cubic" => return Err("cubic interpolation"),
            _ if self.int("antialias", 0) == 1 => return Err("antialiased resizing"),
            "linear" if !matches!(coordinates, "half_pixel" | "align_corners") => {
                return Err("coordinates other than half-pixel centres and aligned corners");
            }
            "linear" if !exact => {
                return Err("a scale other than that of the sizes, which the coordinates follow");
            }
            "nearest" if !(whole && coordinates == "half_pixel" && self.text("nearest_mode").is_empty()) => {
                return Err("nearest values at other than whole factors, or of other coordinates");
            }
            _ => {}
        }
        let values: Vec<i16> = x.nhwc(FRACTION / 4.0)?;
        let (mut rows, mut columns) = (vec![Tap::default(); out_h], vec![Tap::default(); out_w]);
        let interpolation = match mode {
            "nearest" => Interpolation::Nearest,
            _ => Interpolation::linear(coordinates == "align_corners"),
        };
        let denominators = [interpolation.axis(&mut rows, h), interpolation.axis(&mut columns, w)];
        let mut out = vec![0i16; out_h * out_w * channels];
        Resize { input, channels, rows: &rows, columns: &columns, denominators }.forward(
            Context::reference(),
            &mut out,
            &values,
        );
        Ok((nchw(&out, [channels, out_h, out_w], FRACTION / 4.0), 2.001 / FRACTION))
    }

    /// Scales that are powers of two are a requantisation: `(x · m + b) / 2^s` to nearest, clamped to the type.
    fn linear(&self, x: &Tensor) -> Outcome {
        if self.int("block_size", 0) != 0 {
            return Err("a scale for each block of values");
        }
        let scale = self.input(1).ok_or("no scale")?;
        let zero = |k: usize| self.input(2).map_or(0.0, |zero| zero.data[k]);
        let quantize = self.operator == "QuantizeLinear";
        let [low, high] = match (quantize, self.outputs[0].r#type.as_str()) {
            (false, _) => [i32::MIN, i32::MAX],
            (true, "uint8") => [0, 255],
            (true, "int8") => [-128, 127],
            (true, "int16") => [-32_768, 32_767],
            _ => return Err("unsigned 16-bit values"),
        };
        let channels = scale.data.len();
        let inner: usize = if channels > 1 { x.shape[2..].iter().product() } else { 1 };
        let mut out = Vec::with_capacity(x.data.len());
        for (at, &value) in x.data.iter().enumerate() {
            let k = if channels > 1 { at / inner % channels } else { 0 };
            let exponent = scale.data[k].log2();
            if exponent.fract() != 0.0 {
                return Err("scales that are no powers of two");
            }
            let exponent = if quantize { -exponent } else { exponent } as i32;
            let (multiplier, shift) = if exponent >= 0 { (1 << exponent, 0) } else { (1, exponent.unsigned_abs()) };
            let offset = if quantize { (zero(k) as i64) << shift } else { -(zero(k) as i64) * multiplier };
            let input = [(value as i64).try_into().map_err(|_| "values beyond 16 bits")?];
            if value.fract() != 0.0 {
                return Err("random floats as input");
            }
            let requantizer =
                Requantizer { multiplier: &[multiplier as i32], bias: &[offset], shift: &[shift as u8], low, high };
            let mut result = [0i32];
            deploy::affine::<i16, i32>(Context::reference(), &mut result, &input, requantizer, |v| v);
            out.push(f64::from(result[0]));
        }
        Ok((out, 0.0))
    }
}

/// Weights as `[KH, KW, C_in, C_out]` of the forward convolution; `place` says where ONNX has each.
fn weights(w: &Tensor, shape: [usize; 4], place: impl Fn([usize; 4]) -> usize) -> Result<Vec<i8>, Differs> {
    let [kh, kw, c_in, c_out] = shape;
    let index = |at: usize| [at / (kw * c_in * c_out), at / (c_in * c_out) % kw, at / c_out % c_in, at % c_out];
    let value = |at: usize| w.data[place(index(at))];
    let fits = |v: f64| if v.fract() == 0.0 && v.abs() <= 127.0 { Ok(v as i8) } else { Err("weights beyond ±127") };
    (0..kh * kw * c_in * c_out).map(|at| fits(value(at))).collect()
}

fn convolve(geometry: Conv2d, direction: Direction, x: &Tensor, weights: &[i8]) -> Result<Vec<i32>, Differs> {
    let input: Vec<u8> = x.nhwc(1.0)?;
    let plan = Convolution { geometry, direction, signed: false };
    let len = if direction == Direction::Forward { geometry.output_len() } else { geometry.input_len() };
    let mut results = Vec::new();
    for isa in intseg_kernels::Isa::available() {
        let ctx = Context { isa, ..Context::reference() };
        let mut packed = vec![Line::ZERO; plan.packed_len(isa)];
        plan.pack(ctx, &mut packed, weights);
        let (mut sums, mut scratch) = (vec![0; len], vec![0; plan.scratch_len(ctx)]);
        plan.run(ctx, &mut sums, Input::U8(&input), Weights { raw: weights, packed: &packed }, &mut scratch);
        results.push(sums);
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "instruction sets differ");
    Ok(results.swap_remove(0))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document(agreeing: &[&Case], differing: &[(&Case, Differs)]) -> String {
    let mut text = format!(
        "# ONNX's own test vectors\n\n\
         The `onnx` package brings test vectors for each operator. Those of the operators that intseg has are run through its kernels, on every\n\
         instruction set where convolutions are concerned, by `scripts/peer-tests.sh`; this page is what that test found, and it fails when the page\n\
         is not true any more. Convolutions and quantisation are compared exactly; pooling and resizing of floats in units of 2^-10, to within\n\
         one.\n\n## The same: {} of {}\n\n",
        agreeing.len(),
        agreeing.len() + differing.len()
    );
    let mut operators: Vec<&str> = agreeing.iter().map(|case| case.operator.as_str()).collect();
    operators.dedup();
    operators.sort_unstable();
    operators.dedup();
    for operator in operators {
        let cases = agreeing.iter().filter(|case| case.operator == operator);
        let names: Vec<String> = cases.map(|case| format!("`{}`", case.name.trim_start_matches("test_"))).collect();
        text += &format!("- **{operator}**: {}\n", names.join(", "));
    }
    text += &format!(
        "\n## Another definition: {}\n\n| what intseg does not have | vectors |\n|---|---|\n",
        differing.len()
    );
    let mut reasons: Vec<&str> = differing.iter().map(|(_, reason)| *reason).collect();
    reasons.sort_unstable();
    reasons.dedup();
    for reason in reasons {
        let cases = differing.iter().filter(|(_, other)| *other == reason);
        let names: Vec<String> =
            cases.map(|(case, _)| format!("`{}`", case.name.trim_start_matches("test_"))).collect();
        text += &format!("| {reason} | {} |\n", names.join(", "));
    }
    text
}

#[test]
fn onnx_s_test_vectors_agree_where_the_definitions_coincide() {
    let Some(python) = std::env::var_os("INTSEG_PEERS_PYTHON") else {
        eprintln!("skipped: INTSEG_PEERS_PYTHON is not set, see scripts/peer-tests.sh");
        return;
    };
    let output = Command::new(python).arg(root().join("tests/peers/vectors.py")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let cases: Vec<Case> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(cases.len() > 100, "{} cases", cases.len());
    let (mut agreeing, mut differing) = (Vec::new(), Vec::new());
    for case in &cases {
        match case.run() {
            Err(reason) => differing.push((case, reason)),
            Ok((values, tolerance)) => {
                let wanted = &case.outputs[0].data;
                assert_eq!(values.len(), wanted.len(), "{}", case.name);
                for (at, (found, wanted)) in values.iter().zip(wanted).enumerate() {
                    assert!((found - wanted).abs() <= tolerance, "{} at {at}: {found} for {wanted}", case.name);
                }
                agreeing.push(case);
            }
        }
    }
    let (path, found) = (root().join("docs/conformance.md"), document(&agreeing, &differing));
    if std::env::var_os("INTSEG_WRITE").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    println!("{} of {} test vectors run and agree", agreeing.len(), cases.len());
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == found, "docs/conformance.md is not what was found; INTSEG_WRITE=1 writes it anew");
}
