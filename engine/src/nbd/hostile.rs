//! Servers that shake hands honestly and lie afterwards. What comes of it is the right bytes or an
//! error that says what was wrong, soon, and never anything else.
#![expect(clippy::big_endian_bytes, reason = "NBD is big-endian")]

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use super::handshake::Replies;
use super::link::READ_LEN_MAX;
use super::protocol::{
    CHUNK_BLOCK_STATUS, CHUNK_BLOCK_STATUS_EXT, CHUNK_DONE, CHUNK_ERROR, CHUNK_NONE,
    CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, CONTEXT_ALLOCATION, Command, EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC, STATE_ZERO, STRUCTURED_REPLY_MAGIC,
};
use super::{NbdDevice, Uri};
use crate::cancel::Cancel;
use crate::device::{Device, ExtentKind, Extents, Zero, ZeroMethod};
use crate::io::IoEngine;

const SIZE: u64 = 8 << 20;
const OFFSET: u64 = 8192;
const LEN: usize = 4096;
/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
const ENGINES: [IoEngine; 2] = [IoEngine::Auto, IoEngine::Blocking];
const STYLES: [Replies; 3] = [Replies::Simple, Replies::Structured, Replies::Extended];

/// What the export holds.
fn data(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(|at| (at / 512 * 7 + at % 5 + 1) as u8).collect()
}

/// What a client asked for.
#[derive(Clone, Debug)]
struct Request {
    command: u16,
    cookie: u64,
    offset: u64,
    len: usize,
}

impl Request {
    fn is(&self, command: Command) -> bool {
        self.command == command as u16
    }
}

/// The server's end of a connection.
struct Peer {
    stream: UnixStream,
    replies: Replies,
    /// Which connection it is, from 0.
    number: usize,
}

impl Peer {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn bytes(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The client may have gone: then there is nothing more to hear.
    fn say(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    /// The header of the next request; `None` once the client is gone.
    fn hear(&mut self) -> Option<Request> {
        let _magic_and_flags = (self.u32()?, self.u16()?);
        let (command, cookie, offset) = (self.u16()?, self.u64()?, self.u64()?);
        let len = match self.replies {
            Replies::Extended => self.u64()? as usize,
            Replies::Simple | Replies::Structured => self.u32()? as usize,
        };
        Some(Request { command, cookie, offset, len }).filter(|it| !it.is(Command::Disconnect))
    }

    /// Does as the protocol says, up to the transmission.
    fn shake_hands(&mut self) -> Option<()> {
        self.say(b"NBDMAGICIHAVEOPT\0\x03");
        self.u32()?;
        loop {
            let (_magic, option, len) = (self.u64()?, self.u32()?, self.u32()?);
            self.bytes(len as usize)?;
            let agrees = match option {
                11 => self.replies == Replies::Extended,
                8 => self.replies == Replies::Structured,
                10 => {
                    let name = CONTEXT_ALLOCATION.as_bytes();
                    self.answer(option, 4, &[&1u32.to_be_bytes(), name].concat());
                    true
                }
                7 => {
                    // Flags: there are some; flush, trim and write zeroes.
                    let info = [&[0; 2], &SIZE.to_be_bytes()[..], &0x65u16.to_be_bytes()];
                    self.answer(option, 3, &info.concat());
                    true
                }
                _ => return None,
            };
            self.answer(option, if agrees { 1 } else { 0x8000_0001 }, &[]);
            if option == 7 {
                return Some(());
            }
        }
    }

    fn answer(&mut self, option: u32, kind: u32, bytes: &[u8]) {
        let mut answer = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        answer.extend([option, kind, bytes.len() as u32].map(u32::to_be_bytes).concat());
        answer.extend(bytes);
        self.say(&answer);
    }

    /// Everything that is asked is answered as it should be, until the client is gone.
    fn be_honest(&mut self) {
        while let Some(request) = self.hear() {
            let reply = honest(self.replies, &request);
            self.say(&reply);
        }
    }
}

fn simple(error: u32, request: &Request) -> Vec<u8> {
    let mut bytes = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(request.cookie.to_be_bytes());
    bytes
}

/// The header of a chunk whose body is said to have so many bytes.
fn head(replies: Replies, request: &Request, flags: u16, kind: u16, len: u64) -> Vec<u8> {
    let is_extended = replies == Replies::Extended;
    let magic = if is_extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(request.cookie.to_be_bytes());
    match is_extended {
        true => bytes.extend([request.offset, len].map(u64::to_be_bytes).concat()),
        false => bytes.extend((len as u32).to_be_bytes()),
    }
    bytes
}

fn chunk(replies: Replies, request: &Request, flags: u16, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = head(replies, request, flags, kind, body.len() as u64);
    bytes.extend(body);
    bytes
}

/// The body of a chunk of data.
fn piece(offset: u64, len: usize) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &data(offset, len)].concat()
}

