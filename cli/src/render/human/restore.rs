//! The summary of a restore.

use voltar_engine::report::{AttachedRestore, RestoreReport, VolumeRestore};

use super::table::Table;
use super::{Human, View, ranges, size_cell, text};
use crate::outcome::{Partial, Restore};

impl Human for Restore {
    fn human(&self, view: &View) -> String {
        let report = &self.report;
        let (volumes, attached) = (volumes(report, view), attached(report));
        format!("{volumes}{attached}{}{}", conclusion(self, view), start(report))
    }
}

impl Human for Partial<Restore> {
    fn human(&self, view: &View) -> String {
        let report = &self.0.report;
        if report.volumes.is_empty() || self.0.dry_run {
            return String::new();
        }
        let complete: Vec<_> = report.volumes.iter().filter(|volume| volume.complete).collect();
        let names: Vec<_> = complete.iter().map(|volume| text::clean(&volume.name)).collect();
        let names = if names.is_empty() { "none".to_string() } else { names.join(", ") };
        let time = text::seconds(report.elapsed_s);
        format!("{}stopped after {time}; complete: {names}\n", volumes(report, view))
    }
}

fn volumes(report: &RestoreReport, view: &View) -> String {
    let mut page = table(report).render();
    for volume in &report.volumes {
        page.push_str(&ranges("unreadable at backup in", &volume.name, &volume.unreadable));
        page.push_str(&ranges("damaged in the archive of", &volume.name, &volume.damaged));
        if volume.damaged_unlisted > 0 {
            let more = text::count(volume.damaged_unlisted, "more range");
            page.push_str(&format!("  and {more}, {} in all\n", size_cell(volume.damaged_bytes)));
        }
        if view.verbose {
            let (name, root) = (text::clean(&volume.name), text::clean(&volume.root));
            let method = text::clean(&volume.zero_method);
            page.push_str(&format!("{name}: root {root}, zeroes by {method}\n"));
        }
    }
    page
}

fn table(report: &RestoreReport) -> Table {
    let mut table = Table::new(&["volume", "target", ">size", ">written", ">zeroed", ">kept"]);
    for volume in &report.volumes {
        table.row([
            text::clean(&volume.name),
            text::clean(&volume.target),
            size_cell(volume.size),
            size_cell(volume.written_bytes),
            size_cell(volume.zeroed_bytes),
            size_cell(volume.kept_bytes),
        ]);
    }
    table
}

fn attached(report: &RestoreReport) -> String {
    let line = |file: &AttachedRestore| {
        let (path, size) = (text::clean(&file.path), size_cell(file.bytes));
        let state = if file.complete { "" } else { ", not restored: damaged in the archive" };
        format!("attached: {path} ({size}{state})\n")
    };
    report.attached.iter().map(line).collect()
}

/// How the machine is started whose disks are in the folder, or else what the disks are.
fn start(report: &RestoreReport) -> String {
    match (&report.directory, &report.start[..]) {
        (None, _) => String::new(),
        (Some(_), []) => report.volumes.iter().map(disk).collect(),
        (Some(_), commands) => {
            let line = |command: &String| format!("  {}\n", text::clean(command));
            format!("to start it:\n{}", commands.iter().map(line).collect::<String>())
        }
    }
}

fn disk(volume: &VolumeRestore) -> String {
    let (path, size) = (text::clean(&volume.target), size_cell(volume.size));
    format!("disk: {path}, {size}\n")
}

fn conclusion(restore: &Restore, view: &View) -> String {
    let report = &restore.report;
    let id = view.id(&report.snapshot);
    let time = text::seconds(report.elapsed_s);
    if restore.dry_run {
        return format!("dry run of snapshot {id}: nothing written, {time}\n");
    }
    let size = report.volumes.iter().map(|volume| volume.size).sum();
    let rate = text::rate(size, report.elapsed_s).map(|rate| format!(", {rate}"));
    let proof = if report.read_back { ", read back and proven equal" } else { "" };
    format!("snapshot {id} restored in {time}{}{proof}\n", rate.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use voltar_engine::report::ByteRange;

    use super::super::fake::{ID, view};
    use super::*;

    fn restore() -> Restore {
        let volume = VolumeRestore {
            name: "vm7".into(),
            target: "/dev/vg/vm7".into(),
            size: 8 << 30,
            complete: true,
            written_bytes: 1 << 30,
            zeroed_bytes: 7 << 30,
            kept_bytes: 0,
            root: ID.into(),
            zero_method: "write-zeroes".into(),
            unreadable: Vec::new(),
            damaged: vec![ByteRange { offset: 0, length: 65536 }],
            damaged_unlisted: 0,
            damaged_bytes: 65536,
        };
        Restore {
            report: RestoreReport {
                snapshot: ID.into(),
                volumes: vec![volume],
                directory: None,
                attached: Vec::new(),
                start: Vec::new(),
                read_back: true,
                elapsed_s: 16.0,
                warnings: Vec::new(),
            },
            dry_run: false,
        }
    }

    #[test]
    fn a_table_the_losses_and_a_conclusion() {
        assert_eq!(
            restore().human(&view()),
            "volume  target        size  written  zeroed  kept\n\
             vm7     /dev/vg/vm7  8 GiB    1 GiB   7 GiB   0 B\n\
             damaged in the archive of vm7:\n\
             \x20 0x0..0x10000 (64 KiB)\n\
             snapshot 0123456789ab restored in 16 s, 512 MiB/s, read back and proven equal\n"
        );
    }

    #[test]
    fn a_folder_ends_with_how_the_machine_is_started() {
        let mut restore = restore();
        let report = &mut restore.report;
        report.directory = Some("vm7".into());
        let file = |name: &str, complete| AttachedRestore {
            name: name.into(),
            path: format!("vm7/{name}"),
            bytes: 2048,
            complete,
        };
        report.attached = vec![file("qemu.json", true), file("notes", false)];
        let text = restore.human(&view());
        let attached = "attached: vm7/qemu.json (2 KiB)\n\
                        attached: vm7/notes (2 KiB, not restored: damaged in the archive)\n";
        assert!(text.contains(attached), "{text}");
        assert!(text.ends_with("\ndisk: /dev/vg/vm7, 8 GiB\n"), "{text}");
        restore.report.start = vec!["qemu-system-x86_64 -m 1M".into()];
        let text = restore.human(&view());
        assert!(text.ends_with("\nto start it:\n  qemu-system-x86_64 -m 1M\n"), "{text}");
    }

    #[test]
    fn what_is_not_listed_is_counted() {
        let mut restore = restore();
        let volume = &mut restore.report.volumes[0];
        (volume.damaged_unlisted, volume.damaged_bytes) = (904, 5000 << 16);
        let text = restore.human(&view());
        let counted = "  0x0..0x10000 (64 KiB)\n  and 904 more ranges, 312 MiB in all\n";
        assert!(text.contains(counted), "{text}");
    }

    #[test]
    fn what_was_stopped_says_what_is_complete() {
        let mut restore = restore();
        let half = VolumeRestore {
            name: "data".into(),
            complete: false,
            ..restore.report.volumes[0].clone()
        };
        restore.report.volumes.push(half);
        let text = Partial(restore).human(&view());
        assert!(text.starts_with("volume  target "), "{text}");
        assert!(text.ends_with("stopped after 16 s; complete: vm7\n"), "{text}");
    }

    #[test]
    fn a_rehearsal_says_so() {
        let text = Restore { dry_run: true, ..restore() }.human(&view());
        assert!(text.ends_with("dry run of snapshot 0123456789ab: nothing written, 16 s\n"));
    }
}
