//! The log as it lies.

use std::borrow::Cow;

use voltar_engine::report::{InspectRecord, InspectReport};

use super::table::Table;
use super::{Human, View, size_cell, text};
use crate::size;

impl Human for InspectReport {
    fn human(&self, _view: &View) -> String {
        let features: Vec<_> = self.features.iter().map(|feature| text::clean(feature)).collect();
        let features = if features.is_empty() { "none".into() } else { features.join(", ") };
        format!(
            "archive      {}\n\
             id           {}\n\
             format       {}\n\
             features     {features}\n\
             created      {}\n\
             size         {}\n\
             uncommitted  {}\n\n{}",
            text::clean(&self.archive),
            text::clean(&self.archive_id),
            self.format_version,
            text::clean(&self.created),
            size::human(self.file_len),
            size::human(self.uncommitted_bytes),
            records(&self.records).render(),
        )
    }
}

fn records(records: &[InspectRecord]) -> Table {
    let mut table = Table::new(&[">offset", ">length", "kind", ">sequence", ">items", "note"]);
    for record in records {
        table.row([
            format!("{:#x}", record.offset).into(),
            size_cell(record.length),
            text::clean(&record.kind),
            record.sequence.to_string().into(),
            record.items.to_string().into(),
            note(record),
        ]);
    }
    table
}

fn note(record: &InspectRecord) -> Cow<'_, str> {
    match &record.error {
        None => text::clean(&record.note),
        Some(error) => format!("DAMAGED: {} {}", text::clean(error), text::clean(&record.note))
            .trim_end()
            .to_string()
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::view;
    use super::*;

    #[test]
    fn a_head_and_a_line_per_record() {
        let record = |kind: &str, offset, error: Option<&str>| InspectRecord {
            kind: kind.into(),
            offset,
            length: 4096,
            sequence: 1,
            items: 2,
            note: "vm\x07".into(),
            error: error.map(str::to_string),
        };
        let report = InspectReport {
            archive: "vm.vlt".into(),
            file_len: 8192,
            archive_id: "abcd".into(),
            format_version: 1,
            features: Vec::new(),
            created: "2026-11-21T00:30:00Z".into(),
            records: vec![record("header", 0, None), record("commit", 4096, Some("bad crc"))],
            uncommitted_bytes: 0,
        };
        assert_eq!(
            report.human(&view()),
            "archive      vm.vlt\n\
             id           abcd\n\
             format       1\n\
             features     none\n\
             created      2026-11-21T00:30:00Z\n\
             size         8 KiB\n\
             uncommitted  0 B\n\
             \n\
             offset  length  kind    sequence  items  note\n\
             \x20  0x0   4 KiB  header         1      2  vm\\x07\n\
             0x1000   4 KiB  commit         1      2  DAMAGED: bad crc vm\\x07\n"
        );
    }
}
