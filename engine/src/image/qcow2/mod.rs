//! The headers and dirty bitmaps of qcow2 images, read strictly.
//!
//! Layout (big endian): QEMU, `docs/interop/qcow2.rst`. Where the document leaves room and QEMU's
//! driver does not, what the driver refuses is refused here as well; data is left to QEMU.

pub mod bitmap;
pub mod error;
pub mod header;

#[cfg(test)]
mod tests;
