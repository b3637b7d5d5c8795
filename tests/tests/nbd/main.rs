//! The engine's NBD handshake against servers that others wrote: nbdkit and qemu-nbd.
#![allow(clippy::unwrap_used, reason = "tests assert")]

mod handshake;
mod server;
mod tls;
