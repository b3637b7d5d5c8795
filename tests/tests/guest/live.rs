//! A Linux that works while the host backs up its disks: what it had synced is in each backup, and
//! its root starts again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use voltar_tests::boot::root_image;
use voltar_tests::device::system;
use voltar_tests::guest::{Disk, Live, run};
use voltar_tests::qmp::Qmp;
use voltar_tests::vm;
use voltar_tests::writer::Writer;
use voltar_tests::{Ran, Scratch, Voltar};

const MIB: usize = 1 << 20;
const INCREMENTALS: usize = 10;
const BACKUP_PATIENCE: Duration = Duration::from_secs(500);

/// A root that keeps a journal, as others' do: the guest's own is thrown away and has none.
fn root(scratch: &Scratch, from: &Path) -> PathBuf {
    let (raw, image) = (scratch.path("root.raw"), scratch.path("root.qcow2"));
    let [raw_arg, image_arg] = [&raw, &image].map(|path| path.to_str().unwrap());
    system("cp", &["--sparse=always", from.to_str().unwrap(), raw_arg]).unwrap();
    system("tune2fs", &["-j", "-J", "size=16", raw_arg]).unwrap();
    system("qemu-img", &["convert", "-O", "qcow2", raw_arg, image_arg]).unwrap();
    fs::remove_file(raw).unwrap();
    image
}

/// A guest at work, with what it started from.
struct Rig {
    live: Live,
    scratch: Scratch,
    writer: Writer,
}

impl Rig {
    fn start(test: &str, has_agent: bool) -> Option<Rig> {
        let image = root_image(test)?;
        let scratch = vm::scratch(test)?;
        let root = root(&scratch, &image);
        let before = [vec![0; 16 * MIB], vec![0; 12 * MIB]];
        let raw = scratch.path("d0.raw");
        File::create_new(&raw).unwrap().set_len(before[0].len() as u64).unwrap();
        let image = scratch.path("d1.qcow2");
        system("qemu-img", &["create", "-f", "qcow2", image.to_str().unwrap(), "12M"]).unwrap();
        let disks = [Disk::Kept(&raw), Disk::Image(&image), Disk::Root(&root)];
        let mut live = Live::start(test, "live", &disks, crate::SECTORS, &scratch, has_agent)?;
        assert!(live.until(|lines| last_step(lines) > 3), "{:?}", live.lines());
        Some(Rig { live, scratch, writer: Writer::new(before, 1) })
    }

    fn step(&self) -> u32 {
        last_step(&self.live.lines())
    }

    fn until_step(&mut self, step: u32) {
        assert!(self.live.until(|lines| last_step(lines) >= step), "{:?}", self.live.lines());
    }

    /// Backs up the machine: all its disks.
    fn back_up(&self, options: &[&str]) -> (Ran, Vec<Value>) {
        let source = format!("qemu:{}", self.live.monitor().display());
        let voltar = Voltar::new(&self.scratch).args(["backup", &source, "a.voltar", "--json"]);
        // It leaves the processors to the guests first: to those of other tests, too.
        let ran = voltar.args(options).patience(BACKUP_PATIENCE).run().expect(0);
        let volumes = ran.json()["volumes"].as_array().unwrap().clone();
        assert_eq!(volumes.len(), 3, "{volumes:?}");
        (ran, volumes)
    }

    /// Restores the volume of a disk, by what the guest calls it.
    fn restore(&self, volumes: &[Value], disk: &str, target: &Path) {
        let names = volumes.iter().map(|volume| volume["name"].as_str().unwrap());
        let name = names.into_iter().find(|name| name.ends_with(disk)).unwrap();
        let line = ["restore", "a.voltar", "--overwrite", "--volume", name];
        Voltar::new(&self.scratch).args(line).arg(target).ok();
    }

    /// The steps that the latest snapshot holds.
    fn steps(&self, volumes: &[Value]) -> [u32; 2] {
        let disks = ["D0", "D1"].map(|disk| {
            let target = self.scratch.path(disk);
            self.restore(volumes, disk, &target);
            fs::read(&target).unwrap()
        });
        self.writer.instant([&disks[0], &disks[1]]).unwrap()
    }

