//! The engine's readers of images against what QEMU makes, and the nodes that they give against
//! qemu-nbd.
#![allow(clippy::unwrap_used, reason = "tests assert")]

mod bitmaps;
mod chains;
mod headers;
mod qemu;
