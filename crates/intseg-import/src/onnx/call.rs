//! A node of an ONNX graph, with its settings, and the refusal that names it.

use super::proto::{Attribute, Node};
use crate::read::Problem;

/// A use of an operator.
#[derive(Clone, Copy)]
pub struct Call<'m> {
    /// The node.
    pub node: &'m Node,
    /// The version of ONNX's operators.
    pub opset: i64,
}

impl<'m> Call<'m> {
    /// The operator.
    pub fn operator(self) -> &'m str {
        &self.node.op_type
    }

    /// The node's name, or what it computes when it has none.
    pub fn name(self) -> &'m str {
        let first = self.node.output.first().map_or("", String::as_str);
        if self.node.name.is_empty() { first } else { &self.node.name }
    }

    /// The error that this node is not understood.
    pub fn refuse(self, reason: impl Into<String>) -> Problem {
        Problem::Operator { operator: self.operator().into(), node: self.name().into(), reason: reason.into() }
    }

    /// The name of an input, unless it is left out.
    pub fn input(self, index: usize) -> Option<&'m str> {
        self.node.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The name of an input that the operator cannot do without.
    ///
    /// # Errors
    /// When it is left out.
    pub fn required_input(self, index: usize) -> Result<&'m str, Problem> {
        self.input(index).ok_or_else(|| self.refuse(format!("its input {index} is missing")))
    }

    /// Refuses settings other than those that are understood.
    ///
    /// # Errors
    /// When there are.
    pub fn understands(self, attributes: &[&str]) -> Result<(), Problem> {
        match self.node.attribute.iter().find(|a| !attributes.contains(&a.name.as_str())) {
            Some(other) => Err(self.refuse(format!("its attribute {} is not understood", other.name))),
            None => Ok(()),
        }
    }

    /// A setting.
    pub fn attribute(self, name: &str) -> Option<&'m Attribute> {
        self.node.attribute.iter().find(|a| a.name == name)
    }

    /// An integer, or what it is when not given.
    pub fn int(self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |a| a.i)
    }

    /// A text, or what it is when not given.
    pub fn text(self, name: &str, default: &'static str) -> &'m str {
        self.attribute(name).map_or(default, |a| std::str::from_utf8(&a.s).unwrap_or("?"))
    }

    /// Refuses an integer other than one.
    ///
    /// # Errors
    /// When it is another.
    pub fn only_int(self, name: &str, default: i64, understood: i64) -> Result<(), Problem> {
        match self.int(name, default) {
            found if found == understood => Ok(()),
            found => Err(self.refuse(format!("{name} {found} is not understood, only {understood}"))),
        }
    }

    /// A setting of two sizes, vertical and horizontal.
    ///
    /// # Errors
    /// When there are not two, or one is out of `0..=65535`.
    pub fn pair(self, name: &str, default: [usize; 2]) -> Result<[usize; 2], Problem> {
        match self.attribute(name).map(|a| a.ints.as_slice()) {
            None => Ok(default),
            Some(&[y, x]) => Ok([self.size(name, y)?, self.size(name, x)?]),
            Some(other) => Err(self.refuse(format!("{name} {other:?} is not of two dimensions"))),
        }
    }

    /// A size of a setting.
    ///
    /// # Errors
    /// When it is out of `0..=65535`.
    pub fn size(self, name: &str, value: i64) -> Result<usize, Problem> {
        u16::try_from(value).map(usize::from).map_err(|_| self.refuse(format!("{name} {value} is out of range")))
    }
}
