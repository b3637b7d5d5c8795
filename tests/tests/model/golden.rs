//! The archives that were put aside in `format/vectors`: what is read once must be read for ever.
//!
//! `cargo test --test model -- --ignored make_missing_vectors` writes those that do not exist yet;
//! none is ever written again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use voltar_engine::archive::open::Archive;
use voltar_engine::error::{Error, ErrorKind};

use crate::forge::{Disk, Forge};
use crate::rejects::{Vector, all, kept};
use crate::rig::{back_up, disk, holding, open, read_volume, snapshots, verify, verify_as};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/vectors")
}

/// What the engine makes of an archive.
struct Finding {
    verdict: &'static str,
    requirements: BTreeSet<String>,
    /// Everything that was said, for when the test fails.
    said: Vec<String>,
    /// What of it restores: snapshot, volume, bytes.
    restored: BTreeMap<(String, String), Vec<u8>>,
    /// The roots of these.
    roots: BTreeMap<(String, String), String>,
    /// How many volumes do not.
    lost: usize,
}

fn examine(bytes: &[u8]) -> Finding {
    let mut finding = Finding {
        verdict: "ok",
        requirements: BTreeSet::new(),
        said: Vec::new(),
        restored: BTreeMap::new(),
        roots: BTreeMap::new(),
        lost: 0,
    };
    let home = holding(bytes);
    match open(&home) {
        Err(error) => finding.take(&error),
        Ok(archive) => finding.examine(&archive),
    }
    assert!(home.bytes() == bytes, "reading changed the archive");
    finding
}

impl Finding {
    fn say(&mut self, text: String) {
        // Requirements are named in brackets: "(F-023)".
        for piece in text.split('(').skip(1) {
            let id = piece.split(')').next().unwrap_or_default();
            if id.len() >= 4 && id.as_bytes()[1] == b'-' {
                self.requirements.insert(id.to_owned());
            }
        }
        self.said.push(text);
    }

    /// Whether the requirement was named. That something is no archive at all is said in words.
    fn names(&self, requirement: Option<&str>) -> bool {
        let is_named = requirement.is_none_or(|id| self.requirements.contains(id));
        is_named || self.verdict == "not-an-archive"
    }

    fn take(&mut self, error: &Error) {
        self.say(format!("{error:?}"));
        let verdict = match error.kind() {
            ErrorKind::NotAnArchive => "not-an-archive",
            ErrorKind::UnsupportedFormat => "unsupported",
            ErrorKind::Damaged => "damaged",
            kind => panic!("an archive's bytes cannot cause {kind:?}: {error:?}"),
        };
        if self.verdict == "ok" || verdict == "unsupported" {
            self.verdict = verdict;
        }
    }

    fn examine(&mut self, archive: &Archive) {
        match verify(archive) {
            Err(error) => self.take(&error),
            Ok(report) => {
                assert_eq!(report.ok, report.damaged.is_empty());
                for damage in report.damaged {
                    // A record of an unknown kind is listed among the damages, by its requirement.
                    let lacks = damage.error.contains("(F-015)");
                    match self.verdict {
                        "unsupported" => {}
                        _ if lacks => self.verdict = "unsupported",
                        _ => self.verdict = "damaged",
                    }
                    self.say(format!("{}: {}", damage.structure, damage.error));
                }
            }
        }
        for snapshot in archive.snapshots() {
            let snapshot = match snapshot {
                Ok(snapshot) => snapshot,
                Err(error) => return self.take(&error),
            };
            for volume in &snapshot.manifest.volumes {
                match read_volume(archive, volume) {
                    Ok(bytes) => {
                        let key = (snapshot.id.to_hex(), volume.name.clone());
                        self.roots.insert(key.clone(), volume.root.to_hex());
                        self.restored.insert(key, bytes);
                    }
                    Err(error) => {
                        self.lost += 1;
                        self.take(&error);
                    }
                }
            }
        }
    }
}

