//! Beginning and removing dirty bitmaps in qcow2 images that nobody uses.
//!
//! `qemu-img` writes them: an image has one writer's code. It is given the very file that was checked, and
//! not what that is made upon, which it need not open.

use std::fs::File;
use std::io::Write;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::json;

use super::chain::by_descriptor;
use super::files::ImageFile;
use crate::error::{Error, ErrorKind, Result};
use crate::host::command::Tool;
use crate::qemu::{empty_image, end_of};

/// What the bitmap is called that marks a disk's end, in the image that it comes from.
const END: &str = "end";
/// Bytes of a sector.
const SECTOR_LEN: u64 = 512;

/// Begins the bitmap `name`, a bit of which tells of `granularity` bytes, in an image of a disk of `size`
/// bytes; and beside it another one that stands still and marks the disk's end: QEMU clears the bits behind the
/// new end of a disk that is made shorter, and makes it longer again without a trace. An image that somebody
/// uses is left alone.
///
/// # Errors
/// In the words of QEMU's tools; neither bitmap is there then.
pub fn begin(image: &ImageFile, name: &str, granularity: u64, size: u64) -> Result<()> {
    let granularity = granularity.to_string();
    let end = marked_end(&granularity, size)?;
    let (end, granularity) = (by_descriptor(&end), ["--granularity", &*granularity]);
    bitmap(&[&["--add"], &granularity[..]].concat(), image, name)?;
    let merge = ["--disable", "--merge", END, "-b", &end, "-F", "qcow2"];
    let marked = bitmap(&[&["--add"], &granularity[..], &merge].concat(), image, &end_of(name));
    marked.inspect_err(|_| {
        // Nothing better can be done: the failure that led here is reported.
        let _ = remove(image, &end_of(name));
        let _ = remove(image, name);
    })
}

/// An image without a name, of a disk of `size` bytes that holds nothing, with a bitmap that marks the last of
/// them: only a write sets a bit.
fn marked_end(granularity: &str, size: u64) -> Result<File> {
    let image = empty_image(size).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("a disk of {size} bytes is too large"))
    })?;
    let write = || {
        let mut file = File::from(memfd_create("voltar-end", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&image)?;
        Ok(file)
    };
    let file = write().map_err(|error| Error::io("cannot mark the end of", "the disk", error))?;
    let path = by_descriptor(&file);
    let add = Tool::new("qemu-img").args(["bitmap", "--add", "--granularity", granularity]);
    add.args(["-f", "qcow2", &path, END]).answer()?;
    let sector = size.saturating_sub(1) / SECTOR_LEN * SECTOR_LEN;
    let write = format!("write -q {sector} {SECTOR_LEN}");
    Tool::new("qemu-io").args(["-f", "qcow2", "-c", &write, &path]).answer()?;
    Ok(file)
}

/// Removes it.
///
/// # Errors
/// In the words of `qemu-img`.
pub fn remove(image: &ImageFile, name: &str) -> Result<()> {
    bitmap(&["--remove"], image, name)
}

fn bitmap(what: &[&str], image: &ImageFile, name: &str) -> Result<()> {
    let path = by_descriptor(image.file());
    let driver = if image.is_block_device() { "host_device" } else { "file" };
    let node = json!({
        "driver": "qcow2",
        "file": {"driver": driver, "filename": path},
        "backing": null,
    });
    let tool = Tool::new("qemu-img").arg("bitmap").args(what).arg(format!("json:{node}")).arg(name);
    tool.answer().map(drop)
}
