//! Why a qcow2 image is refused.

use std::io;

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It could not be read.
    #[error("the image cannot be read at {offset:#x}")]
    Unreadable {
        /// Where, in bytes.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// It begins with something else.
    #[error("it does not begin as a qcow2 image does")]
    Magic,
    /// A version that is not known.
    #[error("it is a qcow2 image of version {0}; versions 2 and 3 are known")]
    Version(u32),
    /// Its data is encrypted.
    #[error("it is encrypted ({method})")]
    Encrypted {
        /// How.
        method: &'static str,
    },
    /// It has a feature that is not known, without which it must not be read.
    #[error("it needs feature {bit}{}, which is not known", named(.name))]
    Feature {
        /// The bit's number among the incompatible features.
        bit: u32,
        /// What the image calls it.
        name: Option<String>,
    },
    /// Its bitmaps do not tell what changed.
    #[error(
        "its bitmaps are out of date: a program that does not know of bitmaps has written to it"
    )]
    StaleBitmaps,
    /// A bitmap that was not saved.
    #[error("its bitmap {0:?} was not saved: the image was not closed cleanly")]
    BitmapInUse(String),
    /// A bitmap with additions that are not known.
    #[error("its bitmap {0:?} holds data of a kind that is not known")]
    BitmapExtra(String),
    /// A bitmap of another kind.
    #[error("its bitmap {name:?} is of type {kind}; type 1 (dirty) is known")]
    BitmapType {
        /// The bitmap.
        name: String,
        /// Its type.
        kind: u8,
    },
    /// Something that cannot be.
    #[error("it is damaged at {offset:#x}: {fault}")]
    Damaged {
        /// Where, in bytes.
        offset: u64,
        /// What is wrong there.
        fault: Fault,
    },
}

fn named(name: &Option<String>) -> String {
    name.as_ref().map(|name| format!(" ({name:?})")).unwrap_or_default()
}

/// What is wrong with a structure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A number outside its range.
    #[error("the {what} is {value}, not from {min} to {max}")]
    Range {
        /// Whose number.
        what: &'static str,
        /// What it is.
        value: u64,
        /// The least it may be.
        min: u64,
        /// The most it may be.
        max: u64,
    },
    /// A number that is not a multiple of what it must be.
    #[error("the {what} is {value:#x}, not a multiple of {unit:#x}")]
    Misaligned {
        /// Whose number.
        what: &'static str,
        /// What it is.
        value: u64,
        /// Of what it must be a multiple.
        unit: u64,
    },
    /// A structure where there is no room for it.
    #[error("the {what}, {len} bytes from {start:#x}, lies outside the image or over its header")]
    Place {
        /// Which.
        what: &'static str,
        /// Where it begins.
        start: u64,
        /// Its length.
        len: u64,
    },
    /// A structure that does not end before what holds it.
    #[error("the {0} is cut off")]
    Cut(&'static str),
    /// Bits that must be zero.
    #[error("the {what} has reserved bits: {bits:#x}")]
    Reserved {
        /// Which structure.
        what: &'static str,
        /// Those that are set.
        bits: u64,
    },
    /// A name that is no text.
    #[error("the {0} is not text (UTF-8 without NUL)")]
    Text(&'static str),
    /// What may be there once.
    #[error("the {0} is there twice")]
    Twice(&'static str),
    /// Two parts of a header that contradict each other.
    #[error("the {0} contradict each other")]
    Contradiction(&'static str),
}
