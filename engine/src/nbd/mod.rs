//! A client for network block devices: exports of nbdkit, `qemu-nbd`, QEMU and others, as volumes
//! to read and targets to write.
//!
//! `uri` says where an export is, `dial` connects (`tls`, `handshake`), `link` turns the bytes of a
//! connection into answers and believes nothing, `client` runs the connections on a thread of their
//! own, and `device` is what the rest of the engine sees. The protocol is `doc/proto.md` of
//! NetworkBlockDevice/nbd.

pub mod client;
pub mod device;
pub mod dial;
pub mod handshake;
#[cfg(test)]
mod hostile;
pub mod link;
pub mod protocol;
pub mod tls;
pub mod uri;

pub use device::NbdDevice;
pub use uri::Uri;
