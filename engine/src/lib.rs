//! The voltar engine: backs volumes up, restores them, and proves archives whole.
//!
//! It never prints, never parses arguments, never reads the environment. `ARCHITECTURE.md`
//! beside this crate is the map.
#![warn(missing_docs)]

pub mod archive;
pub mod backup;
pub mod bench;
pub mod cancel;
pub mod codec;
pub mod device;
pub mod diff;
pub mod error;
pub mod host;
pub mod image;
pub mod inspect;
pub mod io;
mod io_engine;
mod latency;
mod limit;
pub mod nbd;
pub mod observe;
pub mod options;
pub mod pipeline;
pub mod qemu;
pub mod report;
pub mod restore;
pub mod salvage;
pub mod source;
pub mod sources;
mod threads;
pub mod verify;
pub mod words;
