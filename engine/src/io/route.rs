//! Which of a device's two descriptors an operation takes.

use std::fs::File;
use std::sync::Arc;

use super::op::Op;

/// Largest memory alignment that direct I/O asks for; buffers are aligned to a page.
const MEMORY_ALIGN_MAX: usize = 4096;

/// The descriptors of one device: always a buffered one, and a direct one where it has that.
#[derive(Clone, Debug)]
pub struct Files {
    /// Through the page cache; takes any offset and length.
    pub buffered: Arc<File>,
    /// `O_DIRECT`; takes whole blocks at block boundaries.
    pub direct: Option<Arc<File>>,
    /// Block length in bytes for the direct descriptor: a power of two, at least a page, so that
    /// no page is reached both ways at once (a dirty page written back late would undo a direct
    /// write beside it).
    pub block_len: u32,
}

/// A way to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Through the page cache.
    Buffered,
    /// Past it.
    Direct,
}

impl Files {
    /// The way `op` takes: direct if it is whole blocks from aligned memory.
    pub fn route(&self, op: &Op) -> Route {
        let block = u64::from(self.block_len);
        let aligned = op.offset.is_multiple_of(block)
            && (op.len() as u64).is_multiple_of(block)
            && (op.buffer().address() + op.from()).is_multiple_of(self.memory_align());
        match self.direct.is_some() && aligned {
            true => Route::Direct,
            false => Route::Buffered,
        }
    }

    /// The descriptor of `route`; the buffered one if there is no direct one.
    pub fn file(&self, route: Route) -> &Arc<File> {
        match (route, &self.direct) {
            (Route::Direct, Some(direct)) => direct,
            _ => &self.buffered,
        }
    }

    fn memory_align(&self) -> usize {
        (self.block_len as usize).min(MEMORY_ALIGN_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffer::BufferPool;
    use crate::io::op::OpKind;

    #[test]
    fn only_whole_blocks_from_aligned_memory_go_direct() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let pool = BufferPool::new(1, 16384).unwrap();
        let mut files = Files { buffered: Arc::clone(&file), direct: Some(file), block_len: 4096 };
        let route = |files: &Files, offset, from, len| {
            files.route(&Op {
                token: 0,
                kind: OpKind::Write { buffer: pool.take(), from, len },
                offset,
            })
        };
        assert_eq!(route(&files, 8192, 4096, 4096), Route::Direct);
        assert_eq!(route(&files, 512, 0, 4096), Route::Buffered);
        assert_eq!(route(&files, 0, 0, 4097), Route::Buffered);
        assert_eq!(route(&files, 0, 512, 4096), Route::Buffered);
        files.direct = None;
        assert_eq!(route(&files, 8192, 4096, 4096), Route::Buffered);
    }
}
