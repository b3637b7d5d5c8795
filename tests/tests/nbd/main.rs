//! The engine's NBD client against servers that others wrote: nbdkit and qemu-nbd.
#![allow(clippy::unwrap_used, reason = "tests assert")]

mod device;
mod handshake;
mod server;
mod tls;
