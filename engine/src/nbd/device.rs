//! An export as a device.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::client::{Answer, Client};
use super::dial::{Dialler, Redial};
use super::handshake::{Export, Replies};
use super::link::{Status, What};
use super::protocol::{CONTEXT_ALLOCATION, STATE_ZERO};
use super::uri::Uri;
use crate::cancel::Cancel;
use crate::device::{Device, Extent, ExtentKind, Extents, Geometry, Zero, ZeroMethod};
use crate::error::{Error, ErrorKind, Result};
use crate::io::IoEngine;
use crate::io::buffer::{Buffer, BufferPool};
use crate::io::op::{Completion, Driver, Op, OpKind};
use crate::io::sockets::Memory;

/// Most bytes of one read or write, whatever the server allows: the specification's bound for
/// servers that say nothing, and QEMU's.
const TRANSFER_LEN_MAX: u64 = 32 << 20;
/// Bytes that are asked for at once by one driver: with more, `qemu-nbd` was slower on an image that is not in the
/// page cache.
const READS_LEN_MAX: u64 = 8 << 20;
/// Most bytes that are zeroed or released by one request: so many answer in time.
const ZERO_LEN_MAX: u64 = 1 << 30;
/// Bytes of zeroes that are written at a time where the server cannot make them.
const ZEROES_LEN: usize = 1 << 20;
/// Most bytes of a question about blocks in a header of 32 bits, a multiple of every block length.
const STATUS_LEN_MAX: u64 = (1 << 32) - (64 << 10);
/// Most extents that are kept of one context's answer.
const EXTENTS_MAX: usize = 1 << 20;

/// An export of an NBD server.
pub struct NbdDevice {
    access: Arc<Access>,
    label: String,
    /// Extents that the server told last, from the first's start on.
    told: Mutex<Vec<Extent>>,
    /// Whether the server fails questions about blocks, or cannot make zeroes after all.
    is_silent: AtomicBool,
    has_no_zeroes: AtomicBool,
}

impl NbdDevice {
    /// Connects to the export at `uri` on the I/O engine `io`, asking for these metadata contexts
    /// besides `base:allocation`. Whoever waits for its answers stops when `cancel` is raised.
    ///
    /// # Errors
    /// `Io` with what is in the way, in words; `InvalidRequest` where the URI is.
    pub fn connect(
        uri: &Uri,
        contexts: &[String],
        io: IoEngine,
        cancel: &Cancel,
    ) -> Result<NbdDevice> {
        NbdDevice::dial(uri, with_allocation(contexts), Redial::Allowed, io, cancel)
    }

    /// The same, of a server that is right only about what lies in one of its clusters of `cluster_len`
    /// bytes: reads end where clusters do, every byte is sent (`NBD_CMD_FLAG_DF`), and holes are not
    /// asked for.
    ///
    /// # Errors
    /// As [`connect`](NbdDevice::connect).
    pub fn connect_by_clusters(
        uri: &Uri,
        contexts: &[String],
        cluster_len: u64,
        io: IoEngine,
        cancel: &Cancel,
    ) -> Result<NbdDevice> {
        let mut device = NbdDevice::dial(uri, contexts.to_vec(), Redial::Allowed, io, cancel)?;
        if let Some(access) = Arc::get_mut(&mut device.access) {
            access.cluster_len = Some(cluster_len);
        }
        Ok(device)
    }

    /// The same, of a server that ends with its last connection.
    ///
    /// # Errors
    /// As [`connect`](NbdDevice::connect).
    pub fn connect_once(uri: &Uri, io: IoEngine, cancel: &Cancel) -> Result<NbdDevice> {
        NbdDevice::dial(uri, with_allocation(&[]), Redial::Never, io, cancel)
    }

    fn dial(
        uri: &Uri,
        contexts: Vec<String>,
        redial: Redial,
        io: IoEngine,
        cancel: &Cancel,
    ) -> Result<NbdDevice> {
        let label = uri.to_string();
        let client = Dialler::new(uri.clone(), contexts, redial)
            .and_then(|dialler| Client::connect(dialler, io, cancel.clone()))
            .map_err(|error| error.in_words(uri))?;
        let export = client.export();
        if !export.size.is_multiple_of(export.block_min.into()) {
            let (size, block) = (export.size, export.block_min);
            let message =
                format!("the export's {size} bytes are no multiple of its block length, {block}");
            return Err(Error::new(ErrorKind::Unsupported, message).on(label));
        }
        Ok(NbdDevice {
            access: Arc::new(Access { client, cluster_len: None }),
            label,
            told: Mutex::default(),
            is_silent: AtomicBool::new(false),
            has_no_zeroes: AtomicBool::new(false),
        })
    }

