//! Numbers at offsets of byte strings that may end anywhere.

/// `N` bytes at `at`.
pub fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A number at `at`; 0 behind the end.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    array_at(bytes, at).map_or(0, u16::from_le_bytes)
}

/// A number at `at`; 0 behind the end.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    array_at(bytes, at).map_or(0, u32::from_le_bytes)
}

/// A number at `at`; 0 behind the end.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    array_at(bytes, at).map_or(0, u64::from_le_bytes)
}

/// Writes `value` at `at` as far as there is room.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    let rest = bytes.get_mut(at..).unwrap_or_default();
    rest.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
}
