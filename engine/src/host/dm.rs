//! Device mapper, by its command-line tool: what the kernel says of a mapping.

use std::path::{Path, PathBuf};

use super::command::Tool;
use crate::error::{Error, ErrorKind, Result};

/// The name that LVM gives the mapping of a volume: dashes of the names are doubled.
pub fn name_of(group: &str, volume: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
}

/// Where the mapping of this name has its device.
pub fn path_of(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// What a mapping of one target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The target's kind: `thin`, `thin-pool`, `snapshot`.
    pub kind: String,
    /// The words behind it.
    pub words: Vec<String>,
}

/// The table of a mapping.
///
/// # Errors
/// If there is no such mapping, or it has not exactly one target.
pub fn table(name: &str) -> Result<Target> {
    target(name, &Tool::new("dmsetup").args(["table", name]).answer()?)
}

/// The status of a mapping.
///
/// # Errors
/// As of [`table`].
pub fn status(name: &str) -> Result<Target> {
    target(name, &Tool::new("dmsetup").args(["status", "--noflush", name]).answer()?)
}

/// How often a mapping's device is open, by other mappings as well.
///
/// # Errors
/// With the tool's words.
pub fn open_count(name: &str) -> Result<u64> {
    let tool = Tool::new("dmsetup").args(["info", "--columns", "--noheadings", "-o", "open", name]);
    let answer = tool.answer()?;
    answer.trim().parse().map_err(|_| {
        Error::new(ErrorKind::Unsupported, "device mapper says something else than was expected")
            .on(name)
            .because(answer.trim().to_owned())
    })
}

/// Sends a message to a mapping of one target.
///
/// # Errors
/// With the tool's words.
pub fn message(name: &str, words: &str) -> Result<()> {
    Tool::new("dmsetup").args(["message", name, "0", words]).answer().map(drop)
}

fn target(name: &str, answer: &str) -> Result<Target> {
    let unknown = || {
        Error::new(ErrorKind::Unsupported, "device mapper says something else than was expected")
            .on(name)
            .because(answer.trim().to_owned())
    };
    let mut lines = answer.lines();
    let (Some(line), None) = (lines.next(), lines.next()) else { return Err(unknown()) };
    // Start, length, kind, and what the kind has to say.
    let mut words = line.split_whitespace().skip(2).map(str::to_owned);
    let kind = words.next().ok_or_else(unknown)?;
    Ok(Target { kind, words: words.collect() })
}

/// The state of a thin pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// The number that user space set last.
    pub transaction_id: u64,
    /// The root of the metadata snapshot, if there is one.
    pub held_root: Option<u64>,
    /// Why its metadata is not to be trusted or cannot be held, if so.
    pub trouble: Option<&'static str>,
}

impl PoolStatus {
    /// From the status of a mapping.
    ///
    /// # Errors
    /// `Unsupported` if it is not that of a pool.
    pub fn of(target: &Target) -> Result<PoolStatus> {
        let unknown = || {
            Error::new(ErrorKind::Unsupported, "this is not the status of a thin pool")
                .because(format!("{} {}", target.kind, target.words.join(" ")))
        };
        if target.kind != "thin-pool" {
            return Err(unknown());
        }
        let words: Vec<&str> = target.words.iter().map(String::as_str).collect();
        let without =
            |trouble| PoolStatus { transaction_id: 0, held_root: None, trouble: Some(trouble) };
        match words[..] {
            ["Fail"] => Ok(without("the pool has failed")),
            ["Error"] => Ok(without("the pool's state cannot be read")),
            [transaction, _, _, held, ref flags @ ..] => Ok(PoolStatus {
                transaction_id: transaction.parse().map_err(|_| unknown())?,
                held_root: match held {
                    "-" => None,
                    root => Some(root.parse().map_err(|_| unknown())?),
                },
                trouble: trouble(flags),
            }),
            _ => Err(unknown()),
        }
    }
}

fn trouble(flags: &[&str]) -> Option<&'static str> {
    [
        ("needs_check", "the pool's metadata needs a check (lvconvert --repair)"),
        ("ro", "the pool is read-only"),
        ("out_of_data_space", "the pool is out of space"),
        ("out_of_metadata_space", "the pool is out of space for metadata"),
    ]
    .into_iter()
    .find(|(flag, _)| flags.contains(flag))
    .map(|(_, trouble)| trouble)
}

