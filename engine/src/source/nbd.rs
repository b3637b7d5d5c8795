//! Exports of NBD servers. Whether what is read is one instant is up to whoever serves it.

use std::sync::Arc;

use super::View;
use super::hold::{Held, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::NbdDevice;
use crate::options::{Context, Place};

/// Connects to the exports.
///
/// # Errors
/// Says what is in the way.
pub fn open(wishes: Vec<Wanted>, context: &Context) -> Result<Vec<(usize, Held)>> {
    wishes.into_iter().map(|wish| open_one(wish, context)).collect()
}

fn open_one(wish: Wanted, context: &Context) -> Result<(usize, Held)> {
    let Place::Nbd(uri) = &wish.place else {
        return Err(Error::new(ErrorKind::Internal, "something else is taken for an export"));
    };
    let device = NbdDevice::connect(uri, &[], context.io, &context.cancel)?;
    let size = device.export().size;
    if size == 0 {
        return Err(Error::new(ErrorKind::SourceUnusable, "the export is empty")
            .on(uri.to_string())
            .hint("see what the server exports under that name (`nbdinfo`)"));
    }
    let view = View {
        name: wish.name,
        description: uri.to_string(),
        device: Arc::new(device),
        size,
        change_source: None,
        degraded: None,
    };
    Ok((wish.number, Held { view, identities: Vec::new(), hold: None }))
}
