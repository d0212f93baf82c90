//! `model.h` and `model.c`: constants, and the operators' calls in their order.

use super::ExportError;
use super::layout::{Layout, padded_taps};
use super::operators::{Element, Operator, Operators, max_pool_name, resize_name};
use crate::fold::Metadata;
use intseg_kernels::resize::Coordinates;
use intseg_runtime::{Alignment, Conv, Interpolation, Model, Node, Op, Requantization, Shape};
use std::fmt::{Display, Write};

/// `model.h`.
pub(super) fn header(metadata: &Metadata, layout: &Layout) -> String {
    let Shape { h, w, .. } = layout.slots[0].shape;
    let classes = layout.slots[layout.slots.len() - 1].shape.c;
    let (words, taps) = (layout.map_bytes / 2, layout.taps);
    let arch = comment(&metadata.arch);
    let (strips, rows, class_rows) = (layout.classes.len(), layout.most_rows(0), layout.most_class_rows());
    let logits_row = layout.logits_row;
    format!(
        r#"/* {arch}, exported by intseg for images of {h} rows and {w} columns. */
#ifndef MODEL_H
#define MODEL_H

#include "intseg_nn.h"

#define MODEL_HEIGHT {h}
#define MODEL_WIDTH {w}
#define MODEL_CLASSES {classes}
/* The image is classified in so many horizontal strips, whose rows overlap as the network's view demands. */
#define MODEL_STRIPS {strips}
/* The most rows of the image and of the class map that a strip reads and writes. */
#define MODEL_STRIP_IMAGE_ROWS {rows}
#define MODEL_STRIP_CLASS_ROWS {class_rows}

/* The memory of a run. Its content does not matter before or after. */
typedef struct {{
    int32_t logits_row[{logits_row}];
    uint8_t scratch[INTSEG_CONV_SCRATCH({taps})];
    /* Maps of 16 bits, and of 8 bits as bytes, one in the place of another that has been read. */
    int16_t maps[{words}];
}} model_arena;

/* Some rows: of the image those that a strip reads, of the class map those that it writes. */
typedef struct {{
    int32_t first, rows;
}} model_rows;

/* The classes' names and colours. */
extern const char *const model_class_names[MODEL_CLASSES];
extern const uint8_t model_palette[MODEL_CLASSES][3];

model_rows model_image_rows(int32_t strip);
model_rows model_class_rows(int32_t strip);

/* Classifies one strip. `image` holds the rows [model_image_rows][MODEL_WIDTH][3] of RGB bytes, `classes` takes the
 * rows [model_class_rows][MODEL_WIDTH]. Strips may be run in any order. */
void model_strip(int32_t strip, const uint8_t *image, uint8_t *classes, model_arena *arena);

/* Classifies a whole image, [MODEL_HEIGHT][MODEL_WIDTH][3], into [MODEL_HEIGHT][MODEL_WIDTH]. */
void model_classify(const uint8_t *image, uint8_t *classes, model_arena *arena);

#endif
"#
    )
}

/// `model.c`, and the bytes of its constants.
pub(super) fn source(
    model: &Model,
    metadata: &Metadata,
    layout: &Layout,
    operators: &mut Operators,
) -> Result<(String, usize), ExportError> {
    let mut source =
        Source { model, layout, operators, constants: String::new(), calls: String::new(), constant_bytes: 0 };
    let nodes: Vec<Node> = model.nodes().collect();
    for (index, node) in nodes.iter().enumerate() {
        source.map(index);
        let failed = |problem| ExportError::Layer { name: node.name.to_owned(), problem };
        source.node(index, node).map_err(failed)?;
    }
    source.classify().map_err(|problem| ExportError::Layer { name: "the class map".into(), problem })?;
    Ok((source.finish(metadata), source.constant_bytes))
}

struct Source<'a> {
    model: &'a Model<'a>,
    layout: &'a Layout,
    operators: &'a mut Operators,
    constants: String,
    calls: String,
    constant_bytes: usize,
}

/// Text that cannot end a C comment.
fn comment(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect::<String>().replace("*/", "").replace("/*", "")
}

/// A C string.
fn string(text: &str) -> String {
    let escaped = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'?' => format!("\\{}", char::from(byte)),
        b' '..=b'~' => char::from(byte).to_string(),
        other => format!("\\{other:03o}"),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// The values of an array, some a line.
fn values<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let mut text = String::new();
    let mut column = 0;
    for value in values {
        let value = format!("{value},");
        if column + value.len() > 110 || column == 0 {
            text += "\n    ";
            column = 0;
        } else {
            text += " ";
        }
        column += value.len() + 1;
        text += &value;
    }
    text
}

