//! What this machine can do.

use voltar_engine::bench::BenchReport;

use super::table::Table;
use super::{Human, View, text};

impl Human for BenchReport {
    fn human(&self, _view: &View) -> String {
        let mut table = Table::new(&["part", ">speed", ">ratio"]);
        for row in &self.rows {
            table.row([
                text::clean(&row.part),
                text::per_second(row.bytes_per_s as f64).into(),
                row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default().into(),
            ]);
        }
        format!(
            "{}\nI/O      {}\nthreads  {}\nauto     {}\n",
            table.render(),
            text::clean(&self.io),
            self.threads,
            text::clean(&self.auto),
        )
    }
}

#[cfg(test)]
mod tests {
    use voltar_engine::bench::BenchRow;

    use super::super::fake::view;
    use super::*;

    #[test]
    fn a_row_per_part_and_the_choice() {
        let report = BenchReport {
            rows: vec![
                BenchRow { part: "hash".into(), bytes_per_s: 3 << 30, ratio: None },
                BenchRow {
                    part: "compress zstd:1".into(),
                    bytes_per_s: 700 << 20,
                    ratio: Some(1.756),
                },
            ],
            io: "io_uring".into(),
            threads: 2,
            auto: "zstd:-5".into(),
        };
        assert_eq!(
            report.human(&view()),
            "part                 speed  ratio\n\
             hash               3 GiB/s\n\
             compress zstd:1  700 MiB/s   1.76\n\
             \n\
             I/O      io_uring\n\
             threads  2\n\
             auto     zstd:-5\n"
        );
    }
}
