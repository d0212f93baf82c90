//! Two folders, `images` and `masks`, with equal names.

use super::{DataError, Entry, image_names, listed, named};
use intseg_kernels::{Dither, Role};
use std::path::Path;

/// The names in `<split>.txt`; without any such list, nine tenths of the images train and one tenth, chosen by a hash
/// of their names, validates.
pub fn split(dir: &Path, split: &str) -> Result<Vec<Entry>, DataError> {
    let (images, masks) = (dir.join("images"), dir.join("masks"));
    let list = dir.join(format!("{split}.txt"));
    let has_lists = ["train.txt", "val.txt"].iter().any(|name| dir.join(name).is_file());
    if list.is_file() || has_lists || !["train", "val"].contains(&split) {
        return listed(&list, &images, &masks, dir, split);
    }
    let validates = |name: &String| {
        let hash = name.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        Dither::new(hash, 0, 0, Role::Shuffle).below(0, 10) == 0
    };
    let names = image_names(&images)?.into_iter().filter(|name| validates(name) == (split == "val"));
    Ok(names.map(|name| named(&name, &images, &masks)).collect())
}
