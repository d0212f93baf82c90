//! The machine that reads a pickle's instructions.

use super::{Global, Id, Storage, Value, View};
use crate::read::error::Problem;
use crate::read::limits;
use std::collections::HashMap;

/// A machine, on its way through a program.
pub struct Machine<'a> {
    part: &'a str,
    bytes: &'a [u8],
    /// Where the next instruction is.
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// A machine before the first instruction.
    pub fn new(part: &'a str, bytes: &'a [u8]) -> Self {
        Machine { part, bytes, at: 0, values: vec![], stack: vec![], marks: vec![], memo: HashMap::new() }
    }

    /// What the program has made, and what is behind it.
    pub fn finish(self) -> (Vec<Value<'a>>, &'a [u8]) {
        (self.values, &self.bytes[self.at..])
    }

    /// Runs the program to its end, and returns the number of its result.
    ///
    /// # Errors
    /// When it is damaged, or asks for anything that a state dict does not need.
    pub fn run(&mut self) -> Result<Id, Problem> {
        loop {
            let start = self.at;
            // One byte of a pickle makes a value of many.
            if self.values.len() > limits::PICKLED {
                let (claimed, limit) = (self.values.len() as u128, limits::PICKLED as u64);
                return Err(Problem::Limit { what: format!("values in {}", self.part), claimed, limit });
            }
            match self.take_byte()? {
                b'\x80' => match self.take_byte()? {
                    2..=5 => {}
                    version => return Err(self.damaged(&format!("pickle protocol {version} is unknown"))),
                },
                // A frame's length helps who reads from a stream.
                b'\x95' => drop(self.take(8)?),
                b'.' => return self.pop(),
                b'N' => self.push(Value::Other),
                b'\x88' => self.push(Value::Bool(true)),
                b'\x89' => self.push(Value::Bool(false)),
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Other);
                }
                b'K' => self.push_unsigned(1)?,
                b'M' => self.push_unsigned(2)?,
                b'J' => {
                    let value = i32::from_le_bytes(self.take_array()?);
                    self.push(Value::Integer(value.into()));
                }
                b'\x8a' => self.push_long()?,
                b'X' => self.push_text(4)?,
                b'\x8c' | b'U' => self.push_text(1)?,
                b'\x8d' => self.push_text(8)?,
                b'(' => self.marks.push(self.stack.len()),
                b')' => self.push(Value::Tuple(vec![])),
                b'\x85' => self.push_tuple(1)?,
                b'\x86' => self.push_tuple(2)?,
                b'\x87' => self.push_tuple(3)?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Tuple(items));
                }
                b']' => self.push(Value::List(vec![])),
                b'}' => self.push(Value::Dict(vec![])),
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set(&items)?;
                }
                b'q' => self.put(1)?,
                b'r' => self.put(4)?,
                b'\x94' => {
                    let top = self.top()?;
                    self.memo.insert(self.memo.len() as u64, top);
                }
                b'h' => self.get(1)?,
                b'j' => self.get(4)?,
                b'c' => {
                    let (module, name) = (self.take_line()?, self.take_line()?);
                    self.push_global(module, name, start)?;
                }
                b'\x93' => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (module, name) = (self.text(module)?, self.text(name)?);
                    self.push_global(module, name, start)?;
                }
                b'Q' => self.push_storage()?,
                b'R' => self.call()?,
                b'b' => self.build()?,
                opcode => return Err(Problem::Opcode { opcode, offset: start }),
            }
        }
    }

    fn damaged(&self, message: &str) -> Problem {
        Problem::damaged(self.part, format!("{message} (before byte {})", self.at))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Problem> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(count).ok().and_then(|count| rest.get(..count)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(self.damaged(&format!("{count} bytes are wanted, {} are left", rest.len()))),
        }
    }

    fn take_byte(&mut self) -> Result<u8, Problem> {
        self.take(1).map(|b| b[0])
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    /// A little-endian number of so many bytes, at most eight.
    fn take_unsigned(&mut self, bytes: u64) -> Result<u64, Problem> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn take_line(&mut self) -> Result<&'a str, Problem> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or_else(|| self.damaged("a line does not end"))?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| self.damaged("a name is no text"))
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn push_unsigned(&mut self, bytes: u64) -> Result<(), Problem> {
        let value = self.take_unsigned(bytes)?;
        self.push(Value::Integer(value as i64));
        Ok(())
    }

    /// An integer of any length in two's complement, of which eight bytes are read.
    fn push_long(&mut self) -> Result<(), Problem> {
        let length = u64::from(self.take_byte()?);
        if length > 8 {
            return Err(self.damaged(&format!("an integer has {length} bytes")));
        }
        let value = self.take_unsigned(length)?;
        let unused = 64 - 8 * length as u32;
        self.push(Value::Integer(if length == 0 { 0 } else { (value << unused) as i64 >> unused }));
        Ok(())
    }

    fn push_text(&mut self, length_bytes: u64) -> Result<(), Problem> {
        let length = self.take_unsigned(length_bytes)?;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.damaged("a string is no UTF-8"))?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn push_tuple(&mut self, count: usize) -> Result<(), Problem> {
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
        let start = start.ok_or_else(|| self.damaged("the stack is too short"))?;
        let items = self.stack.split_off(start);
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str, offset: usize) -> Result<(), Problem> {
        let refused = || Problem::Global { name: printable(&format!("{module}.{name}")), offset };
        let global = Global::of(module, name).ok_or_else(refused)?;
        self.push(Value::Global(global));
        Ok(())
    }

    /// The height that the stack cannot be popped below: the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, Problem> {
        let top = self.stack.last().filter(|_| self.stack.len() > self.floor());
        top.copied().ok_or_else(|| self.damaged("the stack is empty"))
    }

    fn pop(&mut self) -> Result<Id, Problem> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Problem> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("there is no mark"))?;
        // Nothing pops below a mark.
        Ok(self.stack.split_off(mark))
    }

    fn put(&mut self, bytes: u64) -> Result<(), Problem> {
        let (index, top) = (self.take_unsigned(bytes)?, self.top()?);
        self.memo.insert(index, top);
        Ok(())
    }

    fn get(&mut self, bytes: u64) -> Result<(), Problem> {
        let index = self.take_unsigned(bytes)?;
        let id = self.memo.get(&index).ok_or_else(|| self.damaged(&format!("nothing is remembered as {index}")))?;
        self.stack.push(*id);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Problem> {
        let list = self.top()?;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            _ => return Err(self.damaged("items are appended to what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), Problem> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values[dict] {
            Value::Dict(dict) if rest.is_empty() => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Value::Dict(_) => return Err(self.damaged("a key has no value")),
            _ => return Err(self.damaged("entries are set in what is no dictionary")),
        }
        Ok(())
    }

    fn text(&self, id: Id) -> Result<&'a str, Problem> {
        match &self.values[id] {
            Value::Text(text) => Ok(text),
            _ => Err(self.damaged("a name is no string")),
        }
    }

    fn unsigned(&self, id: Id) -> Result<u64, Problem> {
        match self.values[id] {
            Value::Integer(value) if value >= 0 => Ok(value as u64),
            _ => Err(self.damaged("a size is no number from 0")),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<u64>, Problem> {
        let sizes = self.tuple(id)?;
        // One long tuple could be the shape of a million tensors.
        if sizes.len() > limits::DIMENSIONS {
            return Err(self.damaged(&format!("a tensor has {} dimensions", sizes.len())));
        }
        sizes.iter().map(|&id| self.unsigned(id)).collect()
    }

    fn tuple(&self, id: Id) -> Result<&[Id], Problem> {
        match &self.values[id] {
            Value::Tuple(items) => Ok(items),
            _ => Err(self.damaged("a tuple is missing")),
        }
    }

    /// A storage, as `torch.save` refers to it: `('storage', torch.FloatStorage, key, device, count)`, before PyTorch 1.6
    /// with a sixth value, which is None unless the storage is a part of another.
    fn push_storage(&mut self) -> Result<(), Problem> {
        let id = self.pop()?;
        let &[tag, class, key, _device, count, ref part @ ..] = self.tuple(id)? else {
            return Err(self.damaged("a storage is no tuple of five"));
        };
        if !part.iter().all(|&part| matches!(self.values[part], Value::Other)) {
            return Err(self.damaged("a storage is a part of another, which is not read"));
        }
        let Value::Global(Global::Storage(kind)) = self.values[class] else {
            return Err(self.damaged("a storage has no class"));
        };
        if self.text(tag)? != "storage" {
            return Err(self.damaged("an outside object is no storage"));
        }
        let storage = Storage { key: self.text(key)?, kind, count: self.unsigned(count)? };
        self.push(Value::Storage(storage));
        Ok(())
    }

    /// A call of one of the known functions.
    fn call(&mut self) -> Result<(), Problem> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = self.tuple(arguments)?;
        let result = match (&self.values[function], arguments) {
            (Value::Global(Global::OrderedDict), []) => Value::Dict(vec![]),
            (Value::Global(Global::RebuildTensor), &[storage, offset, shape, strides, ..]) => {
                let Value::Storage(storage) = self.values[storage] else {
                    return Err(self.damaged("a tensor has no storage"));
                };
                let (offset, shape, strides) = (self.unsigned(offset)?, self.sizes(shape)?, self.sizes(strides)?);
                Value::Tensor(View { storage, offset, shape, strides })
            }
            (Value::Global(Global::RebuildParameter), &[tensor, ..]) => match &self.values[tensor] {
                Value::Tensor(view) => Value::Tensor(view.clone()),
                _ => return Err(self.damaged("a parameter is no tensor")),
            },
            _ => return Err(self.damaged("a call has the wrong function or arguments")),
        };
        self.push(result);
        Ok(())
    }

    /// Attributes of an object: a state dict has `_metadata`, the versions of its layers, and a parameter whether it is
    /// trained. No weight depends on them.
    fn build(&mut self) -> Result<(), Problem> {
        let _attributes = self.pop()?;
        match self.values[self.top()?] {
            Value::Dict(_) | Value::Tensor(_) => Ok(()),
            _ => Err(self.damaged("attributes are set on what is neither dictionary nor tensor")),
        }
    }
}

/// A name from a file, fit for a message.
fn printable(name: &str) -> String {
    name.chars().take(100).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Pickle;
    use super::*;

    fn fails(bytes: &[u8], part: &str) {
        let problem = Pickle::parse("data.pkl", bytes).err().map(|p| p.to_string()).unwrap_or_default();
        assert!(problem.contains(part), "{problem:?} has no {part:?}");
    }

    #[test]
    fn no_function_is_called_but_those_of_tensors() {
        fails(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system (byte 2)");
        fails(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval (byte 18)");
        fails(b"\x80\x02ctorch.serialization\nload\n.", "torch.serialization.load");
        fails(b"\x80\x02ctorch\nComplexFloatStorage\n.", "torch.ComplexFloatStorage");
        // An evil name does not reach the terminal as it is.
        fails(b"\x80\x02c\x1b[2J\nx\n.", "?[2J.x");
    }

    #[test]
    fn instructions_that_make_objects_are_refused_by_number() {
        fails(b"\x80\x02ccollections\nOrderedDict\n)\x81.", "0x81 (byte 28)");
        fails(b"\x80\x02(i__main__\nx\n.", "0x69 (byte 3)");
        fails(b"\x80\x02P1\n.", "0x50 (byte 2)");
    }

    #[test]
    fn damaged_programs_are_refused() {
        fails(b"", "1 bytes are wanted, 0 are left");
        fails(b"\x80\x07.", "protocol 7");
        fails(b"\x80\x02.", "the stack is empty");
        fails(b"\x80\x02N", "1 bytes are wanted");
        fails(b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "18446744073709551615 bytes are wanted");
        fails(b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "no UTF-8");
        fails(b"\x80\x02\x8a\xff.", "an integer has 255 bytes");
        fails(b"\x80\x02t.", "there is no mark");
        fails(b"\x80\x02N(a.", "the stack is empty");
        fails(b"\x80\x02NNa.", "what is no list");
        fails(b"\x80\x02}(Nu.", "a key has no value");
        fails(b"\x80\x02h\x05.", "nothing is remembered as 5");
        fails(b"\x80\x02N\x87.", "the stack is too short");
        fails(&[b']'; limits::PICKLED + 2], "values in data.pkl: 1048577, where at most 1048576 are read");
        fails(b"\x80\x02NQ.", "a tuple is missing");
        fails(b"\x80\x02NNR.", "a tuple is missing");
        fails(b"\x80\x02N)R.", "wrong function or arguments");
        fails(b"\x80\x02]Nb.", "neither dictionary nor tensor");
        fails(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.", "a tensor has no storage");
    }

    #[test]
    fn a_list_that_holds_itself_is_one_value() {
        let (pickle, _) = Pickle::parse("data.pkl", b"\x80\x02]q\x00h\x00a.").unwrap();
        assert!(matches!(pickle.root(), Value::List(items) if items.len() == 1));
    }

    #[test]
    fn integers_keep_their_sign() {
        for (bytes, value) in [
            (&b"\x80\x02K\xff."[..], 255),
            (b"\x80\x02M\x00\x01.", 256),
            (b"\x80\x02J\xff\xff\xff\xff.", -1),
            (b"\x80\x02\x8a\x00.", 0),
            (b"\x80\x02\x8a\x01\x80.", -128),
            (b"\x80\x02\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f.", i64::MAX),
        ] {
            let (pickle, rest) = Pickle::parse("data.pkl", bytes).unwrap();
            assert!(rest.is_empty());
            assert!(matches!(pickle.root(), Value::Integer(found) if *found == value), "{:?}", pickle.root());
        }
    }
}
