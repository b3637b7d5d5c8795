//! The rules that keep the crates apart, held against the sources themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use voltar_tests::root;
use voltar_tests::source::{code_of, functions, production, rust_files, words};

/// Direct dependencies that each crate may have; a new one is a decision, made here.
const ALLOWED: [(&str, &[&str]); 3] = [
    ("voltar-format", &["blake3", "crc-fast", "hex", "serde", "serde_json", "thiserror"]),
    (
        "voltar-engine",
        &[
            "blake3",
            "crossbeam-channel",
            "io-uring",
            "memmap2",
            "nix",
            "rand",
            "roxmltree",
            "rustix",
            "rustls",
            "serde",
            "serde_json",
            "thiserror",
            "voltar-format",
            "zstd-safe",
        ],
    ),
    (
        "voltar",
        &["clap", "indicatif", "jiff", "serde", "serde_json", "signal-hook", "voltar-engine"],
    ),
];

/// Crates whose sources the rules are about.
const CRATES: [&str; 3] = ["format", "engine", "cli"];

/// Pairs of modules of a crate that name each other, with the reason why they may.
const MUTUAL: &[(&str, &str, &str, &str)] = &[];

/// Longest function outside tests, in lines.
const FUNCTION_LINES_MAX: usize = 100;

struct Source {
    path: PathBuf,
    text: String,
    /// Without comments, literals and tests.
    code: String,
}

fn sources(name: &str) -> Vec<Source> {
    let files = rust_files(&root().join(name).join("src"));
    assert!(files.len() > 5, "{name} has sources");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = production(&code_of(&text));
        Source { path, text, code }
    };
    let all: Vec<Source> = files.into_iter().map(read).collect();
    let for_tests: BTreeSet<PathBuf> = all.iter().flat_map(modules_for_tests).collect();
    all.into_iter().filter(|source| !for_tests.contains(&source.path)).collect()
}

/// Files that a source declares as modules for tests only.
fn modules_for_tests(source: &Source) -> Vec<PathBuf> {
    let code = code_of(&source.text);
    let folder = match source.path.file_stem().unwrap().to_str().unwrap() {
        "mod" | "lib" | "main" => source.path.parent().unwrap().to_path_buf(),
        _ => source.path.with_extension(""),
    };
    code.match_indices("#[cfg(test)]")
        .filter_map(|(at, mark)| code[at + mark.len()..].split_once("mod "))
        .filter(|(before, _)| ["", "pub", "pub(crate)"].contains(&before.trim()))
        .filter_map(|(_, rest)| rest.split_once([';', '{']))
        .map(|(name, _)| folder.join(format!("{}.rs", name.trim())))
        .collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn crates_depend_on_what_they_may() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    for (name, allowed) in ALLOWED {
        let package = packages.iter().find(|package| package["name"] == name);
        let package = package.unwrap_or_else(|| panic!("no package {name}"));
        let direct: BTreeSet<&str> = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .map(|dependency| dependency["name"].as_str().unwrap())
            .collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        let strangers: Vec<_> = direct.difference(&allowed).collect();
        assert!(strangers.is_empty(), "{name} may not depend on {strangers:?}");
        let gone: Vec<_> = allowed.difference(&direct).collect();
        assert!(gone.is_empty(), "{name} no longer needs {gone:?}: take them off the list");
    }
}

#[test]
fn unsafe_has_one_address() {
    let home = root().join("engine/src/io");
    let mut at_home = 0;
    for name in CRATES {
        for file in rust_files(&root().join(name)) {
            // Also in tests: safe ways to test exist.
            let code = code_of(&fs::read_to_string(&file).unwrap());
            let count = words(&code).filter(|word| *word == "unsafe").count();
            if file.starts_with(&home) {
                at_home += count;
            } else {
                assert_eq!(count, 0, "unsafe in {}", shown(&file));
            }
        }
    }
    assert!(at_home > 0, "the rule looks at nothing");
}

/// Files that name one of `paths` (written `a::b`) in their production code.
fn naming(name: &str, paths: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources(name) {
        let squeezed: String = source.code.split_whitespace().collect();
        for path in named_paths(&squeezed) {
            if paths
                .iter()
                .any(|forbidden| path == *forbidden || path.starts_with(&format!("{forbidden}::")))
            {
                found.push(format!("{}: {path}", shown(&source.path)));
            }
        }
    }
    found
}

/// Paths of code without white space: those written out, and those in braces of a `use`.
fn named_paths(code: &str) -> BTreeSet<String> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '!';
    let mut paths: BTreeSet<String> = BTreeSet::new();
    for (at, word) in code.match_indices("std::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() && !code[..at].ends_with("use")) {
            continue;
        }
        let rest = &code[at + word.len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 1;
                let mut part = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 1 => {
                            paths.insert(format!("std::{part}"));
                            part.clear();
                        }
                        _ if depth == 1 => part.push(c),
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
                paths.insert(format!("std::{part}"));
            }
            None => {
                let path: String = rest.chars().take_while(|c| is_path(*c)).collect();
                paths.insert(format!("std::{}", path.trim_end_matches(':')));
            }
        }
    }
    paths
}

