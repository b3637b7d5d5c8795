//! How values lie in bytes: little-endian, no padding, reserved bytes zero.
//!
//! [`on_disk!`] declares a structure once, with the offset beside each field. From that one
//! declaration come the type, the encoder, the decoder, the layout table that the snapshot test
//! prints, and a compile-time proof that the fields follow one another without gaps and add up to
//! the stated size.

use crate::units::{ArchiveId, Id, LogOffset, SessionId};

/// A value of fixed length in bytes.
pub trait Wire: Sized {
    /// Length in bytes.
    const LEN: usize;
    /// Name of the type in the layout table.
    const NAME: &'static str;
    /// Writes the value to `out`, which is `LEN` long.
    fn put(&self, out: &mut [u8]);
    /// Reads the value from `bytes`, which is `LEN` long. `None` if these bytes are not permitted.
    fn get(bytes: &[u8]) -> Option<Self>;
}

macro_rules! wire_number {
    ($($number:ident $len:literal),*) => {$(
        impl Wire for $number {
            const LEN: usize = $len;
            const NAME: &'static str = stringify!($number);
            fn put(&self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Option<Self> {
                Some($number::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}
wire_number!(u8 1, u16 2, u32 4, u64 8, i64 8);

impl<const N: usize> Wire for [u8; N] {
    const LEN: usize = N;
    const NAME: &'static str = "bytes";
    fn put(&self, out: &mut [u8]) {
        out.copy_from_slice(self);
    }
    fn get(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

macro_rules! wire_newtype {
    ($($name:ident($inner:ty)),*) => {$(
        impl Wire for $name {
            const LEN: usize = <$inner as Wire>::LEN;
            const NAME: &'static str = stringify!($name);
            fn put(&self, out: &mut [u8]) {
                self.0.put(out);
            }
            fn get(bytes: &[u8]) -> Option<Self> {
                <$inner>::get(bytes).map($name)
            }
        }
    )*};
}
wire_newtype!(LogOffset(u64), Id([u8; 32]), ArchiveId([u8; 16]), SessionId([u8; 16]));

/// Bytes kept for later: written zero, and checked to be zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved<const N: usize>;

impl<const N: usize> Wire for Reserved<N> {
    const LEN: usize = N;
    const NAME: &'static str = "reserved";
    fn put(&self, out: &mut [u8]) {
        out.fill(0);
    }
    fn get(bytes: &[u8]) -> Option<Self> {
        is_zero(bytes).then_some(Reserved)
    }
}

/// Whether all bytes are zero. Folds 64-byte blocks, which compilers turn into wide loads.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(512);
    blocks.all(|block| block.iter().fold(0, |sum, byte| sum | byte) == 0)
        && blocks.remainder().iter().all(|byte| *byte == 0)
}

/// One field of a structure, for the layout table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Bytes from the structure's start.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
    /// The field's name.
    pub name: &'static str,
    /// The field's type.
    pub kind: &'static str,
}

/// One structure, for the layout table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructLayout {
    /// The structure's name.
    pub name: &'static str,
    /// Its length in bytes.
    pub len: usize,
    /// Its fields, in order and without gaps.
    pub fields: &'static [FieldLayout],
}

/// Whether the fields start at 0, follow one another without gaps and end at `len`.
pub const fn is_gapless(fields: &[FieldLayout], len: usize) -> bool {
    let mut rest = fields;
    let mut end = 0;
    while let [field, tail @ ..] = rest {
        if field.offset != end {
            return false;
        }
        end = field.offset.saturating_add(field.len);
        rest = tail;
    }
    end == len
}

/// Declares a structure once: fields with their offsets, and its length.
macro_rules! on_disk {
    (
        $(#[$doc:meta])*
        pub struct $name:ident[$len:literal] {
            $( $(#[$field_doc:meta])* $offset:literal $field:ident: $kind:ty, )*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: $kind, )*
        }

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The layout, for the documentation and its tests.
            pub const LAYOUT: $crate::wire::StructLayout = $crate::wire::StructLayout {
                name: stringify!($name),
                len: $len,
                fields: &[$($crate::wire::FieldLayout {
                    offset: $offset,
                    len: <$kind as $crate::wire::Wire>::LEN,
                    name: stringify!($field),
                    kind: <$kind as $crate::wire::Wire>::NAME,
                }),*],
            };

            /// The structure's bytes.
            pub fn encode(&self) -> [u8; $len] {
                let mut bytes = [0; $len];
                $(
                    let field = bytes.get_mut($offset..).and_then(|rest| {
                        rest.split_at_mut_checked(<$kind as $crate::wire::Wire>::LEN)
                    });
                    if let Some((field, _)) = field {
                        $crate::wire::Wire::put(&self.$field, field);
                    }
                )*
                bytes
            }

            /// The structure in the first bytes of `bytes`. `Err` names the field whose bytes are
            /// missing or not permitted (a reserved field that is not zero).
            pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
                $(
                    let (field, bytes) = bytes
                        .split_at_checked(<$kind as $crate::wire::Wire>::LEN)
                        .ok_or(stringify!($field))?;
                    let $field = <$kind as $crate::wire::Wire>::get(field).ok_or(stringify!($field))?;
                )*
                let _ = bytes;
                Ok($name { $($field),* })
            }
        }

        const _: () = assert!($crate::wire::is_gapless($name::LAYOUT.fields, $len));
    };
}
pub(crate) use on_disk;

/// `bytes[from..from + len]`, or `None` where there are not as many.
pub fn slice(bytes: &[u8], from: usize, len: usize) -> Option<&[u8]> {
    bytes.get(from..from.checked_add(len)?)
}

/// `value` rounded up to a multiple of `align`, which is a power of two; saturates.
pub const fn round_up(value: u64, align: u64) -> u64 {
    let mask = align.wrapping_sub(1);
    value.saturating_add(mask) & !mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_test_sees_any_bit() {
        let mut bytes = vec![0; 3000];
        assert!(is_zero(&bytes));
        for at in [0, 511, 512, 2047, 2048, 2999] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "bit at {at}");
            bytes[at] = 0;
        }
        (bytes[3], bytes[500]) = (1, 1);
        assert!(!is_zero(&bytes), "two bits that cancel each other out");
        assert!(is_zero(&[]));
    }

    #[test]
    fn reserved_bytes_are_written_as_zeroes() {
        let mut bytes = [1; 4];
        Reserved::<4>.put(&mut bytes);
        assert_eq!(bytes, [0; 4]);
        assert_eq!(Reserved::<4>::get(&[0, 0, 1, 0]), None);
    }

    #[test]
    fn rounding() {
        assert_eq!(round_up(0, 64), 0);
        assert_eq!(round_up(1, 64), 64);
        assert_eq!(round_up(64, 64), 64);
        assert_eq!(round_up(u64::MAX - 1, 64), u64::MAX - 63);
    }

    #[test]
    fn gaps_are_seen() {
        let field = |offset, len| FieldLayout { offset, len, name: "f", kind: "k" };
        assert!(is_gapless(&[field(0, 4), field(4, 4)], 8));
        assert!(!is_gapless(&[field(0, 4), field(5, 3)], 8));
        assert!(!is_gapless(&[field(0, 4)], 8));
    }
}
