//! Zip archives, whose sizes are believed only as far as they come true.

use super::error::Problem;
use super::limits;
use std::io::{Read, Seek};
use zip::ZipArchive;

/// An archive whose entries have different names and do not overlap.
pub struct Archive<R> {
    zip: ZipArchive<R>,
    names: Vec<String>,
    /// Bytes of the archive itself.
    length: u64,
}

impl<R: Read + Seek> Archive<R> {
    /// Opens an archive of so many bytes.
    ///
    /// # Errors
    /// When it is damaged or has too many entries.
    pub fn open(reader: R, length: u64) -> Result<Self, Problem> {
        let damaged = |e: zip::result::ZipError| Problem::damaged("the zip archive", e);
        let mut zip = ZipArchive::new(reader).map_err(damaged)?;
        if zip.len() > limits::TENSORS {
            let (claimed, limit) = (zip.len() as u128, limits::TENSORS as u64);
            return Err(Problem::Limit { what: "entries of the zip archive".into(), claimed, limit });
        }
        if zip.has_duplicate_names() {
            return Err(Problem::damaged("the zip archive", "two entries have the same name"));
        }
        // One compressed run of zeros listed a thousand times is a bomb.
        if zip.has_overlapping_files().map_err(damaged)? {
            return Err(Problem::damaged("the zip archive", "entries share bytes"));
        }
        let names = (0..zip.len()).map(|i| match zip.name_for_index(i) {
            Some(name) => Ok(name.map_err(damaged)?.into_owned()),
            None => Err(Problem::damaged("the zip archive", "an entry has no name")),
        });
        let names = names.collect::<Result<_, _>>()?;
        Ok(Archive { zip, names, length })
    }

    /// The entries' names, in the archive's order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The size that an entry claims to inflate to.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn claimed_size(&mut self, name: &str) -> Result<u64, Problem> {
        self.zip.by_name(name).map(|entry| entry.size()).map_err(|e| Problem::damaged(name, e))
    }

    /// An entry's bytes, of which there may be `limit`.
    ///
    /// # Errors
    /// When there is no such entry, or it is damaged, or has or inflates to more.
    pub fn read(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, Problem> {
        let entry = self.zip.by_name(name).map_err(|e| Problem::damaged(name, e))?;
        let size = entry.size();
        if size > limit {
            return Err(Problem::Limit { what: format!("bytes of {name}"), claimed: size.into(), limit });
        }
        // What is stored is in the file; what is compressed may claim anything, and gets memory as it inflates.
        let mut bytes = Vec::with_capacity(size.min(self.length) as usize);
        entry.take(size + 1).read_to_end(&mut bytes).map_err(|e| Problem::damaged(name, e))?;
        if bytes.len() as u64 != size {
            let message = format!("it claims {size} bytes and has {}", at_least(bytes.len() as u64, size));
            return Err(Problem::damaged(name, message));
        }
        Ok(bytes)
    }
}

fn at_least(found: u64, claimed: u64) -> String {
    if found > claimed { "more".into() } else { found.to_string() }
}
