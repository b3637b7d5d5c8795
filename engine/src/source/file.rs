//! Plain files and block devices: no snapshot, no change source. What they hold is read as it is;
//! who writes to them meanwhile gets a backup of a moving disk.

use std::path::Path;
use std::sync::Arc;

use super::View;
use crate::device::Device;
use crate::device::file::FileDevice;
use crate::device::open::open_source;
use crate::error::{Error, Result};

/// The volume `name` in the file or block device at `path`.
///
/// # Errors
/// Says what is in the way: nothing there, no permission, not a volume, empty.
pub fn view(name: &str, path: &Path) -> Result<(View, Arc<FileDevice>)> {
    let device = Arc::new(open_source(path)?);
    let size =
        device.len().map_err(|error| Error::io("cannot ask the size of", device.label(), error))?;
    let view = View {
        name: name.to_owned(),
        description: path.display().to_string(),
        device: Arc::clone(&device) as _,
        size,
        change_source: None,
        degraded: None,
    };
    Ok((view, device))
}
