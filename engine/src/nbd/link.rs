//! One connection's replies: bytes in, finished requests out. It knows no socket.
//!
//! What the server says is checked against what was asked: a reply to nothing, bytes outside of
//! the range, twice or never, a chunk of the wrong kind or length is a [`Violation`], after which
//! nothing of the connection is believed.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use super::handshake::Replies;
use super::protocol::{
    self, CHUNK_BLOCK_STATUS, CHUNK_BLOCK_STATUS_EXT, CHUNK_DONE, CHUNK_ERROR, CHUNK_ERROR_BIT,
    CHUNK_ERROR_OFFSET, CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, Command,
    EXTENDED_REPLY_MAGIC, EXTENDED_REQUEST_MAGIC, FLAG_DF, FLAG_NO_HOLE, FLAG_PAYLOAD_LEN,
    REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use crate::io::sockets::Memory;

/// Longest message of an error, in bytes; the specification's bound for strings.
const MESSAGE_LEN_MAX: u64 = 4096;

/// Longest list of extents in bytes: 131072 extents of 16, twice what QEMU sends.
const STATUS_LEN_MAX: u64 = 2 << 20;

/// Most separate pieces that a read's reply may be in at a time.
const PIECES_MAX: usize = 1024;

/// Most chunks of one reply: a server must come to an end.
const CHUNKS_MAX: u32 = 65536;

/// Most bytes of a read that one request asks for; the rest of it is asked for by others, at once. QEMU has a
/// buffer for each request, and gives large ones back to the system every time. A multiple of any block length.
pub const READ_LEN_MAX: u64 = 256 << 10;

/// The server broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

fn violation<T>(what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(what.into()))
}

/// What is asked of a server.
#[derive(Debug)]
pub enum What {
    /// To fill all bytes of the memory.
    Read(Memory),
    /// To store these bytes of the memory.
    Write(Memory, Range<usize>),
    /// To make durable what is complete.
    Flush,
    /// To release so many bytes.
    Trim(u64),
    /// To make so many bytes read as zeroes; whether they must stay allocated.
    WriteZeroes {
        /// How many.
        len: u64,
        /// Whether they must stay allocated.
        no_hole: bool,
    },
    /// What so many bytes are.
    BlockStatus(u64),
}

impl What {
    fn command(&self) -> Command {
        match self {
            What::Read(_) => Command::Read,
            What::Write(..) => Command::Write,
            What::Flush => Command::Flush,
            What::Trim(_) => Command::Trim,
            What::WriteZeroes { .. } => Command::WriteZeroes,
            What::BlockStatus(_) => Command::BlockStatus,
        }
    }

    /// Whether it changes what the export holds.
    pub fn changes_bytes(&self) -> bool {
        matches!(self, What::Write(..) | What::Trim(_) | What::WriteZeroes { .. })
    }

    fn len(&self) -> u64 {
        match self {
            What::Read(memory) => memory.bytes().len() as u64,
            What::Write(_, range) => range.len() as u64,
            What::Flush => 0,
            What::Trim(len) | What::WriteZeroes { len, .. } | What::BlockStatus(len) => *len,
        }
    }
}

/// The extents of one context, as they were told: lengths and flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The context's number.
    pub context: u32,
    /// Lengths, of which none is 0, and flags, from the request's offset on.
    pub extents: Vec<(u64, u64)>,
}

/// A request that was answered.
#[derive(Debug)]
pub struct Answered<T> {
    /// Who asked.
    pub who: T,
    /// What was asked, with its memory.
    pub what: What,
    /// Where.
    pub offset: u64,
    /// What a [`What::BlockStatus`] brought, or why it failed.
    pub result: io::Result<Vec<Status>>,
}

/// What was asked and has no answer yet.
struct Asked<T> {
    who: T,
    what: What,
    offset: u64,
    status: Vec<Status>,
    /// Requests that are in flight for it.
    flights: usize,
    /// The first error that was told.
    failed: Option<io::Error>,
}

/// A request in flight: what was asked, or a part of a long read.
struct Flight {
    /// The cookie of the first request for what was asked, which it is known by.
    asked: u64,
    command: Command,
    offset: u64,
    len: u64,
    /// Of a read: where in the memory its bytes go.
    at: usize,
    /// Of a read: ranges of the memory that are filled, ascending, not touching.
    filled: Vec<Range<usize>>,
    /// Chunks that came.
    chunks: u32,
    /// Whether an error was told.
    has_failed: bool,
    /// Whether its bytes are still to be sent.
    is_sending: bool,
}

impl Flight {
    /// Whether all came that was asked for, or an error; `told` is what came of contexts.
    fn check_whole(&self, told: &[Status]) -> Result<(), Violation> {
        let range = self.at..self.at + self.len as usize;
        match self.command {
            _ if self.has_failed => Ok(()),
            Command::Read if self.filled.first() != Some(&range) => {
                violation("a read is answered only in part")
            }
            Command::BlockStatus if told.is_empty() => {
                violation("a question about blocks is answered by nothing")
            }
            _ => Ok(()),
        }
    }
}

/// What the next bytes are.
enum Stage {
    /// A header, or what is still missing of a simple one.
    Head,
    /// The body of a chunk, gathered whole.
    Body(Chunk),
    /// Bytes for the memory of a read.
    Data { cookie: u64, at: usize, left: usize, is_last: bool },
}

/// The header of a chunk.
#[derive(Clone, Copy)]
struct Chunk {
    cookie: u64,
    flags: u16,
    kind: u16,
    len: u64,
}

/// The transmission phase of one connection.
pub struct Link<T> {
    replies: Replies,
    /// Whether reads are asked for in one piece.
    wants_whole: bool,
    flights: HashMap<u64, Flight>,
    asked: HashMap<u64, Asked<T>>,
    next_cookie: u64,
    stage: Stage,
    /// Gathers headers and bodies.
    inbox: Vec<u8>,
    /// How many bytes the inbox is to hold.
    need: usize,
}

