//! Reads Rust sources as far as rules about them need: what is code, and where functions end.

use std::path::{Path, PathBuf};

/// The source with comments and the insides of literals blanked; lines and columns stay.
pub fn code_of(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (end, inside) = token(bytes, at);
        if inside {
            blank(&mut code[at..end]);
        }
        at = end;
    }
    String::from_utf8(code).expect("whole characters were blanked")
}

/// The end of what starts at `at`, and whether it is a comment or a literal.
fn token(bytes: &[u8], at: usize) -> (usize, bool) {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        let len = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        return (at + len, true);
    }
    if rest.starts_with(b"/*") {
        return (at + block_comment(rest), true);
    }
    let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if let Some(len) = raw_string(rest).filter(|_| !in_word) {
        return (at + len, true);
    }
    match rest[0] {
        b'"' => (at + quoted(rest, b'"'), true),
        b'\'' if is_character(rest) => (at + quoted(rest, b'\''), true),
        _ => (at + 1, false),
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of `r"..."`, `r#"..."#`, `br"..."`.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let start = if rest.starts_with(b"br") { 2 } else { 1 };
    if !(rest.starts_with(b"r") || rest.starts_with(b"br")) {
        return None;
    }
    let hashes = rest[start..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(start + hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = start + hashes + 1;
    let len = rest[body..].windows(close.len()).position(|window| window == close)?;
    Some(body + len + close.len())
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Whether a `'` starts a character and not a lifetime.
fn is_character(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        Some(byte) if byte.is_ascii() => rest.get(2) == Some(&b'\''),
        Some(_) => true,
        None => false,
    }
}

fn blank(bytes: &mut [u8]) {
    bytes.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

/// The code without modules and items for tests only.
pub fn production(code: &str) -> String {
    let mut kept = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(at) = code[from..].find("#[cfg(test)]").map(|at| at + from) {
        let end = item_end(code, at);
        blank(&mut kept[at..end]);
        from = end;
    }
    String::from_utf8(kept).expect("whole characters were blanked")
}

/// Where the item that starts at `at` ends: behind its braces, or its semicolon.
fn item_end(code: &str, at: usize) -> usize {
    let mut depth = 0;
    for (offset, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b';' if depth == 0 => return offset + 1,
            b'{' | b'(' | b'[' => depth += 1,
            b'}' if depth == 1 => return offset + 1,
            b'}' | b')' | b']' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// The functions of blanked code: name and number of lines.
pub fn functions(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let name: String =
            code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !name.is_empty() {
            let body = &code[at..item_end(code, at)];
            found.push((name, body.lines().count()));
        }
    }
    found
}

/// The words of blanked code: identifiers and keywords.
pub fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// All files ending in `.rs` below `dir`.
pub fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false if path.extension().is_some_and(|e| e == "rs") => files.push(path),
                false => {}
            }
        }
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        let source =
            "a /* x /* y */ z */ \"un\\\"safe\" r#\"un\"safe\"# 'u' b'\\'' &'a str // end\nb";
        let code = code_of(source);
        assert_eq!(code.len(), source.len());
        assert_eq!(words(&code).collect::<Vec<_>>(), ["a", "b", "a", "str", "b"]);
    }

    #[test]
    fn functions_have_lengths() {
        let source =
            "fn a() {\n if x {\n }\n}\nfn b();\n#[cfg(test)]\nmod t {\n fn c() {}\n}\nfn d() {}";
        let found = functions(&production(&code_of(source)));
        let want = [("a", 4), ("b", 1), ("d", 1)].map(|(name, lines)| (name.to_string(), lines));
        assert_eq!(found, want);
    }
}
