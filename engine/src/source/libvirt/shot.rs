//! Disks of one domain at one instant, by libvirt's backup job.

use std::time::Duration;

use super::area::Area;
use super::names::{Series, sequence};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::host::freeze::{self, Freeze};
use crate::host::libvirt::xml::{self, BITMAP, BackupDisk, Checkpoint, Disk, Domain};
use crate::host::libvirt::{Agent, Libvirt};
use crate::host::lock::Lock;
use crate::io::IoEngine;
use crate::nbd::uri::Endpoint;
use crate::nbd::{NbdDevice, Uri};
use crate::observe::Observer;
use crate::options::{Holding, Keep};
use crate::qemu::Outcome;
use crate::words::with_causes;

/// How long another run may be at work on the same domain.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long the guest's file systems may be at rest.
const FROZEN_MAX: Duration = Duration::from_secs(60);
/// Longest NVRAM that is taken along, in bytes: firmware has a few MiB.
const NVRAM_LEN_MAX: u64 = 16 << 20;

/// A disk that is read.
#[derive(Debug)]
pub struct Read {
    /// The disk.
    pub disk: Disk,
    /// The checkpoint since which libvirt tells changes.
    pub since: Option<String>,
}

/// Disks of one domain on their way to being held still, or held still.
#[derive(Debug)]
pub struct Shot {
    libvirt: Libvirt,
    domain: Domain,
    reads: Vec<Read>,
    area: Area,
    series: Series,
    /// Checkpoints of earlier backups of this series.
    earlier: Vec<Checkpoint>,
    /// The name of this backup: of its checkpoint, and before its exports'.
    name: String,
    keeps: bool,
    freezes: bool,
    has_job: bool,
    has_checkpoint: bool,
    /// Why changes are not told, or not recorded.
    refusal: Option<String>,
    is_cleared: bool,
    _lock: Option<Lock>,
}

