//! What the tests share: running the program, data that replays, devices and mounts that clean up
//! after themselves, and saying why a test cannot run here.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

pub mod boot;
pub mod command;
pub mod data;
pub mod device;
pub mod filesystem;
pub mod filter;
pub mod guest;
pub mod libvirt;
pub mod nbd;
pub mod qmp;
pub mod raise;
pub mod sectors;
pub mod skip;
pub mod source;
pub mod thin_pool;
pub mod vm;
pub mod write_log;
pub mod writer;

pub use command::{Ran, Running, Voltar, is_root, program, root};
pub use data::{Rng, Scratch};
pub use device::{Loop, Mount};
pub use filesystem::FileSystem;
pub use raise::Raise;
pub use skip::skip;
