//! The verdict on an archive.

use voltar_engine::report::{Damage, Sample, VerifyReport};

use super::{Human, View, losses, text};
use crate::outcome::Partial;
use crate::size;

impl Human for VerifyReport {
    fn human(&self, view: &View) -> String {
        let word = if self.ok { "ok" } else { "DAMAGED" };
        let mut page = places(self, view);
        page.push_str(&verdict(self, word));
        page.extend(self.sample.as_ref().map(sampled));
        if self.uncommitted_bytes > 0 {
            page.push_str(&format!(
                "{} behind the last commit belong to no snapshot; the next backup uses or \
                 reclaims them\n",
                size::human(self.uncommitted_bytes)
            ));
        }
        page
    }
}

impl Human for Partial<VerifyReport> {
    fn human(&self, view: &View) -> String {
        let Partial(report) = self;
        let word = if report.damaged.is_empty() { "stopped" } else { "stopped, DAMAGED" };
        format!("{}{}", places(report, view), verdict(report, word))
    }
}

fn places(report: &VerifyReport, view: &View) -> String {
    let damaged = report.damaged.iter().map(|damage| place(damage, view));
    damaged.chain([losses(&report.losses, view)]).collect()
}

fn sampled(sample: &Sample) -> String {
    let Sample { percent, segments, of } = sample;
    let there = text::count(*of, "data segment");
    format!("a sample of {percent} %: {segments} of {there} read, the rest was not looked at\n")
}

fn verdict(report: &VerifyReport, verdict: &str) -> String {
    let rate = text::rate(report.bytes, report.elapsed_s).map(|rate| format!(" ({rate})"));
    format!(
        "{verdict}  {}: {}, {}, {}, {} in {}{}\n",
        text::clean(&report.archive),
        text::count(report.snapshots, "snapshot"),
        text::count(report.segments, "segment"),
        text::count(report.frames, "frame"),
        size::human(report.bytes),
        text::seconds(report.elapsed_s),
        rate.unwrap_or_default(),
    )
}

fn place(damage: &Damage, view: &View) -> String {
    let mut lines = format!(
        "damaged {} at {}: {}\n",
        text::clean(&damage.structure),
        text::range(damage.offset, damage.length),
        text::clean(&damage.error),
    );
    for affected in &damage.affects {
        lines.push_str(&format!(
            "  snapshot {}, volume {}: {}\n",
            view.id(&affected.snapshot),
            text::clean(&affected.volume),
            text::range(affected.offset, affected.length),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use voltar_engine::report::{Affected, Losses};

    use super::super::fake::{ID, view};
    use super::*;

    fn whole() -> VerifyReport {
        VerifyReport {
            archive: "vm.vlt".into(),
            ok: true,
            snapshots: 3,
            segments: 1,
            frames: 240,
            bytes: 1 << 30,
            uncommitted_bytes: 0,
            sample: None,
            damaged: Vec::new(),
            losses: Losses::default(),
            elapsed_s: 2.0,
        }
    }

    #[test]
    fn a_whole_archive_is_one_line() {
        assert_eq!(
            whole().human(&view()),
            "ok  vm.vlt: 3 snapshots, 1 segment, 240 frames, 1 GiB in 2.0 s (512 MiB/s)\n"
        );
    }

    #[test]
    fn a_sample_says_of_what() {
        let sample = Some(Sample { percent: 2.5, segments: 1, of: 40 });
        let text = VerifyReport { sample, ..whole() }.human(&view());
        let line = "a sample of 2.5 %: 1 of 40 data segments read, the rest was not looked at\n";
        assert!(text.starts_with("ok ") && text.ends_with(line), "{text}");
    }

    #[test]
    fn what_was_stopped_is_never_ok() {
        let stopped = Partial(VerifyReport { ok: false, ..whole() });
        assert!(stopped.human(&view()).starts_with("stopped  vm.vlt: 3 snapshots, "));
    }

    #[test]
    fn damage_comes_with_what_it_costs() {
        let affected = Affected {
            snapshot: ID.into(),
            volume: "root\x1b]0;x\x07".into(),
            offset: 0x10000,
            length: 0x10000,
        };
        let damage = Damage {
            structure: "frame".into(),
            offset: 0x1000,
            length: 0x200,
            error: "checksum differs".into(),
            affects: vec![affected],
        };
        let report =
            VerifyReport { ok: false, damaged: vec![damage], uncommitted_bytes: 4096, ..whole() };
        assert_eq!(
            report.human(&view()),
            "damaged frame at 0x1000..0x1200 (512 B): checksum differs\n\
             \x20 snapshot 0123456789ab, volume root\\x1b]0;x\\x07: 0x10000..0x20000 (64 KiB)\n\
             DAMAGED  vm.vlt: 3 snapshots, 1 segment, 240 frames, 1 GiB in 2.0 s (512 MiB/s)\n\
             4 KiB behind the last commit belong to no snapshot; the next backup uses or reclaims \
             them\n"
        );
    }
}
