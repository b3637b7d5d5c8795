//! New images for restores.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::serve::{Mode, Service};
use crate::cancel::Cancel;
use crate::device::open::{check_creatable, rename_to_new, sync_directory, try_lock};
use crate::error::{Error, ErrorKind, Result};
use crate::host::command::Tool;
use crate::io::IoEngine;
use crate::nbd::NbdDevice;

/// A qcow2 image that was made a moment ago, and is served to be written. Until it is whole it has
/// another name, and is locked: what a killed run left is told from what another run is making.
#[derive(Debug)]
pub struct NewImage {
    path: PathBuf,
    unfinished: PathBuf,
    /// Keeps the lock.
    file: File,
    service: Service,
}

impl NewImage {
    /// Makes an image of `size` bytes, which is to be at `path`, where nothing is yet, with clusters
    /// of `cluster_len` bytes (a power of two, 512 to 2 MiB; `None`: QEMU's choice), and connects to
    /// it.
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
        let unfinished = unfinished_name(&path);
        let file = claim(&unfinished, &label)?;
        let made = make(&unfinished, size, cluster_len)
            .and_then(|()| serve(&unfinished, &label, io, cancel));
        match made {
            Ok((service, device)) => Ok((NewImage { path, unfinished, file, service }, device)),
            Err(error) => {
                // Nothing better can be done: the failure that led here is reported.
                let _ = std::fs::remove_file(&unfinished);
                Err(error)
            }
        }
    }

    /// Closes the image and gives it its name; it is whole and durable then.
    ///
    /// # Errors
    /// If that fails: what was made is taken away.
    pub fn finish(self) -> Result<()> {
        let NewImage { path, unfinished, file, service } = self;
        let label = path.display().to_string();
        let outcome = service.stop().and_then(|()| {
            file.sync_all()
                .and_then(|()| rename_to_new(&unfinished, &path))
                .map_err(|error| Error::io("cannot finish the image", label, error))
        });
        if outcome.is_err() {
            // Nothing better can be done: the failure that led here is reported.
            let _ = std::fs::remove_file(&unfinished);
        }
        outcome?;
        sync_directory(&path)
    }

    /// Takes the image away again.
    pub fn remove(self) {
        drop(self.service);
        // Nothing better can be done: the failure that led here is reported.
        let _ = std::fs::remove_file(&self.unfinished);
    }
}

/// What an image is called until it is whole.
fn unfinished_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".voltar-unfinished");
    path.with_file_name(name)
}

/// Makes the file and locks it. One that a killed run left goes.
fn claim(unfinished: &Path, label: &str) -> Result<File> {
    let failed = |error| Error::io("cannot create the image", label, error);
    if let Ok(left) = File::open(unfinished) {
        if !try_lock(&left).map_err(failed)? {
            return Err(Error::new(ErrorKind::Busy, "another restore makes this image")
                .on(label)
                .hint("wait for it, or choose another name"));
        }
        std::fs::remove_file(unfinished).map_err(failed)?;
    }
    let file = OpenOptions::new().write(true).create_new(true).open(unfinished).map_err(failed)?;
    match try_lock(&file).map_err(failed)? {
        true => Ok(file),
        false => Err(failed(std::io::ErrorKind::WouldBlock.into())),
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
    let mut service = Service::start(&words, Mode::Write, label, cancel)?;
    let device = service.connect(io, cancel)?;
    Ok((service, device))
}
