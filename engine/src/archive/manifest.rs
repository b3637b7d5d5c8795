//! What goes into manifests and notes besides what is backed up: when, where and by what they were
//! made, and ranges, few enough.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use voltar_format::limits::UNREADABLE_MAX;

/// Nanoseconds since 1970-01-01 UTC by the host's clock; 0 if that stands before.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The host's name, for manifests and notes.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// This program and its version, for manifests and notes.
pub fn program() -> String {
    concat!("voltar ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Neighbouring ranges become one; if there are still too many for a manifest, the nearest do, too.
pub fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut distance = 0;
    loop {
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in &ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end.saturating_add(distance) => {
                    last.end = last.end.max(range.end);
                }
                _ => merged.push(range.clone()),
            }
        }
        if merged.len() <= UNREADABLE_MAX {
            return merged;
        }
        distance = (distance * 2).max(4096);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_ranges_merge_and_stay_few() {
        assert_eq!(merged(vec![4..8, 0..4, 20..24]), [0..8, 20..24]);
        let many: Vec<_> = (0..20_000u64).map(|n| n * 8192..n * 8192 + 4096).collect();
        let few = merged(many.clone());
        assert!(few.len() <= UNREADABLE_MAX);
        assert!(
            many.iter()
                .all(|range| few.iter().any(|f| f.start <= range.start && range.end <= f.end))
        );
    }
}
