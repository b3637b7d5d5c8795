//! Numbers and causes in sentences, and foreign text where it could do harm.

/// `1 extent`, `3 extents`.
pub fn count(count: u64, noun: &str) -> String {
    counted(count, noun, &format!("{noun}s"))
}

/// `1 entry`, `3 entries`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// An error with all its causes, for who prints one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    followed_by_causes(error.to_string(), error)
}

/// What was said of an error, with all its causes.
pub fn followed_by_causes(mut words: String, error: &dyn std::error::Error) -> String {
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// What must not reach a terminal or a file's name: control characters (C0, DEL, C1), line
/// separators, and marks that change the direction.
pub fn is_harmful(c: char) -> bool {
    let is_direction = matches!(c,
        '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || is_direction
}

/// A word as a POSIX shell takes it, so that what is shown can be pasted.
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_string(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_words_as_they_are() {
        for (text, word) in [
            ("disk=a,b.raw", "disk=a,b.raw"),
            ("", "''"),
            ("two words", "'two words'"),
            ("it's", r"'it'\''s'"),
            ("$(rm -rf /)", "'$(rm -rf /)'"),
            ("~", "'~'"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!((count(1, "frame"), count(0, "frame")), ("1 frame".into(), "0 frames".into()));
        assert_eq!(counted(2, "entry", "entries"), "2 entries");
    }
}
