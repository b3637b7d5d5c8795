//! The snapshots of an archive, as a table.

use std::collections::BTreeMap;

use voltar_engine::report::{ListReport, SnapshotSummary};

use super::table::Table;
use super::{Human, View, losses, size_cell, text};

impl Human for ListReport {
    fn human(&self, view: &View) -> String {
        let lost = losses(&self.losses, view);
        if self.snapshots.is_empty() {
            return format!("no snapshots: {}\n{lost}", text::clean(&self.archive));
        }
        let mut table = Table::new(&["id", "time", "volumes", ">size", ">stored", "tags"]);
        for snapshot in &self.snapshots {
            table.row([
                view.id(&snapshot.id),
                view.time(snapshot.time_ns, &snapshot.time),
                volumes(snapshot).into(),
                size_cell(snapshot.volumes.iter().map(|volume| volume.size).sum()),
                size_cell(snapshot.stored_bytes),
                tags(&snapshot.tags).into(),
            ]);
        }
        table.render() + &lost
    }
}

fn volumes(snapshot: &SnapshotSummary) -> String {
    let names: Vec<_> = snapshot.volumes.iter().map(|volume| text::clean(&volume.name)).collect();
    names.join(", ")
}

/// Tags on one line.
pub(super) fn tags(tags: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = tags
        .iter()
        .map(|(key, value)| format!("{}={}", text::clean(key), text::clean(value)))
        .collect();
    pairs.join(" ")
}

#[cfg(test)]
mod tests {
    use voltar_engine::report::{Losses, VolumeSummary};

    use super::super::fake::{ID, verbose, view};
    use super::*;

    fn list() -> ListReport {
        let volume =
            |name: &str| VolumeSummary { name: name.into(), size: 4 << 30, root: ID.into() };
        let snapshot = SnapshotSummary {
            id: ID.into(),
            time: "2026-11-21T00:30:00Z".into(),
            time_ns: 1_795_221_000_000_000_000,
            parent: None,
            volumes: vec![volume("root"), volume("da\nta")],
            tags: BTreeMap::from([("why".into(), "up\x1b[1mgrade".into())]),
            stored_bytes: 3 << 20,
        };
        ListReport {
            archive: "vm.vlt".into(),
            snapshots: vec![snapshot],
            complete: true,
            losses: Losses::default(),
        }
    }

    #[test]
    fn times_are_local_and_foreign_text_is_harmless() {
        assert_eq!(
            list().human(&view()),
            "id            time                 volumes        size  stored  tags\n\
             0123456789ab  2026-11-21 01:30:00  root, da\\nta  8 GiB   3 MiB  why=up\\x1b[1mgrade\n"
        );
    }

    #[test]
    fn verbose_shows_whole_ids() {
        assert!(list().human(&verbose()).contains(ID));
    }

    #[test]
    fn an_empty_archive_is_no_empty_table() {
        let list = ListReport { snapshots: Vec::new(), ..list() };
        assert_eq!(list.human(&view()), "no snapshots: vm.vlt\n");
    }
}
