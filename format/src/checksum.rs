//! The two checksums of the format, and what tells their uses apart.
//!
//! CRC-32C covers stored bytes: fast, keyless, finds what media do. BLAKE3 names content from
//! the chunk to the commit: finds what anyone does. Neither may ever change.

use crate::units::{Id, SnapshotId};

/// CRC-32C (Castagnoli, reflected, initial and final value all ones) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The library returns every width in 64 bits; CRC-32 fills the low half.
    (crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) & 0xffff_ffff) as u32
}

/// CRC-32C of several pieces as though they were one.
pub fn crc32c_of(pieces: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for piece in pieces {
        digest.update(piece);
    }
    (digest.finalize() & 0xffff_ffff) as u32
}

/// The id of a chunk: the plain BLAKE3 hash of its bytes.
pub fn chunk_id(bytes: &[u8]) -> Id {
    Id(*blake3::hash(bytes).as_bytes())
}

/// The id of a map node. The derived key keeps a guest that writes a node's bytes into a chunk
/// from making the two share a name.
pub fn node_id(bytes: &[u8]) -> Id {
    derived("voltar 2026-11-21 map node", bytes)
}

/// The hash a segment's footer carries over its table, or an index run's over its pages.
pub fn body_hash(pieces: &[&[u8]]) -> Id {
    let mut hasher = BodyHasher::new();
    for piece in pieces {
        hasher.add(piece);
    }
    hasher.finish()
}

/// The hash a commit carries over its content.
pub fn commit_hash(bytes: &[u8]) -> Id {
    derived("voltar 2026-11-21 commit", bytes)
}

/// The hash a commit carries over the body hashes of the segments it seals.
pub fn log_hash(body_hashes: &[Id]) -> Id {
    let mut hasher = LogHasher::new();
    for hash in body_hashes {
        hasher.add(hash);
    }
    hasher.finish()
}

/// [`log_hash`], one body hash after another.
#[derive(Clone, Debug)]
pub struct LogHasher(blake3::Hasher);

impl LogHasher {
    /// Of no segment yet.
    pub fn new() -> Self {
        LogHasher(blake3::Hasher::new_derive_key("voltar 2026-11-21 log"))
    }

    /// Adds the next segment's body hash.
    pub fn add(&mut self, body_hash: &Id) {
        self.0.update(&body_hash.0);
    }

    /// The hash.
    pub fn finish(&self) -> Id {
        Id(*self.0.finalize().as_bytes())
    }
}

impl Default for LogHasher {
    fn default() -> Self {
        Self::new()
    }
}

/// [`body_hash`], one piece after another.
#[derive(Clone, Debug)]
pub struct BodyHasher(blake3::Hasher);

impl BodyHasher {
    /// Of no bytes yet.
    pub fn new() -> Self {
        BodyHasher(blake3::Hasher::new_derive_key("voltar 2026-11-21 segment body"))
    }

    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash.
    pub fn finish(&self) -> Id {
        Id(*self.0.finalize().as_bytes())
    }
}

impl Default for BodyHasher {
    fn default() -> Self {
        Self::new()
    }
}

/// A snapshot's id: the first half of the hash of its manifest's bytes. It does not depend on
/// where in a log the snapshot lies, so that a copy keeps it.
pub fn snapshot_id(manifest: &[u8]) -> SnapshotId {
    let Id(hash) = derived("voltar 2026-11-21 manifest", manifest);
    let mut half = [0; 16];
    half.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    SnapshotId(half)
}

fn derived(context: &str, bytes: &[u8]) -> Id {
    Id(blake3::derive_key(context, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_castagnoli_one() {
        // RFC 3720 B.4: 32 bytes of zeroes, of ones, and 0..=31.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c_of(&[&ascending[..7], &ascending[7..]]), 0x46dd_794e);
    }

    #[test]
    fn chunk_id_is_plain_blake3() {
        assert_eq!(
            chunk_id(b"").to_hex(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn uses_do_not_collide() {
        let bytes = b"the same bytes";
        let ids = [chunk_id(bytes), node_id(bytes), body_hash(&[bytes]), commit_hash(bytes)];
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[..at].contains(id));
        }
    }
}
