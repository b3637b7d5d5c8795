//! A home that records what is done to it, so that every moment of a backup can be gone back to.

use std::io;
use std::sync::{Arc, Mutex};

use rand::RngExt;
use rand::rngs::StdRng;
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::device::{Completion, Device, Driver, Geometry, Op, OpKind, Resize};
use voltar_engine::io::buffer::BufferPool;
use voltar_engine::options::IoEngine;

/// What is written whole or not at all.
pub const SECTOR_LEN: usize = 512;

/// One change of the medium, or the promise that those before it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These bytes were written there.
    Write(u64, Vec<u8>),
    /// The length was set.
    SetLen(u64),
    /// What was done before is durable.
    Sync,
}

impl Step {
    /// How many places there are to cut this step: a write has bytes, others happen or do not.
    pub fn len(&self) -> usize {
        match self {
            Step::Write(_, bytes) => bytes.len(),
            Step::SetLen(_) | Step::Sync => 0,
        }
    }
}

/// A memory device that records the changes made to it. Cloning shares it.
#[derive(Clone)]
pub struct Recorder {
    inner: MemoryDevice,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Recorder {
    /// Records what is done to `inner` from now on.
    pub fn new(inner: MemoryDevice) -> Recorder {
        Recorder { inner, steps: Arc::default() }
    }

    /// What was done.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }

    /// What is there now.
    pub fn bytes(&self) -> Vec<u8> {
        self.inner.bytes()
    }

    fn note(&self, step: Step) {
        self.steps.lock().unwrap().push(step);
    }
}

impl Device for Recorder {
    fn label(&self) -> &str {
        self.inner.label()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(bytes, offset)?;
        self.note(Step::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.note(Step::Sync);
        Ok(())
    }

    fn driver(&self, _: IoEngine, _: &BufferPool, depth: u32) -> io::Result<Box<dyn Driver>> {
        let driver = RecordingDriver { device: self.clone(), queued: Vec::new(), depth };
        Ok(Box::new(driver))
    }
}

impl Resize for Recorder {
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        self.note(Step::SetLen(len));
        Ok(())
    }
}

struct RecordingDriver {
    device: Recorder,
    queued: Vec<Op>,
    depth: u32,
}

impl Driver for RecordingDriver {
    fn submit(&mut self, op: Op) -> Result<(), Op> {
        if self.queued.len() == self.depth as usize {
            return Err(op);
        }
        self.queued.push(op);
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.poll(done)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        for mut op in self.queued.drain(..) {
            let offset = op.offset;
            let result = match &mut op.kind {
                OpKind::Read { buffer, len } => {
                    buffer.set_len(*len);
                    self.device.read_at(buffer, offset)
                }
                OpKind::Write { buffer, from, len } => {
                    buffer.set_len(*from + *len);
                    self.device.write_at(&buffer[*from..], offset).map(|()| *len)
                }
            };
            done.push(op.complete(result));
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queued.len()
    }

    fn describe(&self) -> String {
        "recording".into()
    }
}

/// A moment of a recorded run: all steps before `step`, and the first `bytes` of that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Steps that are done.
    pub step: usize,
    /// Bytes of the next one that are written.
    pub bytes: usize,
}

/// The medium at a moment, everything in order: what is left when the process is killed.
pub fn killed_at(start: &[u8], steps: &[Step], moment: Moment) -> Vec<u8> {
    let mut image = start.to_vec();
    steps[..moment.step].iter().for_each(|step| apply(&mut image, step));
    if let Some(Step::Write(offset, bytes)) = steps.get(moment.step) {
        write(&mut image, *offset, &bytes[..moment.bytes]);
    }
    image
}

/// The medium after a loss of power at a moment: what was synced, and of the rest each sector
/// with probability `share`.
pub fn dark_at(
    start: &[u8],
    steps: &[Step],
    moment: Moment,
    share: f64,
    rng: &mut StdRng,
) -> Vec<u8> {
    let done = &steps[..moment.step];
    let durable = done.iter().rposition(|step| *step == Step::Sync).map_or(0, |sync| sync + 1);
    let mut image = killed_at(start, steps, Moment { step: durable, bytes: 0 });
    let mut rest = done[durable..].to_vec();
    if let Some(Step::Write(offset, bytes)) = steps.get(moment.step) {
        rest.push(Step::Write(*offset, bytes[..moment.bytes].to_vec()));
    }
    for step in &rest {
        match step {
            Step::Write(offset, bytes) => {
                for (number, sector) in bytes.chunks(SECTOR_LEN).enumerate() {
                    if rng.random_bool(share) {
                        write(&mut image, offset + (number * SECTOR_LEN) as u64, sector);
                    }
                }
            }
            whole if rng.random_bool(share) => apply(&mut image, whole),
            _ => {}
        }
    }
    image
}

fn apply(image: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, bytes) => write(image, *offset, bytes),
        Step::SetLen(len) => image.resize(*len as usize, 0),
        Step::Sync => {}
    }
}

fn write(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if bytes.is_empty() {
        return;
    }
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(bytes);
}