#[test]
fn paths_are_found_in_braces_too() {
    let found = named_paths("usestd::{fs,io::{self,Read}};usestd::time::Instant;xstd::env");
    let want = ["std::fs", "std::io::", "std::time::Instant"].map(str::to_string);
    assert_eq!(found, BTreeSet::from(want));
}

#[test]
fn the_format_is_bytes_in_values_out() {
    let world = ["fs", "io", "time", "thread", "net", "process", "env", "os", "path", "sync"];
    let world: Vec<String> = world.iter().map(|name| format!("std::{name}")).collect();
    let found = naming("format", &world.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(found.is_empty(), "{found:#?}");
    // The rule sees something: the engine uses files.
    assert!(!naming("engine", &["std::fs"]).is_empty());
}

#[test]
fn the_engine_prints_nothing_and_reads_no_environment() {
    for source in sources("engine") {
        for word in ["println", "eprintln", "print", "eprint", "dbg"] {
            let found = source.code.contains(&format!("{word}!"));
            assert!(!found, "{word}! in {}", shown(&source.path));
        }
        for word in ["clap", "indicatif", "args_os"] {
            assert!(!words(&source.code).any(|w| w == word), "{word} in {}", shown(&source.path));
        }
    }
    let found = naming("engine", &["std::env"]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_command_line_knows_no_bytes_and_prints_in_one_place() {
    for source in sources("cli") {
        let file = shown(&source.path);
        assert!(!words(&source.code).any(|word| word == "voltar_format"), "{file}");
        if file.starts_with("cli/src/render") {
            continue;
        }
        for word in ["println!", "eprintln!", "print!", "eprint!", "io::stdout", "io::stderr"] {
            let is_question = file == "cli/src/world.rs" && word == "io::stdout";
            assert!(is_question || !source.code.contains(word), "{word} in {file}");
        }
    }
}

/// The top-level modules that each top-level module of a crate names.
fn modules(name: &str) -> BTreeMap<String, BTreeSet<String>> {
    let src = root().join(name).join("src");
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let all = sources(name);
    let module = |path: &Path| {
        let first = path.strip_prefix(&src).unwrap().iter().next().unwrap().to_str().unwrap();
        first.trim_end_matches(".rs").to_string()
    };
    let known: BTreeSet<String> = all.iter().map(|source| module(&source.path)).collect();
    for source in &all {
        let own = module(&source.path);
        let squeezed: String = source.code.split_whitespace().collect();
        for (at, word) in squeezed.match_indices("crate::") {
            let rest = &squeezed[at + word.len()..];
            for first in first_words(rest) {
                if known.contains(&first) && first != own {
                    named.entry(own.clone()).or_default().insert(first);
                }
            }
        }
    }
    named
}

/// The first words of a path, or of each path in its braces.
fn first_words(rest: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let mut depth = 1;
    let mut starts = vec![0];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => starts.push(at + 1),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    starts.into_iter().map(|start| word(&group[start..])).collect()
}

#[test]
fn no_two_modules_name_each_other() {
    let mut found = BTreeSet::new();
    for name in CRATES {
        let named = modules(name);
        assert!(named.len() > 5, "{name}: {named:?}");
        for (one, others) in &named {
            for other in others.iter().filter(|other| *other > one) {
                if named.get(other).is_some_and(|back| back.contains(one)) {
                    found.insert((name, one.clone(), other.clone()));
                }
            }
        }
    }
    let allowed: BTreeSet<(&str, String, String)> = MUTUAL
        .iter()
        .map(|(name, one, other, _)| (*name, one.to_string(), other.to_string()))
        .collect();
    assert_eq!(found, allowed);
}

#[test]
fn crate_roots_hold_declarations_only() {
    for name in ["format", "engine"] {
        let code = code_of(&fs::read_to_string(root().join(name).join("src/lib.rs")).unwrap());
        for word in
            ["fn", "struct", "enum", "trait", "impl", "const", "static", "type", "macro_rules"]
        {
            assert!(!words(&code).any(|found| found == word), "`{word}` in {name}/src/lib.rs");
        }
        assert!(words(&code).any(|word| word == "mod"));
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for name in CRATES.into_iter().chain(["tests", "benches"]) {
        for file in rust_files(&root().join(name)) {
            let text = fs::read_to_string(&file).unwrap();
            let head = text.lines().next().unwrap_or_default();
            assert!(head.starts_with("//! ") && head.len() > 12, "{}: {head:?}", shown(&file));
        }
    }
}

#[test]
fn no_function_is_long() {
    let mut lengths = Vec::new();
    for name in CRATES {
        for source in sources(name) {
            for (function, lines) in functions(&source.code) {
                let file = shown(&source.path);
                assert!(lines <= FUNCTION_LINES_MAX, "{file}: `{function}` has {lines} lines");
                lengths.push(lines);
            }
            assert!(!source.text.is_empty());
        }
    }
    lengths.sort_unstable();
    assert!(lengths.len() > 500, "{} functions found", lengths.len());
    let (median, ninth) = (lengths[lengths.len() / 2], lengths[lengths.len() * 9 / 10]);
    assert!(median <= 10 && ninth <= 35, "median {median}, 90 % up to {ninth} lines");
}