/// The body of a chunk that says that there are zeroes.
fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

/// What an honest server answers.
fn honest(replies: Replies, request: &Request) -> Vec<u8> {
    let is_read = request.is(Command::Read);
    match replies {
        Replies::Simple if is_read => {
            [simple(0, request), data(request.offset, request.len)].concat()
        }
        Replies::Simple => simple(0, request),
        _ if is_read => {
            let body = piece(request.offset, request.len);
            chunk(replies, request, CHUNK_DONE, CHUNK_OFFSET_DATA, &body)
        }
        _ => chunk(replies, request, CHUNK_DONE, CHUNK_NONE, &[]),
    }
}

/// A server on a socket of its own. Its connections come one after the other.
struct Server {
    folder: TempDir,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Each connection goes by `script` behind its handshake, and is closed at the script's end.
    fn new(replies: Replies, script: impl Fn(&mut Peer) + Send + 'static) -> Server {
        let folder = TempDir::with_prefix("voltar-").unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let serve = move || {
            for (number, stream) in listener.incoming().enumerate() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let mut peer = Peer { stream: stream.unwrap(), replies, number };
                if peer.shake_hands().is_some() {
                    script(&mut peer);
                }
            }
        };
        Server { folder, is_over, thread: Some(std::thread::spawn(serve)) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn device(&self, io: IoEngine) -> NbdDevice {
        let uri = format!("nbd+unix:///?socket={}", self.socket().display());
        NbdDevice::connect(&Uri::parse(&uri).unwrap(), &[], io, &Cancel::new()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        drop(UnixStream::connect(self.socket()));
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            assert!(outcome.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

/// What `act` gives, which may not take long.
#[track_caller]
fn soon<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || done.send(act()));
    is_done.recv_timeout(PATIENCE).expect("it hangs, or has panicked")
}

/// A read of what the scripts lie about.
fn read(device: &NbdDevice) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; LEN];
    device.read_at(&mut bytes, OFFSET).map(|count| {
        assert_eq!(count, LEN);
        bytes
    })
}

/// A server that answers the first request so is found out, and nothing is believed after that.
#[track_caller]
fn assert_found_out(replies: Replies, lie: fn(Replies, &Request) -> Vec<u8>, words: &str) {
    for io in ENGINES {
        let server = Server::new(replies, move |peer| {
            let Some(request) = peer.hear() else { return };
            peer.say(&lie(peer.replies, &request));
            peer.be_honest();
        });
        let device = server.device(io);
        let (first, second) = soon(move || (read(&device), read(&device)));
        for error in [first.unwrap_err(), second.unwrap_err()] {
            let said = error.to_string();
            assert!(said.contains("breaks the protocol"), "{replies:?}, not {words:?}: {said}");
            assert!(said.contains(words), "{replies:?}: not {words:?}: {said}");
        }
    }
}

#[test]
fn replies_that_cannot_be_are_found_out() {
    type Lie = fn(Replies, &Request) -> Vec<u8>;
    let stranger: Lie = |replies, request| {
        honest(replies, &Request { cookie: request.cookie + 7, ..request.clone() })
    };
    for replies in STYLES {
        assert_found_out(replies, stranger, "a reply to no request");
        assert_found_out(replies, |_, _| vec![0x47; 64], "a reply begins with 0x47474747");
    }
    let chunks: [(Lie, &str); 13] = [
        (
            |replies, it| {
                let whole = piece(it.offset, it.len);
                let first = chunk(replies, it, 0, CHUNK_OFFSET_DATA, &whole);
                [first, chunk(replies, it, CHUNK_DONE, CHUNK_OFFSET_HOLE, &hole(it.offset, 512))]
                    .concat()
            },
            "bytes that came before come again",
        ),
        (
            |replies, it| {
                let half = piece(it.offset, it.len / 2);
                chunk(replies, it, CHUNK_DONE, CHUNK_OFFSET_DATA, &half)
            },
            "a read is answered only in part",
        ),
        (
            |replies, it| chunk(replies, it, CHUNK_DONE, CHUNK_NONE, &[]),
            "a read is answered only in part",
        ),
        (
            |replies, it| {
                let before = piece(it.offset - 512, it.len);
                chunk(replies, it, CHUNK_DONE, CHUNK_OFFSET_DATA, &before)
            },
            "which were not asked for",
        ),
        (
            |replies, it| {
                let far = hole(it.offset, it.len as u32 + 1);
                chunk(replies, it, CHUNK_DONE, CHUNK_OFFSET_HOLE, &far)
            },
            "which were not asked for",
        ),
        (
            |replies, it| {
                let around = hole(u64::MAX - 100, 512);
                chunk(replies, it, CHUNK_DONE, CHUNK_OFFSET_HOLE, &around)
            },
            "which were not asked for",
        ),
        (
            |replies, it| head(replies, it, CHUNK_DONE, CHUNK_OFFSET_DATA, u32::MAX.into()),
            "with 4294967295 bytes",
        ),
        (
            |replies, it| head(replies, it, CHUNK_DONE, CHUNK_ERROR, u32::MAX.into()),
            "with 4294967295 bytes",
        ),
        (
            |replies, it| {
                let nothing = it.offset.to_be_bytes();
                chunk(replies, it, CHUNK_DONE, CHUNK_OFFSET_DATA, &nothing)
            },
            "with 8 bytes",
        ),
        (
            |replies, it| chunk(replies, it, CHUNK_DONE, CHUNK_BLOCK_STATUS, &[0; 12]),
            "that was not asked for",
        ),
        (|replies, it| chunk(replies, it, CHUNK_DONE, 77, &[]), "that was not asked for"),
        (
            |replies, it| chunk(replies, it, CHUNK_DONE, CHUNK_ERROR, &[0; 6]),
            "an error chunk without an error",
        ),
        (
            |replies, it| chunk(replies, it, 0, CHUNK_NONE, &[]).repeat(70_000),
            "a reply does not end",
        ),
    ];
    for (lie, words) in chunks {
        assert_found_out(Replies::Structured, lie, words);
        assert_found_out(Replies::Extended, lie, words);
    }
    assert_found_out(Replies::Structured, |_, it| simple(0, it), "a simple reply to a read");
    let elsewhere: Lie = |replies, it| {
        let elsewhere = Request { offset: it.offset + 512, ..it.clone() };
        chunk(replies, &elsewhere, CHUNK_DONE, CHUNK_OFFSET_DATA, &piece(it.offset, it.len))
    };
    assert_found_out(Replies::Extended, elsewhere, "another offset than its request");
}

#[test]
fn a_reply_that_comes_twice_is_believed_once() {
    for (replies, io) in STYLES.into_iter().flat_map(|it| ENGINES.map(|io| (it, io))) {
        let server = Server::new(replies, |peer| {
            let Some(request) = peer.hear() else { return };
            peer.say(&honest(peer.replies, &request).repeat(2));
            peer.be_honest();
        });
        let device = server.device(io);
        let (first, second) = soon(move || (read(&device), read(&device)));
        assert_eq!(first.unwrap(), data(OFFSET, LEN), "{replies:?}");
        let said = second.unwrap_err().to_string();
        assert!(said.contains("a reply to no request"), "{replies:?}: {said}");
    }
}

#[test]
fn a_reply_before_the_bytes_of_a_write_is_found_out() {
    for (replies, io) in STYLES.into_iter().flat_map(|it| ENGINES.map(|io| (it, io))) {
        let server = Server::new(replies, |peer| {
            let Some(request) = peer.hear() else { return };
            peer.say(&honest(peer.replies, &request));
            // More than a socket holds is never taken.
            while peer.bytes(4096).is_some() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let device = server.device(io);
        let outcome = soon(move || device.write_at(&vec![1; 4 << 20], 0));
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains("a reply before the request was sent"), "{replies:?}: {said}");
    }
}

#[test]
fn what_a_lost_connection_left_out_is_asked_again() {
    for (replies, io) in STYLES.into_iter().flat_map(|it| ENGINES.map(|io| (it, io))) {
        for cut in [0, 1, 15, 16, 17, 19, 20, 27, 28, 29, 40, 41, 2000, LEN] {
            let server = Server::new(replies, move |peer| {
                let Some(request) = peer.hear() else { return };
                let reply = honest(peer.replies, &request);
                if peer.number == 0 {
                    return peer.say(&reply[..cut]);
                }
                peer.say(&reply);
                peer.be_honest();
            });
            let device = server.device(io);
            let bytes = soon(move || read(&device)).unwrap();
            assert_eq!(bytes, data(OFFSET, LEN), "{replies:?} cut after {cut} bytes");
        }
    }
}

#[test]
fn a_part_of_a_read_that_was_answered_is_asked_again_with_the_rest() {
    // The end of one part, and the start of the next.
    const BORDER: u64 = READ_LEN_MAX;
    const START: u64 = BORDER - LEN as u64 / 2;
    for (replies, io) in STYLES.into_iter().flat_map(|it| ENGINES.map(|io| (it, io))) {
        for cut in [0, 17, 1000] {
            let server = Server::new(replies, move |peer| {
                if peer.number > 0 {
                    return peer.be_honest();
                }
                let (Some(first), Some(second)) = (peer.hear(), peer.hear()) else { return };
                let asked = [&first, &second].map(|it| (it.offset, it.len));
                assert_eq!(asked, [(START, LEN / 2), (BORDER, LEN / 2)]);
                peer.say(&honest(peer.replies, &second));
                peer.say(&honest(peer.replies, &first)[..cut]);
            });
            let device = server.device(io);
            let mut bytes = vec![0xee; LEN];
            let read = soon(move || device.read_at(&mut bytes, START).map(|count| (count, bytes)));
            let expected = (LEN, data(START, LEN));
            assert_eq!(read.unwrap(), expected, "{replies:?}, {cut} bytes of the other part");
        }
    }
}

#[test]
fn a_server_that_always_closes_is_given_up() {
    for io in ENGINES {
        let server = Server::new(Replies::Structured, |peer| {
            peer.hear();
        });
        let device = server.device(io);
        let said = soon(move || read(&device)).unwrap_err().to_string();
        assert!(said.contains("the connection was lost again and again"), "{said}");
    }
}

#[test]
fn a_server_that_stalls_is_asked_again() {
    for io in ENGINES {
        let server = Server::new(Replies::Structured, |peer| {
            if peer.number > 0 {
                return peer.be_honest();
            }
            // Half an answer, and then nothing until the client goes.
            let Some(request) = peer.hear() else { return };
            let reply = honest(peer.replies, &request);
            peer.say(&reply[..LEN / 2]);
            assert!(peer.hear().is_none(), "the client did not go");
        });
        let device = server.device(io);
        assert_eq!(soon(move || read(&device)).unwrap(), data(OFFSET, LEN));
    }
}

#[test]
fn replies_in_any_order_and_in_pieces_are_put_together() {
    const READERS: u64 = 8;
    for (replies, io) in [Replies::Structured, Replies::Extended]
        .into_iter()
        .flat_map(|it| ENGINES.map(|io| (it, io)))
    {
        let server = Server::new(replies, |peer| {
            let Some(requests) = (0..READERS).map(|_| peer.hear()).collect::<Option<Vec<_>>>()
            else {
                return;
            };
            // The last sector of each first, and of all before the one before it.
            for at in (0..LEN as u64 / 512).rev() {
                for request in requests.iter().rev() {
                    let flags = if at == 0 { CHUNK_DONE } else { 0 };
                    let body = piece(request.offset + at * 512, 512);
                    peer.say(&chunk(peer.replies, request, flags, CHUNK_OFFSET_DATA, &body));
                }
            }
            peer.be_honest();
        });
        let device = Arc::new(server.device(io));
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let device = Arc::clone(&device);
                std::thread::spawn(move || {
                    let mut bytes = vec![0xee; LEN];
                    device.read_at(&mut bytes, number * 65536).unwrap();
                    assert_eq!(bytes, data(number * 65536, LEN), "reader {number}");
                })
            })
            .collect();
        soon(move || readers.into_iter().try_for_each(JoinHandle::join)).unwrap();
    }
}

