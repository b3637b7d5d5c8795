//! What reports and failures must not keep quiet, and what they must not say.

use serde_json::json;
use voltar_tests::command::words;
use voltar_tests::data::disk;
use voltar_tests::{Scratch, Voltar};

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

#[test]
fn a_diff_tells_sizes_and_volumes_that_differ() {
    let scratch = Scratch::new();
    let bytes = disk(3, 500_000);
    scratch.write("disk", &bytes);
    scratch.write("gone", &bytes[..100_000]);
    voltar(&scratch, "backup disk gone a.voltar").ok();
    scratch.write("disk", &bytes[..131_072]);
    scratch.write("new", &bytes[..100_000]);
    voltar(&scratch, "backup disk new a.voltar").ok();
    let object = voltar(&scratch, "diff a.voltar latest~1 latest").json();
    assert_eq!((&object["old_size"], &object["new_size"]), (&json!(500_000), &json!(131_072)));
    let names = |which: &str| object[which][0]["name"].clone();
    assert_eq!((names("only_old"), names("only_new")), (json!("gone"), json!("new")));
    let text = voltar(&scratch, "diff a.voltar latest~1 latest").ok().text();
    for line in [
        "shrank from 500000 to 131072 bytes\n",
        "only in the older snapshot: volume gone, 97.7 KiB\n",
        "only in the newer snapshot: volume new, 97.7 KiB\n",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    assert!(!text.contains("nothing changed"), "{text}");
    let text = voltar(&scratch, "diff a.voltar latest latest~1").ok().text();
    assert!(text.contains("grew from 131072 to 500000 bytes\n"), "{text}");
    let one = voltar(&scratch, "diff a.voltar latest~1 latest --volume disk").json();
    assert_eq!((&one["only_old"], &one["only_new"]), (&json!([]), &json!([])));
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
