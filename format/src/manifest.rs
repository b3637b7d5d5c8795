//! The manifest: what a snapshot is, as JSON that a person can read when all else is lost.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{FormatError, Result, Structure};
use crate::limits::{
    ATTACHED_LEN_MAX, ATTACHED_MAX, MANIFEST_LEN_MAX, NAME_LEN_MAX, UNREADABLE_MAX, VOLUMES_MAX,
};
use crate::map::Shape;
use crate::units::{Id, SnapshotId};

/// One snapshot. Unknown fields are ignored; what a reader must not ignore gets a feature bit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// When it was made, nanoseconds since 1970-01-01 UTC, by the host's clock.
    pub time_ns: i64,
    /// The host it was made on.
    pub host: String,
    /// The program that made it and its version.
    pub program: String,
    /// The snapshot it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// Free key/value pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The volumes, at least one, with distinct names.
    pub volumes: Vec<Volume>,
    /// Attached files, with distinct names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<Attached>,
}

/// One volume of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name, 1..=255 bytes.
    pub name: String,
    /// Its size in bytes, at least 1.
    pub size: u64,
    /// Its chunk length in bytes.
    pub chunk_size: u32,
    /// The root of its map.
    pub root: Id,
    /// What it was read from, for people.
    pub source: String,
    /// Who told what changed: `none`, or the change source's kind.
    pub change_source: String,
    /// The proof: the identities the next backup must find unchanged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proof: BTreeMap<String, String>,
    /// Why a better change source was not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// Ranges that could not be read, as offset and length, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<(u64, u64)>,
    /// Bytes of chunks this snapshot added.
    #[serde(default)]
    pub new_bytes: u64,
}

/// A small file stored with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Its name, 1..=255 bytes.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its pieces in order.
    pub pieces: Vec<Id>,
}

/// What a session writes into its first segment, so that frames say where they belonged even if
/// no commit ever follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When the session began, nanoseconds since 1970-01-01 UTC.
    pub time_ns: i64,
    /// The host.
    pub host: String,
    /// The program and its version.
    pub program: String,
    /// The volumes; a chunk entry's `volume` is a position in this list.
    pub volumes: Vec<NoteVolume>,
}

/// One volume of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteVolume {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its chunk length in bytes.
    pub chunk_size: u32,
}

impl Manifest {
    /// The manifest's bytes.
    ///
    /// # Errors
    /// F-051 if it breaks a limit: the caller's input was too much.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()?;
        let bytes = serde_json::to_vec(self).map_err(|error| fail("F-050", error.to_string()))?;
        match bytes.len() <= MANIFEST_LEN_MAX as usize {
            true => Ok(bytes),
            false => Err(fail("F-051", format!("{} bytes of JSON are too many", bytes.len()))),
        }
    }

    /// The manifest in `bytes`.
    ///
    /// # Errors
    /// F-050 (not the JSON it should be), F-051 (a limit), F-052 (a volume without a valid shape).
    pub fn decode(bytes: &[u8]) -> Result<Manifest> {
        if bytes.len() > MANIFEST_LEN_MAX as usize {
            return Err(fail("F-051", format!("{} bytes of JSON are too many", bytes.len())));
        }
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|error| fail("F-050", error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    fn check(&self) -> Result<()> {
        if self.volumes.is_empty() || self.volumes.len() > VOLUMES_MAX {
            return Err(fail("F-051", format!("{} volumes", self.volumes.len())));
        }
        if self.attached.len() > ATTACHED_MAX {
            return Err(fail("F-051", format!("{} attached files", self.attached.len())));
        }
        check_names(self.volumes.iter().map(|volume| &volume.name))?;
        check_names(self.attached.iter().map(|attached| &attached.name))?;
        if let Some(tag) = self.tags.keys().find(|key| !is_name(key)) {
            return Err(fail("F-051", format!("tag {tag:?}: 1 to {NAME_LEN_MAX} bytes")));
        }
        self.volumes.iter().try_for_each(Volume::check)?;
        self.attached.iter().try_for_each(Attached::check)
    }
}

impl Volume {
    /// The shape of the volume's map.
    ///
    /// # Errors
    /// F-052.
    pub fn shape(&self) -> Result<Shape> {
        Shape::new(self.size, self.chunk_size).ok_or_else(|| {
            let problem =
                format!("{:?}: {} bytes, chunk {}", self.name, self.size, self.chunk_size);
            fail("F-052", problem)
        })
    }

    fn check(&self) -> Result<()> {
        self.shape()?;
        let mut end = 0u64;
        for (offset, len) in &self.unreadable {
            let next = offset.checked_add(*len).filter(|next| *next <= self.size);
            match next {
                Some(next) if *offset >= end && *len > 0 => end = next,
                _ => {
                    let problem = format!("{:?}: unreadable ranges out of order", self.name);
                    return Err(fail("F-051", problem));
                }
            }
        }
        match self.unreadable.len() <= UNREADABLE_MAX {
            true => Ok(()),
            false => Err(fail("F-051", format!("{:?}: too many unreadable ranges", self.name))),
        }
    }
}

impl Attached {
    fn check(&self) -> Result<()> {
        match self.size <= ATTACHED_LEN_MAX {
            true => Ok(()),
            false => Err(fail("F-051", format!("attached {:?}: {} bytes", self.name, self.size))),
        }
    }
}

/// Whether `text` may name a volume, a tag or an attached file: 1 to 255 bytes.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&text.len())
}