#[test]
fn an_error_of_one_request_is_no_other_ones() {
    for (replies, io) in STYLES.into_iter().flat_map(|it| ENGINES.map(|io| (it, io))) {
        let server = Server::new(replies, |peer| {
            let Some(request) = peer.hear() else { return };
            let says = "the disk is wet\u{202e}\u{1b}[2J";
            let body =
                [&5u32.to_be_bytes()[..], &(says.len() as u16).to_be_bytes(), says.as_bytes()];
            let body = body.concat();
            peer.say(&match peer.replies {
                Replies::Simple => simple(5, &request),
                replies => chunk(replies, &request, CHUNK_DONE, CHUNK_ERROR, &body),
            });
            peer.be_honest();
        });
        let device = server.device(io);
        let (first, second) = soon(move || (read(&device), read(&device)));
        let said = first.unwrap_err().to_string();
        assert!(said.contains("Input/output error"), "{replies:?}: {said}");
        assert_eq!(said.contains("the disk is wet"), replies != Replies::Simple, "{said}");
        assert!(!said.contains(['\u{202e}', '\u{1b}']), "fit for no terminal: {said:?}");
        assert_eq!(second.unwrap(), data(OFFSET, LEN), "{replies:?}");
    }
}

/// What the extents of a server are that answers questions about blocks so.
fn extents_of(
    replies: Replies,
    answer: fn(Replies, &Request) -> Vec<u8>,
) -> Vec<(u64, ExtentKind)> {
    let server = Server::new(replies, move |peer| {
        while let Some(request) = peer.hear() {
            assert!(request.is(Command::BlockStatus), "{request:?}");
            let reply = answer(peer.replies, &request);
            peer.say(&reply);
        }
    });
    let device = server.device(IoEngine::Auto);
    soon(move || {
        let (mut at, mut extents) = (0, Vec::new());
        while at < SIZE {
            let extent = device.extent_at(at).unwrap();
            assert!(extent.range.start == at && extent.range.end > at, "{extent:?} at {at}");
            assert!(extent.range.end <= SIZE, "{extent:?}");
            at = extent.range.end;
            extents.push((at, extent.kind));
        }
        extents
    })
}