    /// What messages call it, instead of its URI.
    #[must_use]
    pub fn with_label(mut self, label: &str) -> NbdDevice {
        label.clone_into(&mut self.label);
        self
    }

    /// Whether the server was asked what reads as zeroes, and tells.
    pub fn tells_holes(&self) -> bool {
        self.context(CONTEXT_ALLOCATION).is_some()
    }

    /// How often a connection was made anew when there was none left: what was read before and after
    /// may be of two instants.
    pub fn redials(&self) -> u32 {
        self.access.client.redials()
    }

    /// What the server agreed to.
    pub fn export(&self) -> &Export {
        self.access.export()
    }

    /// What a context says of `range`: extents with the context's flags, without gaps.
    ///
    /// # Errors
    /// `Unsupported` if the server did not agree to that context; the server's.
    pub fn status(&self, context: &str, range: Range<u64>) -> io::Result<Vec<(Range<u64>, u64)>> {
        let id = self.context(context).ok_or_else(|| {
            let why = format!("the server does not tell {context}");
            io::Error::new(io::ErrorKind::Unsupported, why)
        })?;
        let mut extents: Vec<(Range<u64>, u64)> = Vec::new();
        let mut next = range.start;
        while next < range.end {
            for (len, flags) in self.ask_status(id, next..range.end)? {
                let end = next.saturating_add(len).min(range.end);
                match extents.last_mut() {
                    Some((last, same)) if *same == flags => last.end = end,
                    _ if end > next => extents.push((next..end, flags)),
                    _ => {}
                }
                next = end;
            }
            if extents.len() > EXTENTS_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "there are too many extents",
                ));
            }
        }
        Ok(extents)
    }

    /// Releases `range`, as far as the server can. Proves nothing about what it reads as.
    ///
    /// # Errors
    /// The server's.
    pub fn discard(&self, range: Range<u64>) -> io::Result<()> {
        if !self.export().flags.has_trim() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (inner, _, _) = self.access.split(range);
        for piece in pieces(inner, ZERO_LEN_MAX) {
            self.access.client.call(What::Trim(piece.end - piece.start), piece.start)?;
        }
        Ok(())
    }

    fn context(&self, name: &str) -> Option<u32> {
        self.export().contexts.iter().find(|context| context.name == name).map(|it| it.id)
    }

    /// One answer of a context about what begins with `range`: lengths and flags.
    fn ask_status(&self, id: u32, range: Range<u64>) -> io::Result<Vec<(u64, u64)>> {
        let most = match self.export().replies {
            Replies::Extended => u64::MAX,
            Replies::Simple | Replies::Structured => STATUS_LEN_MAX,
        };
        // A server may know nothing of less than its blocks.
        let start = range.start - range.start % self.access.block_min();
        let end = range.end.next_multiple_of(self.access.block_min()).min(self.export().size);
        let (_, told) =
            self.access.client.call(What::BlockStatus((end - start).min(most)), start)?;
        let Some(Status { extents, .. }) = told.into_iter().find(|told| told.context == id) else {
            let why = "the server left a context out of its answer";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        };
        let mut skip = range.start - start;
        let rest = extents.into_iter().filter_map(|(len, flags)| {
            let here = len.checked_sub(skip).filter(|here| *here > 0);
            skip = skip.saturating_sub(len);
            here.map(|here| (here, flags))
        });
        let rest: Vec<_> = rest.collect();
        match rest.is_empty() {
            true => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the server tells less than it was asked",
            )),
            false => Ok(rest),
        }
    }

    fn forget_told(&self) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn with_allocation(contexts: &[String]) -> Vec<String> {
    std::iter::once(CONTEXT_ALLOCATION.to_owned()).chain(contexts.iter().cloned()).collect()
}

/// An export at any alignment: what the server takes in whole blocks only is read, and written, as
/// such.
struct Access {
    client: Client,
    /// No read reaches over a multiple of it.
    cluster_len: Option<u64>,
}

impl Access {
    fn export(&self) -> &Export {
        self.client.export()
    }

    fn block_min(&self) -> u64 {
        self.export().block_min.into()
    }

    /// Most bytes of a transfer, a multiple of the block length.
    fn transfer_max(&self) -> u64 {
        let most = u64::from(self.export().block_max).min(TRANSFER_LEN_MAX);
        (most - most % self.block_min()).max(self.block_min())
    }

