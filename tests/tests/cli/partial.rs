//! What a command that failed had done until then: in its JSON object, and in words.

use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::data::assert_same;
use voltar_tests::{Rng, Scratch, Voltar};

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

fn names(object: &Value) -> Vec<&str> {
    object["volumes"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect()
}

/// Three volumes, and a damage that costs the second.
fn damaged_in_the_middle() -> Scratch {
    let scratch = Scratch::new();
    for (seed, name) in [(1, "a"), (2, "b"), (3, "c")] {
        scratch.write(name, &Rng::new(seed).bytes(3 << 20));
    }
    voltar(&scratch, "backup a b c x.voltar").ok();
    // Volume after volume, none of which compresses.
    scratch.flip("x.voltar", 9 << 19, 1);
    scratch
}

#[test]
fn a_restore_that_fails_in_the_middle_says_what_is_complete() {
    let scratch = damaged_in_the_middle();
    let line = "restore x.voltar a=a.img b=b.img c=c.img --json";
    let ran = voltar(&scratch, line).run().expect(3);
    let object = ran.json();
    assert_eq!(object["error"]["code"], 3);
    assert_eq!(object["snapshot"].as_str().map(str::len), Some(32), "{object}");
    assert_eq!(names(&object), ["a", "b"], "the third was not begun");
    let volume = |at: usize| &object["volumes"][at];
    assert_eq!((&volume(0)["complete"], &volume(1)["complete"]), (&true.into(), &false.into()));
    assert_eq!(volume(0)["written_bytes"], 3 << 20);
    assert!(volume(1)["written_bytes"].as_u64().unwrap() < 3 << 20);
    assert_eq!(object["read_back"], false);
    assert_same(&scratch.read("a.img"), &scratch.read("a"), "what is said to be complete");

    let ran = voltar(&scratch, "restore x.voltar a=d.img b=e.img c=f.img").run().expect(3);
    assert!(ran.text().ends_with("; complete: a\n"), "{}", ran.text());
}

/// What it means is said of the target that failed, not of those before it.
#[test]
fn a_restore_that_fails_before_it_writes_a_target_says_so() {
    let scratch = Scratch::new();
    for (seed, name) in [(1, "a"), (2, "b")] {
        // As long as a frame holds, so that a damage costs a volume its first frame.
        scratch.write(name, &Rng::new(seed).bytes(1 << 20));
    }
    voltar(&scratch, "backup a b x.voltar").ok();
    scratch.flip("x.voltar", 3 << 19, 1);
    let meaning = |line: &str| {
        let object = voltar(&scratch, &format!("{line} --json")).run().expect(3).json();
        object["error"]["meaning"].as_str().unwrap_or_default().to_owned()
    };
    let earlier = "this target was not written; those before it are complete";
    assert_eq!(meaning("restore x.voltar a=a.img b=b.img"), earlier);
    assert_same(&scratch.read("a.img"), &scratch.read("a"), "what is said to be complete");
    assert!(!scratch.path("b.img").exists(), "what is said not to be written is there");
    assert_eq!(meaning("restore x.voltar b=c.img a=d.img"), "not a byte of the target was written");
    let both = ["c.img", "d.img"].map(|name| scratch.path(name).exists());
    assert_eq!(both, [false; 2]);
}

#[test]
fn a_restore_that_was_refused_has_begun_nothing() {
    let scratch = damaged_in_the_middle();
    scratch.write("full.img", &Rng::new(4).bytes(3 << 20));
    let line = "restore x.voltar a=a.img c=full.img";
    let object = voltar(&scratch, &format!("{line} --json")).run().expect(5).json();
    assert_eq!((names(&object).len(), &object["error"]["code"]), (0, &5.into()));
    assert_eq!(voltar(&scratch, line).run().expect(5).text(), "");
}

#[test]
fn a_backup_that_fails_late_says_what_it_keeps() {
    let scratch = Scratch::new();
    scratch.write("disk", &Rng::new(1).bytes(3 << 20));
    // Longer than what may be attached, which shows when it is read.
    let line = "backup disk x.voltar --attach endless=/dev/zero";
    let object = voltar(&scratch, &format!("{line} --json")).run().expect(1).json();
    assert_eq!((&object["snapshot"], &object["error"]["code"]), (&Value::Null, &1.into()));
    assert_eq!(names(&object), ["disk"]);
    let kept = object["stored_bytes"].as_u64().unwrap();
    assert!((3 << 20..scratch.len("x.voltar")).contains(&kept), "{object}");
    let again = voltar(&scratch, "backup disk x.voltar").json();
    assert!(again["resumed_bytes"].as_u64().unwrap() >= 3 << 20, "{again}");
    assert_eq!(voltar(&scratch, line).run().expect(1).text(), "", "no words about no snapshot");
}