/// A reply about blocks.
fn status(replies: Replies, request: &Request, context: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    let is_extended = replies == Replies::Extended;
    let mut body = context.to_be_bytes().to_vec();
    if is_extended {
        body.extend((extents.len() as u32).to_be_bytes());
    }
    for (len, flags) in extents {
        match is_extended {
            true => body.extend([*len, *flags].map(u64::to_be_bytes).concat()),
            false => body.extend([*len as u32, *flags as u32].map(u32::to_be_bytes).concat()),
        }
    }
    let kind = if is_extended { CHUNK_BLOCK_STATUS_EXT } else { CHUNK_BLOCK_STATUS };
    chunk(replies, request, CHUNK_DONE, kind, &body)
}

#[test]
fn answers_about_blocks_that_cannot_be_make_no_hole() {
    use ExtentKind::{Data, Hole};
    type Case = (&'static str, fn(Replies, &Request) -> Vec<u8>, &'static [(u64, ExtentKind)]);
    let table: [Case; 8] = [
        (
            "short ones are asked on from",
            |replies, it| {
                status(replies, it, 1, &[(SIZE / 4, it.offset / (SIZE / 4) % 2 * STATE_ZERO)])
            },
            &[(SIZE / 4, Data), (SIZE / 2, Hole), (SIZE / 4 * 3, Data), (SIZE, Hole)],
        ),
        (
            "a long one ends with the export",
            |replies, it| status(replies, it, 1, &[(512, 0), (u32::MAX.into(), STATE_ZERO)]),
            &[(512, Data), (SIZE, Hole)],
        ),
        (
            "of another context",
            |replies, it| status(replies, it, 2, &[(SIZE, STATE_ZERO)]),
            &[(SIZE, Data)],
        ),
        ("none", |replies, it| status(replies, it, 1, &[]), &[(SIZE, Data)]),
        (
            "one of no bytes",
            |replies, it| status(replies, it, 1, &[(0, STATE_ZERO), (SIZE, STATE_ZERO)]),
            &[(SIZE, Data)],
        ),
        (
            "a list that is cut",
            |replies, it| {
                let mut whole = status(replies, it, 1, &[(SIZE, STATE_ZERO)]);
                let at = whole.len() - 3;
                whole.truncate(at);
                let start = if replies == Replies::Extended { 31 } else { 19 };
                whole[start] -= 3;
                whole
            },
            &[(SIZE, Data)],
        ),
        (
            "an error",
            |replies, it| chunk(replies, it, CHUNK_DONE, CHUNK_ERROR, &[0, 0, 0, 5, 0, 0]),
            &[(SIZE, Data)],
        ),
        ("nothing", |replies, it| chunk(replies, it, CHUNK_DONE, CHUNK_NONE, &[]), &[(SIZE, Data)]),
    ];
    for (what, answer, want) in table {
        for replies in [Replies::Structured, Replies::Extended] {
            assert_eq!(extents_of(replies, answer), want, "{what}, {replies:?}");
        }
    }
}

