//! What `torch.save` wrote before PyTorch 1.6, as many published weights still are: five pickles, of a magic number, the
//! format's version, the machine, the value, and the storages' keys, and then the storages in that order, each with the
//! number of its values before them.

use super::error::Problem;
use super::limits;
use super::pickle::{Pickle, Value};
use super::{Weights, torch};
use std::collections::HashMap;

/// The pickle of the magic number.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// The version of the format.
const VERSION: i64 = 1001;

/// Float tensors of a state dict; those of integers are left out.
///
/// # Errors
/// When the file is damaged or older, its pickle asks for more than tensors, or a tensor cannot be used.
pub fn read(bytes: &[u8]) -> Result<Weights, Problem> {
    let behind_magic = bytes.strip_prefix(MAGIC).ok_or(Problem::Legacy)?;
    let description = &behind_magic[..behind_magic.len().min(limits::DESCRIPTION as usize)];
    let (version, rest) = Pickle::parse("the version's pickle", description)?;
    if !matches!(version.root(), Value::Integer(VERSION)) {
        return Err(Problem::Legacy);
    }
    let (machine, rest) = Pickle::parse("the machine's pickle", rest)?;
    if !is_little_endian(&machine) {
        return Err(Problem::damaged(
            "the machine's pickle",
            "values of another byte order than little-endian are not read",
        ));
    }
    let (pickle, rest) = Pickle::parse("the state dict's pickle", rest)?;
    let (keys, rest) = Pickle::parse("the keys' pickle", rest)?;
    let storages = storages(&pickle, &keys, &behind_magic[description.len() - rest.len()..])?;
    torch::tensors(&pickle, |view, _| {
        let key = view.storage.key;
        let found = storages.get(key).map(|bytes| bytes.to_vec());
        found.ok_or_else(|| Problem::damaged(format!("storage {key}"), "it is not in the file"))
    })
}

fn is_little_endian(machine: &Pickle) -> bool {
    let Value::Dict(entries) = machine.root() else { return false };
    entries.iter().any(|&(key, value)| {
        matches!((machine.value(key), machine.value(value)), (Value::Text("little_endian"), Value::Bool(true)))
    })
}

/// The storages' bytes by key.
fn storages<'a>(
    pickle: &Pickle<'a>,
    keys: &Pickle<'a>,
    mut bytes: &'a [u8],
) -> Result<HashMap<&'a str, &'a [u8]>, Problem> {
    let known = pickle.values().iter().filter_map(|value| match value {
        Value::Storage(storage) => Some((storage.key, storage)),
        _ => None,
    });
    let known: HashMap<_, _> = known.collect();
    let Value::List(keys_of_file) = keys.root() else {
        return Err(Problem::damaged("the keys' pickle", "it is no list"));
    };
    let mut storages = HashMap::new();
    for &key in keys_of_file {
        let Value::Text(key) = *keys.value(key) else {
            return Err(Problem::damaged("the keys' pickle", "a key is no string"));
        };
        let damaged = |message: String| Problem::damaged(format!("storage {key}"), message);
        let storage = known.get(key).ok_or_else(|| damaged("no tensor says what it holds".into()))?;
        let (count, rest) = bytes.split_first_chunk().ok_or_else(|| damaged("the file ends before it".into()))?;
        let count = u64::from_le_bytes(*count);
        if count != storage.count {
            return Err(damaged(format!("it has {count} values where its tensors have {}", storage.count)));
        }
        let length = count.checked_mul(storage.kind.size() as u64).and_then(|length| usize::try_from(length).ok());
        let (values, rest) = length
            .and_then(|length| rest.split_at_checked(length))
            .ok_or_else(|| damaged(format!("the file ends in it: {} bytes are left for {count} values", rest.len())))?;
        if storages.insert(key, values).is_some() {
            return Err(damaged("it occurs twice".into()));
        }
        bytes = rest;
    }
    Ok(storages)
}