impl Shot {
    /// Looks for the disks, ends what a killed run left, and makes room.
    ///
    /// # Errors
    /// Says what is in the way; nothing is left.
    pub fn prepare(
        domain: &str,
        wanted: Option<&[String]>,
        series: Series,
        holding: &Holding,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<Shot> {
        let libvirt = Libvirt::connect(holding.libvirt_uri.as_deref())?;
        let domain = libvirt.domain(domain)?;
        check_active(&domain)?;
        let disks = chosen(&domain, wanted)?;
        let lock = match &holding.state_dir {
            Some(state) => {
                let name = format!("libvirt {}", domain.uuid);
                Some(Lock::take(state, &name, LOCK_PATIENCE, cancel)?)
            }
            None => None,
        };
        end_what_was_left(&libvirt, &domain)?;
        let earlier = series.checkpoints(&libvirt, &domain.uuid)?;
        let sizes = disks
            .iter()
            .map(|disk| Ok((disk.target.clone(), libvirt.size(&domain.uuid, &disk.target)?)))
            .collect::<Result<Vec<_>>>()?;
        let (dir, limit) = (&holding.fleece_dir, holding.fleece_bytes);
        let area = Area::create(dir, &domain.uuid, domain.owner, &sizes, limit)?;
        if let Some(warning) = area.warning()? {
            observer.notice(&warning);
        }
        let since = |disk: &Disk| {
            // What changed since an older one changed since a younger one at least: so it does not matter
            // which of them the archive's last snapshot was made with.
            let has = |checkpoint: &&Checkpoint| checkpoint.told.contains(&disk.target);
            earlier.iter().find(has).map(|checkpoint| checkpoint.name.clone())
        };
        let reads = disks.into_iter().map(|disk| Read { since: since(&disk), disk }).collect();
        Ok(Shot {
            name: series.next(&earlier),
            libvirt,
            domain,
            reads,
            area,
            series,
            earlier,
            keeps: holding.keep != Keep::Nothing,
            freezes: holding.freeze_guest,
            has_job: false,
            has_checkpoint: false,
            refusal: None,
            is_cleared: false,
            _lock: lock,
        })
    }

    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The disks that are read, in the domain's order.
    pub fn reads(&self) -> &[Read] {
        &self.reads
    }

    /// Makes the instant, with the guest's file systems at rest if its agent can do that.
    ///
    /// # Errors
    /// What was made is left to [`clear`](Shot::clear).
    pub fn take(&mut self, observer: &dyn Observer, cancel: &Cancel) -> Result<()> {
        if !self.freezes || !self.has_agent(observer)? {
            return self.begin();
        }
        let (command, thaw) = self.libvirt.freeze_and_thaw(&self.domain.uuid);
        let freeze = Freeze {
            command: Some(command),
            thaw: Some(thaw),
            longest: FROZEN_MAX,
            ..Freeze::default()
        };
        let mut rests = false;
        let taken = freeze::during(&freeze, observer, cancel, || {
            rests = true;
            self.begin()
        });
        match taken {
            Err(why) if !rests && why.kind() != ErrorKind::Interrupted => {
                let why = with_causes(&why);
                observer.notice(&format!("{why}; the disks are as after a loss of power"));
                self.begin()
            }
            taken => taken,
        }
    }

    fn has_agent(&self, observer: &dyn Observer) -> Result<bool> {
        Ok(match self.libvirt.agent(&self.domain.uuid)? {
            Agent::Ready => true,
            Agent::None => false,
            Agent::Silent(why) => {
                observer.notice(&format!(
                    "the guest agent is not asked to freeze: {why}; the disks are as after a loss of power"
                ));
                false
            }
        })
    }

    /// Begins the backup job: telling and recording changes if libvirt can, and else without.
    fn begin(&mut self) -> Result<()> {
        let tells = self.reads.iter().any(|read| read.since.is_some());
        let records = self.keeps && self.reads.iter().any(|read| read.disk.is_recordable());
        let mut attempts = vec![(tells, records), (false, records), (false, false)];
        attempts.dedup();
        let mut first: Option<Error> = None;
        for (tells, records) in attempts {
            match self.begin_once(tells, records) {
                Ok(()) => {
                    self.refusal = first.as_ref().map(|why| with_causes(why));
                    return Ok(());
                }
                Err(error) => {
                    self.check_idle()?;
                    first.get_or_insert(error);
                }
            }
        }
        let why = first.unwrap_or_else(|| Error::new(ErrorKind::Internal, "no backup was tried"));
        Err(Error::new(ErrorKind::SourceUnusable, "libvirt does not begin a backup")
            .on(format!("libvirt:{}", self.domain.name))
            .because(why)
            .meaning("the VM runs on; nothing was backed up"))
    }

    fn begin_once(&mut self, tells: bool, records: bool) -> Result<()> {
        let is_told = |read: &Read| read.since.is_some() && tells;
        let reads = self.reads.iter().map(|read| BackupDisk {
            target: &read.disk.target,
            since: read.since.as_deref().filter(|_| is_told(read)),
            export: self.export(read),
            scratch: self.area.scratch(&read.disk.target),
        });
        let reads: Vec<_> = reads.collect();
        let backup = xml::new_backup(&self.domain, &self.area.socket(), &reads);
        let backup = self.area.write("backup.xml", &backup)?;
        let checkpoint = match records {
            true => {
                let recorded = self.reads.iter().filter(|read| read.disk.is_recordable());
                let recorded: Vec<_> = recorded.map(|read| &*read.disk.target).collect();
                let checkpoint = xml::new_checkpoint(&self.name, &self.domain, &recorded);
                Some(self.area.write("checkpoint.xml", &checkpoint)?)
            }
            false => None,
        };
        self.libvirt.begin(&self.domain.uuid, &backup, checkpoint.as_deref())?;
        (self.has_job, self.has_checkpoint) = (true, records);
        if !tells {
            self.reads.iter_mut().for_each(|read| read.since = None);
        }
        Ok(())
    }

    fn export(&self, read: &Read) -> String {
        format!("{}/{}", self.name, read.disk.target)
    }

    /// Refuses a domain that is busy with what is not ours.
    fn check_idle(&self) -> Result<()> {
        match self.libvirt.job(&self.domain.uuid)? {
            None => Ok(()),
            Some(job) => Err(busy(&self.domain, &job)),
        }
    }

    /// Opens the disks as they were at the instant, in order.
    ///
    /// # Errors
    /// What was made is left to [`clear`](Shot::clear).
    pub fn open(&self, io: IoEngine, cancel: &Cancel) -> Result<Vec<NbdDevice>> {
        let open = |read: &Read| {
            cancel.check()?;
            let endpoint = Endpoint::Unix(self.area.socket());
            let uri = Uri { endpoint, export: self.export(read), tls: None };
            let contexts: Vec<String> = read.since.iter().map(|_| context()).collect();
            let device = NbdDevice::connect(&uri, &contexts, io, cancel)?;
            Ok(device.with_label(&self.label(read)))
        };
        self.reads.iter().map(open).collect()
    }

    /// What messages call a disk.
    pub fn label(&self, read: &Read) -> String {
        format!("libvirt:{}/{}", self.domain.name, read.disk.target)
    }

    /// The checkpoint that records what changes in a disk from this instant on.
    pub fn recorded(&self, read: &Read) -> Option<&str> {
        (self.has_checkpoint && read.disk.is_recordable()).then_some(&*self.name)
    }

    /// Why changes of a disk are not told, or will not be.
    pub fn degraded(&self, read: &Read) -> Option<String> {
        match (&self.refusal, read.disk.is_recordable()) {
            (_, false) => Some(format!("libvirt has no checkpoints of {} disks", read.disk.format)),
            (refusal, true) => refusal.clone(),
        }
    }

    /// Whether what libvirt tells of a disk takes in all that changed since the checkpoint `base`.
    ///
    /// # Errors
    /// In words, why not.
    pub fn check_base(&self, target: &str, base: &str) -> Result<(), String> {
        let has = |targets: &[String]| targets.iter().any(|other| other == target);
        let is_there = |checkpoint: &&Checkpoint| checkpoint.name == base && has(&checkpoint.disks);
        let base = self.earlier.iter().find(is_there).ok_or(
            "the checkpoint that was made with the last backup is gone, or is of another archive",
        )?;
        // Not only that of the older one: an image that was put back has just that.
        if !has(&base.told) {
            return Err(
                "the bitmap of the checkpoint that was made with the last backup is gone from the \
                        image, or is not to be trusted"
                    .into(),
            );
        }
        let read = self.reads.iter().find(|read| read.disk.target == target);
        let Some(since) = read.and_then(|read| read.since.as_deref()) else {
            let none = || "libvirt has no checkpoint of an earlier backup into this archive".into();
            return Err(self.refusal.clone().unwrap_or_else(none));
        };
        match sequence(&base.name) >= sequence(since) {
            true => Ok(()),
            false => Err("the base is older than the oldest checkpoint".into()),
        }
    }

    /// Small files that say what the domain is, with names behind `name`, and what could not be had.
    pub fn definition(&self, name: &str, observer: &dyn Observer) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        let mut add = |kind: &str, file: Result<Option<Vec<u8>>>| match file {
            Ok(Some(file)) => files.push((format!("{name}.{kind}"), file)),
            Ok(None) => {}
            Err(error) => {
                let why = with_causes(&error);
                observer.notice(&format!("the snapshot is without {name}.{kind}: {why}"));
            }
        };
        let definition = self.libvirt.definition(&self.domain.uuid);
        add("domain.xml", definition.map(|text| Some(text.into_bytes())));
        add("checkpoints.xml", self.checkpoints());
        add("nvram", self.nvram());
        files
    }

