//! How much an ONNX file holds, before any of it is decoded.
//!
//! An empty message takes two bytes of a file and hundreds in memory, so that a decoder turns megabytes into gigabytes.
//! Initialisers are few and large; everything else of a model is small.

use crate::read::Problem;
use crate::read::limits;

/// Refuses a file with more initialisers, or more of everything else, than any network has. What is no protobuf is
/// left to the decoder.
///
/// # Errors
/// When there is more.
pub fn check(file: &[u8]) -> Result<(), Problem> {
    const GRAPH: u64 = 7;
    const INITIALIZER: u64 = 5;
    let (mut tensors, mut rest) = (0, 0);
    for (number, model_field) in Fields(file) {
        if number != GRAPH {
            rest += model_field.len() + 1;
            continue;
        }
        for (number, graph_field) in Fields(model_field) {
            if number == INITIALIZER {
                tensors += 1;
            } else {
                rest += graph_field.len() + 1;
            }
        }
    }
    let limit = |what: &str, claimed: usize, limit: u64| match claimed as u64 > limit {
        true => Err(Problem::Limit { what: what.into(), claimed: claimed as u128, limit }),
        false => Ok(()),
    };
    limit("initialisers of the ONNX model", tensors, limits::TENSORS as u64)?;
    limit("bytes of the ONNX model beside its initialisers", rest, limits::GRAPH)
}

/// The fields of a protobuf message: their numbers and, of those with a length, the content.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let length = match key & 7 {
            0 => {
                self.varint()?;
                0
            }
            1 => 8,
            2 => usize::try_from(self.varint()?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (content, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some((key >> 3, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A graph of `count` empty fields of a number below 16.
    fn graph(number: u8, count: usize) -> Vec<u8> {
        let content = [number << 3 | 2, 0].repeat(count);
        let mut file = vec![7 << 3 | 2];
        let mut length = content.len();
        while length >= 0x80 {
            file.push(length as u8 | 0x80);
            length >>= 7;
        }
        file.push(length as u8);
        [file, content].concat()
    }

    #[test]
    fn more_than_a_network_has_is_refused_before_it_is_decoded() {
        let message = |file: &[u8]| check(file).err().map(|e| e.to_string());
        assert_eq!(message(&graph(5, limits::TENSORS)), None);
        let tensors = "initialisers of the ONNX model: 65537, where at most 65536 are read";
        assert_eq!(message(&graph(5, limits::TENSORS + 1)).as_deref(), Some(tensors));
        let nodes = limits::GRAPH as usize;
        assert_eq!(message(&graph(1, nodes)), None);
        let bytes = "bytes of the ONNX model beside its initialisers: 8388609, where at most 8388608 are read";
        assert_eq!(message(&graph(1, nodes + 1)).as_deref(), Some(bytes));
        // Twice the field is one graph to a decoder.
        let twice = [graph(5, limits::TENSORS), graph(5, 1)].concat();
        assert_eq!(message(&twice).as_deref(), Some(tensors));
        assert_eq!(message(&[0xff; 20]), None);
    }
}
