//! The archive's first block: what this is, which version, which archive.

use crate::checksum::crc32c;
use crate::error::{FormatError, Result, Structure, require};
use crate::features::{FORMAT_VERSION, check_incompatible};
use crate::limits::BLOCK_LEN;
use crate::units::{ArchiveId, LogOffset};
use crate::wire::{Reserved, is_zero, on_disk};

/// First bytes of every archive: a byte no text starts with, the name, a line end.
pub const MAGIC: [u8; 8] = *b"\x89VOLTAR\n";

on_disk! {
    /// The archive's first 512 bytes: one sector, so that it is written whole or not at all.
    pub struct HeaderFields[512] {
        /// [`MAGIC`]: tells an archive from anything else.
        0 magic: [u8; 8],
        /// [`FORMAT_VERSION`] of the writer that made the archive.
        8 version: u16,
        /// Zero.
        10 reserved_a: Reserved<6>,
        /// Features without which a reader must not read.
        16 incompatible: u64,
        /// Features a reader may ignore.
        24 compatible: u64,
        /// Guards against records of another archive: every record repeats it.
        32 archive_id: ArchiveId,
        /// When it was made, nanoseconds since 1970-01-01 UTC; informative.
        48 created_ns: i64,
        /// Alignment of records, 4096.
        56 block_len: u32,
        /// Zero.
        60 reserved_b: Reserved<448>,
        /// CRC-32C of the 508 bytes before.
        508 crc: u32,
    }
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The archive's id.
    pub archive_id: ArchiveId,
    /// When it was made, nanoseconds since 1970-01-01 UTC.
    pub created_ns: i64,
    /// Format version.
    pub version: u16,
    /// Incompatible features in use.
    pub incompatible: u64,
    /// Compatible features in use.
    pub compatible: u64,
}

impl Header {
    /// A header of this version with no features.
    pub fn new(archive_id: ArchiveId, created_ns: i64) -> Header {
        Header { archive_id, created_ns, version: FORMAT_VERSION, incompatible: 0, compatible: 0 }
    }

    /// The archive's first block.
    pub fn encode(&self) -> [u8; BLOCK_LEN] {
        let mut fields = HeaderFields {
            magic: MAGIC,
            version: self.version,
            reserved_a: Reserved,
            incompatible: self.incompatible,
            compatible: self.compatible,
            archive_id: self.archive_id,
            created_ns: self.created_ns,
            block_len: BLOCK_LEN as u32,
            reserved_b: Reserved,
            crc: 0,
        };
        fields.crc = crc32c(fields.encode().split_at(508).0);
        let mut block = [0; BLOCK_LEN];
        block.iter_mut().zip(fields.encode()).for_each(|(to, from)| *to = from);
        block
    }

    /// The header in an archive's first block.
    ///
    /// # Errors
    /// `unsupported` for a newer version or an unknown incompatible feature, otherwise damage.
    pub fn decode(block: &[u8]) -> Result<Header> {
        let fail = |requirement, problem: String| {
            FormatError::new(Structure::Header, requirement, problem).at(LogOffset(0))
        };
        if !block.starts_with(&MAGIC) {
            return Err(fail("F-001", "the magic bytes are missing".into()));
        }
        let sector = block
            .get(..HeaderFields::LEN)
            .ok_or_else(|| fail("F-001", format!("only {} bytes", block.len())))?;
        let crc = crc32c(sector.split_at(508).0);
        let stored = sector.get(508..).and_then(crate::wire::Wire::get).unwrap_or(0u32);
        if crc != stored {
            return Err(fail("F-002", format!("checksum {crc:#010x}, stored {stored:#010x}")));
        }
        let version = sector.get(8..10).and_then(crate::wire::Wire::get).unwrap_or(0u16);
        if version == 0 || version > FORMAT_VERSION {
            let problem = format!("format version {version}; this program reads {FORMAT_VERSION}");
            return Err(FormatError::unsupported(Structure::Header, "F-003", problem));
        }
        let fields = HeaderFields::decode(sector)
            .map_err(|field| fail("F-005", format!("field {field} is not zero")))?;
        check_incompatible(Structure::Header, fields.incompatible)?;
        require(fields.block_len == BLOCK_LEN as u32, Structure::Header, "F-006", || {
            format!("block length {}, expected {BLOCK_LEN}", fields.block_len)
        })?;
        require(
            block.get(HeaderFields::LEN..BLOCK_LEN).is_some_and(is_zero),
            Structure::Header,
            "F-005",
            || "the rest of the first block is not zero".into(),
        )?;
        Ok(Header {
            archive_id: fields.archive_id,
            created_ns: fields.created_ns,
            version: fields.version,
            incompatible: fields.incompatible,
            compatible: fields.compatible,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header::new(ArchiveId([7; 16]), 1_700_000_000_000_000_000)
    }

    #[test]
    fn round_trip() {
        assert_eq!(Header::decode(&header().encode()).unwrap(), header());
    }

    #[test]
    fn f_001_f_002_f_005_every_bit_is_covered() {
        let good = header().encode();
        for bit in 0..BLOCK_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            Header::decode(&bad).expect_err("a flipped bit passed");
        }
        assert_eq!(Header::decode(b"\x89VOLTAR\n").unwrap_err().requirement, "F-001");
        assert_eq!(Header::decode(b"").unwrap_err().requirement, "F-001");
    }

    #[test]
    fn f_003_newer_version_is_refused_as_unsupported() {
        let newer = Header { version: 2, ..header() };
        let error = Header::decode(&newer.encode()).unwrap_err();
        assert!(error.unsupported && error.requirement == "F-003", "{error}");
        let zero = Header { version: 0, ..header() };
        assert_eq!(Header::decode(&zero.encode()).unwrap_err().requirement, "F-003");
    }

    #[test]
    fn f_004_unknown_feature_is_refused_by_name() {
        let encrypted = Header { incompatible: 1, ..header() };
        let error = Header::decode(&encrypted.encode()).unwrap_err();
        assert!(error.unsupported && error.problem.contains("encryption"), "{error}");
    }

    #[test]
    fn f_006_block_length_is_fixed() {
        let mut block = header().encode();
        block[57] = 0x20;
        let crc = crc32c(&block[..508]).to_le_bytes();
        block[508..512].copy_from_slice(&crc);
        assert_eq!(Header::decode(&block).unwrap_err().requirement, "F-006");
    }
}
