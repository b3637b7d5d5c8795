//! A volume that is computed while it is read: every chunk different, none stored anywhere.

use std::io;

use voltar_engine::device::{
    Completion, Device, Driver, Extent, ExtentKind, Extents, Geometry, Op, OpKind,
};
use voltar_engine::io::buffer::BufferPool;
use voltar_engine::options::IoEngine;

/// Length of what differs: each block starts with its own number and is zero behind it, so that
/// blocks compress to almost nothing while all their ids differ.
const BLOCK_LEN: u64 = 4096;

/// A read-only volume of numbered blocks.
#[derive(Clone, Debug)]
pub struct Generated {
    len: u64,
    salt: u64,
}

impl Generated {
    /// A volume of `blocks` blocks of 4 KiB; other `salt`, other content.
    pub fn new(blocks: u64, salt: u64) -> Generated {
        Generated { len: blocks * BLOCK_LEN, salt }
    }

    fn fill(&self, bytes: &mut [u8], offset: u64) -> usize {
        let count = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = count.min(bytes.len());
        let bytes = &mut bytes[..count];
        bytes.fill(0);
        let first = offset.div_ceil(BLOCK_LEN);
        for block in first.. {
            let at = (block * BLOCK_LEN - offset) as usize;
            let Some(head) = bytes.get_mut(at..at + 16) else { break };
            head[..8].copy_from_slice(&(block + 1).to_le_bytes());
            head[8..].copy_from_slice(&self.salt.to_le_bytes());
        }
        count
    }
}

impl Device for Generated {
    fn label(&self) -> &str {
        "generated"
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn geometry(&self) -> Geometry {
        Geometry { block_len: 4096, direct: false }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.fill(bytes, offset))
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn driver(
        &self,
        _engine: IoEngine,
        _pool: &BufferPool,
        depth: u32,
    ) -> io::Result<Box<dyn Driver>> {
        Ok(Box::new(Generator { device: self.clone(), depth: depth as usize, done: Vec::new() }))
    }
}

impl Extents for Generated {
    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        Ok(Extent { range: offset..self.len, kind: ExtentKind::Data })
    }
}

struct Generator {
    device: Generated,
    depth: usize,
    done: Vec<Completion>,
}

impl Driver for Generator {
    fn submit(&mut self, op: Op) -> Result<(), Op> {
        if self.done.len() >= self.depth {
            return Err(op);
        }
        let Op { token, kind, offset } = op;
        let completion = match kind {
            OpKind::Read { mut buffer, len } => {
                buffer.set_len(len);
                let count = self.device.fill(&mut buffer[..len], offset);
                buffer.set_len(count);
                Completion { token, offset, buffer, result: Ok(count) }
            }
            OpKind::Write { buffer, .. } => {
                let result = Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
                Completion { token, offset, buffer, result }
            }
        };
        self.done.push(completion);
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        done.append(&mut self.done);
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.wait(done)
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn describe(&self) -> String {
        "generated".into()
    }
}
