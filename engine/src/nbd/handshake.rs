//! The way into a connection to an NBD server: the fixed newstyle handshake of the protocol
//! (`doc/proto.md` of the NBD project), over any blocking stream.
//!
//! [`Greeting::read`], then [`Greeting::start_tls`] if TLS is wanted, then
//! [`Greeting::negotiate`]. Each consumes what the step before gave, so that nothing is said in the
//! clear that belongs behind TLS. No byte is read beyond the answer that is waited for: what an
//! attacker put behind the answer to STARTTLS meets the TLS layer, as a broken record, and never
//! this one as an answer.
//!
//! The server is hostile until checked: every answer must be to the option that was asked, its
//! length and the number of answers are bounded before anything is allocated, and an answer that
//! contradicts another ends the connection. How long to wait is the stream's to know.
#![expect(clippy::big_endian_bytes, reason = "NBD's numbers are big endian")]

use std::io::{self, Read, Write};

use super::uri::EXPORT_LEN_MAX;

/// `NBDMAGIC`, which every server says first.
const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, before a newstyle server's flags and before each option.
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// What servers say instead that know no options.
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Before each answer to an option.
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Flags of the greeting; the client echoes those it goes by.
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Kinds of answers.
const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
/// Answers with this bit are refusals.
const REP_ERROR: u32 = 1 << 31;

/// Kinds of information on an export.
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Bytes before an answer's own.
const REPLY_HEAD_LEN: usize = 20;
const HEAD_FITS: &str = "a u64 and three u32 make the head of an answer";
/// Zeroes behind the answer to EXPORT_NAME, unless both sides do without.
const EXPORT_NAME_ZEROES: usize = 124;

/// Most bytes of an answer; a name and a description of 4 KiB each leave room.
const REPLY_LEN_MAX: u32 = 64 << 10;
/// Most answers to an option.
const REPLIES_MAX: usize = 1000;
/// Most exports in a list, and most bytes of their names together.
const LIST_MAX: usize = 10_000;
const LIST_LEN_MAX: usize = 1 << 20;
/// Most exports that an error names.
const LIST_SHOWN: usize = 10;
/// Most characters of a server's message that are shown.
const MESSAGE_SHOWN: usize = 200;

/// The protocol's limit for strings, which export names share.
const STRING_LEN_MAX: usize = EXPORT_LEN_MAX;
/// Offsets are signed in most servers.
const SIZE_MAX: u64 = i64::MAX as u64;
/// The largest smallest block there may be.
const BLOCK_MIN_MAX: u32 = 64 << 10;
/// The smallest preferred block there may be.
const BLOCK_PREFERRED_MIN: u32 = 512;
/// A largest block that is none.
const BLOCK_UNLIMITED: u32 = u32::MAX;

/// A blocking stream in both directions.
pub trait Duplex: Read + Write + Send {}

impl<S: Read + Write + Send + ?Sized> Duplex for S {}

/// What the client wants.
#[derive(Clone, Copy, Debug)]
pub struct Wishes<'a> {
    /// The export's name; empty for the server's default.
    pub export: &'a str,
    /// The contexts of block status, by full name (`base:allocation`).
    pub contexts: &'a [&'a str],
}

/// What the server agreed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its size in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// Offsets and lengths of requests are multiples of this.
    pub block_min: u32,
    /// Requests of multiples of this are fast.
    pub block_preferred: u32,
    /// The longest request with data; `u32::MAX` for no limit.
    pub block_max: u32,
    /// The form of its replies.
    pub replies: Replies,
    /// Those contexts asked for that it has, in the order asked.
    pub contexts: Vec<Context>,
}

/// A context of block status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Its name.
    pub name: String,
    /// What the server calls it in replies.
    pub id: u32,
}

/// The form of replies to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// One reply a request, and no block status.
    Simple,
    /// Chunks.
    Structured,
    /// Chunks, with 64-bit lengths both ways.
    Extended,
}

/// What an export can do, as the server's bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    const HAS_FLAGS: u16 = 1;

    fn has(self, bit: u32) -> bool {
        self.0 & (1 << bit) != 0
    }

    /// Writes are refused.
    pub fn is_read_only(self) -> bool {
        self.has(1)
    }

    /// Flushes are understood.
    pub fn has_flush(self) -> bool {
        self.has(2)
    }

    /// Writes can be durable before they are answered.
    pub fn has_fua(self) -> bool {
        self.has(3)
    }

    /// Ranges can be trimmed.
    pub fn has_trim(self) -> bool {
        self.has(5)
    }

    /// Zeroes can be written without sending them.
    pub fn has_write_zeroes(self) -> bool {
        self.has(6)
    }

    /// A read can be asked to come in one piece.
    pub fn has_df(self) -> bool {
        self.has(7)
    }

    /// Several connections see one another's writes after a flush.
    pub fn is_multi_conn(self) -> bool {
        self.has(8)
    }

    /// Zeroes can be asked for only if they are faster than writing them.
    pub fn has_fast_zero(self) -> bool {
        self.has(11) && self.has_write_zeroes()
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The stream failed, or the server closed it or kept silent.
    #[error("the connection broke during the NBD handshake")]
    Io(#[source] io::Error),
    /// Somebody else listens there.
    #[error("no NBD server listens there: it says \"{0}\"; check the address and the port")]
    NotNbd(String),
    /// A server of before 2011, or one that was told to act as one.
    #[error(
        "the server speaks the oldstyle NBD protocol, which names no exports and cannot refuse; \
         start it in newstyle (nbdkit: without -o)"
    )]
    OldStyle,
    /// A newstyle server that hangs up on options it does not know.
    #[error(
        "the server lacks the fixed newstyle handshake of NBD, without which nothing can be \
         agreed upon; use a newer server"
    )]
    NoFixedNewstyle,
    /// Bytes that are no answer; where the next one begins is lost.
    #[error("the server breaks the NBD protocol: {0}")]
    Protocol(String),
    /// Well-formed answers that cannot be true.
    #[error("the server's word cannot be relied on: {0}")]
    Lies(String),
    /// TLS or nothing.
    #[error(
        "the server wants TLS; write nbds:// for nbd:// (nbds+unix:// for nbd+unix://){}",
        said(message)
    )]
    TlsRequired {
        /// The server's.
        message: String,
    },
    /// No TLS, though it was wanted.
    #[error(
        "the server refuses TLS ({refusal}), and without it nothing was sent; give the server \
         certificates, or write nbd:// if the network between may read and change the data{}",
        said(message)
    )]
    TlsRefused {
        /// Why.
        refusal: Refusal,
        /// The server's.
        message: String,
    },
    /// No such export.
    #[error("the server has no export {export:?}{}{}", listed(known), said(message))]
    UnknownExport {
        /// What was asked for.
        export: String,
        /// What there is, if the server tells.
        known: Option<Vec<String>>,
        /// The server's.
        message: String,
    },
    /// An option was refused.
    #[error("the server refuses {option}: {refusal}{}", said(message))]
    Refused {
        /// The option's name in the protocol.
        option: &'static str,
        /// Why.
        refusal: Refusal,
        /// The server's.
        message: String,
    },
    /// A name that no server takes.
    #[error("a name of {0} bytes is longer than NBD's limit of {STRING_LEN_MAX}")]
    NameLen(usize),
}