    /// All checkpoints of the domain, whosever they are.
    fn checkpoints(&self) -> Result<Option<Vec<u8>>> {
        let names = self.libvirt.checkpoints(&self.domain.uuid)?;
        let of = |name: &String| self.libvirt.checkpoint_xml(&self.domain.uuid, name);
        let texts = names.iter().map(of).collect::<Result<Vec<_>>>()?;
        let text = format!("<checkpoints>\n{}</checkpoints>\n", texts.concat());
        Ok((!names.is_empty()).then(|| text.into_bytes()))
    }

    fn nvram(&self) -> Result<Option<Vec<u8>>> {
        let Some(path) = &self.domain.nvram else { return Ok(None) };
        let failed = |error| Error::io("cannot read", path.display().to_string(), error);
        let len = std::fs::metadata(path).map_err(failed)?.len();
        if len > NVRAM_LEN_MAX {
            let message = format!("{len} bytes are too many for an NVRAM");
            return Err(Error::new(ErrorKind::Unsupported, message).on(path.display().to_string()));
        }
        std::fs::read(path).map(Some).map_err(failed)
    }

    /// Looks whether what is read is still the instant, and the guest is safe. Ends the job if it is not.
    ///
    /// # Errors
    /// Once it is not.
    pub fn check(&mut self) -> Result<()> {
        if let Err(error) = self.area.check_room() {
            // At once: who reads may take its time to notice.
            self.end_job()?;
            return Err(error);
        }
        match self.is_ours()? {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::SourceUnusable, "libvirt's backup job ended")
                .on(format!("libvirt:{}", self.domain.name))
                .meaning("what was read may not be of one instant; nothing was committed")
                .hint("see that nobody aborts it or shuts the VM down, and run this again")),
        }
    }

    /// Whether the domain's backup job is this one.
    fn is_ours(&self) -> Result<bool> {
        let exports = self.libvirt.exports(&self.domain.uuid)?.unwrap_or_default();
        let start = format!("{}/", self.name);
        Ok(!exports.is_empty() && exports.iter().all(|export| export.starts_with(&start)))
    }

    fn end_job(&mut self) -> Result<()> {
        if std::mem::take(&mut self.has_job) && self.is_ours()? {
            self.libvirt.abort(&self.domain.uuid)?;
        }
        Ok(())
    }

    /// Takes away all that was made, at any stage, but the checkpoint that the next backup needs: of a new
    /// base its own, and otherwise those that were there before. Once it was done there is nothing more to
    /// do.
    ///
    /// # Errors
    /// The first of what could not be taken away; the rest was tried all the same.
    pub fn clear(&mut self, outcome: Outcome) -> Result<()> {
        if std::mem::replace(&mut self.is_cleared, true) {
            return Ok(());
        }
        let ended = self.end_job();
        let unwanted = match outcome {
            Outcome::Base => self.outlived(),
            Outcome::Nothing if self.has_checkpoint => vec![self.name.clone()],
            Outcome::Nothing => Vec::new(),
        };
        let deleted = unwanted.iter().map(|name| self.delete(name));
        let deleted = deleted.fold(Ok(()), Result::and);
        ended.and(deleted).and(self.area.remove())
    }

    /// Earlier checkpoints that tell of no disk but those of this backup.
    fn outlived(&self) -> Vec<String> {
        let is_read = |target: &String| self.reads.iter().any(|read| read.disk.target == *target);
        let outlived = self.earlier.iter().filter(|earlier| earlier.disks.iter().all(is_read));
        outlived.map(|earlier| earlier.name.clone()).collect()
    }

    /// Deletes a checkpoint of ours. One whose bitmap is gone cannot be deleted, only forgotten.
    fn delete(&self, name: &str) -> Result<()> {
        debug_assert!(self.series.has(name), "{name} is somebody else's");
        let uuid = &self.domain.uuid;
        let is_broken =
            |earlier: &&Checkpoint| earlier.name == name && earlier.told != earlier.disks;
        let is_broken = self.refusal.is_some() || self.earlier.iter().any(|it| is_broken(&it));
        let deleted = self.libvirt.delete_checkpoint(uuid, name, false);
        match is_broken && deleted.is_err() {
            true => self.libvirt.delete_checkpoint(uuid, name, true),
            false => deleted,
        }
    }
}

