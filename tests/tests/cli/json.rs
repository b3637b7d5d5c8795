//! The fields of each command's JSON object: names are a contract, and a new one is added here.

use std::collections::BTreeSet;

use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::data::disk;
use voltar_tests::{Scratch, Voltar};

#[track_caller]
fn assert_fields(object: &Value, contract: &[&str]) {
    let got: BTreeSet<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    let missing: Vec<_> = contract.iter().filter(|field| !got.contains(**field)).collect();
    assert!(missing.is_empty(), "missing {missing:?} in {object}");
}

fn shelf() -> Scratch {
    let scratch = Scratch::new();
    scratch.write("disk", &disk(2, 800_000));
    run(&scratch, "backup disk a.voltar --tag k=v --attach disk");
    scratch.patch("disk", 0, b"changed");
    scratch
}

fn run(scratch: &Scratch, line: &str) -> Value {
    Voltar::new(scratch).args(words(line)).json()
}

#[test]
fn fields_of_backup_and_restore() {
    let scratch = shelf();
    let backup = run(&scratch, "backup disk a.voltar");
    let fields = ["snapshot", "parent", "archive", "volumes", "stored_bytes", "elapsed_s"];
    assert_fields(&backup, &fields);
    assert_fields(&backup, &["resumed_bytes", "warnings", "dry_run"]);
    let volume = &backup["volumes"][0];
    let fields = [
        "name",
        "size",
        "chunk_size",
        "root",
        "change_source",
        "degraded",
        "read_bytes",
        "changed_bytes",
        "zero_bytes",
        "new_bytes",
        "reused_bytes",
    ];
    assert_fields(volume, &fields);
    assert!(volume["degraded"].is_null());
    assert_eq!(backup["archive"], "a.voltar");
    let restore = run(&scratch, "restore a.voltar out");
    assert_fields(&restore, &["snapshot", "volumes", "read_back", "elapsed_s"]);
    assert_eq!(restore["snapshot"], backup["snapshot"]);
    assert_fields(&restore, &["directory", "attached", "start"]);
    let folder = run(&scratch, "restore a.voltar@latest~1 folder/");
    assert_fields(&folder["attached"][0], &["name", "path", "bytes", "complete"]);
    assert_eq!(folder["directory"], "folder");
    let restored = &restore["volumes"][0];
    let fields = ["name", "target", "size", "written_bytes", "zeroed_bytes", "kept_bytes", "root"];
    assert_fields(restored, &fields);
    assert_eq!(restored["root"], volume["root"]);
    assert_eq!(restored["target"], "out");
}

#[test]
fn fields_of_verify() {
    let scratch = shelf();
    let verify = run(&scratch, "verify a.voltar");
    let fields =
        ["archive", "ok", "snapshots", "segments", "frames", "bytes", "damaged", "elapsed_s"];
    assert_fields(&verify, &fields);
    assert_eq!(verify["damaged"], serde_json::json!([]));
    let middle = scratch.len("a.voltar") / 3;
    scratch.flip("a.voltar", middle, 3);
    let ran = Voltar::new(&scratch).args(words("verify a.voltar --json")).run().expect(3);
    let object = ran.json();
    assert_eq!((&object["ok"], &object["error"]["code"]), (&false.into(), &3.into()));
    let damage = &object["damaged"][0];
    assert_fields(damage, &["structure", "offset", "length", "error", "affects"]);
    assert_fields(&damage["affects"][0], &["snapshot", "volume", "offset", "length"]);
    let (offset, length) = (damage["offset"].as_u64().unwrap(), damage["length"].as_u64().unwrap());
    assert!((offset..offset + length).contains(&middle), "{damage} for {middle}");
}

#[test]
fn fields_of_list_show_diff_and_inspect() {
    let scratch = shelf();
    let second = run(&scratch, "backup disk a.voltar");
    let list = run(&scratch, "list a.voltar");
    assert_fields(&list, &["archive", "snapshots"]);
    let snapshots = list["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 2);
    for snapshot in snapshots {
        assert_fields(snapshot, &["id", "time", "parent", "volumes", "tags", "stored_bytes"]);
        assert_fields(&snapshot["volumes"][0], &["name", "size", "root"]);
    }
    assert_eq!(snapshots[1]["id"], second["snapshot"], "newest last");
    assert_eq!(snapshots[1]["parent"], snapshots[0]["id"]);
    assert_eq!(snapshots[0]["tags"], serde_json::json!({"k": "v"}));
    assert!(snapshots[0]["time_ns"].as_i64() < snapshots[1]["time_ns"].as_i64());

    let show = run(&scratch, "show a.voltar@latest~1");
    assert_fields(&show, &["archive", "id", "time", "parent", "volumes", "tags", "attached"]);
    assert_fields(&show["details"][0], &["change_source", "proof", "chunk_size", "root", "size"]);
    assert_eq!(show["id"], snapshots[0]["id"]);
    assert_eq!(show["attached"][0]["name"], "disk");

    let diff = run(&scratch, "diff a.voltar latest~1 latest");
    assert_fields(&diff, &["volume", "chunk_size", "extents"]);
    assert_fields(&diff["extents"][0], &["offset", "length", "kind"]);

    let inspect = run(&scratch, "inspect a.voltar");
    assert_fields(&inspect, &["archive", "file_len", "format_version", "records"]);
    assert_eq!(inspect["file_len"], scratch.len("a.voltar"));
    let records = inspect["records"].as_array().unwrap();
    let mut end = 0;
    for record in records {
        assert_fields(record, &["kind", "offset", "length"]);
        assert_eq!(record["offset"], end, "records follow one another: {record}");
        end += record["length"].as_u64().unwrap();
    }
    assert_eq!(end, scratch.len("a.voltar"), "records cover the file");
    let commits = records.iter().filter(|record| record["kind"] == "commit").count();
    assert_eq!(commits, 2);
}

#[test]
fn fields_of_salvage_name_what_is_missing() {
    let scratch = shelf();
    let whole = run(&scratch, "inspect a.voltar --salvage whole.voltar");
    let fields = ["archive", "new_archive", "complete", "frames", "snapshots", "lost_commits"];
    assert_fields(&whole, &fields);
    assert_eq!(whole["complete"], true);
    let id = |name: &str| run(&scratch, &format!("list {name}"))["snapshots"][0]["id"].clone();
    assert_eq!(id("whole.voltar"), id("a.voltar"));

    // In the first frame of chunks, behind the note.
    scratch.flip("a.voltar", 20_000, 3);
    let line = "inspect a.voltar --salvage rest.voltar --json";
    let rest = Voltar::new(&scratch).args(words(line)).run().expect(3).json();
    assert_eq!((&rest["complete"], &rest["error"]["code"]), (&false.into(), &3.into()));
    let made = &rest["snapshots"][0];
    assert_fields(made, &["id", "original", "committed", "time", "volumes", "missing_files"]);
    assert_fields(&made["volumes"][0], &["name", "size", "missing"]);
    assert_fields(&made["volumes"][0]["missing"][0], &["offset", "length"]);
    assert_eq!(made["original"], id("a.voltar"));
    assert_eq!(made["id"], id("rest.voltar"));
    assert_eq!(run(&scratch, "verify rest.voltar")["ok"], true);
}