#[test]
fn zeroes_that_a_server_refuses_after_all_are_written() {
    for (replies, io) in STYLES.into_iter().flat_map(|it| ENGINES.map(|io| (it, io))) {
        let (tell, told) = mpsc::channel();
        let server = Server::new(replies, move |peer| {
            let mut held = vec![0xee; SIZE as usize];
            while let Some(request) = peer.hear() {
                if request.is(Command::Write) {
                    let Some(bytes) = peer.bytes(request.len) else { break };
                    let at = request.offset as usize;
                    held[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                let reply = match request.is(Command::WriteZeroes) {
                    // EOPNOTSUPP, as the protocol numbers it.
                    true if peer.replies == Replies::Simple => simple(95, &request),
                    true => {
                        chunk(peer.replies, &request, CHUNK_DONE, CHUNK_ERROR, &[0, 0, 0, 95, 0, 0])
                    }
                    false => honest(peer.replies, &request),
                };
                peer.say(&reply);
            }
            tell.send(held).unwrap();
        });
        let device = server.device(io);
        let (from, to) = (512, 3 << 20);
        soon(move || {
            assert_eq!(device.zero(from..to).unwrap(), ZeroMethod::Write);
            device.sync().unwrap();
        });
        let held = told.recv_timeout(PATIENCE).unwrap();
        let is_right = |(at, byte): (usize, &u8)| {
            *byte == if (from..to).contains(&(at as u64)) { 0 } else { 0xee }
        };
        assert!(held.iter().enumerate().all(is_right), "{replies:?}");
    }
}
