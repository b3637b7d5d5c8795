//! Numbers and names that cannot be confused with each other.

use std::fmt;

/// A byte position in the archive's log; the header is at 0. In a single file it is the file
/// offset; in a directory or a bucket each object holds one range of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogOffset(pub u64);

impl LogOffset {
    /// The position `len` bytes further, or `None` past the end of the address space.
    pub fn checked_add(self, len: u64) -> Option<Self> {
        self.0.checked_add(len).map(LogOffset)
    }
}

impl fmt::Display for LogOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The number of a chunk in its volume, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u64);

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Lower-case hexadecimal.
            pub fn to_hex(self) -> String {
                hex::encode(self.0)
            }

            /// The value of exactly as many hexadecimal digits as it has.
            pub fn from_hex(text: &str) -> Option<Self> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some($name(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.to_hex())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                $name::from_hex(&text)
                    .ok_or_else(|| serde::de::Error::custom(concat!("not a ", stringify!($name))))
            }
        }
    };
}

identifier!(
    /// The BLAKE3 name of a chunk, a map node or another stored item.
    Id, 32
);
identifier!(
    /// What tells this archive's structures from another's: random, made once.
    ArchiveId, 16
);
identifier!(
    /// What tells one writing session's records from another's: random, made at each opening
    /// for writing.
    SessionId, 16
);
identifier!(
    /// A snapshot's name: the first half of the BLAKE3 hash of its manifest.
    SnapshotId, 16
);

impl Id {
    /// The first eight bytes as a number whose order is the ids' order.
    pub fn prefix(&self) -> u64 {
        self.0.iter().take(8).fold(0, |value, byte| (value << 8) | u64::from(*byte))
    }
}
