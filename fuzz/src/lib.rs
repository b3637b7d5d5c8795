//! What the fuzz targets share.
//!
//! ```text
//! fuzz_targets/*  ── one line each
//!   parsers   one structure at a time, checksums repaired, encoded again
//!   whole     archives through every command ── checks (what must hold of any archive)
//!     edits     a script of small changes at places that mean something
//!     repair    recomputes what covers them
//!     forge     writes archives that no writer would write
//!   streams   what other programs write of volumes
//!   volumes   what the kernel writes of LVM's volumes
//!   nbd       what servers of network block devices say
//!   images    headers and bitmaps of images
//!   qmp       what a QEMU says of its VM
//!   extents   what a kernel says of two files' extents
//!   model     scripts of backups against plain bytes
//! ```

pub mod checks;
pub mod edits;
pub mod extents;
pub mod forge;
pub mod images;
pub mod model;
pub mod nbd;
pub mod parsers;
pub mod qmp;
pub mod repair;
pub mod streams;
pub mod volumes;
pub mod whole;
pub mod wire;