    /// Most bytes of a read at `offset`.
    fn read_max(&self, offset: u64) -> u64 {
        let to_end = self.cluster_len.map_or(u64::MAX, |len| len - offset % len);
        self.transfer_max().min(to_end)
    }

    fn is_aligned(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.block_min()) && len.is_multiple_of(self.block_min())
    }

    /// The whole blocks of `range`, and what lies before and behind them.
    fn split(&self, range: Range<u64>) -> (Range<u64>, Range<u64>, Range<u64>) {
        let block = self.block_min();
        let start = range.start.next_multiple_of(block).min(range.end);
        let end = (range.end - range.end % block).max(start);
        (start..end, range.start..start, end..range.end)
    }

    /// Reads whole blocks.
    fn read_blocks(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let len = (bytes.len() - done).min(self.read_max(at) as usize);
            let (what, _) = self.client.call(What::Read(Memory::Bytes(vec![0; len])), at)?;
            if let What::Read(memory) = what {
                bytes[done..done + len].copy_from_slice(memory.bytes());
            }
            done += len;
        }
        Ok(())
    }

    /// Writes whole blocks.
    fn write_blocks(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for piece in bytes.chunks(self.transfer_max() as usize) {
            let memory = Memory::Bytes(piece.to_vec());
            self.client.call(What::Write(memory, 0..piece.len()), at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes a part of one block.
    fn write_part(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let block = self.block_min();
        let start = offset - offset % block;
        let mut whole = vec![
            0;
            (offset + bytes.len() as u64).next_multiple_of(block) as usize
                - start as usize
        ];
        self.read_blocks(&mut whole, start)?;
        let at = (offset - start) as usize;
        whole[at..at + bytes.len()].copy_from_slice(bytes);
        self.write_blocks(&whole, start)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.export().size.saturating_sub(offset).min(bytes.len() as u64) as usize;
        if count == 0 {
            return Ok(0);
        }
        let bytes = &mut bytes[..count];
        if self.is_aligned(offset, count as u64) {
            self.read_blocks(bytes, offset)?;
        } else {
            let block = self.block_min();
            let start = offset - offset % block;
            let end = (offset + count as u64).next_multiple_of(block);
            let mut whole = vec![0; (end - start) as usize];
            self.read_blocks(&mut whole, start)?;
            let at = (offset - start) as usize;
            bytes.copy_from_slice(&whole[at..at + count]);
        }
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let range = offset..offset + bytes.len() as u64;
        if range.end > self.export().size {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the export ends before"));
        }
        let (inner, head, tail) = self.split(range);
        let of = |part: &Range<u64>| {
            &bytes[(part.start - offset) as usize..(part.end - offset) as usize]
        };
        self.write_part(of(&head), head.start)?;
        self.write_blocks(of(&inner), inner.start)?;
        self.write_part(of(&tail), tail.start)
    }

    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let zeroes = vec![0; ZEROES_LEN];
        for piece in pieces(range, ZEROES_LEN as u64) {
            self.write_at(&zeroes[..(piece.end - piece.start) as usize], piece.start)?;
        }
        Ok(())
    }
}

/// `range` in pieces of at most `len`.
fn pieces(range: Range<u64>, len: u64) -> impl Iterator<Item = Range<u64>> {
    let count = (range.end - range.start).div_ceil(len);
    (0..count).map(move |number| {
        let start = range.start + number * len;
        start..(start + len).min(range.end)
    })
}

impl Device for NbdDevice {
    fn label(&self) -> &str {
        &self.label
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.export().size)
    }

    fn geometry(&self) -> Geometry {
        Geometry { block_len: self.export().block_min.max(512), direct: false }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.access.read_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.forget_told();
        self.access.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        match self.export().flags.has_flush() {
            true => self.access.client.call(What::Flush, 0).map(drop),
            // Such a server has no cache, or none that anybody could empty.
            false => Ok(()),
        }
    }

    fn driver(
        &self,
        _engine: IoEngine,
        _pool: &BufferPool,
        depth: u32,
    ) -> io::Result<Box<dyn Driver>> {
        self.forget_told();
        let (answers, inbox) = unbounded();
        Ok(Box::new(NbdDriver {
            access: Arc::clone(&self.access),
            answers,
            inbox,
            pending: Vec::new(),
            gathered: Vec::new(),
            in_flight: 0,
            depth: depth.max(1) as usize,
            ready: Vec::new(),
            notice: self.access.client.notice(),
        }))
    }
}

