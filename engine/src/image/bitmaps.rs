//! Beginning and removing dirty bitmaps in qcow2 images that nobody uses.
//!
//! `qemu-img` writes them: an image has one writer's code. It is given the very file that was checked, and
//! not what that is made upon, which it need not open.

use std::os::fd::AsRawFd;

use serde_json::json;

use super::files::ImageFile;
use crate::error::Result;
use crate::host::command::Tool;

/// Begins the bitmap `name`, a bit of which tells of `granularity` bytes. An image that somebody uses is
/// left alone.
///
/// # Errors
/// In the words of `qemu-img`.
pub fn begin(image: &ImageFile, name: &str, granularity: u64) -> Result<()> {
    let granularity = granularity.to_string();
    bitmap(&["--add", "--granularity", &granularity], image, name)
}

/// Removes it.
///
/// # Errors
/// In the words of `qemu-img`.
pub fn remove(image: &ImageFile, name: &str) -> Result<()> {
    bitmap(&["--remove"], image, name)
}

fn bitmap(what: &[&str], image: &ImageFile, name: &str) -> Result<()> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), image.file().as_raw_fd());
    let driver = if image.is_block_device() { "host_device" } else { "file" };
    let node = json!({
        "driver": "qcow2",
        "file": {"driver": driver, "filename": path},
        "backing": null,
    });
    let tool = Tool::new("qemu-img").arg("bitmap").args(what).arg(format!("json:{node}")).arg(name);
    tool.answer().map(drop)
}
