//! What holds for every command alike: help, `--quiet`, `--json`, closed pipes, terminals.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use voltar_tests::command::{object, program, words};
use voltar_tests::data::disk;
use voltar_tests::{Scratch, Voltar, skip};

use super::contracts::commands;

/// One command line of each verb that succeeds on the shelf, and whether its report is what the
/// user asked for, so that `--quiet` prints it nevertheless.
const FINE: [(&str, bool); 10] = [
    ("backup disk new.voltar", false),
    ("restore a.voltar@latest~1 new.img", false),
    ("verify a.voltar", false),
    ("list a.voltar", true),
    ("show a.voltar", true),
    ("diff a.voltar latest~1 latest", true),
    ("inspect a.voltar", true),
    ("inspect a.voltar --salvage rescued.voltar", false),
    ("sources", true),
    ("bench disk", true),
];

fn shelf() -> Scratch {
    let scratch = Scratch::new();
    let mut bytes = disk(3, 500_000);
    scratch.write("disk", &bytes);
    Voltar::new(&scratch).args(words("backup disk a.voltar --attach disk")).ok();
    bytes[70_000] ^= 1;
    scratch.write("disk", &bytes);
    Voltar::new(&scratch).args(words("backup disk a.voltar")).ok();
    scratch
}

fn verb(line: &str) -> &str {
    line.split(' ').next().unwrap()
}

#[test]
fn every_command_is_tried() {
    let help = Voltar::new(&shelf()).arg("--help").ok().text();
    let mut tried: Vec<&str> = FINE.iter().map(|(line, _)| verb(line)).collect();
    let mut known = commands(&help);
    tried.sort_unstable();
    tried.dedup();
    known.sort_unstable();
    assert_eq!(tried, known);
}

#[test]
fn help_works_and_names_the_exit_codes() {
    let scratch = Scratch::new();
    let help = Voltar::new(&scratch).arg("--help").ok();
    assert!(help.stderr.is_empty(), "{}", help.stderr);
    for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "7 ", "130 "] {
        assert!(help.text().contains(&format!("\n  {code}")), "exit code {code}");
    }
    for (line, _) in FINE {
        let verb = verb(line);
        for line in [format!("{verb} --help"), format!("help {verb}"), format!("{verb} -h")] {
            let ran = Voltar::new(&scratch).args(words(&line)).ok();
            assert!(
                ran.text().contains(&format!("Usage: voltar {verb}")),
                "{line}: {}",
                ran.text()
            );
            assert!(ran.stderr.is_empty(), "{line}: {}", ran.stderr);
        }
    }
    let version = Voltar::new(&scratch).arg("--version").ok().text();
    assert!(version.starts_with("voltar ") && version.ends_with('\n'), "{version}");
    assert!(scratch.contents().is_empty());
}

#[test]
fn json_is_one_object_and_nothing_else() {
    for (line, _) in FINE {
        let ran = Voltar::new(&shelf()).args(words(line)).arg("--json").ok();
        let object = object(&ran.text()).unwrap_or_else(|why| panic!("{line}: {why}"));
        assert!(object.get("error").is_none(), "{line}: {object}");
    }
}

#[test]
fn quiet_prints_nothing_but_what_was_asked_for() {
    for (line, is_asked_for) in FINE {
        let ran = Voltar::new(&shelf()).args(words(line)).arg("--quiet").ok();
        assert_eq!(ran.stderr, "", "{line}");
        assert_eq!(ran.stdout.is_empty(), !is_asked_for, "{line}: {}", ran.text());
    }
}

#[test]
fn quiet_with_json_leaves_the_object_alone() {
    for (line, _) in FINE {
        let ran = Voltar::new(&shelf()).args(words(line)).args(["--quiet", "--json"]).ok();
        assert_eq!(ran.stderr, "", "{line}");
        object(&ran.text()).unwrap_or_else(|why| panic!("{line}: {why}"));
    }
}

#[test]
fn a_closed_pipe_is_silence() {
    for (line, _) in FINE {
        for extra in [&[][..], &["--json"]] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let ran = Voltar::new(&shelf()).args(words(line)).args(extra).stdout(writer).run();
            assert_eq!(ran.code(), Some(0), "{line} {extra:?}: {}", ran.stderr);
            assert!(!ran.stderr.contains("error"), "{line} {extra:?}: {}", ran.stderr);
            assert!(!ran.stderr.contains("panic"), "{line} {extra:?}: {}", ran.stderr);
        }
    }
    for line in ["--help", "backup --help", "--version", "show a.voltar@latest~1 --attached disk"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = Voltar::new(&shelf()).args(words(line)).stdout(writer).run();
        assert_eq!((ran.code(), ran.stderr.as_str()), (Some(0), ""), "{line}");
    }
}

#[test]
fn a_full_standard_output_is_an_error() {
    let Ok(full) = fs::File::options().write(true).open("/dev/full") else {
        return skip("a_full_standard_output_is_an_error", "there is no /dev/full");
    };
    let ran = Voltar::new(&shelf()).args(words("list a.voltar")).stdout(full).run().expect(1);
    assert!(ran.stderr.starts_with("error: cannot write to standard output"), "{}", ran.stderr);
}

#[test]
fn no_archive_goes_to_a_terminal() {
    let scratch = shelf();
    let line = format!("{} backup disk -", program().display());
    let child = Command::new("script")
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .current_dir(scratch.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        return skip("no_archive_goes_to_a_terminal", "`script` is not installed");
    };
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2), "{text}");
    assert!(text.contains("refusing to write an archive to a terminal"), "{text}");
    assert!(text.contains("hint: redirect standard output"), "{text}");
}

#[test]
fn errors_do_not_carry_control_characters_of_names() {
    let scratch = Scratch::new();
    let ran = Voltar::new(&scratch).args(["list", "\u{1b}[2Jgone.voltar"]).run().expect(1);
    assert!(!ran.stderr.contains('\u{1b}'), "{:?}", ran.stderr);
    assert!(ran.stderr.contains("gone.voltar"), "{:?}", ran.stderr);
}
