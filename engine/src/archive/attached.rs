//! Attached files: their bytes, piece by piece.

use voltar_format::frame::ItemKind;
use voltar_format::manifest::Attached;

use super::open::Archive;
use super::store::Store;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};

/// Reads `file` from `store`, which is over `archive`, and hands each piece to `take`, checked
/// against its id and in order. What was taken is the file once this returns.
///
/// # Errors
/// `Damaged`, `Interrupted`, and those of `take`.
pub fn read(
    archive: &Archive,
    store: &mut Store,
    file: &Attached,
    cancel: &Cancel,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut size = 0u64;
    for piece in &file.pieces {
        cancel.check()?;
        let bytes = store.item(piece, ItemKind::Attached)?;
        size = size.saturating_add(bytes.len() as u64);
        if size > file.size {
            break;
        }
        take(&bytes)?;
    }
    match size == file.size {
        true => Ok(()),
        false => Err(wrong_size(archive, file)),
    }
}

fn wrong_size(archive: &Archive, file: &Attached) -> Error {
    let name = &file.name;
    let message = format!("the pieces of attached file {name:?} do not add up to its size");
    Error::new(ErrorKind::Damaged, message).on(archive.label())
}
