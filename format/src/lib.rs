//! The voltar archive format: bytes in, values out.
//!
//! `FORMAT.md` beside this crate is the normative text; each check here names the requirement it
//! enforces (`F-…`). The crate knows nothing of files, clocks, threads or devices, and holds no
//! unsafe code: the engine, the fuzzers, `voltar inspect` and a third party use it as it is.
//!
//! Everything that is decoded is hostile until its check has passed: lengths are compared with
//! [`limits`] and with the bytes that are there before they are used for arithmetic or allocation.
#![forbid(unsafe_code)]
#![deny(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "tests assert; their inputs are their own"
    )
)]

pub mod checksum;
pub mod commit;
pub mod error;
pub mod features;
pub mod frame;
pub mod header;
pub mod index;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod map;
pub mod record;
pub mod segment;
pub mod units;
pub mod walk;
pub mod wire;

pub use error::{FormatError, Structure};
pub use units::{ArchiveId, ChunkIndex, Id, LogOffset, SessionId, SnapshotId};
