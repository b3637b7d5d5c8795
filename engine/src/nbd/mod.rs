//! A client of network block devices: names, settings and the way into a connection.

pub mod handshake;
pub mod tls;
pub mod uri;