/// Every forged archive gets the verdict that the format gives it, and no reader is ever handed a
/// byte that was not stored.
#[test]
fn forged_archives_get_their_verdicts() {
    let mut wrong = Vec::new();
    let (mut accepted, mut rejected) = (0, 0);
    for vector in all() {
        match vector.folder {
            "accept" => accepted += 1,
            _ => rejected += 1,
        }
        wrong.extend(judge(&vector));
    }
    println!("{accepted} accepted, {rejected} rejected");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is wrong with what the engine makes of a vector.
fn judge(vector: &Vector) -> Option<String> {
    let found = examine(&vector.bytes);
    let name = &vector.name;
    let named = found.names(vector.requirement);
    if found.verdict != vector.verdict || !named {
        let expected = vector.requirement.unwrap_or_default();
        let (verdict, said) = (vector.verdict, &found.said);
        return Some(format!(
            "{name}: expected {verdict} {expected}, found {} {said:?}",
            found.verdict
        ));
    }
    let right: Vec<(&str, Vec<u8>)> =
        vector.disks.iter().flatten().map(|disk: &Disk| (disk.name, disk.bytes())).collect();
    // A node that lies may describe other contents, and did so when it was named.
    let lies = vector.name.starts_with("node_") || right.is_empty();
    for ((_, volume), bytes) in &found.restored {
        if !lies && !right.iter().any(|(name, right)| name == volume && right == bytes) {
            return Some(format!("{name}: {volume} restores to bytes that were never stored"));
        }
    }
    if vector.folder == "accept" && (found.lost > 0 || found.restored.len() < right.len()) {
        return Some(format!("{name}: only {} volumes restore", found.restored.len()));
    }
    None
}

/// Vectors and their sidecars, checked as they lie.
#[test]
fn every_vector_in_the_folder_keeps_its_verdict() {
    let mut count = 0;
    let mut total = 0;
    for (path, sidecar) in vectors() {
        count += 1;
        let bytes = std::fs::read(&path).unwrap();
        total += bytes.len();
        let name = path.display();
        let found = examine(&bytes);
        assert_eq!(found.verdict, sidecar["verdict"], "{name}: {:?}", found.said);
        let requirement = sidecar["requirement"].as_str();
        let named = found.names(requirement);
        assert!(named, "{name}: {requirement:?} is not named: {:?}", found.said);
        assert!(!sidecar["reason"].as_str().unwrap().is_empty(), "{name}");
        check_restores(&path, &sidecar, &found);
        // Accepted archives are whole by both ways of verifying, and can be appended to.
        if sidecar["verdict"] == "ok" && path.parent().unwrap().ends_with("accept") {
            check_appends(&path, &bytes);
        }
    }
    assert!(count >= kept().len(), "{count} of {} vectors: make_missing_vectors", kept().len());
    assert!(total < 3 << 20, "{total} bytes of vectors");
    println!("{count} vectors, {total} bytes");
}

fn check_restores(path: &Path, sidecar: &Value, found: &Finding) {
    let name = path.display();
    let none = Vec::new();
    let expected = sidecar["snapshots"].as_array().unwrap_or(&none);
    let mut volumes = 0;
    for snapshot in expected {
        let id = snapshot["id"].as_str().unwrap();
        for volume in snapshot["volumes"].as_array().unwrap() {
            let key = (id.to_owned(), volume["name"].as_str().unwrap().to_owned());
            let bytes = found.restored.get(&key);
            let bytes = bytes.unwrap_or_else(|| panic!("{name}: {key:?} does not restore"));
            assert_eq!(volume["size"].as_u64(), Some(bytes.len() as u64), "{name}: {key:?}");
            assert_eq!(volume["root"], found.roots[&key].as_str(), "{name}: {key:?}");
            assert_eq!(volume["b3"], blake3::hash(bytes).to_hex().as_str(), "{name}: {key:?}");
            volumes += 1;
        }
    }
    assert_eq!(volumes, found.restored.len(), "{name}: more restores than the sidecar knows");
}

fn check_appends(path: &Path, bytes: &[u8]) {
    let name = path.display();
    let home = holding(bytes);
    let archive = open(&home).unwrap();
    let stored = verify_as(&archive, true).unwrap();
    assert!(stored.ok, "{name}: {:?}", stored.damaged);
    let before = snapshots(&archive).unwrap().len();
    let content = b"appended to an old archive".repeat(300);
    back_up(&home, &[disk(&content)]).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let archive = open(&home).unwrap();
    let all = snapshots(&archive).unwrap();
    assert_eq!(all.len(), before + 1, "{name}");
    let newest = all.last().unwrap().manifest.volume("disk").unwrap();
    assert!(read_volume(&archive, newest).unwrap() == content, "{name}");
    let report = verify(&archive).unwrap();
    assert!(report.ok, "{name}: after an append: {:?}", report.damaged);
}

fn vectors() -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for kind in ["accept", "reject"] {
        for entry in std::fs::read_dir(folder().join(kind)).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some("voltar") => {
                    let sidecar = std::fs::read(path.with_extension("json"));
                    let sidecar = sidecar.unwrap_or_else(|_| panic!("{} alone", path.display()));
                    found.push((path, serde_json::from_slice(&sidecar).unwrap()));
                }
                Some("json") => assert!(path.with_extension("voltar").exists(), "{path:?} alone"),
                _ => panic!("{} is no vector", path.display()),
            }
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

/// Every requirement on bytes that a whole file can break has a vector.
#[test]
fn every_requirement_has_a_vector() {
    let document = include_str!("../../../format/FORMAT.md");
    let named: BTreeSet<&str> = kept().iter().filter_map(|vector| vector.requirement).collect();
    let mut missing = Vec::new();
    for line in document.lines() {
        let Some(id) = line.strip_prefix("| F-").and_then(|rest| rest.split(' ').next()) else {
            continue;
        };
        let id = format!("F-{id}");
        // What only a writer refuses, behind the last commit, is in the crash table.
        if id == "F-036" || id == "F-044" {
            continue;
        }
        if !named.contains(id.as_str()) {
            missing.push(id);
        }
    }
    assert!(missing.is_empty(), "no vector breaks {missing:?}");
}

/// The same program makes the same bytes.
#[test]
fn forging_is_deterministic() {
    for (one, other) in all().iter().zip(all()) {
        assert!(one.bytes == other.bytes, "{}", one.name);
    }
    assert!(Forge::sound().bytes.len() == 4096);
}

/// Writes what is missing, and nothing else.
#[test]
#[ignore = "writes to the source tree"]
fn make_missing_vectors() {
    let mut made = 0;
    for vector in kept() {
        let wrong = judge(&vector);
        assert!(wrong.is_none(), "{wrong:?}");
        let path = folder().join(vector.folder).join(&vector.name).with_extension("voltar");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if path.exists() {
            continue;
        }
        std::fs::write(&path, &vector.bytes).unwrap();
        let mut text = serde_json::to_string_pretty(&sidecar(&vector)).unwrap();
        text.push('\n');
        std::fs::write(path.with_extension("json"), text).unwrap();
        made += 1;
    }
    println!("{made} vectors made");
}

fn sidecar(vector: &Vector) -> Value {
    let found = examine(&vector.bytes);
    let mut by_snapshot: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (key, bytes) in &found.restored {
        let (snapshot, volume) = key;
        by_snapshot.entry(snapshot).or_default().push(json!({
            "name": volume,
            "size": bytes.len(),
            "root": found.roots[key],
            "b3": blake3::hash(bytes).to_hex().as_str(),
        }));
    }
    let snapshots: Vec<Value> = by_snapshot
        .into_iter()
        .map(|(id, volumes)| json!({ "id": id, "volumes": volumes }))
        .collect();
    let mut sidecar = json!({
        "verdict": vector.verdict,
        "reason": vector.reason,
        "made": "tests/tests/model/rejects.rs, by make_missing_vectors",
        "snapshots": snapshots,
    });
    if let Some(requirement) = vector.requirement {
        sidecar["requirement"] = requirement.into();
    }
    sidecar
}
