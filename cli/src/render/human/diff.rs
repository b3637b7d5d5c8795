//! What changed between two snapshots: a line per extent, a total per volume.

use std::cmp::Ordering;

use voltar_engine::report::{VolumeDiff, VolumeSummary};

use super::{Human, View, text};
use crate::outcome::Diff;
use crate::size;

impl Human for Diff {
    fn human(&self, _view: &View) -> String {
        let mut page = match self.compared.volumes() {
            [] => "the snapshots share no volume\n".to_string(),
            [volume] => extents(volume),
            volumes => {
                let section = |volume: &VolumeDiff| {
                    format!("volume {}\n{}", text::clean(&volume.volume), extents(volume))
                };
                volumes.iter().map(section).collect::<Vec<_>>().join("\n")
            }
        };
        page.push_str(&alone("older", &self.only_old));
        page.push_str(&alone("newer", &self.only_new));
        page
    }
}

/// Volumes that one of the snapshots holds alone.
fn alone(which: &str, volumes: &[VolumeSummary]) -> String {
    let line = |volume: &VolumeSummary| {
        let (name, size) = (text::clean(&volume.name), size::human(volume.size));
        format!("only in the {which} snapshot: volume {name}, {size}\n")
    };
    volumes.iter().map(line).collect()
}

fn extents(report: &VolumeDiff) -> String {
    let mut lines = String::new();
    for extent in &report.extents {
        let offset = format!("{:#x}", extent.offset);
        let length = size::human(extent.length);
        lines.push_str(&format!("{offset:<18} {length:>10}  {}\n", extent.kind));
    }
    lines.push_str(&resized(report));
    lines.push_str(&totals(report));
    lines
}

fn resized(report: &VolumeDiff) -> String {
    let verb = match report.new_size.cmp(&report.old_size) {
        Ordering::Equal => return String::new(),
        Ordering::Greater => "grew",
        Ordering::Less => "shrank",
    };
    format!("{verb} from {} to {} bytes\n", report.old_size, report.new_size)
}

fn totals(report: &VolumeDiff) -> String {
    let of_kind = |kind: &str| {
        let bytes = report.extents.iter().filter(|extent| extent.kind == kind);
        size::human(bytes.map(|extent| extent.length).sum())
    };
    match report.extents.len() as u64 {
        0 if report.old_size != report.new_size => "nothing else changed\n".to_string(),
        0 => "nothing changed\n".to_string(),
        count => format!(
            "{}: {} data, {} zero\n",
            text::count(count, "extent"),
            of_kind("data"),
            of_kind("zero")
        ),
    }
}

#[cfg(test)]
mod tests {
    use voltar_engine::report::DiffExtent;

    use super::super::fake::view;
    use super::*;
    use crate::outcome::Compared;

    fn report() -> VolumeDiff {
        VolumeDiff {
            volume: "vm".into(),
            old_size: 2 << 20,
            new_size: 2 << 20,
            chunk_size: 65536,
            extents: vec![
                DiffExtent { offset: 0, length: 65536, kind: "data" },
                DiffExtent { offset: 0x100000, length: 1 << 20, kind: "zero" },
            ],
        }
    }

    fn one(volume: VolumeDiff) -> Diff {
        let (only_old, only_new) = (Vec::new(), Vec::new());
        Diff { compared: Compared::One(volume), only_old, only_new }
    }

    fn many(volumes: Vec<VolumeDiff>) -> Diff {
        let (archive, old, new) = ("a".into(), "latest~1".into(), "latest".into());
        let compared = Compared::Many { archive, old, new, volumes };
        Diff { compared, ..one(report()) }
    }

    #[test]
    fn extents_and_totals() {
        assert_eq!(
            one(report()).human(&view()),
            "0x0                    64 KiB  data\n\
             0x100000                1 MiB  zero\n\
             2 extents: 64 KiB data, 1 MiB zero\n"
        );
    }

    #[test]
    fn sizes_and_volumes_that_differ_are_told() {
        let grown = VolumeDiff { new_size: 3 << 20, extents: Vec::new(), ..report() };
        let shrunk = VolumeDiff { new_size: 1 << 20, ..report() };
        let text = one(grown).human(&view());
        assert_eq!(text, "grew from 2097152 to 3145728 bytes\nnothing else changed\n");
        assert!(one(shrunk).human(&view()).contains("\nshrank from 2097152 to 1048576 bytes\n"));
        let volume =
            |name: &str| VolumeSummary { name: name.into(), size: 4 << 30, root: String::new() };
        let (only_old, only_new) = (vec![volume("swap\x1b")], vec![volume("data")]);
        let text = Diff { only_old, only_new, ..many(Vec::new()) }.human(&view());
        assert_eq!(
            text,
            "the snapshots share no volume\n\
             only in the older snapshot: volume swap\\x1b, 4 GiB\n\
             only in the newer snapshot: volume data, 4 GiB\n"
        );
    }

    #[test]
    fn several_volumes_have_their_names() {
        let same = VolumeDiff { volume: "x\x1b".into(), extents: Vec::new(), ..report() };
        let text = many(vec![report(), same]).human(&view());
        assert!(text.starts_with("volume vm\n0x0 "));
        assert!(text.ends_with("\n\nvolume x\\x1b\nnothing changed\n"));
        assert_eq!(many(Vec::new()).human(&view()), "the snapshots share no volume\n");
    }

    #[test]
    fn json_is_bare_for_one_volume_only() {
        let one = serde_json::to_value(one(report())).unwrap();
        assert_eq!(one["volume"], "vm");
        assert_eq!(one["extents"][1]["kind"], "zero");
        let many = serde_json::to_value(many(vec![report(), report()])).unwrap();
        assert_eq!(many["old"], "latest~1");
        assert_eq!(many["volumes"][1]["chunk_size"], 65536);
    }
}