/// Why a server refuses an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not know it.
    #[error("it does not know this option")]
    Unsupported,
    /// It is not allowed to.
    #[error("its settings forbid it; check who may connect, and from where")]
    Policy,
    /// It finds a fault.
    #[error("it takes the request for malformed")]
    Invalid,
    /// Its system lacks something.
    #[error("its system or build lacks what it takes")]
    Platform,
    /// It wants TLS first.
    #[error("it wants TLS first")]
    TlsRequired,
    /// It has no such export.
    #[error("it has no such export")]
    Unknown,
    /// It is about to end.
    #[error("it is shutting down; try again once it is back")]
    Shutdown,
    /// It wants its block sizes honoured.
    #[error("it wants its block sizes honoured, though this was promised")]
    BlockSizeRequired,
    /// The request is too long for it.
    #[error("the request is too long for it")]
    TooBig,
    /// It wants extended headers.
    #[error("it wants extended headers, yet does not agree to them")]
    ExtendedHeadersRequired,
    /// Something else.
    #[error("error {0:#x}, unknown here")]
    Other(u32),
}

impl Refusal {
    fn new(kind: u32) -> Refusal {
        match kind & !REP_ERROR {
            1 => Refusal::Unsupported,
            2 => Refusal::Policy,
            3 => Refusal::Invalid,
            4 => Refusal::Platform,
            5 => Refusal::TlsRequired,
            6 => Refusal::Unknown,
            7 => Refusal::Shutdown,
            8 => Refusal::BlockSizeRequired,
            9 => Refusal::TooBig,
            10 => Refusal::ExtendedHeadersRequired,
            _ => Refusal::Other(kind),
        }
    }

    /// Whether the server just does without the option.
    fn is_harmless(self) -> bool {
        use Refusal as R;
        matches!(self, R::Unsupported | R::Policy | R::Invalid | R::Platform | R::TooBig)
    }
}

impl HandshakeError {
    /// Why an option was refused, if that is what it is.
    fn refusal(&self) -> Option<Refusal> {
        match self {
            HandshakeError::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// Whether the server still understands what is sent to it.
    fn leaves_it_listening(&self) -> bool {
        use HandshakeError as E;
        !matches!(self, E::Io(_) | E::NotNbd(_) | E::Protocol(_))
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> HandshakeError {
        HandshakeError::Io(error)
    }
}

fn said(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(" (it says: {message})"),
    }
}

fn listed(known: &Option<Vec<String>>) -> String {
    let Some(known) = known else { return String::new() };
    if known.is_empty() {
        return "; it lists none".into();
    }
    let shown: Vec<String> = known
        .iter()
        .take(LIST_SHOWN)
        .map(|name| format!("\"{}\"", show(name.as_bytes())))
        .collect();
    match known.len().saturating_sub(LIST_SHOWN) {
        0 => format!("; it has {}", shown.join(", ")),
        more => format!("; it has {} and {more} more", shown.join(", ")),
    }
}

/// A server's text, fit for a terminal: short, on one line, in reading order.
pub(super) fn show(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut shown = String::new();
    for (at, c) in text.chars().enumerate() {
        match c {
            _ if at == MESSAGE_SHOWN => return shown + "...",
            // Marks without a width, and those that turn the order of the text around.
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(c.escape_unicode());
            }
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

type Result<T, E = HandshakeError> = std::result::Result<T, E>;

/// A server that has greeted us.
#[derive(Debug)]
pub struct Greeting {
    /// The answer to EXPORT_NAME comes without its zeroes.
    no_zeroes: bool,
}

impl Greeting {
    /// Reads the server's greeting and answers it.
    ///
    /// # Errors
    /// Not an NBD server, or one that is too old.
    pub fn read<S: Duplex + ?Sized>(stream: &mut S) -> Result<Greeting> {
        let magic = read_array::<8, S>(stream)?;
        if u64::from_be_bytes(magic) != GREETING_MAGIC {
            return Err(HandshakeError::NotNbd(show(&magic)));
        }
        match u64::from_be_bytes(read_array(stream)?) {
            OPTION_MAGIC => {}
            OLDSTYLE_MAGIC => return Err(HandshakeError::OldStyle),
            magic => return Err(HandshakeError::NotNbd(show(&magic.to_be_bytes()))),
        }
        let flags = u16::from_be_bytes(read_array(stream)?);
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(HandshakeError::NoFixedNewstyle);
        }
        let agreed = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        stream.write_all(&agreed.to_be_bytes())?;
        stream.flush()?;
        Ok(Greeting { no_zeroes: flags & FLAG_NO_ZEROES != 0 })
    }

    /// Agrees on TLS, before anything else is said; the stream is then the TLS layer's, and
    /// [`Greeting::negotiate`] goes on inside.
    ///
    /// # Errors
    /// The server refuses: there is no falling back.
    pub fn start_tls<S: Duplex + ?Sized>(self, stream: &mut S) -> Result<Greeting> {
        let mut options = Options { stream };
        let agreed = options.ask(Asked::StartTls, &[], &mut no_answers);
        let agreed = agreed.map_err(|error| match error {
            HandshakeError::Refused { refusal, message, .. } => {
                HandshakeError::TlsRefused { refusal, message }
            }
            error => error,
        });
        options.end_on_error(agreed).map(|()| self)
    }

    /// Agrees on an export and the form of what follows; then the stream is in transmission.
    ///
    /// # Errors
    /// The server refuses, or its answers cannot be right.
    pub fn negotiate<S: Duplex + ?Sized>(
        self,
        stream: &mut S,
        wishes: &Wishes<'_>,
    ) -> Result<Export> {
        let mut options = Options { stream };
        let export = options.negotiate(wishes, self.no_zeroes);
        let export = export.map_err(|error| options.with_list(error, wishes.export));
        options.end_on_error(export)
    }

    /// The names of the server's exports, and the connection's end.
    ///
    /// # Errors
    /// The server refuses (many do not tell), or its answers cannot be right.
    pub fn list_exports<S: Duplex + ?Sized>(self, stream: &mut S) -> Result<Vec<String>> {
        let mut options = Options { stream };
        let names = options.list();
        options.abort();
        names
    }
}

fn read_array<const N: usize, S: Duplex + ?Sized>(stream: &mut S) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// An option that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Asked {
    ExportName = 1,
    Abort = 2,
    List = 3,
    StartTls = 5,
    Go = 7,
    StructuredReply = 8,
    SetMetaContext = 10,
    ExtendedHeaders = 11,
}

impl Asked {
    fn name(self) -> &'static str {
        match self {
            Asked::ExportName => "NBD_OPT_EXPORT_NAME",
            Asked::Abort => "NBD_OPT_ABORT",
            Asked::List => "NBD_OPT_LIST",
            Asked::StartTls => "NBD_OPT_STARTTLS",
            Asked::Go => "NBD_OPT_GO",
            Asked::StructuredReply => "NBD_OPT_STRUCTURED_REPLY",
            Asked::SetMetaContext => "NBD_OPT_SET_META_CONTEXT",
            Asked::ExtendedHeaders => "NBD_OPT_EXTENDED_HEADERS",
        }
    }

    fn answers_max(self) -> usize {
        match self {
            Asked::List => LIST_MAX + 1,
            _ => REPLIES_MAX,
        }
    }
}

/// Takes the answers before the last one, by their kind.
type Take<'a> = &'a mut dyn FnMut(u32, &[u8]) -> Result<()>;

fn no_answers(kind: u32, _: &[u8]) -> Result<()> {
    Err(stray(kind))
}

fn stray(kind: u32) -> HandshakeError {
    HandshakeError::Protocol(format!("an answer of kind {kind:#x} came to an option without such"))
}

/// The phase in which options are asked for and answered.
struct Options<'a, S: ?Sized> {
    stream: &'a mut S,
}