    /// The latest snapshot's root; whether its file system had been at rest.
    fn restored_root(&self, volumes: &[Value]) -> (PathBuf, bool) {
        let raw = self.scratch.path("again.raw");
        self.restore(volumes, "root", &raw);
        let raw_arg = raw.to_str().unwrap();
        let head = system("dumpe2fs", &["-h", raw_arg]).unwrap();
        let is_at_rest = !head.contains("needs_recovery");
        // As a guest that starts does; nothing but the journal may be needed.
        let replay = "e2fsck -f -y -E journal_only \"$0\" || [ $? = 1 ]";
        system("sh", &["-c", replay, raw_arg]).unwrap();
        let checked = system("e2fsck", &["-f", "-n", raw_arg]).unwrap();
        assert!(!checked.contains("Fix"), "{checked}");
        (raw, is_at_rest)
    }
}

/// The last step that the guest says is done.
fn last_step(lines: &[String]) -> u32 {
    let steps = lines.iter().rev().filter_map(|line| line.strip_prefix("step ")?.parse().ok());
    steps.into_iter().next().unwrap_or(0)
}

/// Ten incrementals, each compared with what the guest had said was written before it and after;
/// then the root of the last one is checked, and started from.
#[test]
fn a_linux_at_work_is_backed_up_and_starts_again() {
    let test = "a_linux_at_work_is_backed_up_and_starts_again";
    let Some(mut rig) = Rig::start(test, false) else { return };
    let mut last = Vec::new();
    for round in 0..=INCREMENTALS {
        let from = rig.step();
        let (_, volumes) = rig.back_up(&[]);
        let steps = rig.steps(&volumes);
        assert!(steps[1] >= from, "round {round}: {steps:?} lacks step {from}, which was synced");
        // Nor may it hold what was written when it was done.
        rig.until_step(steps[0]);
        for volume in volumes.iter().filter(|_| round > 0) {
            assert_eq!(volume["change_source"], "qemu-bitmap", "round {round}: {volume}");
        }
        let now = rig.step();
        rig.until_step(now + 3);
        last = volumes;
    }
    let mut qmp = Qmp::connect(&rig.live.monitor());
    assert_eq!(qmp.execute("query-status", json!({}))["running"], true);
    assert_eq!(qmp.execute("query-block-exports", json!({})), json!([]));
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }));
    let is_stray = |node: &&Value| node["node-name"].as_str().unwrap().starts_with(vm::MARK);
    assert!(nodes.as_array().unwrap().iter().find(is_stray).is_none(), "{nodes}");
    eprintln!("figure: {} steps of a Linux during {INCREMENTALS} incrementals", rig.step());
    let (raw, _) = rig.restored_root(&last);
    rig.live.say("end");
    let Rig { live, scratch, .. } = rig;
    live.end(test).unwrap();
    let image = scratch.path("again.qcow2");
    let [raw_arg, image_arg] = [&raw, &image].map(|path| path.to_str().unwrap());
    system("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw_arg, image_arg]).unwrap();
    run(test, "booted", &[Disk::Root(&image)], crate::SECTORS).unwrap();
}

/// With an agent in the guest, its file systems are at rest at the instant, and are at work again
/// after it; without its help they are as after a loss of power.
#[test]
fn an_agent_brings_file_systems_to_rest() {
    let test = "an_agent_brings_file_systems_to_rest";
    let Some(mut rig) = Rig::start(test, true) else { return };
    let mut rests = Vec::new();
    for options in [&[][..], &["--no-freeze"], &[]] {
        let (ran, volumes) = rig.back_up(options);
        assert_eq!(ran.stderr.contains("rested"), options.is_empty(), "{}", ran.stderr);
        rests.push(rig.restored_root(&volumes).1);
        rig.steps(&volumes);
        assert_eq!(freeze_status(&rig.scratch), "thawed");
        let now = rig.step();
        rig.until_step(now + 3);
    }
    assert_eq!(rests, [true, false, true], "whether the file system was at rest");
    rig.live.say("end");
    rig.live.end(test).unwrap();
}

fn freeze_status(scratch: &Scratch) -> String {
    use std::io::{BufRead, BufReader, Write};
    let mut agent = std::os::unix::net::UnixStream::connect(scratch.path("guest.agent")).unwrap();
    writeln!(agent, "{}", json!({ "execute": "guest-fsfreeze-status" })).unwrap();
    let mut line = String::new();
    BufReader::new(agent).read_line(&mut line).unwrap();
    let answer: Value = serde_json::from_str(line.trim_start_matches('\u{ff}')).unwrap();
    answer["return"].as_str().unwrap_or_else(|| panic!("{answer}")).into()
}