impl<T> Link<T> {
    /// After a handshake that agreed on `replies`.
    pub fn new(replies: Replies) -> Link<T> {
        let (flights, asked, inbox) = Default::default();
        let mut link = Link {
            replies,
            wants_whole: false,
            flights,
            asked,
            next_cookie: 1,
            stage: Stage::Head,
            inbox,
            need: 0,
        };
        link.expect_head();
        link
    }

    /// The same, with reads asked for in one piece: every byte is to be sent.
    #[must_use]
    pub fn with_whole_reads(mut self, wants_whole: bool) -> Link<T> {
        self.wants_whole = wants_whole;
        self
    }

    /// How much of what was asked has no answer; a long read counts once.
    pub fn in_flight(&self) -> usize {
        self.asked.len()
    }

    /// Whether one of them may take minutes.
    pub fn is_patient(&self) -> bool {
        let is_slow =
            |what: &What| matches!(what, What::Flush | What::Trim(_) | What::WriteZeroes { .. });
        self.asked.values().any(|asked| is_slow(&asked.what))
    }

    /// Takes a request, and appends its header to `out`; those of its parts if it is a long read. Returns
    /// its cookie: of a write, the bytes are to follow.
    pub fn ask(&mut self, who: T, what: What, offset: u64, out: &mut Vec<u8>) -> u64 {
        let first = self.next_cookie;
        let flags = match &what {
            What::WriteZeroes { no_hole: true, .. } => FLAG_NO_HOLE,
            What::Write(..) if self.is_extended() => FLAG_PAYLOAD_LEN,
            What::Read(..) if self.wants_whole => FLAG_DF,
            _ => 0,
        };
        let (command, len) = (what.command(), what.len());
        let mut at = 0;
        loop {
            let start = offset + at;
            let part = match command {
                Command::Read => (len - at).min(READ_LEN_MAX - start % READ_LEN_MAX),
                _ => len,
            };
            let cookie = self.next_cookie;
            self.next_cookie += 1;
            self.put_header(command, flags, cookie, start, part, out);
            let flight = Flight {
                asked: first,
                command,
                offset: start,
                len: part,
                at: at as usize,
                filled: Vec::new(),
                chunks: 0,
                has_failed: false,
                // Until its bytes are sent, nothing can answer it.
                is_sending: command == Command::Write,
            };
            self.flights.insert(cookie, flight);
            at += part;
            if at >= len {
                break;
            }
        }
        let flights = (self.next_cookie - first) as usize;
        let asked = Asked { who, what, offset, status: Vec::new(), flights, failed: None };
        self.asked.insert(first, asked);
        first
    }