impl<S: Duplex + ?Sized> Options<'_, S> {
    fn negotiate(&mut self, wishes: &Wishes<'_>, no_zeroes: bool) -> Result<Export> {
        let replies = self.replies()?;
        let contexts = match replies {
            Replies::Simple => Vec::new(),
            Replies::Structured | Replies::Extended => self.contexts(wishes)?,
        };
        match self.go(wishes.export) {
            Err(error) if error.refusal() == Some(Refusal::Unsupported) => {
                let offer = self.export_name(wishes.export, no_zeroes)?;
                offer.check(replies, Vec::new())
            }
            offer => offer?.check(replies, contexts),
        }
    }

    /// The best form of replies that the server has.
    fn replies(&mut self) -> Result<Replies> {
        if self.agrees(Asked::ExtendedHeaders)? {
            return Ok(Replies::Extended);
        }
        match self.agrees(Asked::StructuredReply)? {
            true => Ok(Replies::Structured),
            false => Ok(Replies::Simple),
        }
    }

    fn agrees(&mut self, option: Asked) -> Result<bool> {
        harmless(self.ask(option, &[], &mut no_answers).map(|()| true), false)
    }

    /// Those wanted contexts that the server has.
    fn contexts(&mut self, wishes: &Wishes<'_>) -> Result<Vec<Context>> {
        if wishes.contexts.is_empty() {
            return Ok(Vec::new());
        }
        let mut data = Vec::new();
        push_string(&mut data, wishes.export)?;
        data.extend((wishes.contexts.len() as u32).to_be_bytes());
        for name in wishes.contexts {
            push_string(&mut data, name)?;
        }
        let mut given: Vec<Option<Context>> = vec![None; wishes.contexts.len()];
        let answer = self.ask(Asked::SetMetaContext, &data, &mut |kind, data| match kind {
            REP_META_CONTEXT => take_context(&mut given, wishes.contexts, data),
            kind => Err(stray(kind)),
        });
        // What came before a refusal is not agreed on.
        match harmless(answer.map(|()| true), false)? {
            true => Ok(given.into_iter().flatten().collect()),
            false => Ok(Vec::new()),
        }
    }

    fn go(&mut self, export: &str) -> Result<Offer> {
        let mut data = Vec::new();
        push_string(&mut data, export)?;
        data.extend(1u16.to_be_bytes());
        data.extend(INFO_BLOCK_SIZE.to_be_bytes());
        let mut offer = Offer::default();
        self.ask(Asked::Go, &data, &mut |kind, data| match kind {
            REP_INFO => offer.take(data),
            kind => Err(stray(kind)),
        })?;
        Ok(offer)
    }

    /// The way in of servers without GO, which hang up on a name they do not know.
    fn export_name(&mut self, export: &str, no_zeroes: bool) -> Result<Offer> {
        self.send(Asked::ExportName, export.as_bytes())?;
        let size = read_array(self.stream).map_err(|error| match error {
            HandshakeError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let message = "it closed the connection when asked for it".into();
                HandshakeError::UnknownExport { export: export.into(), known: None, message }
            }
            error => error,
        })?;
        let flags = read_array(self.stream)?;
        if !no_zeroes {
            read_array::<EXPORT_NAME_ZEROES, S>(self.stream)?;
        }
        let export = (u64::from_be_bytes(size), TransmissionFlags(u16::from_be_bytes(flags)));
        Ok(Offer { export: Some(export), blocks: None })
    }

    fn list(&mut self) -> Result<Vec<String>> {
        let (mut names, mut len) = (Vec::new(), 0);
        self.ask(Asked::List, &[], &mut |kind, data| {
            let name = match kind {
                REP_SERVER => Fields(data).string().ok_or_else(|| malformed("an export's name"))?,
                kind => return Err(stray(kind)),
            };
            len += name.len();
            if len > LIST_LEN_MAX {
                return Err(HandshakeError::Lies("the names of its exports have no end".into()));
            }
            names.push(name);
            Ok(())
        })?;
        Ok(names)
    }

    /// Who is told that an export is unknown wants to know which there are; best effort.
    fn with_list(&mut self, error: HandshakeError, export: &str) -> HandshakeError {
        match error {
            HandshakeError::Refused { refusal: Refusal::Unknown, message, .. } => {
                let known = self.list().ok();
                HandshakeError::UnknownExport { export: export.into(), known, message }
            }
            error => error,
        }
    }

    /// Asks for an option and reads its answers to the one that ends them.
    fn ask(&mut self, option: Asked, data: &[u8], take: Take<'_>) -> Result<()> {
        self.send(option, data)?;
        for _ in 0..option.answers_max() {
            let (kind, data) = self.answer(option)?;
            match kind {
                REP_ACK if data.is_empty() => return Ok(()),
                REP_ACK => {
                    let words = format!("{} was agreed to with data behind it", option.name());
                    return Err(HandshakeError::Lies(words));
                }
                kind if kind & REP_ERROR != 0 => return Err(refused(option, kind, &data)),
                kind => take(kind, &data)?,
            }
        }
        Err(HandshakeError::Lies(format!("its answers to {} have no end", option.name())))
    }

    fn send(&mut self, option: Asked, data: &[u8]) -> Result<()> {
        let mut bytes = Vec::with_capacity(16 + data.len());
        bytes.extend(OPTION_MAGIC.to_be_bytes());
        bytes.extend((option as u32).to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)?;
        Ok(self.stream.flush()?)
    }

    /// One answer to `option`: its kind and its data.
    fn answer(&mut self, option: Asked) -> Result<(u32, Vec<u8>)> {
        let head = read_array::<REPLY_HEAD_LEN, S>(self.stream)?;
        let mut head = Fields(&head);
        let magic = head.u64().expect(HEAD_FITS);
        let mut number = || head.u32().expect(HEAD_FITS);
        let (echo, kind, len) = (number(), number(), number());
        let fault = |words: String| Err(HandshakeError::Protocol(words));
        if magic != REPLY_MAGIC {
            return fault(format!("an answer begins with {magic:#018x}, not {REPLY_MAGIC:#018x}"));
        }
        if echo != option as u32 {
            return fault(format!("{} was asked for, option {echo} answered", option.name()));
        }
        if len > REPLY_LEN_MAX {
            return fault(format!("an answer to {} has {len} bytes", option.name()));
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok((kind, data))
    }

    fn end_on_error<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if outcome.as_ref().is_err_and(HandshakeError::leaves_it_listening) {
            self.abort();
        }
        outcome
    }

    /// Says good-bye. Nothing depends on it.
    fn abort(&mut self) {
        drop(self.send(Asked::Abort, &[]));
    }
}