/// What the operator reads along an axis from `size` to `out`.
fn axis(size: usize, out: usize, align_corners: bool) -> Result<(String, u64), &'static str> {
    let Coordinates { step, start, denominator } = Coordinates::new(size, out, align_corners);
    // Positions, and weights times 16-bit values, in 32 bits.
    let farthest = step as u64 * out as u64 + start.unsigned_abs();
    if farthest > i32::MAX as u64 || denominator > 1 << 15 {
        return Err("its coordinates leave 32 bits; use a smaller image");
    }
    Ok((format!("{{{step}, {start}, {denominator}, {size}}}"), denominator as u64))
}

impl Source<'_> {
    fn constant(&mut self, c_type: &str, bytes: usize, name: &str, content: &str) {
        self.constant_bytes += bytes;
        let _ = writeln!(self.constants, "static const {c_type} {name} = {{{content}\n}};");
    }

    /// Declares the map of a node.
    fn map(&mut self, index: usize) {
        let Shape { h, w, c } = self.layout.slots[index].shape;
        let _ = writeln!(
            self.calls,
            "    const intseg_map m{index} = {{{h}, {w}, {c}, rows[{index}][0], rows[{index}][1]}};"
        );
    }

    /// Where a node's output is, without its type.
    fn place(&self, index: usize) -> String {
        match (index, self.layout.slots[index].wide()) {
            (0, _) => "image".into(),
            (_, true) => format!("arena->maps + {}", self.layout.offsets[index] / 2),
            (_, false) => format!("bytes + {}", self.layout.offsets[index]),
        }
    }

    /// A node's output from the first row on that another node has.
    fn aligned(&self, index: usize, reader: usize) -> String {
        format!("{} + intseg_skip(&m{index}, &m{reader})", self.place(index))
    }

    /// The 8-bit and the 16-bit output argument.
    fn outputs(&self, index: usize) -> String {
        match self.layout.slots[index].wide() {
            false => format!("{}, NULL", self.place(index)),
            true => format!("NULL, {}", self.place(index)),
        }
    }

    fn element(&self, index: usize) -> Element {
        if self.layout.slots[index].wide() { Element::I16 } else { Element::U8 }
    }

    fn call(&mut self, text: &str) {
        let _ = writeln!(self.calls, "    {text};");
    }

    fn node(&mut self, index: usize, node: &Node) -> Result<(), &'static str> {
        if index > 0 && node.element == intseg_runtime::Element::I8 && !matches!(node.op, Op::Pad(_)) {
            return Err("activations of both signs are not written as C");
        }
        let name = comment(node.name);
        let _ = writeln!(self.calls, "    /* {name} */");
        let out = format!("{}, &m{index}", self.outputs(index));
        match &node.op {
            Op::Image => self.call("(void)bytes"),
            Op::Conv(conv) if conv.transposed.is_some() => {
                return Err("transposed convolutions are not written as C");
            }
            Op::Conv(conv) => {
                let input = node.input(0);
                self.conv(index, node, conv, self.layout.slots[input].element == intseg_runtime::Element::I8)?;
                let from = self.place(input);
                self.call(&format!("intseg_convolve(&conv_{index}, {out}, {from}, &m{input}, arena->scratch)"));
            }
            Op::Affine(_) if !self.layout.slots[node.input(0)].wide() => {
                return Err("an affine map of 8 bits is not written as C");
            }
            Op::Affine(requantization) => {
                self.operators.need(Operator::Affine);
                let bounds = vec![1 << 15; requantization.channels()];
                let scale = self.scale(index, node, requantization, &bounds)?;
                self.constant("intseg_scale", 0, &format!("affine_{index}"), &format!("\n    {scale}"));
                let from = self.aligned(node.input(0), index);
                self.call(&format!("intseg_affine(&affine_{index}, {out}, {from})"));
            }
            Op::Add => self.add(index, node, &out)?,
            Op::MaxPool { kernel, stride, padding, .. } => {
                let (input, element) = (node.input(0), self.element(index));
                self.operators.need(Operator::MaxPool(element));
                for (role, [a, b]) in [("kernel", kernel), ("stride", stride), ("padding", padding)] {
                    self.constant("int32_t", 8, &format!("pool_{index}_{role}[2]"), &format!("{a}, {b}"));
                }
                let (function, to, from) = (max_pool_name(element), self.place(index), self.place(input));
                self.call(&format!(
                    "{function}(pool_{index}_kernel, pool_{index}_stride, pool_{index}_padding, {to}, &m{index}, \
                     {from}, &m{input})"
                ));
            }
            Op::GlobalAveragePool => self.average_pool(index, node)?,
            Op::Resize { interpolation, .. } => self.resize(index, node, *interpolation)?,
            Op::Depthwise(_) | Op::Table(_) | Op::Product(_) => return Err(super::layout::NOT_AS_C),
            Op::AveragePool { .. } => return Err("average pooling over windows is not written as C"),
            Op::Pad(pad) => {
                self.operators.need(Operator::Pad);
                // Of both signs there is the image alone, which is C's as it came.
                let flip = if node.element == intseg_runtime::Element::I8 { 0x80 } else { 0 };
                let pixel: Vec<String> = pad.pixel.iter().map(|bits| (bits ^ flip).to_string()).collect();
                let ([y, x], input) = (pad.padding, node.input(0));
                self.constant("int32_t", 8, &format!("pad_{index}_padding[2]"), &format!("{y}, {x}"));
                let name = format!("pad_{index}_pixel[{}]", pixel.len());
                self.constant("uint8_t", pixel.len(), &name, &pixel.join(", "));
                let (to, from) = (self.place(index), self.place(input));
                self.call(&format!(
                    "intseg_pad(pad_{index}_padding, pad_{index}_pixel, {to}, &m{index}, {from}, &m{input})"
                ));
            }
            Op::Concat => {
                self.operators.need(Operator::Concat);
                let mut channel = 0;
                for input in node.inputs() {
                    let (to, from) = (self.place(index), self.place(input));
                    self.call(&format!("intseg_concat({to}, &m{index}, {channel}, {from}, &m{input})"));
                    channel += self.layout.slots[input].shape.c;
                }
            }
        }
        Ok(())
    }

    fn conv(&mut self, index: usize, node: &Node, conv: &Conv, image: bool) -> Result<(), &'static str> {
        self.operators.need(Operator::Conv);
        let taps = conv.weights.len() / conv.c_out;
        let row = padded_taps(conv.weights.len(), conv.c_out);
        let mut weights = vec![0i8; row * conv.c_out];
        for (tap, channels) in conv.weights.chunks_exact(conv.c_out).enumerate() {
            channels.iter().enumerate().for_each(|(c, &w)| weights[c * row + tap] = w);
        }
        let rows = || weights.chunks_exact(row);
        let sums: Vec<i32> = rows().map(|row| row.iter().map(|&w| i32::from(w)).sum()).collect();
        let largest = if image { 128 } else { 255 };
        let bounds: Vec<u64> =
            rows().map(|row| row.iter().map(|&w| u64::from(w.unsigned_abs()) * largest).sum()).collect();
        let scale = self.scale(index, node, &conv.requantization, &bounds)?;
        let channels = conv.c_out;
        self.constant("int8_t", weights.len(), &format!("weights_{index}[{}]", weights.len()), &values(weights.iter()));
        self.constant("int32_t", 4 * channels, &format!("weight_sums_{index}[{channels}]"), &values(sums));
        let pair = |[a, b]: [usize; 2]| format!("{{{a}, {b}}}");
        let geometry = [conv.kernel, conv.stride, conv.dilation, conv.padding].map(pair).join(", ");
        let zero = if image { 128 } else { 0 };
        self.constant(
            "intseg_conv",
            64,
            &format!("conv_{index}"),
            &format!("\n    {geometry}, {zero}, {taps}, {row}, weights_{index}, weight_sums_{index},\n    {{{scale}}}"),
        );
        Ok(())
    }

    /// Writes the constants of a requantisation of values up to `bounds`; the initialiser of what points to them.
    fn scale(
        &mut self,
        index: usize,
        node: &Node,
        requantization: &Requantization,
        bounds: &[u64],
    ) -> Result<String, &'static str> {
        let channels = requantization.channels();
        let shifts = requantization.shifts();
        let constants = |unit: u8| -> Result<Vec<Constants>, &'static str> {
            let channels = requantization.multipliers().zip(requantization.biases()).zip(shifts).zip(bounds);
            channels.map(|(((m, b), &shift), &bound)| Constants::new(m, b, shift, bound, unit)).collect()
        };
        let smallest = shifts.iter().copied().min().unwrap_or(33);
        let (unit, constants) = match constants(0) {
            Ok(constants) => (0, constants),
            Err(_) => (33 - smallest.min(33), constants(33 - smallest.min(33))?),
        };
        let multipliers = constants.iter().map(|channel| channel.multiplier);
        let biases = constants.iter().map(|channel| format!("0x{:016x}u", channel.bias));
        let shifts = constants.iter().map(|channel| channel.shift);
        self.constant("int32_t", 4 * channels, &format!("multiplier_{index}[{channels}]"), &values(multipliers));
        self.constant("uint64_t", 8 * channels, &format!("bias_{index}[{channels}]"), &values(biases));
        self.constant("uint8_t", channels, &format!("shift_{index}[{channels}]"), &values(shifts));
        let [low, high] = node.clamp;
        Ok(format!("multiplier_{index}, bias_{index}, shift_{index}, {}, {low}, {high}", 1 << unit))
    }

    fn add(&mut self, index: usize, node: &Node, out: &str) -> Result<(), &'static str> {
        let inputs = [node.input(0), node.input(1)];
        let exponents = inputs.map(|input| self.layout.slots[input].exponent);
        let alignment = Alignment::new(exponents, node.exponent).ok_or("its exponents are too far apart")?;
        let fits = alignment.inputs.iter().all(|shift| (0..=14).contains(shift)) && alignment.sum <= 30;
        let function = if fits { "intseg_add" } else { "intseg_add_wide" };
        self.operators.need(if fits { Operator::Add } else { Operator::AddWide });
        let [p, q] = alignment.inputs.map(|shift| shift.max(-62));
        let ([low, high], sum) = (node.clamp, alignment.sum);
        self.constant("intseg_sum", 20, &format!("sum_{index}"), &format!("{{{p}, {q}}}, {sum}, {low}, {high}"));
        for (letter, input) in ["a", "b"].into_iter().zip(inputs) {
            let from = self.aligned(input, index);
            let term = if self.layout.slots[input].wide() { format!("NULL, {from}") } else { format!("{from}, NULL") };
            self.call(&format!("const intseg_term {letter}{index} = {{{term}}}"));
        }
        self.call(&format!("{function}(&sum_{index}, {out}, a{index}, b{index})"));
        Ok(())
    }

    fn average_pool(&mut self, index: usize, node: &Node) -> Result<(), &'static str> {
        self.operators.need(Operator::AveragePool);
        let input = node.input(0);
        let Shape { h, w, .. } = self.layout.slots[input].shape;
        if h * w * 255 > u32::MAX as usize {
            return Err("its sums leave 32 bits; use a smaller image");
        }
        if node.clamp[0] > 0 {
            return Err("its smallest output is not 0");
        }
        let shift = node.exponent - self.layout.slots[input].exponent;
        let (up, down, high) = ((-shift).max(0), shift.max(0), node.clamp[1]);
        let (to, from) = (self.place(index), self.place(input));
        self.call(&format!("intseg_average_pool({to}, {from}, &m{input}, {up}, {down}, {high})"));
        Ok(())
    }

    fn axes(&mut self, name: &str, from: Shape, to: Shape, aligned: bool) -> Result<u64, &'static str> {
        let rows = axis(from.h, to.h, aligned)?;
        let columns = axis(from.w, to.w, aligned)?;
        self.constant("intseg_axis", 32, &format!("{name}[2]"), &format!("\n    {}, {}", rows.0, columns.0));
        Ok(rows.1 * columns.1)
    }

    fn resize(&mut self, index: usize, node: &Node, interpolation: Interpolation) -> Result<(), &'static str> {
        let aligned = match interpolation {
            Interpolation::Linear => false,
            Interpolation::LinearAligned => true,
            Interpolation::Nearest => return Err("resizing to the nearest value is not written as C"),
        };
        let (input, element) = (node.input(0), self.element(index));
        let shapes = [input, index].map(|node| self.layout.slots[node].shape);
        let divisor = self.axes(&format!("axes_{index}"), shapes[0], shapes[1], aligned)?;
        let wide = divisor << 15 > i32::MAX as u64;
        self.operators.need(Operator::Resize(element, wide));
        let (function, to, from) = (resize_name(element, wide), self.place(index), self.place(input));
        self.call(&format!("{function}(axes_{index}, {to}, &m{index}, {from}, &m{input})"));
        Ok(())
    }

    fn classify(&mut self) -> Result<(), &'static str> {
        let logits = self.layout.slots.len() - 1;
        let (image, shape) = (self.layout.slots[0].shape, self.layout.slots[logits].shape);
        let divisor = self.axes("axes_classes", shape, image, self.model.align_corners)?;
        // The executor's: sums of 16-bit logits that leave 31 bits lose the lowest.
        let shift = (64 - (divisor << 15).leading_zeros()).saturating_sub(30);
        self.operators.need(Operator::Classify(shift));
        let Shape { h, w, .. } = image;
        self.call(&format!("const intseg_map map = {{{h}, {w}, 1, strip_rows[strip][0], strip_rows[strip][1]}}"));
        let from = self.place(logits);
        self.call(&format!("intseg_classify(axes_classes, classes, &map, {from}, &m{logits}, arena->logits_row)"));
        Ok(())
    }

    fn finish(&self, metadata: &Metadata) -> String {
        let names = values(metadata.classes.iter().map(|name| string(name)));
        let palette = values(metadata.palette.iter().map(|[r, g, b]| format!("{{{r}, {g}, {b}}}")));
        let Source { layout, constants, calls, .. } = self;
        let (strips, nodes) = (layout.classes.len(), layout.slots.len());
        let pairs = |rows: &[std::ops::Range<usize>]| {
            rows.iter().map(|rows| format!("{{{}, {}}}", rows.start, rows.len())).collect::<Vec<_>>()
        };
        let rows: String = layout.rows.iter().map(|rows| format!("    {{{}\n    }},\n", values(pairs(rows)))).collect();
        let classes = values(pairs(&layout.classes));
        format!(
            r#"#include "model.h"

{constants}
/* The first row and the number of rows of each map that a strip needs. */
static const uint16_t map_rows[{strips}][{nodes}][2] = {{
{rows}}};
/* The same of the class map. */
static const uint16_t strip_rows[{strips}][2] = {{{classes}
}};

const char *const model_class_names[MODEL_CLASSES] = {{{names}
}};
const uint8_t model_palette[MODEL_CLASSES][3] = {{{palette}
}};

model_rows model_image_rows(int32_t strip) {{
    model_rows rows = {{map_rows[strip][0][0], map_rows[strip][0][1]}};
    return rows;
}}

model_rows model_class_rows(int32_t strip) {{
    model_rows rows = {{strip_rows[strip][0], strip_rows[strip][1]}};
    return rows;
}}

void model_strip(int32_t strip, const uint8_t *image, uint8_t *classes, model_arena *arena) {{
    const uint16_t (*rows)[2] = map_rows[strip];
    uint8_t *bytes = (uint8_t *)arena->maps;
{calls}}}

void model_classify(const uint8_t *image, uint8_t *classes, model_arena *arena) {{
    for (int32_t strip = 0; strip < MODEL_STRIPS; strip++) {{
        model_strip(strip, image + 3 * MODEL_WIDTH * map_rows[strip][0][0], classes + MODEL_WIDTH * strip_rows[strip][0],
                    arena);
    }}
}}
"#
        )
    }
}

