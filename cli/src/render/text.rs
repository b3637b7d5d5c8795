//! Small pieces of text: foreign strings made harmless, durations, rates, counts.

use std::borrow::Cow;
use std::time::Duration;

pub use voltar_engine::words::{count, is_harmful};

use crate::size;

/// Digits of an id that people are shown.
const ID_DIGITS: usize = 12;

/// Makes text from archives, devices and the kernel safe to print: whatever could drive a
/// terminal or reorder the line is shown as an escape.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => cleaned.push_str("\\n"),
            '\r' => cleaned.push_str("\\r"),
            '\t' => cleaned.push_str("\\t"),
            c if c.is_ascii_control() => cleaned.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if is_harmful(c) => cleaned.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => cleaned.push(c),
        }
    }
    Cow::Owned(cleaned)
}

/// As [`clean`], of several lines, which stay lines.
pub fn clean_lines(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => format!("{}\n", clean(line)),
            None => clean(line).into_owned(),
        })
        .collect()
}

/// The first digits of an id.
pub fn short_id(id: &str) -> Cow<'_, str> {
    clean(id.get(..ID_DIGITS).unwrap_or(id))
}

/// `3.2 s`, `1 min 05 s`, `2 h 03 min`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A duration that a report gives in seconds.
pub fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// Bytes per second over a time; nothing where the time is too short to tell.
pub fn rate(bytes: u64, seconds: f64) -> Option<String> {
    (seconds > 0.0005).then(|| per_second(bytes as f64 / seconds))
}

/// `512 MiB/s`.
pub fn per_second(bytes_per_s: f64) -> String {
    format!("{}/s", size::human(bytes_per_s as u64))
}

/// `0x1000..0x2000 (4 KiB)`.
pub fn range(offset: u64, length: u64) -> String {
    let end = offset.saturating_add(length);
    format!("{offset:#x}..{end:#x} ({})", size::human(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_terminals_are_shown_not_sent() {
        assert_eq!(clean("\x1b[31mred\x07\n"), "\\x1b[31mred\\x07\\n");
        assert_eq!(clean("a\u{9b}2Jb\u{7f}"), "a\\u{9b}2Jb\\x7f");
        assert_eq!(clean("vm\u{202e}gpj.exe\u{2028}"), "vm\\u{202e}gpj.exe\\u{2028}");
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(clean_lines("a\x1bb\n\nc\u{9b}"), "a\\x1bb\n\nc\\u{9b}");
    }

    #[test]
    fn ordinary_text_is_untouched() {
        for text in ["", "vm 7", "máquina-virtual", "仮想", "a\\x1b"] {
            assert!(matches!(clean(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn durations_and_rates() {
        for (value, text) in [
            (0.04, "0.0 s"),
            (3.21, "3.2 s"),
            (59.9, "59 s"),
            (65.0, "1 min 05 s"),
            (7380.0, "2 h 03 min"),
            (-1.0, "0.0 s"),
            (f64::NAN, "0.0 s"),
        ] {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(rate(1 << 30, 2.0).as_deref(), Some("512 MiB/s"));
        assert_eq!(rate(1 << 30, 0.0), None);
    }

    #[test]
    fn ids_and_ranges() {
        assert_eq!(short_id("0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("ab"), "ab");
        assert_eq!(range(0x1000, 0x1000), "0x1000..0x2000 (4 KiB)");
    }
}
