//! What an NBD server says: in its handshake, and in answer to requests.
//!
//! However the bytes come in, the same is made of them; each request is answered once at most, and
//! none is forgotten.

use std::io::{self, Read, Write};

use voltar_engine::io::sockets::Memory;
use voltar_engine::nbd::handshake::{Greeting, Replies, Wishes};
use voltar_engine::nbd::link::{Answered, Link, READ_LEN_MAX, Status, Violation, What};

/// The three forms of replies.
pub const STYLES: [Replies; 3] = [Replies::Simple, Replies::Structured, Replies::Extended];

/// Where the reads begin.
pub const OFFSET: u64 = 4096;
/// How long they are.
pub const LENGTHS: [usize; 3] = [512, 1, 4096];
/// The parts in which the last read, of both, is asked for: where, and how long.
pub const PARTS: [(u64, usize); 2] = [(READ_LEN_MAX - 2048, 2048), (READ_LEN_MAX, 2048)];
const CONTEXTS: [&str; 2] = ["base:allocation", "qemu:dirty-bitmap:day"];

/// One byte that says in what pieces the bytes behind it come.
pub fn link(data: &[u8]) {
    let Some((step, stream)) = data.split_first() else { return };
    for replies in STYLES {
        let whole = outcome(replies, stream, stream.len().max(1), false);
        for is_direct in [false, true] {
            let pieces = outcome(replies, stream, usize::from(*step) + 1, is_direct);
            assert_eq!(pieces, whole, "{replies:?}, directly: {is_direct}");
        }
    }
}

/// What became of a request: its number, the bytes of a read, and what was told or the error.
type Outcome = (usize, Option<Vec<u8>>, Result<Vec<Status>, String>);

/// What a link makes of a stream that comes `step` bytes at a time, and whether it breaks the
/// protocol.
fn outcome(
    replies: Replies,
    stream: &[u8],
    step: usize,
    is_direct: bool,
) -> (Vec<Outcome>, Result<(), Violation>) {
    let mut link = Link::new(replies);
    let asked = ask_all(&mut link);
    let mut answered = Vec::new();
    let end = feed(&mut link, stream, step, is_direct, &mut answered);
    let mut known = vec![false; asked];
    let waiting = link.abandon().into_iter().map(|(who, ..)| who);
    for who in answered.iter().map(|it| it.who).chain(waiting) {
        assert!(!std::mem::replace(&mut known[who], true), "request {who} twice");
    }
    assert!(known.iter().all(|known| *known), "a request is forgotten: {known:?}");
    (answered.into_iter().map(told).collect(), end)
}

/// Puts requests of all kinds in flight; how many. One is being sent.
fn ask_all(link: &mut Link<usize>) -> usize {
    let reads = LENGTHS.map(|len| What::Read(Memory::Bytes(vec![0xee; len])));
    let write = || What::Write(Memory::Bytes(vec![1; 512]), 0..512);
    let others = [
        What::BlockStatus(1 << 20),
        What::BlockStatus(u64::from(u32::MAX)),
        write(),
        What::Flush,
        What::Trim(1 << 20),
        What::WriteZeroes { len: 1 << 20, no_hole: false },
        write(),
    ];
    let (mut count, mut cookie) = (0, 0);
    for what in reads.into_iter().chain(others) {
        cookie = link.ask(count, what, OFFSET, &mut Vec::new());
        count += 1;
    }
    link.lend_write(cookie).expect("the last is a write");
    let long = PARTS.map(|(_, len)| len).iter().sum();
    link.ask(count, What::Read(Memory::Bytes(vec![0xee; long])), PARTS[0].0, &mut Vec::new());
    count + 1
}

fn feed(
    link: &mut Link<usize>,
    stream: &[u8],
    step: usize,
    is_direct: bool,
    answered: &mut Vec<Answered<usize>>,
) -> Result<(), Violation> {
    let mut rest = stream;
    while !rest.is_empty() {
        let lent = if is_direct { link.lend_read() } else { None };
        let count = match lent {
            Some((cookie, mut memory, range)) => {
                let count = range.len().min(step).min(rest.len());
                memory.bytes_mut()[range][..count].copy_from_slice(&rest[..count]);
                link.return_read(cookie, memory, count, answered)?;
                count
            }
            None => {
                // Data that begins in this piece would go past the loan.
                let count = if is_direct { 1 } else { step.min(rest.len()) };
                link.take(&rest[..count], answered)?;
                count
            }
        };
        rest = &rest[count..];
    }
    Ok(())
}

fn told(answered: Answered<usize>) -> Outcome {
    let Answered { who, what, result, .. } = answered;
    let bytes = match what {
        What::Read(memory) if result.is_ok() => Some(memory.bytes().to_vec()),
        _ => None,
    };
    if let Ok(told) = &result {
        let has_none = |status: &Status| status.extents.iter().any(|(len, _)| *len == 0);
        assert!(!told.iter().any(has_none), "an extent of no bytes");
    }
    (who, bytes, result.map_err(|error| error.to_string()))
}

/// One byte that says what is wanted, and what the server says.
pub fn handshake(data: &[u8]) {
    let Some((wanted, mut said)) = data.split_first() else { return };
    let mut stream = Stream { said: &mut said, sent: 0 };
    let Ok(greeting) = Greeting::read(&mut stream) else { return };
    match wanted % 3 {
        0 => negotiate(greeting, &mut stream),
        1 => {
            // What follows would be TLS's; here it stands for what is said inside.
            if let Ok(greeting) = greeting.start_tls(&mut stream) {
                negotiate(greeting, &mut stream);
            }
        }
        _ => {
            if let Ok(names) = greeting.list_exports(&mut stream) {
                assert!(names.iter().map(String::len).sum::<usize>() <= data.len());
            }
        }
    }
    assert!(stream.sent < 16 << 10, "{} bytes were sent", stream.sent);
}

fn negotiate(greeting: Greeting, stream: &mut Stream<'_, '_>) {
    let wishes = Wishes { export: "disk", contexts: &CONTEXTS };
    let Ok(export) = greeting.negotiate(stream, &wishes) else { return };
    assert!(i64::try_from(export.size).is_ok(), "{export:?}");
    assert!(export.block_min.is_power_of_two() && export.block_min <= 64 << 10, "{export:?}");
    assert!(export.block_max >= export.block_min, "{export:?}");
    assert!(export.contexts.is_empty() || export.replies != Replies::Simple, "{export:?}");
    let names: Vec<&str> = export.contexts.iter().map(|context| &*context.name).collect();
    assert!(names.iter().all(|name| CONTEXTS.contains(name)), "{export:?}");
    if let [first, second] = &export.contexts[..] {
        assert!(first.id != second.id && first.name != second.name, "{export:?}");
    }
}

/// The server's words, and a place where ours go.
struct Stream<'a, 'b> {
    said: &'a mut &'b [u8],
    sent: usize,
}

impl Read for Stream<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.said.read(bytes)
    }
}

impl Write for Stream<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sent += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
