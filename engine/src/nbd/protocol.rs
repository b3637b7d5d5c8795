//! Numbers of the transmission phase (`doc/proto.md` of NetworkBlockDevice/nbd). All of it is
//! big-endian.

use std::io;

use nix::errno::Errno;

/// Magic of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic of a request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Magic of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Magic of a chunk of a reply with an extended header.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Bytes.
    Read = 0,
    /// To store bytes.
    Write = 1,
    /// To end the connection; there is no reply.
    Disconnect = 2,
    /// To make durable what is complete.
    Flush = 3,
    /// To release a range, whatever it reads as afterwards.
    Trim = 4,
    /// To make a range read as zeroes.
    WriteZeroes = 6,
    /// What a range is, in the contexts that were agreed on.
    BlockStatus = 7,
}

/// Command flag: reply when it is durable.
pub const FLAG_FUA: u16 = 1 << 0;
/// Command flag with [`Command::WriteZeroes`]: keep the range allocated.
pub const FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag with [`Command::Read`]: answer in one piece, without leaving out holes.
pub const FLAG_DF: u16 = 1 << 2;
/// Command flag of an extended request: `len` is that of a payload.
pub const FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// Flag of a chunk: it is the reply's last.
pub const CHUNK_DONE: u16 = 1 << 0;

/// Chunk: nothing but its header.
pub const CHUNK_NONE: u16 = 0;
/// Chunk: bytes at an offset.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk: zeroes at an offset.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Chunk: extents of a context, 32-bit.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Chunk: extents of a context, 64-bit.
pub const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
/// Chunk: an error. All types with this bit are errors.
pub const CHUNK_ERROR: u16 = 1 << 15 | 1;
/// Chunk: an error at an offset.
pub const CHUNK_ERROR_OFFSET: u16 = 1 << 15 | 2;
/// The bit of all errors.
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// Context `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u64 = 1 << 1;
/// Context `qemu:dirty-bitmap:...`: changed.
pub const STATE_DIRTY: u64 = 1 << 0;

/// The context that says what is allocated.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";

/// Error value: the server is about to go.
pub const ERROR_SHUTDOWN: u32 = 108;

/// The error of a reply. The values are the specification's; one that it does not have counts as
/// `EINVAL`, as it demands.
pub fn error_of(value: u32, message: &str) -> io::Error {
    let errno = match value {
        1 => Errno::EPERM,
        5 => Errno::EIO,
        12 => Errno::ENOMEM,
        28 => Errno::ENOSPC,
        75 => Errno::EOVERFLOW,
        95 => Errno::EOPNOTSUPP,
        ERROR_SHUTDOWN => Errno::ESHUTDOWN,
        _ => Errno::EINVAL,
    };
    let plain = io::Error::from(errno);
    match message.is_empty() || value == ERROR_SHUTDOWN {
        true => plain,
        // The number alone would lose the server's words; the kind still tells what it is.
        false => io::Error::new(plain.kind(), format!("{plain}; the server says: {message}")),
    }
}
