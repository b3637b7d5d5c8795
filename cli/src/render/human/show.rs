//! One snapshot, with all that is known of it.

use std::borrow::Cow;

use voltar_engine::report::{ShowReport, VolumeDetail};

use super::{Human, View, list, ranges, text};
use crate::size;

impl Human for ShowReport {
    fn human(&self, view: &View) -> String {
        let mut page = head(self, view);
        for volume in &self.details {
            page.push('\n');
            page.push_str(&detail(volume));
        }
        if !self.attached.is_empty() {
            page.push_str("\nattached\n");
        }
        for file in &self.attached {
            page.push_str(&pair(&text::clean(&file.name), size::human(file.size)));
        }
        page
    }
}

fn head(report: &ShowReport, view: &View) -> String {
    let summary = &report.summary;
    let mut lines = line("snapshot", text::clean(&summary.id));
    lines.push_str(&line("archive", text::clean(&report.archive)));
    lines.push_str(&line("time", view.time(summary.time_ns, &summary.time)));
    if let Some(parent) = &summary.parent {
        lines.push_str(&line("parent", text::clean(parent)));
    }
    lines.push_str(&line("host", text::clean(&report.host)));
    lines.push_str(&line("program", text::clean(&report.program)));
    lines.push_str(&line("stored", size::human(summary.stored_bytes)));
    if !summary.tags.is_empty() {
        lines.push_str(&line("tags", list::tags(&summary.tags)));
    }
    lines
}

fn detail(volume: &VolumeDetail) -> String {
    let mut lines = line("volume", text::clean(&volume.name));
    let size = format!("{} ({} bytes)", size::human(volume.size), volume.size);
    lines.push_str(&pair("size", size));
    lines.push_str(&pair("chunk", size::human(u64::from(volume.chunk_size))));
    lines.push_str(&pair("root", text::clean(&volume.root)));
    lines.push_str(&pair("source", text::clean(&volume.source)));
    lines.push_str(&pair("changes from", text::clean(&volume.change_source)));
    if let Some(why) = &volume.degraded {
        lines.push_str(&pair("because", text::clean(why)));
    }
    for (key, value) in &volume.proof {
        lines.push_str(&pair(&format!("proof {}", text::clean(key)), text::clean(value)));
    }
    lines.push_str(&ranges("unreadable in", &volume.name, &volume.unreadable));
    lines
}

fn line<'a>(key: &str, value: impl Into<Cow<'a, str>>) -> String {
    format!("{key:<16}{}\n", value.into())
}

fn pair<'a>(key: &str, value: impl Into<Cow<'a, str>>) -> String {
    format!("  {key:<13} {}\n", value.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use voltar_engine::report::{AttachedSummary, SnapshotSummary};

    use super::super::fake::{ID, view};
    use super::*;

    #[test]
    fn keys_and_values() {
        let report = ShowReport {
            archive: "vm.vlt".into(),
            summary: SnapshotSummary {
                id: ID.into(),
                time: "2026-11-21T00:30:00Z".into(),
                time_ns: 1_795_221_000_000_000_000,
                parent: Some("fedc".into()),
                volumes: Vec::new(),
                tags: BTreeMap::from([("why".into(), "upgrade".into())]),
                stored_bytes: 3 << 20,
            },
            host: "ho\x1bst".into(),
            program: "voltar 0.1.0".into(),
            details: vec![VolumeDetail {
                name: "root".into(),
                size: 4 << 30,
                chunk_size: 65536,
                root: "abcd".into(),
                source: "/dev/vg/root".into(),
                change_source: "full".into(),
                proof: BTreeMap::from([("pool".into(), "p1".into())]),
                degraded: Some("first backup".into()),
                unreadable: Vec::new(),
            }],
            attached: vec![AttachedSummary { name: "vm.xml".into(), size: 2048 }],
        };
        assert_eq!(
            report.human(&view()),
            format!(
                "snapshot        {ID}\n\
                 archive         vm.vlt\n\
                 time            2026-11-21 01:30:00\n\
                 parent          fedc\n\
                 host            ho\\x1bst\n\
                 program         voltar 0.1.0\n\
                 stored          3 MiB\n\
                 tags            why=upgrade\n\
                 \n\
                 volume          root\n\
                 \x20 size          4 GiB (4294967296 bytes)\n\
                 \x20 chunk         64 KiB\n\
                 \x20 root          abcd\n\
                 \x20 source        /dev/vg/root\n\
                 \x20 changes from  full\n\
                 \x20 because       first backup\n\
                 \x20 proof pool    p1\n\
                 \n\
                 attached\n\
                 \x20 vm.xml        2 KiB\n"
            )
        );
    }
}
