//! What reports and failures must not keep quiet, and what they must not say.

use voltar_tests::command::words;
use voltar_tests::data::disk;
use voltar_tests::{Scratch, Voltar};

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

#[test]
fn foreign_text_is_harmless_wherever_it_is_printed() {
    let scratch = Scratch::new();
    let (escape, bidi, c1) = ("\u{1b}[2J", "\u{202e}", "\u{9b}");
    let name = format!("vm{escape}{bidi}{c1}x");
    scratch.write(&name, &disk(1, 100_000));
    let back_up = || Voltar::new(&scratch).arg("backup").arg(&name).arg("a.voltar");
    let tag = format!("k={escape}{c1}");
    let harmful = |text: &str| {
        text.chars().any(|c| c.is_control() && c != '\n') || text.contains(['\u{202e}', '\u{2066}'])
    };
    let mut printed = vec![back_up().arg("--tag").arg(&tag).ok(), back_up().arg("--json").ok()];
    for line in [
        "list a.voltar",
        "show a.voltar",
        "diff a.voltar latest~1 latest",
        "verify a.voltar",
        "inspect a.voltar",
        "restore a.voltar out --dry-run",
    ] {
        printed.push(voltar(&scratch, line).ok());
        printed.push(voltar(&scratch, &format!("{line} --json")).ok());
    }
    // What was typed comes back in errors: of ours, and of the parser's.
    printed.push(Voltar::new(&scratch).arg("list").arg(&name).run().expect(1));
    printed.push(voltar(&scratch, "list a.voltar").arg(format!("--{name}")).run().expect(2));
    let json = voltar(&scratch, "list a.voltar --json").arg(format!("--{name}"));
    printed.push(json.run().expect(2));
    for ran in &printed {
        assert!(!harmful(&ran.text()) && !harmful(&ran.stderr), "{ran:?}");
    }
    // Escaped, not changed.
    let list = voltar(&scratch, "list a.voltar").json();
    assert_eq!(list["snapshots"][0]["volumes"][0]["name"], name);
}
