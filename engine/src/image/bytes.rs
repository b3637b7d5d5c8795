//! Where the parsers read from, and numbers out of bytes.
#![expect(clippy::big_endian_bytes, reason = "the numbers of qcow2 are big endian")]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// The bytes of an image file, or of the block device that it lies on.
pub trait ImageBytes {
    /// How many there are.
    ///
    /// # Errors
    /// The system's.
    fn size(&self) -> io::Result<u64>;

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// The medium's; `UnexpectedEof` at its end.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl ImageBytes for File {
    fn size(&self) -> io::Result<u64> {
        // Where a block device ends its metadata do not say.
        let mut file = self;
        file.seek(SeekFrom::End(0))
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }
}

impl ImageBytes for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let piece = rest.and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The bytes from `offset` on, `len` of them or as many as there are.
///
/// # Errors
/// The medium's.
pub(super) fn read_up_to(
    image: &(impl ImageBytes + ?Sized),
    offset: u64,
    len: usize,
) -> io::Result<Vec<u8>> {
    let there = image.size()?.saturating_sub(offset).min(len as u64);
    let mut bytes = vec![0; there as usize];
    image.read_at(offset, &mut bytes)?;
    Ok(bytes)
}

/// A number of two bytes, the highest first. The caller has checked that they are there.
pub(super) fn be16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(bytes, at))
}

/// A number of four bytes, the highest first. The caller has checked that they are there.
pub(super) fn be32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

/// A number of eight bytes, the highest first. The caller has checked that they are there.
pub(super) fn be64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array_at(bytes, at))
}

/// A number of eight bytes, the lowest first. The caller has checked that they are there.
pub(super) fn le64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
