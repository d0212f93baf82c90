//! Pickles, read and never executed.
//!
//! A pickle is a program for a stack machine that can call any function. The machine here ([`machine`]) knows the
//! instructions that `torch.save` uses for a state dict; of functions and classes it knows the few names of [`Global`],
//! whose effect it imitates, and any other is refused by name. Values live in an arena and are referred to by number,
//! so that a pickle which doubles a list a hundred times holds a hundred numbers, and one which contains itself is no
//! trap.

mod machine;

use super::error::Problem;
use super::values::Element;
use machine::Machine;

/// The number of a value in a [`Pickle`].
pub type Id = usize;

/// A function or class that a state dict may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`, and before PyTorch 0.4 `_rebuild_tensor`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`, and before PyTorch 0.4 `torch.nn.parameter.Parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its kind
    Storage(ElementKind),
}

/// What a storage holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ElementKind {
    /// Floats.
    Float(Element),
    /// Integers or truth values of so many bytes, which weights are not made of.
    Integer(usize),
}

impl ElementKind {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            ElementKind::Float(element) => element.size(),
            ElementKind::Integer(size) => size,
        }
    }
}

impl Global {
    fn of(module: &str, name: &str) -> Option<Global> {
        use ElementKind::{Float, Integer};
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch.nn.parameter", "Parameter") => Global::RebuildParameter,
            ("torch", "FloatStorage") => Global::Storage(Float(Element::F32)),
            ("torch", "HalfStorage") => Global::Storage(Float(Element::F16)),
            ("torch", "BFloat16Storage") => Global::Storage(Float(Element::Bf16)),
            ("torch", "DoubleStorage") => Global::Storage(Float(Element::F64)),
            ("torch", "LongStorage") => Global::Storage(Integer(8)),
            ("torch", "IntStorage") => Global::Storage(Integer(4)),
            ("torch", "ShortStorage") => Global::Storage(Integer(2)),
            ("torch", "CharStorage" | "ByteStorage" | "BoolStorage") => Global::Storage(Integer(1)),
            _ => return None,
        })
    }
}

/// A value.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// None or a float: what no tensor's place depends on.
    Other,
    /// A truth value.
    Bool(bool),
    /// An integer of at most 64 bits.
    Integer(i64),
    /// A string.
    Text(&'a str),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A dictionary, in the order in which its entries were set.
    Dict(Vec<(Id, Id)>),
    /// A function or class.
    Global(Global),
    /// Values in a file of their own.
    Storage(Storage<'a>),
    /// A view of a storage.
    Tensor(View<'a>),
}

/// Values in the archive's file `data/KEY`.
#[derive(Clone, Copy, Debug)]
pub struct Storage<'a> {
    /// The file's name.
    pub key: &'a str,
    /// What it holds.
    pub kind: ElementKind,
    /// How many.
    pub count: u64,
}

/// A tensor: some of a storage's values.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Where its values are.
    pub storage: Storage<'a>,
    /// The first value.
    pub offset: u64,
    /// Sizes, outermost first.
    pub shape: Vec<u64>,
    /// Values from one index to the next, for each dimension.
    pub strides: Vec<u64>,
}

/// What a pickle describes.
pub struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle; `part` is its name in messages. Returns what comes after it, too.
    ///
    /// # Errors
    /// When it is damaged, or asks for anything that a state dict does not need.
    pub fn parse(part: &'a str, bytes: &'a [u8]) -> Result<(Pickle<'a>, &'a [u8]), Problem> {
        let mut machine = Machine::new(part, bytes);
        let root = machine.run()?;
        let (values, rest) = machine.finish();
        Ok((Pickle { values, root }, rest))
    }

    /// The value that the pickle is of.
    pub fn root(&self) -> &Value<'a> {
        &self.values[self.root]
    }

    /// All values that the pickle made, whether or not its value holds them.
    pub fn values(&self) -> &[Value<'a>] {
        &self.values
    }

    /// The value of a number.
    pub fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id]
    }
}
