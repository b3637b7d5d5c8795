//! The README's commands, run as they stand.

use std::process::Command;

use voltar_tests::{Scratch, program, root};

/// The blocks of shell marked `<!-- run -->`.
fn blocks(readme: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() != "<!-- run -->" {
            continue;
        }
        while lines.next_if(|line| line.trim().is_empty()).is_some() {}
        assert_eq!(lines.next().map(str::trim), Some("```sh"), "what follows a run mark");
        let body: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
        blocks.push(body.join("\n"));
    }
    blocks
}

#[test]
fn marked_blocks_are_found() {
    let text = "a\n<!-- run -->\n\n```sh\none\ntwo\n```\n```sh\nnot this\n```\n<!-- run -->\n```sh\nx\n```\n";
    assert_eq!(blocks(text), ["one\ntwo", "x"]);
}

#[test]
fn the_commands_of_the_readme_work_when_pasted() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("there is a README.md");
    let blocks = blocks(&readme);
    assert!(!blocks.is_empty(), "README.md has no block marked <!-- run -->");
    // One directory for all: later blocks go on where earlier ones ended.
    let scratch = Scratch::new();
    let bin = program().parent().unwrap().display();
    for block in blocks {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &block])
            .current_dir(scratch.dir())
            .env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()))
            .env("XDG_STATE_HOME", scratch.path("state"))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{block}\n{}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
    }
}

#[test]
fn the_tests_that_reliability_md_names_exist() {
    let document = std::fs::read_to_string(root().join("RELIABILITY.md")).unwrap();
    let folders = [
        ("engine", "engine/tests"),
        ("model", "tests/tests/model"),
        ("cli", "tests/tests/cli"),
        ("guest", "tests/tests/guest"),
        ("vm", "tests/tests/vm"),
        ("unit", "engine/src"),
    ];
    let mut found = 0;
    for name in document.split('`') {
        let parts: Vec<&str> = name.split("::").collect();
        let [folder, file, test] = parts[..] else { continue };
        let Some((_, folder)) = folders.iter().find(|(short, _)| *short == folder) else {
            panic!("{name} is in no folder of tests");
        };
        let path = root().join(folder).join(file).with_extension("rs");
        let code = std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("{name}: {path:?}"));
        assert!(code.contains(&format!("fn {test}(")), "{name} is no test");
        found += 1;
    }
    assert!(found >= 30, "only {found} names");
}
