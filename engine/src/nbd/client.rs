//! A server's connections, on a thread of their own: requests in, answers out.
//!
//! ```text
//! callers --Asked--> hub: queue -> connection with the least to do -> Link -> sockets (ring)
//!         <-Answer--                                               <-       <-
//! ```
//!
//! A connection that is lost is made anew if nothing is lost by it: what has no answer is asked
//! again, for a read or a write may be repeated. But a server that was restarted may have forgotten
//! what it was told and not yet asked to make durable, and one that still works on a trim may release
//! what is written meanwhile; then the client ends with an error.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};

use super::dial::{Channel, DialError, Dialled, Dialler, Redial};
use super::handshake::Export;
use super::link::{Answered, Link, Status, Violation, What};
use super::protocol::ERROR_SHUTDOWN;
use crate::cancel::Cancel;
use crate::io::IoEngine;
use crate::io::sockets::{
    Direction, Finished, Memory, SocketId, Sockets, Transfer, Waker, sockets,
};
use crate::words::with_causes;

/// Connections to a server that allows several.
const CONNECTIONS: usize = 4;
/// Requests in flight on one connection; QEMU works on 16 at a time.
const DEPTH: usize = 16;
/// Bytes that are received at once where it is not known yet what they are.
const STAGING_LEN: usize = 16 << 10;
/// A connection on which nothing moved for so long is lost.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
/// The same where a server may have much to do before it answers.
const STALL_PATIENT: Duration = Duration::from_secs(600);
/// How often whoever waits for the end of the hub looks.
const NAP: Duration = Duration::from_millis(1);
/// How often stalls, and wishes to stop, are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Pauses before a connection is made anew.
const REDIALS_MS: [u64; 7] = [0, 100, 400, 1000, 2000, 4000, 8000];
/// How long the end of connections may take.
const GOODBYE: Duration = Duration::from_millis(500);
/// How often in a row all connections may be lost before anything was answered.
const LOSSES_MAX: u32 = 8;

/// A request's answer.
#[derive(Debug)]
pub struct Answer {
    /// The token of the request.
    pub token: u64,
    /// What was asked, with its memory.
    pub what: What,
    /// What came of it.
    pub result: io::Result<Vec<Status>>,
}

/// Who asked.
struct Who {
    token: u64,
    answers: Sender<Answer>,
    /// How many writes were answered when this was put on a connection.
    written_before: u64,
}

/// What the hub is told.
enum Message {
    Ask(Who, What, u64),
    /// One more connection.
    Add(Box<Dialled>),
}

/// A server's export. Dropping it ends the connections.
pub struct Client {
    export: Export,
    messages: Option<Sender<Message>>,
    waker: Waker,
    hub: Option<JoinHandle<()>>,
    words: Arc<Words>,
    cancel: Cancel,
}

/// How the hub works, for people.
#[derive(Default)]
struct Words {
    engine: Mutex<Option<(String, Option<String>)>>,
    /// How often a connection was made anew when there was none left.
    redials: AtomicU32,
}