/// How full a thick snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// So many of so many sectors hold what its origin was.
    Valid {
        /// Sectors in use.
        used: u64,
        /// Sectors that there are.
        total: u64,
    },
    /// What it reads as is nothing.
    Worthless(&'static str),
}

impl SnapshotStatus {
    /// From the status of a mapping.
    ///
    /// # Errors
    /// `Unsupported` if it is not that of a snapshot, or of one that is being merged.
    pub fn of(target: &Target) -> Result<SnapshotStatus> {
        let unknown = || {
            Error::new(ErrorKind::Unsupported, "this is not the status of a snapshot")
                .because(format!("{} {}", target.kind, target.words.join(" ")))
        };
        if target.kind != "snapshot" {
            return Err(unknown());
        }
        let words: Vec<&str> = target.words.iter().map(String::as_str).collect();
        match words[..] {
            ["Invalid"] => Ok(SnapshotStatus::Worthless("it is invalid: it ran full, or failed")),
            ["Overflow"] => Ok(SnapshotStatus::Worthless("it ran full")),
            ["Merge", "failed"] => Ok(SnapshotStatus::Worthless("merging it failed")),
            ["Unknown"] => Ok(SnapshotStatus::Worthless("its state is unknown")),
            [sectors, _] => {
                let (used, total) = sectors.split_once('/').ok_or_else(unknown)?;
                let number = |text: &str| text.parse().map_err(|_| unknown());
                Ok(SnapshotStatus::Valid { used: number(used)?, total: number(total)? })
            }
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(line: &str) -> Result<PoolStatus> {
        PoolStatus::of(&target("vg-pool-tpool", line)?)
    }

    fn snapshot(line: &str) -> Result<SnapshotStatus> {
        SnapshotStatus::of(&target("vg-snap", line)?)
    }

    #[test]
    fn dashes_of_names_are_doubled() {
        assert_eq!(name_of("a-b", "c_d-e"), "a--b-c_d--e");
    }

    #[test]
    fn a_pools_status() {
        let good =
            "0 98304 thin-pool 7 14/1024 200/768 - rw discard_passdown queue_if_no_space - 1024\n";
        let state = pool(good).unwrap();
        assert_eq!((state.transaction_id, state.held_root, state.trouble), (7, None, None));
        let held = pool(&good.replace(" - rw", " 62 rw")).unwrap();
        assert_eq!((held.held_root, held.trouble), (Some(62), None));
        for (word, trouble) in [
            ("ro", "read-only"),
            ("out_of_data_space", "out of space"),
            ("out_of_metadata_space", "for metadata"),
        ] {
            let state = pool(&good.replace("rw", word)).unwrap();
            assert!(state.trouble.unwrap().ends_with(trouble), "{word}");
        }
        let check = pool(&good.replace("space - 1024", "space needs_check 1024")).unwrap();
        assert!(check.trouble.unwrap().contains("needs a check"));
        assert!(pool("0 98304 thin-pool Fail").unwrap().trouble.unwrap().contains("failed"));
        assert!(pool("0 98304 thin-pool Error").unwrap().trouble.is_some());
        for other in ["", "0 1 linear", "0 1 thin-pool x y z -", "0 1 thin-pool 1 2/3", "a\nb"] {
            assert_eq!(pool(other).unwrap_err().kind(), ErrorKind::Unsupported, "{other}");
        }
    }

    #[test]
    fn a_snapshots_status() {
        let valid = SnapshotStatus::Valid { used: 16, total: 8192 };
        assert_eq!(snapshot("0 24576 snapshot 16/8192 16").unwrap(), valid);
        for word in ["Invalid", "Overflow", "Merge failed", "Unknown"] {
            let status = snapshot(&format!("0 24576 snapshot {word}")).unwrap();
            assert!(matches!(status, SnapshotStatus::Worthless(_)), "{word}");
        }
        for other in ["0 1 snapshot-merge 16/8192 16", "0 1 snapshot", "0 1 snapshot x/y z"] {
            assert_eq!(snapshot(other).unwrap_err().kind(), ErrorKind::Unsupported, "{other}");
        }
    }
}
