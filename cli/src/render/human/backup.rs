//! The summary of a backup.

use voltar_engine::report::BackupReport;

use super::table::Table;
use super::{Human, View, ranges, size_cell, text};
use crate::outcome::{Backup, Partial};
use crate::size;

impl Human for Backup {
    fn human(&self, view: &View) -> String {
        let report = &self.report;
        let mut page = volumes(report).render();
        for volume in &report.volumes {
            if let Some(why) = &volume.degraded {
                let (name, why) = (text::clean(&volume.name), text::clean(why));
                page.push_str(&format!("{name}: no better change source: {why}\n"));
            }
            page.push_str(&ranges("unreadable in", &volume.name, &volume.unreadable));
        }
        page.push_str(&slowed(report));
        if view.verbose {
            page.push_str(&details(report));
        }
        page.push_str(&conclusion(self, view));
        page
    }
}

/// Of a backup without a snapshot there is nothing to show: what it means is said with the failure.
impl Human for Partial<Backup> {
    fn human(&self, _view: &View) -> String {
        String::new()
    }
}

fn volumes(report: &BackupReport) -> Table {
    let mut table =
        Table::new(&["volume", ">size", ">read", ">changed", ">zero", ">new", "changes from"]);
    for volume in &report.volumes {
        table.row([
            text::clean(&volume.name),
            size_cell(volume.size),
            size_cell(volume.read_bytes),
            size_cell(volume.changed_bytes),
            size_cell(volume.zero_bytes),
            size_cell(volume.new_bytes),
            text::clean(&volume.change_source),
        ]);
    }
    table
}

/// That the backup held back, if it did for as long as anybody notices.
fn slowed(report: &BackupReport) -> String {
    let Some(latency) = report.latency.filter(|latency| latency.slowed_s >= SLOWED_MIN_S) else {
        return String::new();
    };
    let guest = match latency.guest_write_max_ms {
        Some(ms) => format!(", the guest's writes up to {ms:.0} ms"),
        None => String::new(),
    };
    format!(
        "held back for {} to spare who uses the source: reads took up to {:.0} ms{guest}\n",
        text::seconds(latency.slowed_s),
        latency.read_max_ms,
    )
}

/// Seconds of holding back that are worth a line.
const SLOWED_MIN_S: f64 = 1.0;

fn details(report: &BackupReport) -> String {
    let mut lines = String::new();
    for volume in &report.volumes {
        lines.push_str(&format!(
            "{}: root {}, chunks of {}, {} reused, {} audited\n",
            text::clean(&volume.name),
            text::clean(&volume.root),
            size::human(u64::from(volume.chunk_size)),
            size::human(volume.reused_bytes),
            size::human(volume.audited_bytes),
        ));
    }
    if report.resumed_bytes > 0 {
        let resumed = size::human(report.resumed_bytes);
        lines.push_str(&format!("{resumed} taken over from an interrupted run\n"));
    }
    lines
}

fn conclusion(backup: &Backup, view: &View) -> String {
    let report = &backup.report;
    let what = match &report.snapshot {
        _ if backup.dry_run => "dry run, nothing written".to_string(),
        Some(id) => format!("snapshot {}", view.id(id)),
        None => "no snapshot".to_string(),
    };
    let parent = match &report.parent {
        Some(id) => format!(" on {}", view.id(id)),
        None => String::new(),
    };
    let read = report.volumes.iter().map(|volume| volume.read_bytes).sum();
    let stored = if backup.dry_run { "to store, found" } else { "stored" };
    let rate = text::rate(read, report.elapsed_s).map(|rate| format!(", {rate}"));
    format!(
        "{what}{parent}: {} {stored} in {}{}\n",
        size::human(report.stored_bytes),
        text::seconds(report.elapsed_s),
        rate.unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use voltar_engine::report::{ByteRange, LatencyReport, VolumeBackup};

    use super::super::fake::{ID, verbose, view};
    use super::*;

    fn backup() -> Backup {
        let volume = VolumeBackup {
            name: "vm\x1b7".into(),
            size: 8 << 30,
            chunk_size: 64 << 10,
            root: ID.into(),
            change_source: "dm-thin".into(),
            degraded: None,
            read_bytes: 1 << 30,
            changed_bytes: 512 << 20,
            zero_bytes: 0,
            new_bytes: 100 << 20,
            reused_bytes: 412 << 20,
            audited_bytes: 8 << 20,
            unreadable: Vec::new(),
        };
        Backup {
            report: BackupReport {
                snapshot: Some(ID.into()),
                parent: Some("fedcba9876543210".into()),
                archive: "vm7.vlt".into(),
                volumes: vec![volume],
                stored_bytes: 60 << 20,
                resumed_bytes: 4 << 20,
                elapsed_s: 2.0,
                latency: None,
                warnings: Vec::new(),
            },
            dry_run: false,
        }
    }

    #[test]
    fn a_short_table_and_a_conclusion() {
        assert_eq!(
            backup().human(&view()),
            "volume    size   read  changed  zero      new  changes from\n\
             vm\\x1b7  8 GiB  1 GiB  512 MiB   0 B  100 MiB  dm-thin\n\
             snapshot 0123456789ab on fedcba987654: 60 MiB stored in 2.0 s, 512 MiB/s\n"
        );
    }

    #[test]
    fn holes_and_degradations_are_told() {
        let mut backup = backup();
        backup.dry_run = true;
        backup.report.volumes[0].degraded = Some("pool changed".into());
        backup.report.volumes[0].unreadable = vec![ByteRange { offset: 4096, length: 512 }];
        let text = backup.human(&view());
        assert!(text.contains("vm\\x1b7: no better change source: pool changed\n"));
        assert!(text.contains("unreadable in vm\\x1b7:\n  0x1000..0x1200 (512 B)\n"));
        assert!(
            text.contains(
                "dry run, nothing written on fedcba987654: 60 MiB to store, found in 2.0 s"
            )
        );
    }

    #[test]
    fn holding_back_is_told_once_it_is_noticed() {
        let mut backup = backup();
        let latency = |slowed_s, guest_write_max_ms| {
            Some(LatencyReport { bound_ms: 50.0, read_max_ms: 81.4, guest_write_max_ms, slowed_s })
        };
        backup.report.latency = latency(0.9, None);
        assert!(!backup.human(&view()).contains("held back"));
        backup.report.latency = latency(2.5, Some(120.0));
        let line = "held back for 2.5 s to spare who uses the source: reads took up to 81 ms, the guest's \
                    writes up to 120 ms\n";
        assert!(backup.human(&view()).contains(line), "{}", backup.human(&view()));
    }

    #[test]
    fn verbose_shows_roots_and_whole_ids() {
        let text = backup().human(&verbose());
        assert!(text.contains(&format!("snapshot {ID}")));
        assert!(text.contains(&format!("root {ID}, chunks of 64 KiB, 412 MiB reused")));
        assert!(text.contains("4 MiB taken over from an interrupted run\n"));
    }
}