impl Extents for NbdDevice {
    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        let size = self.export().size;
        let unknown = Ok(Extent { range: offset..size, kind: ExtentKind::Data });
        let Some(id) = self.context(CONTEXT_ALLOCATION) else { return unknown };
        if self.is_silent.load(Ordering::Relaxed) {
            return unknown;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(extent) = extent_of(&told, offset) {
            return Ok(extent);
        }
        let answer = match self.ask_status(id, offset..size) {
            Ok(answer) => answer,
            Err(_) => {
                // Whether it is the connection, the next read says.
                self.is_silent.store(true, Ordering::Relaxed);
                return unknown;
            }
        };
        told.clear();
        let mut next = offset;
        for (len, flags) in answer {
            let end = next.saturating_add(len).min(size);
            let kind = if flags & STATE_ZERO != 0 { ExtentKind::Hole } else { ExtentKind::Data };
            match told.last_mut() {
                Some(last) if last.kind == kind => last.range.end = end,
                _ if end > next => told.push(Extent { range: next..end, kind }),
                _ => {}
            }
            next = end;
        }
        extent_of(&told, offset).map_or(unknown, Ok)
    }
}

/// The extent that holds `offset`, from there on.
fn extent_of(told: &[Extent], offset: u64) -> Option<Extent> {
    let at = told.partition_point(|extent| extent.range.end <= offset);
    let extent = told.get(at).filter(|extent| extent.range.start <= offset)?;
    Some(Extent { range: offset..extent.range.end, kind: extent.kind })
}

impl Zero for NbdDevice {
    fn zero(&self, range: Range<u64>) -> io::Result<ZeroMethod> {
        let can = self.export().flags.has_write_zeroes();
        if !can || self.has_no_zeroes.load(Ordering::Relaxed) {
            return self.access.write_zeroes(range).map(|()| ZeroMethod::Write);
        }
        self.forget_told();
        let (inner, head, tail) = self.access.split(range.clone());
        for piece in pieces(inner, ZERO_LEN_MAX) {
            let what = What::WriteZeroes { len: piece.end - piece.start, no_hole: false };
            match self.access.client.call(what, piece.start) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    self.has_no_zeroes.store(true, Ordering::Relaxed);
                    return self.access.write_zeroes(range).map(|()| ZeroMethod::Write);
                }
                Err(error) => return Err(error),
            }
        }
        self.access.write_zeroes(head)?;
        self.access.write_zeroes(tail)?;
        Ok(ZeroMethod::ZeroRange)
    }
}

/// A [`Driver`] that hands operations to the client's thread.
struct NbdDriver {
    access: Arc<Access>,
    answers: Sender<Answer>,
    inbox: Receiver<Answer>,
    /// What is in flight: the operation's token and offset, and what a write's buffer showed.
    pending: Vec<Option<Pending>>,
    gathered: Vec<Gathered>,
    in_flight: usize,
    depth: usize,
    /// Complete without having been asked.
    ready: Vec<Completion>,
    notice: Option<String>,
}

#[derive(Clone, Copy)]
struct Pending {
    token: u64,
    offset: u64,
    shown: usize,
    len: usize,
    /// Where in the buffer of the operation `token` it goes, if it is a part of one.
    gathered_at: Option<usize>,
}

/// A read that is asked for in parts.
struct Gathered {
    token: u64,
    offset: u64,
    buffer: Buffer,
    /// Parts that have no answer yet.
    left: usize,
    result: io::Result<usize>,
}

impl NbdDriver {
    fn place(&mut self, pending: Pending) -> u64 {
        match self.pending.iter().position(Option::is_none) {
            Some(place) => {
                self.pending[place] = Some(pending);
                place as u64
            }
            None => {
                self.pending.push(Some(pending));
                self.pending.len() as u64 - 1
            }
        }
    }

    /// Bytes that are being read.
    fn asked_len(&self) -> u64 {
        let reads = self.pending.iter().flatten().filter(|pending| pending.shown == READ);
        reads.map(|pending| pending.len as u64).sum()
    }

    fn completed(&mut self, answer: Answer) -> Option<Completion> {
        let pending = self.pending.get_mut(answer.token as usize)?.take()?;
        if let Some(at) = pending.gathered_at {
            return self.gather(pending, at, answer);
        }
        self.in_flight -= 1;
        let (What::Read(Memory::Pool(mut buffer)) | What::Write(Memory::Pool(mut buffer), _)) =
            answer.what
        else {
            return None;
        };
        let Pending { token, offset, shown, len, .. } = pending;
        let result = answer.result.map(|_| len);
        let count = result.as_ref().map_or(0, |count| *count);
        buffer.set_len(if shown == READ { count } else { shown });
        Some(Completion { token, offset, buffer, result })
    }

