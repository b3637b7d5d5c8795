//! New images for restores.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::serve::{Mode, Service};
use crate::cancel::Cancel;
use crate::device::open::{check_creatable, sync_directory};
use crate::error::{Error, ErrorKind, Result};
use crate::host::command::Tool;
use crate::io::IoEngine;
use crate::nbd::NbdDevice;

/// A qcow2 image that was made a moment ago, and is served to be written.
#[derive(Debug)]
pub struct NewImage {
    path: PathBuf,
    service: Service,
}

impl NewImage {
    /// Makes an image of `size` bytes at `path`, where nothing is yet, with clusters of `cluster_len`
    /// bytes (a power of two, 512 to 2 MiB; `None`: QEMU's choice), and connects to it.
    ///
    /// # Errors
    /// Of making and of serving it; nothing is left then.
    pub fn create(
        path: &Path,
        size: u64,
        cluster_len: Option<u64>,
        io: IoEngine,
        cancel: &Cancel,
    ) -> Result<(NewImage, NbdDevice)> {
        check_creatable(path)?;
        let label = path.display().to_string();
        let failed = |error| Error::io("cannot create the image", &*label, error);
        let path = std::path::absolute(path).map_err(failed)?;
        // Whoever was faster keeps what is his: qemu-img would write over it.
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
        let made = make(&path, size, cluster_len).and_then(|()| serve(&path, &label, io, cancel));
        match made {
            Ok((service, device)) => Ok((NewImage { path, service }, device)),
            Err(error) => {
                // Nothing better can be done: the failure that led here is reported.
                let _ = std::fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// Closes the image; it is whole and durable then.
    ///
    /// # Errors
    /// If that fails: the image is not to be used.
    pub fn finish(self) -> Result<()> {
        self.service.stop()?;
        let label = self.path.display().to_string();
        File::open(&self.path)
            .and_then(|file| file.sync_all())
            .map_err(|error| Error::io("cannot make the image durable", label, error))?;
        sync_directory(&self.path)
    }

    /// Takes the image away again.
    pub fn remove(self) {
        let NewImage { path, service } = self;
        // Nothing better can be done: the failure that led here is reported.
        drop(service);
        let _ = std::fs::remove_file(path);
    }
}

fn make(path: &Path, size: u64, cluster_len: Option<u64>) -> Result<()> {
    let options = match cluster_len {
        Some(len) => format!("preallocation=off,cluster_size={len}"),
        None => "preallocation=off".to_owned(),
    };
    let tool = Tool::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-o", &options]);
    tool.arg(path).arg(size.to_string()).answer().map(drop).map_err(|error| {
        let kind = error.kind();
        let hint = match kind {
            ErrorKind::Unsupported => "install qemu-img (Debian: qemu-utils)",
            _ => "choose another place, or a cluster length that QEMU knows",
        };
        Error::new(kind, "cannot create the image")
            .on(path.display().to_string())
            .because(error)
            .hint(hint)
    })
}

fn serve(path: &Path, label: &str, io: IoEngine, cancel: &Cancel) -> Result<(Service, NbdDevice)> {
    let file = json!({ "driver": "file", "filename": path.to_string_lossy() });
    let node = json!({ "driver": "qcow2", "file": file, "backing": null, "discard": "unmap" });
    let words = [OsString::from(format!("json:{node}"))];
    let mut service = Service::start(&words, Mode::Write, label)?;
    let device = service.connect(io, cancel)?;
    Ok((service, device))
}
