//! Exports of NBD servers. Whether what is read is one instant is up to whoever serves it.

use std::sync::Arc;

use super::View;
use super::hold::{Held, Hold, Wanted};
use crate::device::Device;
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
    let device = Arc::new(device);
    let hold = ExportHold { device: Arc::clone(&device) };
    let view = View {
        name: wish.name,
        description: uri.to_string(),
        device,
        size,
        change_source: None,
        degraded: None,
    };
    Ok((wish.number, Held { view, identities: Vec::new(), hold: Some(Box::new(hold)) }))
}

/// An export that is read.
struct ExportHold {
    device: Arc<NbdDevice>,
}

impl Hold for ExportHold {
    fn remark(&self) -> Option<String> {
        (self.device.redials() > 0).then(|| {
            let label = self.device.label();
            format!(
                "the connection to {label} was lost and made again: if its server was started anew \
                 meanwhile, what was read before and after may be of two instants"
            )
        })
    }

    fn is_live(&self) -> bool {
        false
    }

    fn keep(&mut self) -> Result<()> {
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        Ok(())
    }
}