fn check_names<'a>(names: impl Iterator<Item = &'a String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !is_name(name) || !seen.insert(name) {
            return Err(fail("F-051", format!("name {name:?} is too long, empty or repeated")));
        }
    }
    Ok(())
}

fn fail(requirement: &'static str, problem: String) -> FormatError {
    FormatError::new(Structure::Manifest, requirement, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            time_ns: 1,
            host: "h".into(),
            program: "voltar 0".into(),
            parent: None,
            tags: BTreeMap::new(),
            volumes: vec![Volume {
                name: "disk".into(),
                size: 100,
                chunk_size: 4096,
                root: Id([1; 32]),
                source: "/x".into(),
                change_source: "none".into(),
                proof: BTreeMap::new(),
                degraded: None,
                unreadable: vec![(0, 10), (10, 90)],
                new_bytes: 100,
            }],
            attached: Vec::new(),
        }
    }

    fn attached(n: usize) -> Attached {
        Attached { name: format!("file {n}"), size: ATTACHED_LEN_MAX, pieces: Vec::new() }
    }

    fn refused(change: impl FnOnce(&mut Manifest)) -> &'static str {
        let mut manifest = manifest();
        change(&mut manifest);
        let json = serde_json::to_vec(&manifest).unwrap();
        Manifest::decode(&json).unwrap_err().requirement
    }

    #[test]
    fn round_trip() {
        let bytes = manifest().encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest());
    }

    #[test]
    fn volumes_are_found_by_their_names() {
        let mut manifest = manifest();
        manifest.volumes.push(Volume { name: "second".into(), ..manifest.volumes[0].clone() });
        assert_eq!(manifest.volume("second"), Some(&manifest.volumes[1]));
        assert_eq!(manifest.volume("third"), None);
    }

    #[test]
    fn what_is_at_its_limit_is_taken() {
        let mut manifest = manifest();
        let disk = manifest.volumes[0].clone();
        let named = |n| Volume { name: format!("{n:0>255}"), ..disk.clone() };
        manifest.volumes = (0..VOLUMES_MAX).map(named).collect();
        manifest.attached = (0..ATTACHED_MAX).map(attached).collect();
        manifest.tags.insert("x".repeat(NAME_LEN_MAX), String::new());
        let disk = &mut manifest.volumes[0];
        disk.size = 2 * UNREADABLE_MAX as u64;
        disk.unreadable = (0..UNREADABLE_MAX as u64).map(|n| (2 * n, 1)).collect();
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    }

    #[test]
    fn f_051_a_manifest_has_a_greatest_length() {
        let of_len = |len: usize| {
            let empty =
                serde_json::to_vec(&Manifest { host: String::new(), ..manifest() }).unwrap();
            Manifest { host: "x".repeat(len - empty.len()), ..manifest() }
        };
        let longest = of_len(MANIFEST_LEN_MAX as usize);
        assert_eq!(Manifest::decode(&longest.encode().unwrap()).unwrap(), longest);
        let longer = of_len(MANIFEST_LEN_MAX as usize + 1);
        assert_eq!(longer.encode().unwrap_err().requirement, "F-051");
        let longer = serde_json::to_vec(&longer).unwrap();
        assert_eq!(Manifest::decode(&longer).unwrap_err().requirement, "F-051");
    }

    #[test]
    fn f_050_only_json_of_the_right_kind() {
        for bytes in [&b""[..], b"{}", b"[1]", b"\xff", b"{\"volumes\":[]"] {
            assert_eq!(Manifest::decode(bytes).unwrap_err().requirement, "F-050");
        }
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let mut json = serde_json::to_value(manifest()).unwrap();
        json["later"] = serde_json::json!([1, 2]);
        Manifest::decode(json.to_string().as_bytes()).unwrap();
    }

    #[test]
    fn f_051_limits() {
        assert_eq!(refused(|m| m.volumes.clear()), "F-051");
        assert_eq!(refused(|m| m.volumes[0].name.clear()), "F-051");
        assert_eq!(refused(|m| m.volumes[0].name = "x".repeat(256)), "F-051");
        assert_eq!(refused(|m| m.volumes.push(m.volumes[0].clone())), "F-051");
        assert_eq!(refused(|m| m.volumes[0].unreadable.push((50, 1))), "F-051");
        assert_eq!(refused(|m| m.volumes[0].unreadable = vec![(99, 2)]), "F-051");
        assert_eq!(refused(|m| m.volumes[0].unreadable = vec![(9, u64::MAX)]), "F-051");
        let numbered = |m: &mut Manifest| {
            let disk = m.volumes[0].clone();
            let named = |n| Volume { name: format!("{n}"), ..disk.clone() };
            m.volumes = (0..=VOLUMES_MAX).map(named).collect();
        };
        assert_eq!(refused(numbered), "F-051");
        assert_eq!(refused(|m| m.attached = (0..=ATTACHED_MAX).map(attached).collect()), "F-051");
        assert_eq!(refused(|m| m.attached = vec![attached(1), attached(1)]), "F-051");
        let longer = Attached { size: ATTACHED_LEN_MAX + 1, ..attached(0) };
        assert_eq!(refused(|m| m.attached.push(longer)), "F-051");
        for tag in [String::new(), "x".repeat(NAME_LEN_MAX + 1)] {
            assert_eq!(refused(|m| m.tags = BTreeMap::from([(tag, String::new())])), "F-051");
        }
        assert_eq!(refused(|m| m.volumes[0].unreadable = vec![(0, 10), (9, 1)]), "F-051");
        assert_eq!(refused(|m| m.volumes[0].unreadable = vec![(0, 0)]), "F-051");
        let too_many = |m: &mut Manifest| {
            m.volumes[0].size = 1 << 20;
            m.volumes[0].unreadable = (0..=UNREADABLE_MAX as u64).map(|n| (2 * n, 1)).collect();
        };
        assert_eq!(refused(too_many), "F-051");
    }

    #[test]
    fn f_052_volumes_have_a_shape() {
        assert_eq!(refused(|m| m.volumes[0].chunk_size = 0), "F-052");
        assert_eq!(refused(|m| m.volumes[0].chunk_size = 5000), "F-052");
        assert_eq!(refused(|m| m.volumes[0].size = 0), "F-052");
    }
}
