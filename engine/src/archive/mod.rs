//! Archives: opening, reading, appending. Commits and nothing else make snapshots exist.
//!
//! ```text
//! open ── finds the last commit      store ── items by id        session ── appends and commits
//!   └ resume ── adopts sealed work     └ index ── id to place      ├ items ── small frames
//!                                        │                         └ log ── the byte stream
//!                                        └ recover ── what damaged runs held
//!                                            └ tables ── items without an index
//! ```

pub mod attached;
pub mod blocks;
pub mod chain;
pub mod index;
pub mod items;
pub mod log;
pub mod lost;
pub mod manifest;
pub mod open;
mod recover;
pub mod resume;
pub mod session;
pub mod snapshots;
pub mod spans;
pub mod store;
pub mod tables;

use voltar_format::{FormatError, LogOffset};

use crate::device::{Device, Resize};
use crate::error::{Error, ErrorKind, Result};

/// What an archive in one file lives on.
pub trait Home: Device + Resize {}

impl<T: Device + Resize + ?Sized> Home for T {}

/// A broken requirement of the format as an engine error about `label`.
pub fn format_error(label: &str, error: FormatError) -> Error {
    let at = error.offset;
    let kind = match error.unsupported {
        true => ErrorKind::UnsupportedFormat,
        false => ErrorKind::Damaged,
    };
    let message = match error.unsupported {
        true => "the archive needs a newer version of this program",
        false => "the archive is damaged",
    };
    let engine = Error::new(kind, message).on(label).because(error);
    match at {
        Some(LogOffset(start)) => engine.at(start..start),
        None => engine,
    }
}

/// Exactly `len` bytes from `offset`; `len` has been compared with a limit.
///
/// # Errors
/// `Damaged` if the file ends before.
pub fn read_exact(home: &dyn Device, offset: LogOffset, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    read_into(home, offset, &mut bytes)?;
    Ok(bytes)
}

/// As [`read_exact`], into `bytes`.
pub fn read_into(home: &dyn Device, offset: LogOffset, bytes: &mut [u8]) -> Result<()> {
    let range = offset.0..offset.0.saturating_add(bytes.len() as u64);
    let count = home.read_at(bytes, offset.0).map_err(|error| {
        Error::io("cannot read the archive", home.label(), error).at(range.clone())
    })?;
    match count == bytes.len() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Damaged, "the archive is cut short")
            .on(home.label())
            .at(range)),
    }
}
