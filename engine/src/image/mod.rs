//! Images of disks in files: what one is and which other files it names, found out before QEMU
//! opens any of them.
//!
//! Whoever ran in a virtual machine wrote what its images hold, and may have written headers that
//! name files of the host. So the format is what the user or a short list of magic numbers says
//! and is never probed by QEMU; a header is checked here first; and the files that it names are
//! opened from the folders that the user allows, and nowhere else.

pub mod bitmaps;
pub mod bytes;
pub mod chain;
pub mod create;
pub mod files;
pub mod format;
pub mod qcow2;
pub mod recognise;
pub mod serve;
pub mod vmdk;
