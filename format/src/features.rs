//! The feature masks: which features exist, and what an unknown one means.

use crate::error::{FormatError, Result, Structure};

/// The format version this crate writes, and the newest it reads.
pub const FORMAT_VERSION: u16 = 1;

/// A feature: its bit, its name, and whether this crate knows what to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Bit number in its mask.
    pub bit: u32,
    /// The name messages print.
    pub name: &'static str,
    /// Whether this crate reads archives that use it.
    pub known: bool,
}

/// Features without which a reader must not read: an unknown bit is refused.
pub const INCOMPATIBLE: &[Feature] = &[
    Feature { bit: 0, name: "encryption", known: false },
    Feature { bit: 1, name: "compaction", known: false },
    Feature { bit: 2, name: "external-chunks", known: false },
];

/// Features a reader may ignore: an unknown bit is passed over.
pub const COMPATIBLE: &[Feature] = &[Feature { bit: 0, name: "parity", known: false }];

/// Refuses incompatible features that this crate does not know, by name.
pub fn check_incompatible(structure: Structure, mask: u64) -> Result<()> {
    let unknown: Vec<String> = names(INCOMPATIBLE, mask)
        .filter(|(_, feature)| !feature.is_some_and(|feature| feature.known))
        .map(|(name, _)| name)
        .collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(FormatError::unsupported(
            structure,
            "F-004",
            format!("it needs features this version lacks: {}", unknown.join(", ")),
        )),
    }
}

/// The names of all features in use.
pub fn feature_names(incompatible: u64, compatible: u64) -> Vec<String> {
    let incompatible = names(INCOMPATIBLE, incompatible);
    incompatible.chain(names(COMPATIBLE, compatible)).map(|(name, _)| name).collect()
}

fn names(
    table: &'static [Feature],
    mask: u64,
) -> impl Iterator<Item = (String, Option<&'static Feature>)> {
    (0..u64::BITS).filter(move |bit| mask & 1u64.wrapping_shl(*bit) != 0).map(move |bit| {
        let feature = table.iter().find(|feature| feature.bit == bit);
        let name = feature.map_or_else(|| format!("unknown-{bit}"), |f| f.name.to_owned());
        (name, feature)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f_004_unknown_incompatible_features_are_refused_by_name() {
        let error = check_incompatible(Structure::Header, 0b1001).unwrap_err();
        assert!(error.unsupported);
        assert!(error.problem.contains("encryption, unknown-3"), "{error}");
        check_incompatible(Structure::Header, 0).unwrap();
    }

    #[test]
    fn compatible_features_are_named() {
        assert_eq!(feature_names(1, 0b11), ["encryption", "parity", "unknown-1"]);
    }
}
