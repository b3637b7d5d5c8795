//! Images in files: read through `qemu-nbd`, which opens the files that were checked here and no
//! others.

use std::ffi::OsString;
use std::sync::Arc;

use super::View;
use super::hold::{Held, Hold, Wanted};
use crate::device::file::FileIdentity;
use crate::error::{Error, ErrorKind, Result};
use crate::image::chain::Chain;
use crate::image::files::Allowed;
use crate::image::format::Format;
use crate::image::serve::{Mode, Service};
use crate::options::Context;

/// A served image: its server, and the files that it reads.
struct ImageHold {
    service: Option<Service>,
    _chain: Chain,
}

/// Opens the image that `wish` is, of this format.
///
/// # Errors
/// Says what is in the way.
pub fn open(
    wish: Wanted,
    format: Format,
    path: &std::path::Path,
    allowed: &Allowed,
    context: &Context,
) -> Result<(usize, Held)> {
    let chain = Chain::open(path, format, allowed)?;
    let label = format!("{format}:{}", path.display());
    let words = [OsString::from(format!("json:{}", chain.blockdev_json()))];
    let mut service = Service::start(&words, Mode::Read, &label, &context.cancel)?;
    let device = service.connect(context.io, &context.cancel)?;
    let size = device.export().size;
    if size == 0 {
        return Err(Error::new(ErrorKind::SourceUnusable, "the image is empty").on(label));
    }
    let identities = chain.files().map(|file| FileIdentity::of(file.file()));
    let identities = identities
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|error| Error::io("cannot look at the image", &*label, error))?;
    let view = View {
        name: wish.name,
        description: label,
        device: Arc::new(device),
        size,
        change_source: None,
        degraded: None,
    };
    let hold = ImageHold { service: Some(service), _chain: chain };
    Ok((wish.number, Held { view, identities, hold: Some(Box::new(hold)) }))
}

impl Hold for ImageHold {
    fn is_live(&self) -> bool {
        false
    }

    fn keep(&mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        self.service.take().map_or(Ok(()), Service::stop)
    }
}
