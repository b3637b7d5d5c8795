//! What changed between two snapshots: a line per extent, a total per volume.

use voltar_engine::report::DiffReport;

use super::{Human, View, text};
use crate::outcome::Diff;
use crate::size;

impl Human for Diff {
    fn human(&self, _view: &View) -> String {
        match self.volumes() {
            [] => "the snapshots share no volume\n".to_string(),
            [volume] => extents(volume),
            volumes => {
                let section = |volume: &DiffReport| {
                    format!("volume {}\n{}", text::clean(&volume.volume), extents(volume))
                };
                volumes.iter().map(section).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

fn extents(report: &DiffReport) -> String {
    let mut lines = String::new();
    for extent in &report.extents {
        let offset = format!("{:#x}", extent.offset);
        let length = size::human(extent.length);
        lines.push_str(&format!("{offset:<18} {length:>10}  {}\n", extent.kind));
    }
    lines.push_str(&totals(report));
    lines
}

fn totals(report: &DiffReport) -> String {
    let of_kind = |kind: &str| {
        let bytes = report.extents.iter().filter(|extent| extent.kind == kind);
        size::human(bytes.map(|extent| extent.length).sum())
    };
    match report.extents.len() as u64 {
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

    fn report() -> DiffReport {
        DiffReport {
            volume: "vm".into(),
            chunk_size: 65536,
            extents: vec![
                DiffExtent { offset: 0, length: 65536, kind: "data" },
                DiffExtent { offset: 0x100000, length: 1 << 20, kind: "zero" },
            ],
        }
    }

    #[test]
    fn extents_and_totals() {
        assert_eq!(
            Diff::One(report()).human(&view()),
            "0x0                    64 KiB  data\n\
             0x100000                1 MiB  zero\n\
             2 extents: 64 KiB data, 1 MiB zero\n"
        );
    }

    #[test]
    fn several_volumes_have_their_names() {
        let many = |volumes| Diff::Many {
            archive: "a".into(),
            old: "latest~1".into(),
            new: "latest".into(),
            volumes,
        };
        let same = DiffReport { volume: "x\x1b".into(), extents: Vec::new(), ..report() };
        let text = many(vec![report(), same]).human(&view());
        assert!(text.starts_with("volume vm\n0x0 "));
        assert!(text.ends_with("\n\nvolume x\\x1b\nnothing changed\n"));
        assert_eq!(many(Vec::new()).human(&view()), "the snapshots share no volume\n");
    }

    #[test]
    fn json_is_bare_for_one_volume_only() {
        let one = serde_json::to_value(Diff::One(report())).unwrap();
        assert_eq!(one["volume"], "vm");
        assert_eq!(one["extents"][1]["kind"], "zero");
        let many = Diff::Many {
            archive: "a".into(),
            old: "o".into(),
            new: "n".into(),
            volumes: vec![report(), report()],
        };
        let many = serde_json::to_value(many).unwrap();
        assert_eq!(many["old"], "o");
        assert_eq!(many["volumes"][1]["chunk_size"], 65536);
    }
}
