//! The C operators that a model needs.

use std::collections::BTreeSet;

/// An operator, or a variant of one, in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operator {
    /// Requantisation, which convolutions and affine maps share.
    Scale,
    Conv,
    Affine,
    Add,
    AddWide,
    MaxPool(Element),
    AveragePool,
    /// Coordinates, which resizing and classification share.
    Axis,
    /// With sums of 32 or, if so said, 64 bits.
    Resize(Element, bool),
    Concat,
    /// Padding of the image with other values than 0.
    Pad,
    /// With sums shifted right by so much before they are compared; of 32 bits and unshifted if 0.
    Classify(u32),
}

/// The elements of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Element {
    U8,
    I16,
}

impl Element {
    fn c_type(self) -> &'static str {
        match self {
            Element::U8 => "uint8_t",
            Element::I16 => "int16_t",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Element::U8 => "u8",
            Element::I16 => "i16",
        }
    }
}

/// The name of a resize.
pub(super) fn resize_name(element: Element, wide: bool) -> String {
    format!("intseg_resize_{}{}", element.suffix(), if wide { "_wide" } else { "" })
}

/// The name of a max pooling.
pub(super) fn max_pool_name(element: Element) -> String {
    format!("intseg_max_pool_{}", element.suffix())
}

macro_rules! template {
    ($name:literal) => {
        include_str!(concat!("templates/", $name))
    };
}

impl Operator {
    fn header(self) -> String {
        let fill = |template: &str, element: Element, name: String, placeholder: &str| {
            template.replace(placeholder, &name).replace("ELEMENT", element.c_type())
        };
        match self {
            Operator::Scale => String::new(),
            Operator::Conv => template!("conv.h").into(),
            Operator::Affine => template!("affine.h").into(),
            Operator::Add => template!("add.h").into(),
            Operator::AddWide => template!("add_wide.h").into(),
            Operator::MaxPool(e) => fill(template!("max_pool.h"), e, max_pool_name(e), "intseg_max_pool_SUFFIX"),
            Operator::AveragePool => template!("average_pool.h").into(),
            Operator::Axis => template!("axis.h").into(),
            Operator::Resize(e, wide) => fill(template!("resize.h"), e, resize_name(e, wide), "intseg_resize_SUFFIX"),
            Operator::Concat => template!("concat.h").into(),
            Operator::Pad => template!("pad.h").into(),
            Operator::Classify(_) => template!("classify.h").into(),
        }
    }

    fn source(self) -> String {
        match self {
            Operator::Scale => template!("scale.c").into(),
            Operator::Conv => [
                template!("conv.c"),
                template!("conv_plain.c"),
                template!("conv_dsp.c"),
                template!("conv_mve.c"),
                template!("conv_run.c"),
            ]
            .concat(),
            Operator::Affine => template!("affine.c").into(),
            Operator::Add => template!("add.c").into(),
            Operator::AddWide => template!("add_wide.c").into(),
            Operator::MaxPool(element) => template!("max_pool.c")
                .replace("intseg_max_pool_SUFFIX", &max_pool_name(element))
                .replace("ELEMENT", element.c_type()),
            Operator::AveragePool => template!("average_pool.c").into(),
            Operator::Axis => template!("axis.c").into(),
            Operator::Resize(element, wide) => template!("resize.c")
                .replace("intseg_resize_SUFFIX", &resize_name(element, wide))
                .replace("ELEMENT", element.c_type())
                .replace("UNSIGNED", if wide { "uint64_t" } else { "uint32_t" })
                .replace("WIDE", if wide { "int64_t" } else { "int32_t" }),
            Operator::Concat => template!("concat.c").into(),
            Operator::Pad => template!("pad.c").into(),
            Operator::Classify(shift) => classify(shift),
        }
    }
}

/// The classification. What executors shift out of sums that leave 32 bits is part of the result, ties included; in an
/// order of unsigned values the shift of a negative one is exact.
fn classify(shift: u32) -> String {
    let round = match shift {
        0 => String::new(),
        _ => format!("value = (int64_t)(((uint64_t)value + ((uint64_t)1 << 63)) >> {shift});"),
    };
    let source = template!("classify.c").replace("WIDE", if shift == 0 { "int32_t" } else { "int64_t" });
    match shift {
        0 => source.replace("                ROUND\n", ""),
        _ => source.replace("ROUND", &round),
    }
}

/// The set of operators that a model needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Operators(BTreeSet<Operator>);

impl Operators {
    /// Notes that an operator is needed, and those that it stands on.
    pub fn need(&mut self, operator: Operator) {
        match operator {
            Operator::Conv | Operator::Affine => self.need(Operator::Scale),
            Operator::Resize(..) | Operator::Classify(_) => self.need(Operator::Axis),
            _ => {}
        }
        self.0.insert(operator);
    }

    /// `intseg_nn.h`.
    pub fn header(&self) -> String {
        let mut text = template!("nn.h").to_owned();
        if self.0.contains(&Operator::Add) || self.0.contains(&Operator::AddWide) {
            text += template!("term.h");
        }
        text.extend(self.0.iter().map(|operator| operator.header()));
        text + "\n#endif\n"
    }

    /// `intseg_nn.c`.
    pub fn source(&self) -> String {
        let operators = self.0.iter().map(|operator| operator.source());
        std::iter::once(template!("nn.c").to_owned()).chain(operators).collect()
    }
}