/// A refusal that only means doing without gives `without`.
fn harmless<T>(outcome: Result<T>, without: T) -> Result<T> {
    match outcome {
        Err(error) if error.refusal().is_some_and(Refusal::is_harmless) => Ok(without),
        outcome => outcome,
    }
}

fn refused(option: Asked, kind: u32, data: &[u8]) -> HandshakeError {
    let message = show(data);
    match Refusal::new(kind) {
        Refusal::TlsRequired => HandshakeError::TlsRequired { message },
        refusal => HandshakeError::Refused { option: option.name(), refusal, message },
    }
}

fn take_context(given: &mut [Option<Context>], wanted: &[&str], data: &[u8]) -> Result<()> {
    let mut fields = Fields(data);
    let id = fields.u32().ok_or_else(|| malformed("a context"))?;
    let name = fields.rest_as_text().ok_or_else(|| malformed("a context's name"))?;
    let lies =
        |words| Err(HandshakeError::Lies(format!("context \"{}\" {words}", show(name.as_bytes()))));
    if given.iter().flatten().any(|other| other.id == id) {
        return lies("shares its number with another");
    }
    match wanted.iter().position(|wanted| *wanted == name) {
        None => lies("was not asked for"),
        Some(at) if given[at].is_some() => lies("is given twice"),
        Some(at) => {
            given[at] = Some(Context { name, id });
            Ok(())
        }
    }
}

fn malformed(what: &str) -> HandshakeError {
    HandshakeError::Protocol(format!("{what} is malformed"))
}

fn push_string(data: &mut Vec<u8>, text: &str) -> Result<()> {
    if text.len() > STRING_LEN_MAX {
        return Err(HandshakeError::NameLen(text.len()));
    }
    data.extend((text.len() as u32).to_be_bytes());
    data.extend(text.as_bytes());
    Ok(())
}

/// What the server says of an export, before it is believed.
#[derive(Default)]
struct Offer {
    export: Option<(u64, TransmissionFlags)>,
    blocks: Option<Blocks>,
}

#[derive(Clone, Copy)]
struct Blocks {
    min: u32,
    preferred: u32,
    max: u32,
}

impl Blocks {
    /// Those of a server that says nothing of them.
    const DEFAULT: Blocks = Blocks { min: 1, preferred: 4096, max: 32 << 20 };