    /// Asks for `len` bytes in parts, all at once.
    fn ask_parts(&mut self, token: u64, offset: u64, mut buffer: Buffer, len: usize) {
        buffer.set_len(len);
        let (mut at, mut left) = (0, 0);
        while at < len {
            let start = offset + at as u64;
            let part = (len - at).min(self.access.read_max(start) as usize);
            let pending = Pending { token, offset, shown: READ, len: part, gathered_at: Some(at) };
            let place = self.place(pending);
            let what = What::Read(Memory::Bytes(vec![0; part]));
            self.access.client.ask(place, &self.answers, what, start);
            (at, left) = (at + part, left + 1);
        }
        self.in_flight += 1;
        self.gathered.push(Gathered { token, offset, buffer, left, result: Ok(len) });
    }

    /// Takes the answer to a part, and the whole if it was the last.
    fn gather(&mut self, part: Pending, at: usize, answer: Answer) -> Option<Completion> {
        let place = self.gathered.iter().position(|other| other.token == part.token)?;
        let whole = &mut self.gathered[place];
        match (answer.result, answer.what) {
            (Ok(_), What::Read(memory)) => {
                whole.buffer[at..at + part.len].copy_from_slice(memory.bytes());
            }
            (Ok(_), _) => whole.result = Err(io::ErrorKind::InvalidData.into()),
            (Err(error), _) => whole.result = Err(error),
        }
        whole.left -= 1;
        if whole.left > 0 {
            return None;
        }
        let Gathered { token, offset, mut buffer, result, .. } = self.gathered.swap_remove(place);
        self.in_flight -= 1;
        buffer.set_len(result.as_ref().map_or(0, |len| *len));
        Some(Completion { token, offset, buffer, result })
    }

    fn reap_ready(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.ready);
        while let Ok(answer) = self.inbox.try_recv() {
            done.extend(self.completed(answer));
        }
    }
}

/// What [`Pending::shown`] is for a read.
const READ: usize = usize::MAX;

impl Driver for NbdDriver {
    fn submit(&mut self, op: Op) -> std::result::Result<(), Op> {
        assert!(op.fits(), "an operation of {} bytes does not fit its buffer", op.len());
        if self.in_flight + self.ready.len() >= self.depth {
            return Err(op);
        }
        let (token, offset) = (op.token, op.offset);
        // What is longer than the server takes is done in part; the queue asks for the rest. What
        // lies behind the end is not there.
        let access = &self.access;
        let room = access.export().size.saturating_sub(offset).min(access.transfer_max());
        let len = op.len().min(room as usize);
        let is_read = matches!(op.kind, OpKind::Read { .. });
        if is_read && self.in_flight > 0 && self.asked_len() + len as u64 > READS_LEN_MAX {
            return Err(op);
        }
        if len == 0 || !access.is_aligned(offset, len as u64) {
            // Rare: the end of a volume that is shorter than the export.
            let write = |bytes: &[u8], at| access.write_at(bytes, at).map(|()| bytes.len());
            self.ready.push(op.perform(|bytes, at| access.read_at(bytes, at), write));
            return Ok(());
        }
        let is_cut = access.read_max(offset) < len as u64;
        let (what, shown) = match op.kind {
            OpKind::Read { buffer, .. } if is_cut => {
                self.ask_parts(token, offset, buffer, len);
                return Ok(());
            }
            OpKind::Read { mut buffer, .. } => {
                buffer.set_len(len);
                (What::Read(Memory::Pool(buffer)), READ)
            }
            OpKind::Write { mut buffer, from, .. } => {
                let shown = buffer.len();
                buffer.set_len(from + len);
                (What::Write(Memory::Pool(buffer), from..from + len), shown)
            }
        };
        self.in_flight += 1;
        let place = self.place(Pending { token, offset, shown, len, gathered_at: None });
        self.access.client.ask(place, &self.answers, what, offset);
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.reap_ready(done);
        while done.is_empty() && self.in_flight > 0 {
            let answer = self.access.client.next_answer(&self.inbox)?;
            done.extend(self.completed(answer));
        }
        self.reap_ready(done);
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.reap_ready(done);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight + self.ready.len()
    }

    fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    fn describe(&self) -> String {
        format!("nbd over {}", self.access.client.describe())
    }
}
