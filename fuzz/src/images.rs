//! Headers and bitmaps of images. What is said is within bounds and in order, and takes bounded
//! work and memory however long the image says it is.

use std::cell::Cell;
use std::io;

use voltar_engine::image::bytes::ImageBytes;
use voltar_engine::image::qcow2::header::Header;

use crate::wire::u64_at;

/// Most bytes read at once: a directory of bitmaps.
const READ_LEN_MAX: usize = 64 << 20;
/// Most bytes of a bitmap that are read here: hundreds of MiB are right, and slow.
const WORK_LEN_MAX: u64 = 16 << 20;

/// How many zeroes follow, 8 bytes, and a qcow2 image.
pub fn qcow2(data: &[u8]) {
    let zeroes = u64_at(data, 0);
    let image = Image { bytes: data.get(8..).unwrap_or_default(), zeroes, work: Cell::new(0) };
    let Ok(header) = Header::read(&image) else { return };
    assert!((9..=21).contains(&header.cluster_bits) && (2..=3).contains(&header.version));
    let Ok(bitmaps) = header.bitmaps(&image) else { return };
    for bitmap in bitmaps.iter().take(16) {
        image.work.set(0);
        let mut end = None;
        let whole = bitmap.visit_dirty(&header, &image, |range| {
            assert!(end.is_none_or(|end| end < range.start), "none touches another");
            assert!(range.start < range.end && range.end <= header.size, "within the disk");
            end = Some(range.end);
        });
        assert!(whole.is_err() || !bitmap.in_use, "what was not saved tells nothing");
    }
}

/// Bytes with zeroes behind them.
struct Image<'a> {
    bytes: &'a [u8],
    zeroes: u64,
    work: Cell<u64>,
}

impl ImageBytes for Image<'_> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.zeroes.saturating_add(self.bytes.len() as u64))
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        assert!(bytes.len() <= READ_LEN_MAX, "{} bytes at once", bytes.len());
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.work.set(self.work.get() + bytes.len() as u64);
        if end > self.size()? || self.work.get() > WORK_LEN_MAX + READ_LEN_MAX as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let rest = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..));
        let rest = rest.unwrap_or_default();
        let len = rest.len().min(bytes.len());
        bytes[..len].copy_from_slice(&rest[..len]);
        bytes[len..].fill(0);
        Ok(())
    }
}