    /// The protocol's rules. The largest block of a small export may be below the preferred one.
    fn are_possible(self, size: u64) -> bool {
        let Blocks { min, preferred, max } = self;
        let min_fits = min.is_power_of_two() && min <= BLOCK_MIN_MAX;
        let preferred_min = min.max(BLOCK_PREFERRED_MIN);
        let preferred_fits = preferred.is_power_of_two() && preferred >= preferred_min;
        min_fits && preferred_fits && (max == BLOCK_UNLIMITED || self.max_fits(size))
    }

    fn max_fits(self, size: u64) -> bool {
        let least = u64::from(self.preferred).min(size);
        self.max >= self.min && u64::from(self.max) >= least && self.max.is_multiple_of(self.min)
    }
}

impl Offer {
    fn take(&mut self, data: &[u8]) -> Result<()> {
        let mut fields = Fields(data);
        let kind = fields.u16().ok_or_else(|| malformed("information on the export"))?;
        let (twice, whole) = match kind {
            INFO_EXPORT => (self.export.is_some(), self.take_export(fields)),
            INFO_BLOCK_SIZE => (self.blocks.is_some(), self.take_blocks(fields)),
            // Names, descriptions and what is yet to come, of which we make no use.
            _ => return Ok(()),
        };
        match (twice, whole) {
            (true, _) => Err(HandshakeError::Lies("it says twice what the export is".into())),
            (false, None) => Err(malformed("information on the export")),
            (false, Some(())) => Ok(()),
        }
    }

    fn take_export(&mut self, mut fields: Fields<'_>) -> Option<()> {
        let (size, flags) = (fields.u64()?, fields.u16()?);
        self.export = Some((size, TransmissionFlags(flags)));
        fields.end()
    }

    fn take_blocks(&mut self, mut fields: Fields<'_>) -> Option<()> {
        let (min, preferred, max) = (fields.u32()?, fields.u32()?, fields.u32()?);
        self.blocks = Some(Blocks { min, preferred, max });
        fields.end()
    }

    fn check(self, replies: Replies, contexts: Vec<Context>) -> Result<Export> {
        let lies = |words| Err(HandshakeError::Lies(words));
        let Some((size, flags)) = self.export else {
            return lies("it agreed to the export without its size".into());
        };
        if size > SIZE_MAX {
            return lies(format!("the export has {size} bytes, more than a file can have"));
        }
        if flags.0 & TransmissionFlags::HAS_FLAGS == 0 {
            return lies(format!("the export's flags {:#06x} are marked as none", flags.0));
        }
        let blocks = self.blocks.unwrap_or(Blocks::DEFAULT);
        let Blocks { min, preferred, max } = blocks;
        if !blocks.are_possible(size) {
            return lies(format!(
                "blocks of at least {min}, preferably {preferred} and at most {max} bytes cannot be"
            ));
        }
        let (block_min, block_preferred, block_max) = (min, preferred, max);
        Ok(Export { size, flags, block_min, block_preferred, block_max, replies, contexts })
    }
}