impl Client {
    /// Connects, on `engine`; whoever waits for an answer stops when `cancel` is raised.
    ///
    /// # Errors
    /// Why there is no connection; or the system's.
    pub fn connect(
        dialler: Dialler,
        engine: IoEngine,
        cancel: Cancel,
    ) -> Result<Client, DialError> {
        let dialler = Arc::new(dialler);
        let first = dialler.dial()?;
        let export = first.export.clone();
        let waker = Waker::new().map_err(DialError::Io)?;
        let (messages, inbox) = unbounded();
        let words = Arc::new(Words::default());
        if export.flags.is_multi_conn() {
            let (messages, waker) = (messages.clone(), waker.clone());
            dial_more(Arc::clone(&dialler), messages, waker);
        }
        let start = {
            let (waker, words, export) = (waker.clone(), Arc::clone(&words), export.clone());
            let (ready, is_ready) = bounded(1);
            let hub = Builder::new().name("nbd".to_owned()).spawn(move || {
                // The ring belongs to the thread that makes it.
                let sockets = match sockets(engine, &waker) {
                    Ok(sockets) => sockets,
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                words.tell(&*sockets);
                let mut hub = Hub::new(sockets, dialler, inbox, export, words);
                let added = hub.add(first);
                let is_good = added.is_ok();
                let _ = ready.send(added);
                if is_good {
                    hub.run();
                }
            });
            hub.map(|hub| (hub, is_ready))
        };
        let (hub, is_ready) = start.map_err(DialError::Io)?;
        is_ready.recv().unwrap_or_else(|_| Err(gone())).map_err(DialError::Io)?;
        Ok(Client { export, messages: Some(messages), waker, hub: Some(hub), words, cancel })
    }

    /// What the server agreed to.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// How it works, for reports.
    pub fn describe(&self) -> String {
        let engine = self.words.engine.lock().unwrap_or_else(PoisonError::into_inner);
        engine.as_ref().map_or_else(String::new, |(how, _)| how.clone())
    }

    /// How often a connection was made anew when there was none left: the server may have been
    /// started since.
    pub fn redials(&self) -> u32 {
        self.words.redials.load(Ordering::Relaxed)
    }

    /// Why it is not what was to be expected, in words for the user.
    pub fn notice(&self) -> Option<String> {
        let engine = self.words.engine.lock().unwrap_or_else(PoisonError::into_inner);
        engine.as_ref().and_then(|(_, notice)| notice.clone())
    }

    /// Asks; the answer goes to `answers`, with `token`.
    pub fn ask(&self, token: u64, answers: &Sender<Answer>, what: What, offset: u64) {
        let who = Who { token, answers: answers.clone(), written_before: 0 };
        let message = Message::Ask(who, what, offset);
        let refused = match &self.messages {
            Some(messages) => messages.send(message).err().map(|refused| refused.0),
            None => Some(message),
        };
        match refused {
            Some(Message::Ask(who, what, _)) => who.answer(what, Err(gone())),
            _ => self.waker.wake(),
        }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// The server's; of the connection.
    pub fn call(&self, what: What, offset: u64) -> io::Result<(What, Vec<Status>)> {
        let (answers, inbox) = bounded(1);
        self.ask(0, &answers, what, offset);
        drop(answers);
        let answer = self.next_answer(&inbox)?;
        answer.result.map(|status| (answer.what, status))
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// If there can be none any more; `Interrupted` if there is none a moment after somebody asked
    /// to stop.
    pub fn next_answer(&self, inbox: &Receiver<Answer>) -> io::Result<Answer> {
        loop {
            let was_cancelled = self.cancel.is_raised();
            match inbox.recv_timeout(LOOK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) if was_cancelled => {
                    let why = "stopped before the server answered";
                    return Err(io::Error::new(io::ErrorKind::Interrupted, why));
                }
                Err(RecvTimeoutError::Timeout) if !self.is_gone() => {}
                Err(_) => return Err(gone()),
            }
        }
    }

    /// Whether nothing will be answered any more.
    fn is_gone(&self) -> bool {
        self.hub.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.messages = None;
        self.waker.wake();
        // It ends at once, unless it is making a connection again: then it ends by itself, and
        // what it holds goes with it.
        let deadline = Instant::now() + GOODBYE * 4;
        while !self.is_gone() && Instant::now() < deadline {
            std::thread::sleep(NAP);
        }
    }
}

impl Words {
    fn tell(&self, sockets: &dyn Sockets) {
        let said = (sockets.describe(), sockets.notice().map(str::to_owned));
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
    }
}

impl Who {
    fn answer(self, what: What, result: io::Result<Vec<Status>>) {
        // Whoever does not wait any more needs no answer; the memory goes back to its pool.
        let _ = self.answers.send(Answer { token: self.token, what, result });
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the connection to the server has ended")
}

/// Makes the connections beyond the first, beside the work: a server that has no room for them
/// leaves them waiting.
fn dial_more(dialler: Arc<Dialler>, messages: Sender<Message>, waker: Waker) {
    let dial = move || {
        for _ in 1..CONNECTIONS {
            let Ok(more) = dialler.dial_quickly() else { return };
            if messages.send(Message::Add(Box::new(more))).is_err() {
                return;
            }
            waker.wake();
        }
    };
    // Without the thread there is one connection.
    let _ = Builder::new().name("nbd-dial".to_owned()).spawn(dial);
}

/// What is to be sent next.
enum Out {
    Bytes(Vec<u8>),
    /// The bytes of a write.
    Payload(u64),
}

/// What is being received into.
#[derive(Clone, Copy)]
enum Receiving {
    Staging,
    Read(u64),
}

struct Connection {
    link: Link<Who>,
    channel: Channel,
    outgoing: VecDeque<Out>,
    /// The write whose bytes are being sent, if it is one's; `None` inside for other bytes.
    sending: Option<Option<u64>>,
    receiving: Option<Receiving>,
    staging: Vec<u8>,
    /// When something moved.
    moved: Instant,
    /// Why it is over. It stays until the kernel has given back all memory.
    lost: Option<io::Error>,
}

/// The thread's state.
struct Hub {
    sockets: Box<dyn Sockets>,
    dialler: Arc<Dialler>,
    inbox: Receiver<Message>,
    export: Export,
    connections: HashMap<SocketId, Connection>,
    /// Asked, and on no connection.
    queue: VecDeque<(Who, What, u64)>,
    /// Writes that were answered, and how many of them a flush has made durable.
    written: u64,
    flushed: u64,
    /// Whether any were asked.
    has_written: bool,
    /// Connections lost in a row.
    losses: u32,
    /// Why nothing is answered any more.
    over: Option<(io::ErrorKind, String)>,
    answered: Vec<Answered<Who>>,
    words: Arc<Words>,
}

impl Hub {
    fn new(
        sockets: Box<dyn Sockets>,
        dialler: Arc<Dialler>,
        inbox: Receiver<Message>,
        export: Export,
        words: Arc<Words>,
    ) -> Hub {
        let (connections, queue, answered) = Default::default();
        let (written, flushed, losses) = (0, 0, 0);
        let over = None;
        Hub {
            sockets,
            dialler,
            inbox,
            export,
            connections,
            queue,
            written,
            flushed,
            has_written: false,
            losses,
            over,
            answered,
            words,
        }
    }

    fn add(&mut self, dialled: Dialled) -> io::Result<()> {
        let Dialled { stream, channel, export } = dialled;
        if export != self.export {
            let why = "the export is not what it was: its size or its abilities have changed";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        stream.set_timeout(None)?;
        let socket = self.sockets.add(stream)?;
        // Who is not asked for holes is not to leave any out of what it sends.
        let wants_whole = self.export.flags.has_df() && !self.dialler.asks_for_holes();
        let connection = Connection::new(channel, &self.export, wants_whole);
        self.connections.insert(socket, connection);
        Ok(())
    }

    fn run(mut self) {
        let mut finished = Vec::new();
        while self.hear() {
            self.bury();
            if !self.queue.is_empty() && self.connections.is_empty() && self.over.is_none() {
                self.dial_again();
            }
            self.assign();
            self.pump();
            if self.sockets.wait(LOOK, &mut finished).is_err() {
                // Nothing comes any more; whoever waits sees that nobody is there.
                return;
            }
            for transfer in finished.drain(..) {
                self.finish(transfer);
            }
            self.deliver();
            self.look_for_stalls();
        }
        self.say_goodbye();
    }

    /// Takes in what was asked; whether there is anybody who may ask.
    fn hear(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Ask(who, what, offset)) => self.queue.push_back((who, what, offset)),
                // Once there are writes, a connection that is new may be to a server that is, and a
                // flush on it would say nothing of them.
                Ok(Message::Add(_)) if self.has_written => {}
                // A server that is another one is not worth a word: there is a connection.
                Ok(Message::Add(more)) => drop(self.add(*more)),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Puts what was asked on connections.
    fn assign(&mut self) {
        if let Some((kind, why)) = &self.over {
            for (who, what, _) in self.queue.drain(..) {
                who.answer(what, Err(io::Error::new(*kind, why.clone())));
            }
        }
        while !self.queue.is_empty() {
            let usable = self.connections.values_mut().filter(|it| it.lost.is_none());
            let Some(connection) = usable.min_by_key(|it| it.link.in_flight()) else { return };
            if connection.link.in_flight() >= DEPTH {
                return;
            }
            let Some((mut who, what, offset)) = self.queue.pop_front() else { return };
            if connection.link.in_flight() == 0 {
                connection.moved = Instant::now();
            }
            who.written_before = self.written;
            self.has_written |= what.changes_bytes();
            connection.ask(who, what, offset);
        }
    }

    /// Starts the transfers that can start.
    fn pump(&mut self) {
        for (&socket, connection) in &mut self.connections {
            if connection.lost.is_none() {
                connection.start_sending(socket, &mut *self.sockets);
                connection.start_receiving(socket, &mut *self.sockets);
            }
        }
    }

    fn finish(&mut self, finished: Finished) {
        let Finished { transfer, result } = finished;
        let socket = transfer.socket;
        let Some(connection) = self.connections.get_mut(&socket) else { return };
        let outcome = match transfer.direction {
            Direction::Send => connection.sent(transfer, result, &mut *self.sockets),
            Direction::Receive => connection.received(transfer, result, &mut self.answered),
        };
        match outcome {
            Ok(()) => {}
            Err(Broken::Lost(error)) => self.lose(socket, error),
            Err(Broken::Violation(Violation(what))) => {
                let why = format!("the server breaks the protocol: {what}");
                self.end(io::ErrorKind::InvalidData, why);
            }
        }
    }

    /// Hands out what was answered.
    fn deliver(&mut self) {
        for Answered { who, what, offset, result } in std::mem::take(&mut self.answered) {
            let is_going =
                |error: &io::Error| error.raw_os_error() == i32::try_from(ERROR_SHUTDOWN).ok();
            if result.as_ref().err().is_some_and(is_going) {
                let all: Vec<_> = self.connections.keys().copied().collect();
                for socket in all {
                    self.lose(socket, io::Error::from_raw_os_error(ERROR_SHUTDOWN as i32));
                }
                self.queue.push_back((who, what, offset));
                continue;
            }
            self.losses = 0;
            match &what {
                what if what.changes_bytes() => self.written += 1,
                What::Flush if result.is_ok() => {
                    self.flushed = self.flushed.max(who.written_before);
                }
                _ => {}
            }
            who.answer(what, result);
        }
    }

    fn look_for_stalls(&mut self) {
        let is_stalled = |connection: &Connection| {
            let patience = if connection.link.is_patient() { STALL_PATIENT } else { STALL };
            connection.link.in_flight() > 0 && connection.moved.elapsed() > patience
        };
        let stalled: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| is_stalled(connection))
            .map(|(socket, connection)| (*socket, connection.moved.elapsed()))
            .collect();
        for (socket, time) in stalled {
            let why = format!("the server has not answered for {} s", time.as_secs());
            self.lose(socket, io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }

    /// A connection is over; what was asked on it is asked again once the kernel has let go of it.
    fn lose(&mut self, socket: SocketId, error: io::Error) {
        if let Some(connection) = self.connections.get_mut(&socket)
            && connection.lost.is_none()
        {
            connection.lost = Some(error);
            self.sockets.close(socket);
        }
    }

    /// Takes away lost connections that the kernel has let go of.
    fn bury(&mut self) {
        let is_dead = |connection: &Connection| connection.lost.is_some() && connection.is_idle();
        let dead: Vec<_> =
            self.connections.iter().filter(|(_, it)| is_dead(it)).map(|(id, _)| *id).collect();
        for socket in dead {
            let Some(mut connection) = self.connections.remove(&socket) else { continue };
            let abandoned = connection.link.abandon();
            // The server may still be at it, and release what is written meanwhile.
            let has_trim = abandoned.iter().any(|(_, what, _)| matches!(what, What::Trim(_)));
            for request in abandoned.into_iter().rev() {
                self.queue.push_front(request);
            }
            if let Some(why) = connection.lost {
                self.judge_loss(&why, has_trim);
            }
        }
    }

    /// A connection is lost: whether the work may go on. Others may be to a server that was started
    /// since, and knows nothing of what this one had.
    fn judge_loss(&mut self, why: &io::Error, has_trim: bool) {
        if self.connections.is_empty() {
            // Who keeps silent for minutes is not waited for again and again.
            let is_stall = why.kind() == io::ErrorKind::TimedOut;
            self.losses += if is_stall { LOSSES_MAX / 2 } else { 1 };
        }
        if self.written > self.flushed || has_trim {
            let why = format!(
                "the connection was lost after writes that the server had not yet made durable, \
                 and may have forgotten: {why}"
            );
            self.end(io::ErrorKind::ConnectionAborted, why);
        } else if self.connections.is_empty() && self.dialler.redial() == Redial::Never {
            self.end(io::ErrorKind::ConnectionAborted, format!("the server has ended: {why}"));
        } else if self.losses > LOSSES_MAX {
            let why = format!("the connection was lost again and again: {why}");
            self.end(io::ErrorKind::ConnectionAborted, why);
        }
    }

    fn dial_again(&mut self) {
        let mut why = String::new();
        for pause in REDIALS_MS {
            std::thread::sleep(Duration::from_millis(pause));
            if !self.hear() {
                return;
            }
            match self.dialler.dial() {
                Err(error) => why = with_causes(&error),
                Ok(dialled) => {
                    match self.add(dialled) {
                        Ok(()) => self.words.redials.fetch_add(1, Ordering::Relaxed),
                        // It will not become again what it was.
                        Err(error) => return self.end(error.kind(), error.to_string()),
                    };
                    return;
                }
            }
        }
        let why = format!("the connection was lost, and cannot be made again: {why}");
        self.end(io::ErrorKind::NotConnected, why);
    }

    /// From now on there is nothing but this error.
    fn end(&mut self, kind: io::ErrorKind, why: String) {
        let all: Vec<_> = self.connections.keys().copied().collect();
        for socket in all {
            self.lose(socket, io::Error::new(kind, why.clone()));
        }
        self.over.get_or_insert((kind, why));
    }

    /// Tells the server that nothing follows; it need not answer.
    fn say_goodbye(&mut self) {
        for connection in self.connections.values_mut() {
            if connection.lost.is_none() && connection.link.in_flight() == 0 {
                connection.disconnect();
            }
        }
        let deadline = Instant::now() + GOODBYE;
        self.pump();
        while self.connections.values().any(|it| it.sending.is_some()) && Instant::now() < deadline
        {
            let mut finished = Vec::new();
            if self.sockets.wait(GOODBYE / 10, &mut finished).is_err() {
                return;
            }
            finished.into_iter().for_each(|transfer| self.finish(transfer));
        }
    }
}

/// Why a connection is of no use any more.
enum Broken {
    /// It may be made anew.
    Lost(io::Error),
    /// The server is not to be believed.
    Violation(Violation),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Lost(error)
    }
}

impl From<Violation> for Broken {
    fn from(violation: Violation) -> Broken {
        Broken::Violation(violation)
    }
}

impl Connection {
    fn new(dialled: Channel, export: &Export, wants_whole: bool) -> Connection {
        Connection {
            link: Link::new(export.replies).with_whole_reads(wants_whole),
            channel: dialled,
            outgoing: VecDeque::new(),
            sending: None,
            receiving: None,
            staging: vec![0; STAGING_LEN],
            moved: Instant::now(),
            lost: None,
        }
    }

    /// Whether the kernel has none of its memory.
    fn is_idle(&self) -> bool {
        self.sending.is_none() && self.receiving.is_none()
    }

    fn ask(&mut self, who: Who, what: What, offset: u64) {
        let is_write = matches!(what, What::Write(..));
        let mut header = Vec::with_capacity(32);
        let cookie = self.link.ask(who, what, offset, &mut header);
        self.put(header);
        if is_write {
            self.outgoing.push_back(Out::Payload(cookie));
        }
    }

    fn disconnect(&mut self) {
        let mut header = Vec::with_capacity(32);
        self.link.put_disconnect(&mut header);
        self.put(header);
    }

    /// Appends bytes to what is to be sent.
    fn put(&mut self, bytes: Vec<u8>) {
        match self.outgoing.back_mut() {
            Some(Out::Bytes(last)) => last.extend(bytes),
            _ => self.outgoing.push_back(Out::Bytes(bytes)),
        }
    }

    /// Sends what comes next, if nothing is being sent.
    fn start_sending(&mut self, socket: SocketId, sockets: &mut dyn Sockets) {
        if self.sending.is_some() {
            return;
        }
        let (memory, range, cookie) = match self.outgoing.pop_front() {
            None => match self.channel.pending() {
                Some(bytes) => whole(bytes),
                None => return,
            },
            Some(Out::Bytes(bytes)) => whole(self.channel.seal(bytes)),
            Some(Out::Payload(cookie)) => match self.link.lend_write(cookie) {
                None => return,
                Some((memory, range)) if self.channel.is_plain() => (memory, range, Some(cookie)),
                Some((memory, range)) => {
                    let sealed = self.channel.seal(memory.bytes()[range].to_vec());
                    self.link.return_write(cookie, memory);
                    whole(sealed)
                }
            },
        };
        self.sending = Some(cookie);
        sockets.start(Transfer { socket, direction: Direction::Send, memory, range });
    }

    /// A send came back: what it left is sent on.
    fn sent(
        &mut self,
        transfer: Transfer,
        result: io::Result<usize>,
        sockets: &mut dyn Sockets,
    ) -> Result<(), Broken> {
        let cookie = self.sending.take().flatten();
        if let Ok(count) = &result {
            self.moved = Instant::now();
            let rest = transfer.range.start + count..transfer.range.end;
            if !rest.is_empty() && self.lost.is_none() {
                self.sending = Some(cookie);
                sockets.start(Transfer { range: rest, ..transfer });
                return Ok(());
            }
        }
        if let Some(cookie) = cookie {
            self.link.return_write(cookie, transfer.memory);
        }
        result?;
        Ok(())
    }

    /// Receives, if there is something to come.
    fn start_receiving(&mut self, socket: SocketId, sockets: &mut dyn Sockets) {
        if self.receiving.is_some() || self.link.in_flight() == 0 {
            return;
        }
        let is_direct = self.channel.is_plain() && self.link.data_left() >= STAGING_LEN;
        let lent = if is_direct { self.link.lend_read() } else { None };
        let (memory, range) = match lent {
            Some((cookie, memory, range)) => {
                self.receiving = Some(Receiving::Read(cookie));
                (memory, range)
            }
            None => {
                self.receiving = Some(Receiving::Staging);
                (Memory::Bytes(std::mem::take(&mut self.staging)), 0..STAGING_LEN)
            }
        };
        sockets.start(Transfer { socket, direction: Direction::Receive, memory, range });
    }

    /// Bytes came.
    fn received(
        &mut self,
        transfer: Transfer,
        result: io::Result<usize>,
        answered: &mut Vec<Answered<Who>>,
    ) -> Result<(), Broken> {
        let receiving = self.receiving.take();
        // What comes after the end is of no interest, but the memory is.
        let count = if self.lost.is_some() { 0 } else { *result.as_ref().unwrap_or(&0) };
        match (receiving, transfer.memory) {
            (Some(Receiving::Read(cookie)), memory) => {
                self.link.return_read(cookie, memory, count, answered)?;
            }
            (_, Memory::Bytes(bytes)) => {
                let taken = self.open(&bytes[..count], answered);
                self.staging = bytes;
                taken?;
            }
            (_, Memory::Pool(_)) => {}
        }
        if result? == 0 {
            return Err(Broken::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        self.moved = Instant::now();
        Ok(())
    }

    fn open(&mut self, bytes: &[u8], answered: &mut Vec<Answered<Who>>) -> Result<(), Broken> {
        let link = &mut self.link;
        let mut outcome = Ok(());
        let opened = self.channel.open(bytes, |plain| {
            if outcome.is_ok() {
                outcome = link.take(plain, answered);
            }
        });
        outcome?;
        match opened {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(Violation(format!("TLS: {error}")).into())
            }
            ended => Ok(ended?),
        }
    }
}

/// All of some bytes, as a transfer's memory.
fn whole(bytes: Vec<u8>) -> (Memory, std::ops::Range<usize>, Option<u64>) {
    let range = 0..bytes.len();
    (Memory::Bytes(bytes), range, None)
}
