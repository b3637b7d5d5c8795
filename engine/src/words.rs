//! Numbers and causes in sentences.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!((count(1, "frame"), count(0, "frame")), ("1 frame".into(), "0 frames".into()));
        assert_eq!(counted(2, "entry", "entries"), "2 entries");
    }
}