/// What the changes of an export are asked by.
pub fn context() -> String {
    format!("qemu:dirty-bitmap:{BITMAP}")
}

/// Ends the backup job of a run that was killed. Its checkpoint stays: nobody knows here whether its snapshot
/// became durable.
fn end_what_was_left(libvirt: &Libvirt, domain: &Domain) -> Result<()> {
    let Some(job) = libvirt.job(&domain.uuid)? else { return Ok(()) };
    let exports = libvirt.exports(&domain.uuid)?.unwrap_or_default();
    match !exports.is_empty() && exports.iter().all(|export| Series::is_of_any(export)) {
        true => libvirt.abort(&domain.uuid),
        false => Err(busy(domain, &job)),
    }
}

fn busy(domain: &Domain, job: &str) -> Error {
    Error::new(ErrorKind::Busy, "the VM is busy with a job that is not voltar's")
        .on(format!("libvirt:{}", domain.name))
        .because(format!("libvirt says: {job}"))
        .meaning("it was left alone; nothing was backed up")
        .hint("wait until that is done; `virsh domjobinfo` tells how far it is")
}

/// Refuses a domain that does not run.
fn check_active(domain: &Domain) -> Result<()> {
    if domain.is_active {
        return Ok(());
    }
    let disks = domain.disks.iter().filter(|disk| disk.is_writable);
    let sources = disks.filter_map(|disk| {
        let path = disk.path.as_ref()?.display();
        Some(format!("{}-{}={}:{path}", domain.name, disk.target, disk.format))
    });
    let sources: Vec<_> = sources.collect();
    Err(Error::new(ErrorKind::SourceUnusable, "the VM does not run")
        .on(format!("libvirt:{}", domain.name))
        .meaning("nothing was backed up")
        .hint(format!("start it, or back up its images: {}", sources.join(" "))))
}

/// The disks that are wanted.
fn chosen(domain: &Domain, wanted: Option<&[String]>) -> Result<Vec<Disk>> {
    let all: Vec<Disk> = domain.disks.iter().filter(|disk| disk.is_writable).cloned().collect();
    let targets: Vec<&str> = all.iter().map(|disk| &*disk.target).collect();
    let has = format!("it has {}", targets.join(", "));
    if all.is_empty() {
        return Err(Error::new(ErrorKind::SourceUnusable, "the VM has no disk to back up")
            .on(format!("libvirt:{}", domain.name))
            .hint("disks that its guest cannot write to are not backed up"));
    }
    let Some(wanted) = wanted else { return Ok(all) };
    match wanted.iter().find(|name| !targets.contains(&&***name)) {
        None => Ok(all.into_iter().filter(|disk| wanted.contains(&disk.target)).collect()),
        Some(missing) => Err(Error::new(ErrorKind::NotFound, "the VM has no such disk")
            .on(format!("libvirt:{}/{missing}", domain.name))
            .hint(has)),
    }
}