/// A requantisation whose right shift is at least 33, so that a 32-bit core finds the result in the upper word.
struct Constants {
    multiplier: i32,
    bias: u64,
    shift: u8,
}

impl Constants {
    /// For values up to `bound`, which are multiplied by 2^`unit` first.
    fn new(multiplier: i32, bias: i64, shift: u8, bound: u64, unit: u8) -> Result<Self, &'static str> {
        let overflow = "its multiplier and bias leave 64 bits";
        let bound = bound << unit;
        if bound > i32::MAX as u64 || shift + unit > 62 || bias.unsigned_abs() > 1 << (62 - unit) {
            return Err(overflow);
        }
        let (bias, shift) = (bias << unit, shift + unit);
        // Multiplier, bias and unit grow by the same power of two where the shift is too small.
        let up = 33u8.saturating_sub(shift);
        let grown = i64::from(multiplier) << up;
        let largest = u128::from(bound) * u128::from(grown.unsigned_abs())
            + (u128::from(bias.unsigned_abs()) << up)
            + (1u128 << (shift + up - 1));
        let multiplier = i32::try_from(grown).ok().filter(|_| largest < 1 << 63);
        let multiplier = multiplier.ok_or(overflow)?;
        let shift = shift + up;
        let bias = (bias << up).wrapping_add(1 << (shift - 1)) as u64;
        Ok(Constants { multiplier, bias: bias ^ (1 << 63), shift: shift - 32 })
    }
}
