//! The volumes of this host, as a table.

use voltar_engine::report::{SourceSummary, SourcesReport};

use super::table::Table;
use super::{Human, View, size_cell, text};

impl Human for SourcesReport {
    fn human(&self, _: &View) -> String {
        let mut page = String::new();
        match self.sources.is_empty() {
            true => page.push_str("no volumes of LVM or ZFS on this host\n"),
            false => {
                let mut table = Table::new(&[
                    "source",
                    "kind",
                    ">size",
                    "changes from",
                    "kept here",
                    "trouble",
                ]);
                for source in &self.sources {
                    table.row([
                        text::clean(&source.source),
                        text::clean(&source.kind),
                        size_cell(source.size),
                        text::clean(&source.change_source),
                        kept(source).into(),
                        text::clean(source.trouble.as_deref().unwrap_or_default()),
                    ]);
                }
                page.push_str(&table.render());
            }
        }
        for stray in &self.strays {
            page.push_str(&format!(
                "note: {} {} is of a volume that is gone; if it is of no use: {}\n",
                text::clean(&stray.kind),
                text::clean(&stray.name),
                text::clean(&stray.remove)
            ));
        }
        for warning in &self.warnings {
            page.push_str(&format!("note: {}\n", text::clean(warning)));
        }
        page
    }
}

fn kept(source: &SourceSummary) -> String {
    let names: Vec<_> = source
        .kept
        .iter()
        .map(|kept| format!("{} {}", text::clean(&kept.kind), text::clean(&kept.name)))
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use voltar_engine::report::{KeptSummary, StraySummary};

    use super::super::fake::view;
    use super::*;

    #[test]
    fn names_are_harmless_and_nothing_is_no_empty_table() {
        let source = SourceSummary {
            source: "lvm:vg/da\x1b[1mta".into(),
            kind: "thin".into(),
            size: 8 << 30,
            change_source: "dm-thin".into(),
            trouble: None,
            kept: vec![KeptSummary { name: "data_voltar_1".into(), kind: "snapshot".into() }],
        };
        let stray = StraySummary {
            name: "vg/old_voltar_3".into(),
            kind: "snapshot".into(),
            remove: "lvremove vg/old_voltar_3".into(),
        };
        let report = SourcesReport {
            sources: vec![source],
            strays: vec![stray],
            warnings: vec!["no zfs\n".into()],
        };
        assert_eq!(
            report.human(&view()),
            "source              kind   size  changes from  kept here               trouble\n\
             lvm:vg/da\\x1b[1mta  thin  8 GiB  dm-thin       snapshot data_voltar_1\n\
             note: snapshot vg/old_voltar_3 is of a volume that is gone; if it is of no use: \
             lvremove vg/old_voltar_3\n\
             note: no zfs\\n\n"
        );
        let nothing = SourcesReport::default().human(&view());
        assert_eq!(nothing, "no volumes of LVM or ZFS on this host\n");
    }
}