/// The fields of an answer, from its start.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
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

    /// A text with its length before it.
    fn string(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Fields(text).rest_as_text()
    }

    fn rest_as_text(self) -> Option<String> {
        let text = Some(self.0).filter(|text| text.len() <= STRING_LEN_MAX)?;
        String::from_utf8(text.to_vec()).ok()
    }

    fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEWSTYLE: u16 = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES;
    const UNSUPPORTED: u32 = REP_ERROR | 1;
    const UNKNOWN: u32 = REP_ERROR | 6;
    const WISHES: Wishes<'_> =
        Wishes { export: "disk", contexts: &["base:allocation", "qemu:dirty-bitmap:b0"] };

    /// A server whose words are fixed; what is sent to it is kept.
    #[derive(Default)]
    struct Script {
        says: Vec<u8>,
        read: usize,
        sent: Vec<u8>,
        /// The longest read asked for, which is what was allocated for it.
        widest: usize,
    }

    impl Read for Script {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.widest = self.widest.max(bytes.len());
            let read = (&self.says[self.read..]).read(bytes)?;
            self.read += read;
            Ok(read)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.sent.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Script {
        fn new(flags: u16) -> Script {
            let mut script = Script::default();
            script.says.extend(b"NBDMAGICIHAVEOPT");
            script.says.extend(flags.to_be_bytes());
            script
        }

        fn says(mut self, bytes: &[u8]) -> Script {
            self.says.extend(bytes);
            self
        }

        fn answers(self, option: Asked, kind: u32, data: &[u8]) -> Script {
            self.says(&answer(option as u32, kind, data))
        }

        fn agrees(self, option: Asked) -> Script {
            self.answers(option, REP_ACK, &[])
        }

        fn refuses(self, option: Asked, kind: u32) -> Script {
            self.answers(option, kind, b"because")
        }

        /// Up to GO, with structured replies and no contexts.
        fn before_go() -> Script {
            Script::new(NEWSTYLE)
                .refuses(Asked::ExtendedHeaders, UNSUPPORTED)
                .agrees(Asked::StructuredReply)
                .refuses(Asked::SetMetaContext, UNSUPPORTED)
        }

        fn goes(self, info: &[&[u8]]) -> Script {
            info.iter()
                .fold(self, |script, info| script.answers(Asked::Go, REP_INFO, info))
                .agrees(Asked::Go)
        }

        fn negotiate(&mut self) -> Result<Export> {
            Greeting::read(self)?.negotiate(self, &WISHES)
        }

        #[track_caller]
        fn refused(mut self) -> String {
            self.negotiate().unwrap_err().to_string()
        }
    }

    fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
        for number in [option, kind, data.len() as u32] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(data);
        bytes
    }

    /// An option as it must be sent.
    fn asked(option: Asked, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend((option as u32).to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn export_info(size: u64, flags: u16) -> Vec<u8> {
        [&INFO_EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
    }

    fn block_info(min: u32, preferred: u32, max: u32) -> Vec<u8> {
        let mut bytes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for number in [min, preferred, max] {
            bytes.extend(number.to_be_bytes());
        }
        bytes
    }

    fn context(id: u32, name: &str) -> Vec<u8> {
        [&id.to_be_bytes()[..], name.as_bytes()].concat()
    }

    fn gives(contexts: &[(u32, &str)]) -> Script {
        let script = Script::new(NEWSTYLE).agrees(Asked::ExtendedHeaders);
        let given = |script: Script, (id, name): &(u32, &str)| {
            script.answers(Asked::SetMetaContext, REP_META_CONTEXT, &context(*id, name))
        };
        contexts.iter().fold(script, given).agrees(Asked::SetMetaContext)
    }

    #[test]
    fn the_best_that_there_is_is_agreed_on() {
        let mut script = gives(&[(7, "qemu:dirty-bitmap:b0"), (0, "base:allocation")]).goes(&[
            &block_info(512, 65536, 1 << 25),
            &[0, 9, 1],
            &export_info(1 << 40, 0x96d),
        ]);
        let export = script.negotiate().unwrap();
        let contexts = [("base:allocation", 0), ("qemu:dirty-bitmap:b0", 7)]
            .map(|(name, id)| Context { name: name.into(), id });
        let expected = Export {
            size: 1 << 40,
            flags: TransmissionFlags(0x96d),
            block_min: 512,
            block_preferred: 65536,
            block_max: 1 << 25,
            replies: Replies::Extended,
            contexts: contexts.into(),
        };
        assert_eq!(export, expected);
        assert_eq!(script.read, script.says.len());
        let wished = b"\0\0\0\x04disk\0\0\0\x02\0\0\0\x0fbase:allocation\
                       \0\0\0\x14qemu:dirty-bitmap:b0";
        let sent = [
            vec![0, 0, 0, 3],
            asked(Asked::ExtendedHeaders, b""),
            asked(Asked::SetMetaContext, wished),
            asked(Asked::Go, b"\0\0\0\x04disk\0\x01\0\x03"),
        ];
        assert_eq!(script.sent, sent.concat());
    }

    #[test]
    fn flags_are_read_bit_by_bit() {
        type Has = fn(TransmissionFlags) -> bool;
        let table: [(u16, Has); 7] = [
            (1 << 1, TransmissionFlags::is_read_only),
            (1 << 2, TransmissionFlags::has_flush),
            (1 << 3, TransmissionFlags::has_fua),
            (1 << 5, TransmissionFlags::has_trim),
            (1 << 6, TransmissionFlags::has_write_zeroes),
            (1 << 7, TransmissionFlags::has_df),
            (1 << 8, TransmissionFlags::is_multi_conn),
        ];
        for (bits, has) in table {
            assert!(has(TransmissionFlags(bits)) && !has(TransmissionFlags(!bits)), "{bits:#x}");
        }
        assert!(TransmissionFlags(1 << 11 | 1 << 6).has_fast_zero());
        assert!(!TransmissionFlags(1 << 11).has_fast_zero());
    }

    #[test]
    fn less_is_agreed_on_as_well() {
        let mut script = Script::before_go().goes(&[&export_info(0, 1)]);
        let export = script.negotiate().unwrap();
        assert_eq!(
            (export.size, export.replies, export.contexts),
            (0, Replies::Structured, vec![])
        );
        let blocks = (export.block_min, export.block_preferred, export.block_max);
        assert_eq!(blocks, (1, 4096, 32 << 20));
        let mut script = gives(&[(1, "base:allocation")]).goes(&[&export_info(5, 1)]);
        assert_eq!(script.negotiate().unwrap().contexts.len(), 1);
    }

    #[test]
    fn contexts_of_a_refused_question_are_not_agreed_on() {
        let mut script = Script::new(NEWSTYLE)
            .agrees(Asked::ExtendedHeaders)
            .answers(Asked::SetMetaContext, REP_META_CONTEXT, &context(1, "base:allocation"))
            .refuses(Asked::SetMetaContext, REP_ERROR | 2)
            .goes(&[&export_info(5, 1)]);
        assert_eq!(script.negotiate().unwrap().contexts, []);
    }

    /// A server that knows nothing but EXPORT_NAME.
    fn old(flags: u16) -> Script {
        Script::new(flags)
            .refuses(Asked::ExtendedHeaders, UNSUPPORTED)
            .refuses(Asked::StructuredReply, UNSUPPORTED)
            .refuses(Asked::Go, UNSUPPORTED)
    }

    #[test]
    fn servers_without_go_are_entered_by_name() {
        let export = [&(1u64 << 30).to_be_bytes()[..], &[0, 3]].concat();
        let with_zeroes = [&export[..], &[0; EXPORT_NAME_ZEROES]].concat();
        for (flags, says) in [(1, with_zeroes), (3, export)] {
            let mut script = old(flags).says(&says);
            let export = script.negotiate().unwrap();
            assert_eq!((export.size, export.replies), (1 << 30, Replies::Simple));
            assert!(export.flags.is_read_only());
            assert_eq!(script.read, script.says.len());
            assert!(script.sent.ends_with(&asked(Asked::ExportName, b"disk")));
        }
        let gone = old(3).negotiate().unwrap_err();
        assert!(matches!(gone, HandshakeError::UnknownExport { .. }), "{gone}");
        assert!(old(3).says(&[0; 9]).refused().contains("broke"));
    }

    #[test]
    fn who_is_no_newstyle_server_is_told_apart() {
        let greet = |says: &[u8]| {
            let mut script = Script::default().says(says);
            let error = Greeting::read(&mut script).unwrap_err();
            assert!(script.sent.is_empty(), "{error}");
            error
        };
        assert!(
            matches!(greet(b"SSH-2.0-OpenSSH"), HandshakeError::NotNbd(says) if says == "SSH-2.0-")
        );
        assert!(matches!(greet(b"NBDMAGICxxxxxxxx"), HandshakeError::NotNbd(_)));
        let oldstyle = [&b"NBDMAGIC"[..], &OLDSTYLE_MAGIC.to_be_bytes()].concat();
        assert!(matches!(greet(&oldstyle), HandshakeError::OldStyle));
        assert!(matches!(greet(b"NBDMAGICIHAVEOPT\0\x02"), HandshakeError::NoFixedNewstyle));
        assert!(matches!(greet(b"NBDMAGICIHAVE"), HandshakeError::Io(_)));
        assert!(greet(b"\x1b[2Jxyzw").to_string().contains("\\u{1b}[2J"));
    }

    #[test]
    fn each_refusal_has_its_words() {
        let refused = |kind| {
            let mut script = Script::before_go().refuses(Asked::Go, kind);
            let error = script.negotiate().unwrap_err();
            assert!(script.sent.ends_with(&asked(Asked::Abort, b"")), "{error}");
            error.to_string()
        };
        let table = [
            (2, "NBD_OPT_GO: its settings forbid it; check who may connect"),
            (3, "takes the request for malformed"),
            (4, "system or build lacks"),
            (5, "write nbds:// for nbd://"),
            (7, "shutting down; try again"),
            (8, "block sizes honoured"),
            (9, "too long for it"),
            (10, "extended headers"),
            (99, "error 0x80000063, unknown here"),
        ];
        for (kind, words) in table {
            let said = refused(REP_ERROR | kind);
            assert!(said.contains(words) && said.ends_with("(it says: because)"), "{said}");
        }
        let first = Script::new(NEWSTYLE).refuses(Asked::ExtendedHeaders, REP_ERROR | 5).refused();
        assert!(first.contains("wants TLS"), "{first}");
    }

    #[test]
    fn who_asks_for_an_unknown_export_hears_which_there_are() {
        let name = |name: &str| [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
        let unknown = || Script::before_go().refuses(Asked::Go, UNKNOWN);
        let with = |names: &[&str]| {
            let listed = |script: Script, export: &&str| {
                script.answers(Asked::List, REP_SERVER, &[&name(export), &b"words"[..]].concat())
            };
            names.iter().fold(unknown(), listed).agrees(Asked::List).refused()
        };
        assert!(with(&[]).contains("\"disk\"; it lists none (it says: because)"));
        assert!(with(&["a", "b\n"]).contains("; it has \"a\", \"b\\n\" ("), "{}", with(&["b\n"]));
        assert!(with(&["x"; 12]).contains("\"x\" and 2 more"));
        let silent = unknown().refuses(Asked::List, REP_ERROR | 2).refused();
        assert_eq!(silent, "the server has no export \"disk\" (it says: because)");
        let gone = unknown().refused();
        assert_eq!(gone, silent);
    }

    #[test]
    fn lists_end() {
        let list = |mut script: Script| {
            let greeting = Greeting::read(&mut script).unwrap();
            greeting.list_exports(&mut script)
        };
        let one = answer(Asked::List as u32, REP_SERVER, b"\0\0\0\x01a");
        let names = Script::new(NEWSTYLE).says(&one.repeat(LIST_MAX)).agrees(Asked::List);
        assert_eq!(list(names).unwrap().len(), LIST_MAX);
        let endless = Script::new(NEWSTYLE).says(&one.repeat(LIST_MAX + 1)).agrees(Asked::List);
        assert!(list(endless).unwrap_err().to_string().contains("have no end"));
        let long = [&4096u32.to_be_bytes()[..], &[b'a'; 4096]].concat();
        let long = answer(Asked::List as u32, REP_SERVER, &long);
        let large = Script::new(NEWSTYLE).says(&long.repeat(300));
        assert!(list(large).unwrap_err().to_string().contains("names of its exports have no end"));
    }

    #[test]
    fn answers_that_are_none_end_the_connection() {
        let go = |bytes: &[u8]| Script::before_go().says(bytes).refused();
        let mut magic = answer(7, REP_ACK, b"");
        magic[0] ^= 1;
        assert!(go(&magic).contains("begins with 0x0103e889045565a9"), "{}", go(&magic));
        assert!(go(&answer(6, REP_ACK, b"")).contains("NBD_OPT_GO was asked for, option 6"));
        assert!(go(&answer(7, REP_ACK, b"x")).contains("NBD_OPT_GO was agreed to with data"));
        assert!(go(&answer(7, REP_SERVER, b"")).contains("kind 0x2"));
        assert!(go(&answer(7, 77, b"")).contains("kind 0x4d"));
        assert!(go(&answer(7, REP_INFO, b"\0")).contains("malformed"));
        assert!(go(&answer(7, REP_INFO, b"\0\x03\0")).contains("malformed"));
        let long = [export_info(1, 1), vec![0]].concat();
        assert!(go(&answer(7, REP_INFO, &long)).contains("malformed"));
        let endless = answer(7, REP_INFO, b"\0\x09").repeat(REPLIES_MAX);
        assert!(go(&endless).contains("answers to NBD_OPT_GO have no end"));
    }

    #[test]
    fn an_answer_too_long_is_not_even_read() {
        let mut bytes = answer(7, REP_INFO, b"");
        bytes[16..].copy_from_slice(&(REPLY_LEN_MAX + 1).to_be_bytes());
        let mut script = Script::before_go().says(&bytes).says(&vec![0; 1 << 17]);
        let error = script.negotiate().unwrap_err();
        assert!(error.to_string().contains("has 65537 bytes"), "{error}");
        assert_eq!(script.says.len() - script.read, 1 << 17);
    }

    #[test]
    fn exports_that_cannot_be_are_refused() {
        let go = |info: &[&[u8]]| Script::before_go().goes(info).refused();
        let export = export_info(1 << 20, 1);
        assert!(go(&[]).contains("without its size"));
        assert!(go(&[&export, &export]).contains("says twice"));
        assert!(
            go(&[&export, &block_info(1, 512, 512), &block_info(1, 512, 512)]).contains("twice")
        );
        assert!(go(&[&export_info(1 << 63, 1)]).contains("9223372036854775808 bytes"));
        assert!(go(&[&export_info(1, 0)]).contains("marked as none"));
        let impossible = [
            (0, 4096, 1 << 20),
            (3, 4096, 1 << 20),
            (1 << 17, 1 << 17, 1 << 20),
            (1, 256, 1 << 20),
            (1, 0, 1 << 20),
            (1, 5000, 1 << 20),
            (8192, 4096, 1 << 20),
            (1, 4096, 4095),
            (1, 4096, 0),
            (4096, 4096, 4097),
        ];
        for (min, preferred, max) in impossible {
            let said = go(&[&block_info(min, preferred, max), &export]);
            assert!(said.contains("cannot be"), "{min} {preferred} {max}: {said}");
        }
        let possible =
            [(1, 512, 1 << 20), (512, 4096, 4096), (65536, 65536, u32::MAX), (1, 1 << 31, 1 << 20)];
        for (min, preferred, max) in possible {
            let info: [&[u8]; 2] = [&block_info(min, preferred, max), &export];
            Script::before_go().goes(&info).negotiate().unwrap();
        }
    }

    #[test]
    fn contexts_that_cannot_be_are_refused() {
        let said = |contexts: &[(u32, &str)]| gives(contexts).refused();
        assert!(said(&[(1, "base:other")]).contains("\"base:other\" was not asked for"));
        let (base, bitmap) = ("base:allocation", "qemu:dirty-bitmap:b0");
        assert!(said(&[(1, base), (2, base)]).contains("given twice"));
        assert!(said(&[(1, base), (1, bitmap)]).contains("shares its number"));
        let short = Script::new(NEWSTYLE).agrees(Asked::ExtendedHeaders).answers(
            Asked::SetMetaContext,
            REP_META_CONTEXT,
            b"\0",
        );
        assert!(short.refused().contains("a context is malformed"));
    }

    #[test]
    fn names_beyond_the_limit_are_not_sent() {
        let long = "x".repeat(STRING_LEN_MAX + 1);
        let mut script = Script::new(NEWSTYLE).agrees(Asked::ExtendedHeaders);
        let wishes = Wishes { export: &long, contexts: &[] };
        let greeting = Greeting::read(&mut script).unwrap();
        let error = greeting.negotiate(&mut script, &wishes).unwrap_err();
        assert!(matches!(error, HandshakeError::NameLen(4097)), "{error}");
        assert!(script.sent.len() < STRING_LEN_MAX);
    }

    #[test]
    fn tls_comes_first_or_not_at_all() {
        let mut script = Script::new(NEWSTYLE).agrees(Asked::StartTls).says(b"injected");
        let greeting = Greeting::read(&mut script).unwrap();
        greeting.start_tls(&mut script).unwrap();
        assert_eq!(script.sent, [vec![0, 0, 0, 3], asked(Asked::StartTls, b"")].concat());
        // What is behind the answer stays in the stream, for the TLS layer to choke on.
        assert_eq!(&script.says[script.read..], b"injected");

        let start = |mut script: Script| {
            let greeting = Greeting::read(&mut script).unwrap();
            (greeting.start_tls(&mut script).unwrap_err(), script.sent)
        };
        for kind in [1, 2, 3, 4, 7, 99] {
            let (error, sent) =
                start(Script::new(NEWSTYLE).refuses(Asked::StartTls, REP_ERROR | kind));
            assert!(matches!(error, HandshakeError::TlsRefused { .. }), "{error}");
            assert!(sent.ends_with(&asked(Asked::Abort, b"")));
        }
        let (error, _) = start(Script::new(NEWSTYLE).answers(Asked::StartTls, REP_ACK, b"x"));
        assert!(matches!(error, HandshakeError::Lies(_)), "{error}");
        let (error, _) = start(Script::new(NEWSTYLE).answers(Asked::StartTls, REP_INFO, b""));
        assert!(matches!(error, HandshakeError::Protocol(_)), "{error}");
    }

    #[test]
    fn a_servers_words_are_made_harmless() {
        assert_eq!(show(b"a\x1b]0;x\x07\r\n\xff"), "a\\u{1b}]0;x\\u{7}\\r\\n\u{fffd}");
        assert_eq!(show("x\u{202e}y".as_bytes()), "x\\u{202e}y");
        let long = show(&[b'x'; 5000]);
        assert_eq!(long, "x".repeat(MESSAGE_SHOWN) + "...");
        assert_eq!(show(&[b'x'; MESSAGE_SHOWN]).len(), MESSAGE_SHOWN);
    }

    /// Bytes that get past the first checks often enough.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let option = prop::sample::select(vec![3u32, 5, 7, 8, 10, 11]);
        let kind = prop_oneof![
            Just(REP_ACK),
            Just(REP_SERVER),
            Just(REP_INFO),
            Just(REP_META_CONTEXT),
            (0u32..12).prop_map(|error| REP_ERROR | error),
            any::<u32>(),
        ];
        let data = prop_oneof![
            3 => Just(Vec::new()),
            1 => (any::<u64>(), any::<u16>()).prop_map(|(size, flags)| export_info(size, flags)),
            1 => any::<[u32; 3]>().prop_map(|[a, b, c]| block_info(a, b, c)),
            1 => (0u32..3).prop_map(|id| context(id, WISHES.contexts[0])),
            1 => prop::collection::vec(any::<u8>(), 0..40),
        ];
        prop_oneof![
            9 => (option, kind, data).prop_map(|(o, kind, data)| answer(o, kind, &data)),
            1 => prop::collection::vec(any::<u8>(), 0..60),
        ]
    }

    proptest! {
        #[test]
        fn any_words_are_borne(
            greeting in prop_oneof![9 => Just(NEWSTYLE), 1 => any::<u16>()],
            refused in 0usize..5,
            pieces in prop::collection::vec(piece(), 0..12),
        ) {
            let options =
                [Asked::ExtendedHeaders, Asked::StructuredReply, Asked::SetMetaContext, Asked::Go];
            let refuse = |script: Script, option: &Asked| script.refuses(*option, UNSUPPORTED);
            let script = options.iter().take(refused).fold(Script::new(greeting), refuse);
            let mut script = pieces.iter().fold(script, |script, piece| script.says(piece));
            if let Ok(export) = script.negotiate() {
                prop_assert!(export.size <= SIZE_MAX && export.contexts.len() <= 2);
                prop_assert!(export.block_min <= export.block_preferred);
            }
            prop_assert!(script.widest <= REPLY_LEN_MAX as usize);
        }

        #[test]
        fn any_bytes_are_borne(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut script = Script::default().says(&bytes);
            prop_assert!(script.negotiate().is_err());
        }
    }
}
