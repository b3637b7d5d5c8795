//! What a salvage found, and what it did not.

use voltar_engine::report::{SalvageReport, SalvagedSnapshot};

use super::{Human, View, ranges, text};

impl Human for SalvageReport {
    fn human(&self, view: &View) -> String {
        let mut page: String =
            self.snapshots.iter().map(|snapshot| lines(snapshot, view)).collect();
        for place in &self.lost_commits {
            let place = text::range(place.offset, place.length);
            page.push_str(&format!("lost commit at {place}\n"));
        }
        if self.unnamed > 0 {
            let count = text::count(self.unnamed, "piece");
            page.push_str(&format!("{count} of the log belonged to nobody knows which volume\n"));
        }
        if self.complete && self.snapshots.iter().any(|snapshot| !snapshot.committed) {
            page.push_str(
                "what has no commit is an unfinished backup's, unless the file was cut short; nothing \
                 else is missing\n",
            );
        }
        let verdict = if self.complete { "complete" } else { "INCOMPLETE" };
        page.push_str(&format!(
            "{verdict}  {}: {}, {} in {}\n",
            text::clean(&self.new_archive),
            text::count(self.snapshots.len() as u64, "snapshot"),
            text::count(self.frames, "frame"),
            text::seconds(self.elapsed_s),
        ));
        page
    }
}

fn lines(snapshot: &SalvagedSnapshot, view: &View) -> String {
    let time = view.time(snapshot.time_ns, &snapshot.time);
    let id = snapshot.id.as_deref().map_or("nothing".into(), |id| view.id(id));
    let was = match &snapshot.original {
        None => ", without a commit".to_owned(),
        Some(original) if snapshot.id.as_ref() == Some(original) => String::new(),
        Some(original) => format!(", was {}", view.id(original)),
    };
    let mut page = format!("{id}  {time}{was}\n");
    for volume in &snapshot.volumes {
        page.push_str(&ranges("missing of volume", &volume.name, &volume.missing));
    }
    for file in &snapshot.missing_files {
        page.push_str(&format!("missing attached file {}\n", text::clean(file)));
    }
    page
}

#[cfg(test)]
mod tests {
    use voltar_engine::report::{ByteRange, SalvagedVolume};

    use super::super::fake::{ID, view};
    use super::*;

    fn snapshot(original: Option<&str>, missing: Vec<ByteRange>) -> SalvagedSnapshot {
        SalvagedSnapshot {
            id: Some(ID.into()),
            original: original.map(str::to_owned),
            committed: original.is_some(),
            time: "2026-11-21T00:30:00Z".into(),
            time_ns: 1_795_221_000_000_000_000,
            volumes: vec![SalvagedVolume { name: "vm\x07".into(), size: 1 << 20, missing }],
            missing_files: Vec::new(),
        }
    }

    #[test]
    fn what_is_missing_stands_under_its_snapshot() {
        let mut lost = snapshot(Some("fedcba"), vec![ByteRange { offset: 4096, length: 8192 }]);
        lost.missing_files.push("vm.conf".into());
        let report = SalvageReport {
            archive: "old.vlt".into(),
            new_archive: "new.vlt".into(),
            complete: false,
            frames: 7,
            snapshots: vec![snapshot(Some(ID), Vec::new()), lost, snapshot(None, Vec::new())],
            lost_commits: vec![ByteRange { offset: 4096, length: 8192 }],
            unnamed: 1,
            elapsed_s: 2.0,
        };
        assert_eq!(
            report.human(&view()),
            "0123456789ab  2026-11-21 01:30:00\n\
             0123456789ab  2026-11-21 01:30:00, was fedcba\n\
             missing of volume vm\\x07:\n\
             \x20 0x1000..0x3000 (8 KiB)\n\
             missing attached file vm.conf\n\
             0123456789ab  2026-11-21 01:30:00, without a commit\n\
             lost commit at 0x1000..0x3000 (8 KiB)\n\
             1 piece of the log belonged to nobody knows which volume\n\
             INCOMPLETE  new.vlt: 3 snapshots, 7 frames in 2.0 s\n"
        );
    }
}