    /// Appends the header that ends the connection.
    pub fn put_disconnect(&mut self, out: &mut Vec<u8>) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.put_header(Command::Disconnect, 0, cookie, 0, 0, out);
    }

    #[expect(clippy::big_endian_bytes, reason = "NBD is big-endian")]
    fn put_header(
        &self,
        command: Command,
        flags: u16,
        cookie: u64,
        offset: u64,
        len: u64,
        out: &mut Vec<u8>,
    ) {
        let magic = if self.is_extended() { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        out.extend(magic.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend((command as u16).to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        match self.is_extended() {
            true => out.extend(len.to_be_bytes()),
            // Whoever asks keeps to what a header can say.
            false => out.extend((len as u32).to_be_bytes()),
        }
    }

    /// How many bytes are still to come of the data that is coming.
    pub fn data_left(&self) -> usize {
        if let Stage::Data { left, .. } = self.stage { left } else { 0 }
    }

    /// The memory of a write, to be sent; [`return_write`](Self::return_write) takes it back.
    pub fn lend_write(&mut self, cookie: u64) -> Option<(Memory, Range<usize>)> {
        let What::Write(memory, range) = &mut self.asked.get_mut(&cookie)?.what else {
            return None;
        };
        self.flights.get_mut(&cookie)?.is_sending = true;
        Some((std::mem::replace(memory, Memory::Bytes(Vec::new())), range.clone()))
    }

    /// Where the next bytes of the stream may be received into directly, past
    /// [`take`](Self::take): the memory of a read, and which of its bytes.
    pub fn lend_read(&mut self) -> Option<(u64, Memory, Range<usize>)> {
        let Stage::Data { cookie, at, left, .. } = self.stage else { return None };
        let memory = self.memory(cookie)?;
        let memory = std::mem::replace(memory, Memory::Bytes(Vec::new()));
        Some((cookie, memory, at..at + left))
    }

    /// The memory that a request for a read fills.
    fn memory(&mut self, cookie: u64) -> Option<&mut Memory> {
        let flight = self.flights.get(&cookie)?;
        match &mut self.asked.get_mut(&flight.asked)?.what {
            What::Read(memory) => Some(memory),
            _ => None,
        }
    }

    /// Takes back what [`lend_write`](Self::lend_write) lent.
    pub fn return_write(&mut self, cookie: u64, lent: Memory) {
        if let Some(flight) = self.flights.get_mut(&cookie) {
            flight.is_sending = false;
        }
        if let Some(Asked { what: What::Write(memory, _), .. }) = self.asked.get_mut(&cookie) {
            *memory = lent;
        }
    }

    /// Takes back what [`lend_read`](Self::lend_read) lent, of which `received` bytes were filled.
    ///
    /// # Errors
    /// `Violation` if these were a reply's last and it is not whole.
    pub fn return_read(
        &mut self,
        cookie: u64,
        lent: Memory,
        received: usize,
        answered: &mut Vec<Answered<T>>,
    ) -> Result<(), Violation> {
        if let Some(memory) = self.memory(cookie) {
            *memory = lent;
        }
        self.advance(received, answered)
    }

    /// Takes bytes of the stream.
    ///
    /// # Errors
    /// `Violation`; the connection is of no use then.
    pub fn take(
        &mut self,
        mut bytes: &[u8],
        answered: &mut Vec<Answered<T>>,
    ) -> Result<(), Violation> {
        while !bytes.is_empty() {
            if let Stage::Data { cookie, at, left, .. } = self.stage {
                let count = left.min(bytes.len());
                if let Some(memory) = self.memory(cookie) {
                    memory.bytes_mut()[at..at + count].copy_from_slice(&bytes[..count]);
                }
                bytes = &bytes[count..];
                self.advance(count, answered)?;
                continue;
            }
            let count = (self.need - self.inbox.len()).min(bytes.len());
            self.inbox.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.inbox.len() == self.need {
                self.gathered(answered)?;
            }
        }
        Ok(())
    }

    /// Everything that was asked and has no answer, for another connection or to fail. What is lent
    /// must be back.
    pub fn abandon(&mut self) -> Vec<(T, What, u64)> {
        self.stage = Stage::Head;
        self.flights.clear();
        let mut asked: Vec<_> = self.asked.drain().collect();
        asked.sort_by_key(|(cookie, _)| *cookie);
        asked.into_iter().map(|(_, it)| (it.who, it.what, it.offset)).collect()
    }

    fn expect_head(&mut self) {
        self.stage = Stage::Head;
        self.inbox.clear();
        self.need = match self.replies {
            Replies::Simple | Replies::Structured => 16,
            Replies::Extended => 32,
        };
    }

    /// `count` bytes of data are in their memory.
    fn advance(&mut self, count: usize, answered: &mut Vec<Answered<T>>) -> Result<(), Violation> {
        let Stage::Data { cookie, at, left, is_last } = &mut self.stage else { return Ok(()) };
        *at += count;
        *left -= count;
        if *left > 0 {
            return Ok(());
        }
        let (cookie, is_last) = (*cookie, *is_last);
        self.expect_head();
        self.end_chunk(cookie, is_last, answered)
    }

    /// The inbox holds what it is to hold.
    fn gathered(&mut self, answered: &mut Vec<Answered<T>>) -> Result<(), Violation> {
        match self.stage {
            Stage::Head => self.head(answered),
            Stage::Body(chunk) => {
                let body = std::mem::take(&mut self.inbox);
                let outcome = self.body(chunk, &body, answered);
                self.inbox = body;
                // Data leaves the stage set; all else goes on with a header.
                if !matches!(self.stage, Stage::Data { .. }) {
                    self.expect_head();
                }
                outcome
            }
            Stage::Data { .. } => Ok(()),
        }
    }

    fn head(&mut self, answered: &mut Vec<Answered<T>>) -> Result<(), Violation> {
        let mut fields = Fields(&self.inbox);
        let magic = fields.u32()?;
        let chunk = match (self.replies, magic) {
            (Replies::Simple | Replies::Structured, SIMPLE_REPLY_MAGIC) => {
                let (error, cookie) = (fields.u32()?, fields.u64()?);
                return self.simple(error, cookie, answered);
            }
            (Replies::Structured, STRUCTURED_REPLY_MAGIC) if self.inbox.len() < 20 => {
                self.need = 20;
                return Ok(());
            }
            (Replies::Structured, STRUCTURED_REPLY_MAGIC) => {
                let (flags, kind) = (fields.u16()?, fields.u16()?);
                Chunk { flags, kind, cookie: fields.u64()?, len: fields.u32()?.into() }
            }
            (Replies::Extended, EXTENDED_REPLY_MAGIC) => {
                let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
                let (offset, len) = (fields.u64()?, fields.u64()?);
                if self.flights.get(&cookie).is_some_and(|flight| flight.offset != offset) {
                    return violation("a reply names another offset than its request");
                }
                Chunk { flags, kind, cookie, len }
            }
            _ => return violation(format!("a reply begins with {magic:#010x}")),
        };
        self.chunk(chunk, answered)
    }

    fn flight(&mut self, cookie: u64) -> Result<&mut Flight, Violation> {
        match self.flights.get_mut(&cookie) {
            None => violation("a reply to no request"),
            Some(flight) if flight.is_sending => violation("a reply before the request was sent"),
            Some(flight) => Ok(flight),
        }
    }

    fn simple(
        &mut self,
        error: u32,
        cookie: u64,
        answered: &mut Vec<Answered<T>>,
    ) -> Result<(), Violation> {
        let replies = self.replies;
        let flight = self.flight(cookie)?;
        let (at, asked_len) = (flight.at, flight.len as usize);
        let len = match (flight.command, replies) {
            (Command::BlockStatus, _) if error == 0 => {
                return violation("a simple reply to a question that has a structured one");
            }
            (Command::Read, Replies::Structured) => {
                return violation("a simple reply to a read, where structured ones were agreed on");
            }
            (Command::Read, _) if error == 0 => asked_len,
            _ => 0,
        };
        if error != 0 {
            self.fail(cookie, protocol::error_of(error, ""))?;
        }
        self.expect_head();
        if len == 0 {
            return self.end_chunk(cookie, true, answered);
        }
        self.fill(cookie, at..at + len)?;
        self.stage = Stage::Data { cookie, at, left: len, is_last: true };
        Ok(())
    }

    fn chunk(&mut self, chunk: Chunk, answered: &mut Vec<Answered<T>>) -> Result<(), Violation> {
        let Chunk { cookie, kind, len, .. } = chunk;
        let flight = self.flight(cookie)?;
        flight.chunks += 1;
        if flight.chunks > CHUNKS_MAX {
            return violation("a reply does not end");
        }
        let is_read = flight.command == Command::Read;
        let asks_status = flight.command == Command::BlockStatus;
        let asked_len = flight.len;
        let (least, most, need) = match kind {
            CHUNK_NONE => (0, 0, 0),
            CHUNK_OFFSET_DATA if is_read => (9, 8 + asked_len, 8),
            CHUNK_OFFSET_HOLE if is_read => (12, 12, 12),
            CHUNK_BLOCK_STATUS if asks_status && !self.is_extended() => (12, STATUS_LEN_MAX, len),
            CHUNK_BLOCK_STATUS_EXT if asks_status && self.is_extended() => {
                (24, STATUS_LEN_MAX, len)
            }
            CHUNK_ERROR_OFFSET => (14, 14 + MESSAGE_LEN_MAX, len),
            kind if kind & CHUNK_ERROR_BIT != 0 => (6, 14 + MESSAGE_LEN_MAX, len),
            kind => return violation(format!("a chunk of kind {kind:#x} that was not asked for")),
        };
        if !(least..=most).contains(&len) {
            return violation(format!("a chunk of kind {kind:#x} with {len} bytes"));
        }
        if need == 0 {
            self.expect_head();
            return self.end_chunk(cookie, chunk.flags & CHUNK_DONE != 0, answered);
        }
        self.stage = Stage::Body(chunk);
        self.inbox.clear();
        // At most `STATUS_LEN_MAX`.
        self.need = need as usize;
        Ok(())
    }

    fn is_extended(&self) -> bool {
        matches!(self.replies, Replies::Extended)
    }

    fn body(
        &mut self,
        chunk: Chunk,
        body: &[u8],
        answered: &mut Vec<Answered<T>>,
    ) -> Result<(), Violation> {
        let Chunk { cookie, flags, kind, len } = chunk;
        let is_last = flags & CHUNK_DONE != 0;
        let mut fields = Fields(body);
        match kind {
            CHUNK_OFFSET_DATA => {
                let range = self.place(cookie, fields.u64()?, len - 8)?;
                self.stage = Stage::Data { cookie, at: range.start, left: range.len(), is_last };
                // Its end is the chunk's.
                return Ok(());
            }
            CHUNK_OFFSET_HOLE => {
                let (offset, len) = (fields.u64()?, fields.u32()?);
                let range = self.place(cookie, offset, len.into())?;
                if let Some(memory) = self.memory(cookie) {
                    memory.bytes_mut()[range].fill(0);
                }
            }
            CHUNK_BLOCK_STATUS | CHUNK_BLOCK_STATUS_EXT => {
                let status = status(kind == CHUNK_BLOCK_STATUS_EXT, fields)?;
                let asked = self.flight(cookie)?.asked;
                let Some(Asked { status: told, .. }) = self.asked.get_mut(&asked) else {
                    return violation("a reply to no request");
                };
                if told.iter().any(|other| other.context == status.context) {
                    return violation("a context is told twice");
                }
                told.push(status);
            }
            kind => self.error(cookie, kind, fields)?,
        }
        self.end_chunk(cookie, is_last, answered)
    }

    fn error(&mut self, cookie: u64, kind: u16, mut fields: Fields<'_>) -> Result<(), Violation> {
        let (value, len) = (fields.u32()?, fields.u16()?);
        if value == 0 {
            return violation("an error chunk without an error");
        }
        let message = fields.bytes(len.into())?;
        let is_whole = match kind {
            CHUNK_ERROR => fields.0.is_empty(),
            CHUNK_ERROR_OFFSET => fields.0.len() == 8,
            _ => true,
        };
        if !is_whole {
            return violation("an error chunk is longer than it says");
        }
        let message = super::handshake::show(message);
        let error = protocol::error_of(value, &message);
        self.fail(cookie, error)
    }

    /// Notes that a request failed.
    fn fail(&mut self, cookie: u64, error: io::Error) -> Result<(), Violation> {
        let flight = self.flight(cookie)?;
        flight.has_failed = true;
        let asked = flight.asked;
        if let Some(asked) = self.asked.get_mut(&asked) {
            asked.failed.get_or_insert(error);
        }
        Ok(())
    }

    /// The range of a read's memory for `len` bytes at `offset`, which is filled now.
    fn place(&mut self, cookie: u64, offset: u64, len: u64) -> Result<Range<usize>, Violation> {
        let flight = self.flight(cookie)?;
        let start = offset.checked_sub(flight.offset);
        let end = start.and_then(|start| start.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if end <= flight.len && len > 0 => {
                let range = flight.at + start as usize..flight.at + end as usize;
                self.fill(cookie, range.clone())?;
                Ok(range)
            }
            _ => violation(format!("{len} bytes at {offset:#x}, which were not asked for")),
        }
    }

    /// Notes that a range of a read's memory is filled.
    fn fill(&mut self, cookie: u64, range: Range<usize>) -> Result<(), Violation> {
        let filled = &mut self.flight(cookie)?.filled;
        let at = filled.partition_point(|other| other.start < range.start);
        let before = at.checked_sub(1).map(|at| filled[at].end);
        let behind = filled.get(at).map(|next| next.start);
        if before.is_some_and(|end| end > range.start) || behind.is_some_and(|it| it < range.end) {
            return violation("bytes that came before come again");
        }
        match (before == Some(range.start), behind == Some(range.end)) {
            (true, true) => {
                filled[at - 1].end = filled[at].end;
                filled.remove(at);
            }
            (true, false) => filled[at - 1].end = range.end,
            (false, true) => filled[at].start = range.start,
            (false, false) => filled.insert(at, range),
        }
        match filled.len() > PIECES_MAX {
            true => violation("a read is answered in too many pieces"),
            false => Ok(()),
        }
    }

    /// A chunk is complete; the last one completes its request.
    fn end_chunk(
        &mut self,
        cookie: u64,
        is_last: bool,
        answered: &mut Vec<Answered<T>>,
    ) -> Result<(), Violation> {
        if !is_last {
            return Ok(());
        }
        // Before it is taken out: what is in flight when the server is found out is still answered.
        let asked = self.flight(cookie)?.asked;
        let (Some(flight), Some(waiting)) = (self.flights.get(&cookie), self.asked.get_mut(&asked))
        else {
            return violation("a reply to no request");
        };
        flight.check_whole(&waiting.status)?;
        self.flights.remove(&cookie);
        waiting.flights -= 1;
        if waiting.flights > 0 {
            return Ok(());
        }
        if let Some(Asked { who, what, offset, status, failed, .. }) = self.asked.remove(&asked) {
            let result = failed.map_or(Ok(status), Err);
            answered.push(Answered { who, what, offset, result });
        }
        Ok(())
    }
}

/// The extents of a chunk.
fn status(is_extended: bool, mut fields: Fields<'_>) -> Result<Status, Violation> {
    let context = fields.u32()?;
    let said = if is_extended { Some(fields.u32()?) } else { None };
    let mut extents = Vec::with_capacity(fields.0.len() / 8);
    while !fields.0.is_empty() {
        let (len, flags) = match is_extended {
            true => (fields.u64()?, fields.u64()?),
            false => (fields.u32()?.into(), fields.u32()?.into()),
        };
        if len == 0 {
            return violation("an extent of no bytes");
        }
        extents.push((len, flags));
    }
    match said.is_some_and(|said| said as usize != extents.len()) {
        true => violation("a list of extents is not as long as it says"),
        false => Ok(Status { context, extents }),
    }
}

/// Big-endian numbers, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Violation> {
        match self.0.split_at_checked(count) {
            Some((bytes, rest)) => {
                self.0 = rest;
                Ok(bytes)
            }
            None => violation("a chunk is shorter than it says"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    #[expect(clippy::big_endian_bytes, reason = "NBD is big-endian")]
    fn u16(&mut self) -> Result<u16, Violation> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    #[expect(clippy::big_endian_bytes, reason = "NBD is big-endian")]
    fn u32(&mut self) -> Result<u32, Violation> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    #[expect(clippy::big_endian_bytes, reason = "NBD is big-endian")]
    fn u64(&mut self) -> Result<u64, Violation> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}

#[cfg(test)]
#[expect(clippy::big_endian_bytes, reason = "NBD is big-endian")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STYLES: [Replies; 3] = [Replies::Simple, Replies::Structured, Replies::Extended];
    const OFFSET: u64 = 4096;

    fn read(len: usize) -> What {
        What::Read(Memory::Bytes(vec![0xee; len]))
    }

    /// A link with one request in flight, whose cookie is 1.
    fn asked(replies: Replies, what: What) -> Link<&'static str> {
        let mut link = Link::new(replies);
        let cookie = link.ask("me", what, OFFSET, &mut Vec::new());
        assert_eq!(cookie, 1);
        link
    }

    fn simple(error: u32, cookie: u64) -> Vec<u8> {
        let mut bytes = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes
    }

    /// A chunk of the reply to the request with this cookie.
    fn chunk(replies: Replies, cookie: u64, flags: u16, kind: u16, body: &[u8]) -> Vec<u8> {
        chunk_of(replies, (cookie, OFFSET), flags, kind, body)
    }

    /// The same, of a request at another offset.
    fn chunk_of(
        replies: Replies,
        (cookie, offset): (u64, u64),
        flags: u16,
        kind: u16,
        body: &[u8],
    ) -> Vec<u8> {
        let is_extended = replies == Replies::Extended;
        let magic = if is_extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        match is_extended {
            true => {
                bytes.extend(offset.to_be_bytes());
                bytes.extend((body.len() as u64).to_be_bytes());
            }
            false => bytes.extend((body.len() as u32).to_be_bytes()),
        }
        bytes.extend(body);
        bytes
    }

    fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
        [&offset.to_be_bytes()[..], bytes].concat()
    }

    fn hole(offset: u64, len: u32) -> Vec<u8> {
        [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
    }

    fn failure(value: u32, message: &[u8]) -> Vec<u8> {
        [&value.to_be_bytes()[..], &(message.len() as u16).to_be_bytes(), message].concat()
    }

    /// What becomes of the request when these bytes come, whole and one by one.
    #[track_caller]
    fn answer_to(replies: Replies, what: fn() -> What, bytes: &[u8]) -> Answered<&'static str> {
        let mut answers = Vec::new();
        for step in [bytes.len(), 1] {
            let mut link = asked(replies, what());
            let mut answered = Vec::new();
            for piece in bytes.chunks(step) {
                link.take(piece, &mut answered).unwrap();
            }
            assert_eq!((answered.len(), link.in_flight()), (1, 0));
            answers.push(answered.remove(0));
        }
        assert_eq!(format!("{:?}", answers[0]), format!("{:?}", answers[1]));
        answers.remove(0)
    }

    fn bytes_of<'a>(answer: &'a Answered<&'static str>) -> &'a [u8] {
        match &answer.what {
            What::Read(memory) => memory.bytes(),
            other => panic!("{other:?}"),
        }
    }

    /// These bytes break the protocol, and it is said so in these words.
    #[track_caller]
    fn assert_violates(replies: Replies, what: What, bytes: &[u8], words: &str) {
        let mut link = asked(replies, what);
        let mut answered = Vec::new();
        let Violation(said) = link.take(bytes, &mut answered).unwrap_err();
        assert!(said.contains(words), "{said}");
        assert!(answered.is_empty());
    }

    #[test]
    fn requests_are_as_the_protocol_wants_them() {
        let header = |replies, what| {
            let mut out = Vec::new();
            Link::new(replies).ask((), what, 0x1122, &mut out);
            hex(&out)
        };
        let write = || What::Write(Memory::Bytes(vec![0; 8]), 2..8);
        let plain = "25609513 0000 0001 0000000000000001 0000000000001122 00000006";
        assert_eq!(header(Replies::Structured, write()), plain.replace(' ', ""));
        let extended = "21e41c71 0020 0001 0000000000000001 0000000000001122 0000000000000006";
        assert_eq!(header(Replies::Extended, write()), extended.replace(' ', ""));
        let zeroes = What::WriteZeroes { len: 4096, no_hole: true };
        let plain = "25609513 0002 0006 0000000000000001 0000000000001122 00001000";
        assert_eq!(header(Replies::Simple, zeroes), plain.replace(' ', ""));
        let mut out = Vec::new();
        Link::<()>::new(Replies::Simple).put_disconnect(&mut out);
        assert!(hex(&out).starts_with("2560951300000002"));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn reads_come_whole_in_any_order() {
        let answer =
            answer_to(Replies::Simple, || read(4), &[simple(0, 1), b"abcd".to_vec()].concat());
        assert_eq!(bytes_of(&answer), b"abcd");
        for replies in [Replies::Structured, Replies::Extended] {
            let bytes = [
                chunk(replies, 1, 0, CHUNK_OFFSET_DATA, &data(OFFSET + 6, b"gh")),
                chunk(replies, 1, 0, CHUNK_OFFSET_DATA, &data(OFFSET, b"abc")),
                chunk(replies, 1, 0, CHUNK_OFFSET_HOLE, &hole(OFFSET + 3, 3)),
                chunk(replies, 1, CHUNK_DONE, CHUNK_NONE, b""),
            ];
            let answer = answer_to(replies, || read(8), &bytes.concat());
            assert!(answer.result.is_ok());
            assert_eq!(bytes_of(&answer), b"abc\0\0\0gh");
        }
    }

    #[test]
    fn errors_are_the_requests() {
        let answer = answer_to(Replies::Simple, || What::Flush, &simple(28, 1));
        assert_eq!(answer.result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        for replies in [Replies::Structured, Replies::Extended] {
            let bytes = [
                chunk(replies, 1, 0, CHUNK_OFFSET_DATA, &data(OFFSET, b"ab")),
                chunk(replies, 1, 0, CHUNK_ERROR_OFFSET, &{
                    [failure(5, b"bad\x1b[31m disk"), (OFFSET + 2).to_be_bytes().to_vec()].concat()
                }),
                chunk(replies, 1, CHUNK_DONE, CHUNK_ERROR, &failure(22, b"second")),
            ];
            let answer = answer_to(replies, || read(8), &bytes.concat());
            let said = answer.result.unwrap_err().to_string();
            assert!(said.contains("bad\\u{1b}[31m disk"), "{said}");
        }
        // A value that the specification lacks counts as EINVAL.
        let answer = answer_to(Replies::Structured, || What::Trim(4096), &simple(4711, 1));
        assert_eq!(answer.result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn extents_are_told_by_context() {
        let told = |is_extended: bool, context: u32, extents: &[(u64, u64)]| {
            let mut body = context.to_be_bytes().to_vec();
            if is_extended {
                body.extend((extents.len() as u32).to_be_bytes());
            }
            for (len, flags) in extents {
                match is_extended {
                    true => body.extend([len.to_be_bytes(), flags.to_be_bytes()].concat()),
                    false => {
                        body.extend((*len as u32).to_be_bytes());
                        body.extend((*flags as u32).to_be_bytes());
                    }
                }
            }
            body
        };
        for (replies, kind) in
            [(Replies::Structured, CHUNK_BLOCK_STATUS), (Replies::Extended, CHUNK_BLOCK_STATUS_EXT)]
        {
            let is_extended = replies == Replies::Extended;
            let (one, other) = ([(4096, 0), (8192, 3)], [(12288, 1)]);
            let bytes = [
                chunk(replies, 1, 0, kind, &told(is_extended, 7, &one)),
                chunk(replies, 1, CHUNK_DONE, kind, &told(is_extended, 9, &other)),
            ];
            let answer = answer_to(replies, || What::BlockStatus(12288), &bytes.concat());
            let expected = [
                Status { context: 7, extents: one.to_vec() },
                Status { context: 9, extents: other.to_vec() },
            ];
            assert_eq!(answer.result.unwrap(), expected);
            let ask = || What::BlockStatus(12288);
            let twice = [
                chunk(replies, 1, 0, kind, &told(is_extended, 7, &one)),
                chunk(replies, 1, 0, kind, &told(is_extended, 7, &one)),
            ];
            assert_violates(replies, ask(), &twice.concat(), "told twice");
            let empty = chunk(replies, 1, 0, kind, &told(is_extended, 7, &[(0, 1)]));
            assert_violates(replies, ask(), &empty, "no bytes");
            let nothing = chunk(replies, 1, CHUNK_DONE, CHUNK_NONE, b"");
            assert_violates(replies, ask(), &nothing, "answered by nothing");
            let mut long = told(is_extended, 7, &one);
            long.push(0);
            assert_violates(replies, ask(), &chunk(replies, 1, 0, kind, &long), "shorter than");
        }
        let mut lying = told(true, 7, &[(4096, 0)]);
        lying[7] = 2;
        let lying = chunk(Replies::Extended, 1, 0, CHUNK_BLOCK_STATUS_EXT, &lying);
        assert_violates(Replies::Extended, What::BlockStatus(4096), &lying, "as long as it says");
    }

    #[test]
    fn what_was_not_asked_for_breaks_the_protocol() {
        for replies in [Replies::Structured, Replies::Extended] {
            let of = |flags, kind, body: &[u8]| chunk(replies, 1, flags, kind, body);
            let table: [(&str, Vec<u8>); 12] = [
                ("a reply to no request", chunk(replies, 2, CHUNK_DONE, CHUNK_NONE, b"")),
                ("only in part", of(CHUNK_DONE, CHUNK_NONE, b"")),
                ("only in part", of(CHUNK_DONE, CHUNK_OFFSET_DATA, &data(OFFSET, b"abc"))),
                ("not asked for", of(0, CHUNK_OFFSET_DATA, &data(OFFSET - 1, b"ab"))),
                ("not asked for", of(0, CHUNK_OFFSET_DATA, &data(OFFSET + 5, b"abcd"))),
                ("not asked for", of(0, CHUNK_OFFSET_HOLE, &hole(OFFSET, 0))),
                ("not asked for", of(0, CHUNK_OFFSET_HOLE, &hole(u64::MAX, 9))),
                ("kind 0x1 with 17 bytes", of(0, CHUNK_OFFSET_DATA, &data(OFFSET, &[0; 9]))),
                ("kind 0x1 with 8 bytes", of(0, CHUNK_OFFSET_DATA, &data(OFFSET, b""))),
                ("not asked for", of(0, CHUNK_BLOCK_STATUS, &[0; 12])),
                ("not asked for", of(0, 77, b"")),
                ("without an error", of(0, CHUNK_ERROR, &failure(0, b"x"))),
            ];
            for (words, bytes) in table {
                assert_violates(replies, read(8), &bytes, words);
            }
            let again = [
                of(0, CHUNK_OFFSET_DATA, &data(OFFSET, b"abcd")),
                of(0, CHUNK_OFFSET_HOLE, &hole(OFFSET + 3, 2)),
            ];
            assert_violates(replies, read(8), &again.concat(), "come again");
            let long = failure(5, &[b'x'; 8]);
            assert_violates(replies, read(8), &of(0, CHUNK_ERROR, &long[..10]), "shorter than");
            let padded = [failure(5, b"x"), vec![0; 3]].concat();
            assert_violates(replies, read(8), &of(0, CHUNK_ERROR, &padded), "longer than");
        }
        assert_violates(Replies::Structured, read(8), &simple(0, 1), "structured ones were agreed");
        assert_violates(Replies::Simple, read(8), &[0; 16], "begins with 0x00000000");
        assert_violates(
            Replies::Extended,
            read(8),
            &[simple(0, 1), vec![0; 16]].concat(),
            "begins",
        );
        let mut elsewhere = chunk(Replies::Extended, 1, CHUNK_DONE, CHUNK_NONE, b"");
        elsewhere[16] = 1;
        assert_violates(Replies::Extended, read(8), &elsewhere, "another offset");
    }

    #[test]
    fn a_reply_ends() {
        let replies = Replies::Structured;
        let mut link = asked(replies, read(8));
        let nothing = chunk(replies, 1, 0, CHUNK_NONE, b"");
        let mut outcome = Ok(());
        let mut count = 0;
        while outcome.is_ok() && count <= CHUNKS_MAX {
            outcome = link.take(&nothing, &mut Vec::new());
            count += 1;
        }
        assert_eq!(outcome, violation("a reply does not end"));
        let len = 4 * PIECES_MAX;
        let mut link = asked(replies, read(len));
        let mut pieces = (0..len as u64)
            .step_by(2)
            .map(|at| chunk(replies, 1, 0, CHUNK_OFFSET_DATA, &data(OFFSET + at, b"x")));
        let refused = pieces.find_map(|piece| link.take(&piece, &mut Vec::new()).err());
        assert_eq!(refused, Some(Violation("a read is answered in too many pieces".into())));
    }

    #[test]
    fn an_answer_before_the_payload_was_sent_is_none() {
        let mut link = asked(Replies::Simple, What::Write(Memory::Bytes(vec![1; 8]), 0..8));
        let (memory, range) = link.lend_write(1).unwrap();
        assert_eq!((memory.bytes(), range), (&[1; 8][..], 0..8));
        let early = link.take(&simple(0, 1), &mut Vec::new());
        assert_eq!(early, violation("a reply before the request was sent"));
        link.return_write(1, memory);
        let abandoned = link.abandon();
        assert_eq!((abandoned.len(), abandoned[0].2), (1, OFFSET));
        assert!(matches!(&abandoned[0].1, What::Write(memory, _) if memory.bytes() == [1; 8]));
    }

    #[test]
    fn data_may_go_past_the_link() {
        let replies = Replies::Structured;
        let mut link = asked(replies, read(8));
        let chunk = chunk(replies, 1, CHUNK_DONE, CHUNK_OFFSET_DATA, &data(OFFSET, b"abcdefgh"));
        let mut answered = Vec::new();
        assert!(link.lend_read().is_none());
        link.take(&chunk[..30], &mut answered).unwrap();
        assert_eq!(link.data_left(), 6);
        let (cookie, mut memory, range) = link.lend_read().unwrap();
        assert_eq!((cookie, range.clone()), (1, 2..8));
        memory.bytes_mut()[range].copy_from_slice(b"cdefgh");
        link.return_read(1, memory, 6, &mut answered).unwrap();
        assert_eq!(bytes_of(&answered[0]), b"abcdefgh");
    }

    /// An honest answer to a request, in pieces that are cut at these places and rotated.
    fn answer(replies: Replies, part: Part, disk: &[u8], cuts: &[usize]) -> Vec<u8> {
        let (cookie, start, len) = part;
        if replies == Replies::Simple {
            return [simple(0, cookie), disk[..len].to_vec()].concat();
        }
        let request = (cookie, start);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % len).chain([0, len]).collect();
        ends.sort_unstable();
        ends.dedup();
        let mut pieces: Vec<_> = ends.windows(2).map(|ends| ends[0]..ends[1]).collect();
        let middle = pieces.len() / 2;
        pieces.rotate_left(middle);
        let mut bytes = Vec::new();
        for piece in pieces {
            let offset = start + piece.start as u64;
            let is_zero = disk[piece.clone()].iter().all(|byte| *byte == 0);
            bytes.extend(match is_zero {
                true => {
                    let body = hole(offset, piece.len() as u32);
                    chunk_of(replies, request, 0, CHUNK_OFFSET_HOLE, &body)
                }
                false => {
                    chunk_of(replies, request, 0, CHUNK_OFFSET_DATA, &data(offset, &disk[piece]))
                }
            });
        }
        bytes.extend(chunk_of(replies, request, CHUNK_DONE, CHUNK_NONE, b""));
        bytes
    }

    proptest! {
        #[test]
        fn whatever_the_order_of_replies_each_read_gets_its_bytes(
            style in 0usize..3,
            reads in proptest::collection::vec(
                (1usize..300, proptest::collection::vec(any::<usize>(), 0..5), any::<u8>()),
                1..6,
            ),
            step in 1usize..64,
            is_direct in any::<bool>(),
        ) {
            let replies = STYLES[style];
            let mut link = Link::new(replies);
            let mut stream = Vec::new();
            for (number, (len, cuts, seed)) in reads.iter().enumerate().rev() {
                // Most of them are asked for in two parts.
                let start = READ_LEN_MAX - 20;
                let mut out = Vec::new();
                link.ask(number, read(*len), start, &mut out);
                let disk = disk(*len, *seed);
                for part in requests(replies, &out).into_iter().rev() {
                    let at = (part.1 - start) as usize;
                    stream.extend(answer(replies, part, &disk[at..][..part.2], cuts));
                }
            }
            let mut answered = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let lent = if is_direct { link.lend_read() } else { None };
                let count = match lent {
                    Some((cookie, mut memory, range)) => {
                        let count = range.len().min(step);
                        memory.bytes_mut()[range][..count].copy_from_slice(&rest[..count]);
                        link.return_read(cookie, memory, count, &mut answered).unwrap();
                        count
                    }
                    None => {
                        let count = step.min(rest.len());
                        link.take(&rest[..count], &mut answered).unwrap();
                        count
                    }
                };
                rest = &rest[count..];
            }
            prop_assert_eq!((answered.len(), link.in_flight()), (reads.len(), 0));
            for Answered { who, what, result, .. } in answered {
                prop_assert!(result.is_ok());
                let (len, _, seed) = &reads[who];
                let What::Read(memory) = what else { panic!("not a read") };
                prop_assert_eq!(memory.bytes(), disk(*len, *seed));
            }
        }

        #[test]
        fn no_bytes_panic_or_are_kept_without_bound(
            style in 0usize..3,
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            magic in any::<bool>(),
            kind in 0u16..8,
        ) {
            let replies = STYLES[style];
            let mut link = Link::new(replies);
            for what in [read(64), What::Flush, What::BlockStatus(64)] {
                link.ask((), what, OFFSET, &mut Vec::new());
            }
            let mut stream = Vec::new();
            if magic && replies != Replies::Simple {
                let cookie = 1 + u64::from(kind % 3);
                stream = chunk(replies, cookie, kind & 1, kind, &bytes);
            }
            stream.extend(&bytes);
            let _ = link.take(&stream, &mut Vec::new());
            prop_assert!(link.inbox.capacity() <= 2 * STATUS_LEN_MAX as usize);
        }
    }

    fn disk(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|at| if at % 64 < 20 { 0 } else { seed ^ at as u8 }).collect()
    }

    /// A request: its cookie, offset and length.
    type Part = (u64, u64, usize);

    /// The requests whose headers these are.
    fn requests(replies: Replies, headers: &[u8]) -> Vec<Part> {
        let head_len = if replies == Replies::Extended { 32 } else { 28 };
        let request = |head: &[u8]| {
            let mut fields = Fields(&head[8..]);
            let (cookie, offset) = (fields.u64().unwrap(), fields.u64().unwrap());
            let len = match replies {
                Replies::Extended => fields.u64().unwrap(),
                _ => fields.u32().unwrap().into(),
            };
            (cookie, offset, len as usize)
        };
        headers.chunks_exact(head_len).map(request).collect()
    }

    /// A link with a read of `len` bytes at [`OFFSET`] in flight, and its requests.
    fn parts(replies: Replies, len: usize) -> (Link<&'static str>, Vec<Part>) {
        let (mut link, mut out) = (Link::new(replies), Vec::new());
        link.ask("me", read(len), OFFSET, &mut out);
        (link, requests(replies, &out))
    }

    /// The answer to a part: all its bytes.
    fn part_of(disk: &[u8], replies: Replies, part: Part) -> Vec<u8> {
        answer(replies, part, &disk[(part.1 - OFFSET) as usize..][..part.2], &[])
    }

    #[test]
    fn a_long_read_is_asked_for_in_parts_that_may_be_answered_in_any_order() {
        const PART_LEN: usize = READ_LEN_MAX as usize;
        let len = 2 * PART_LEN;
        let disk = disk(len, 7);
        for replies in STYLES {
            let (mut link, asked) = parts(replies, len);
            let expected = [
                (1, OFFSET, PART_LEN - OFFSET as usize),
                (2, READ_LEN_MAX, PART_LEN),
                (3, 2 * READ_LEN_MAX, OFFSET as usize),
            ];
            assert_eq!((link.in_flight(), &asked[..]), (1, &expected[..]));
            let mut answered = Vec::new();
            for at in [2, 0, 1] {
                assert!(answered.is_empty());
                link.take(&part_of(&disk, replies, asked[at]), &mut answered).unwrap();
            }
            assert_eq!((answered.len(), link.in_flight()), (1, 0));
            let Answered { what: What::Read(memory), offset, result, .. } = answered.remove(0)
            else {
                panic!("not a read");
            };
            assert!(result.is_ok());
            assert_eq!(offset, OFFSET);
            assert!(memory.bytes() == disk, "{replies:?}: other bytes");
        }
    }

    #[test]
    fn a_part_of_a_long_read_that_fails_fails_it_once_all_are_answered() {
        let disk = disk(2 * READ_LEN_MAX as usize, 7);
        for replies in STYLES {
            let (mut link, asked) = parts(replies, disk.len());
            let refusal = match replies {
                Replies::Simple => simple(5, asked[0].0),
                _ => chunk(replies, asked[0].0, CHUNK_DONE, CHUNK_ERROR, &failure(5, b"bad disk")),
            };
            let mut answered = Vec::new();
            link.take(&refusal, &mut answered).unwrap();
            for part in &asked[1..] {
                assert!(answered.is_empty());
                link.take(&part_of(&disk, replies, *part), &mut answered).unwrap();
            }
            assert_eq!((answered.len(), link.in_flight()), (1, 0));
            assert!(answered[0].result.is_err());
        }
    }

    #[test]
    fn a_part_is_not_answered_by_bytes_of_another() {
        let replies = Replies::Structured;
        let (mut link, asked) = parts(replies, 2 * READ_LEN_MAX as usize);
        let (first, second) = (asked[0], asked[1]);
        let bytes = chunk(replies, first.0, 0, CHUNK_OFFSET_DATA, &data(second.1, &[1; 512]));
        assert!(link.take(&bytes, &mut Vec::new()).is_err());
        // Whoever asked is told once, and can ask elsewhere for all of it.
        let abandoned = link.abandon();
        assert_eq!((abandoned.len(), abandoned[0].2, link.in_flight()), (1, OFFSET, 0));
        assert_eq!(abandoned[0].1.len(), 2 * READ_LEN_MAX);
    }

    #[test]
    fn a_request_whose_answer_is_not_believed_is_still_to_be_answered() {
        for (what, replies) in [(read(512), STYLES[1]), (What::BlockStatus(512), STYLES[2])] {
            let mut link = asked(replies, what);
            let lie = chunk(replies, 1, CHUNK_DONE, CHUNK_NONE, &[]);
            link.take(&lie, &mut Vec::new()).unwrap_err();
            assert_eq!(link.abandon().len(), 1, "{replies:?}");
        }
    }
}
