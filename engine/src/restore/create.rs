//! New volumes for a restore: logical volumes and zvols, created as they were recorded or as was
//! asked, and taken away again if not a byte of them was written.

use std::path::PathBuf;

use super::job::Job;
use crate::error::{Error, ErrorKind, Result};
use crate::host::command::Tool;
use crate::host::{lvm, zfs};
use crate::options::{NewVolumes, Place};
use crate::source::hold::device_path;
use crate::source::{thin, zvol};

/// A volume of a manager that is not there yet, and can be created.
#[derive(Clone, Debug)]
pub struct NewVolume {
    place: Place,
    kind: Kind,
    /// Bytes it is to have at least.
    len: u64,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Fully allocated; holds what lay there before.
    Thick,
    /// In this thin pool.
    Thin(lvm::ThinPool),
    /// A sparse zvol with blocks of so many bytes; `None` is the pool's default.
    Zvol(Option<u64>),
}

/// What is known of a manager's volume.
pub enum Found {
    /// It is there, at this path.
    Present(PathBuf),
    /// It is not, and can be created.
    Absent(NewVolume),
}

/// Looks for the volume at `place`, which is no path.
///
/// # Errors
/// `TargetRefused` if it cannot be created here; of the tools.
pub fn find(place: &Place, job: &Job, wishes: &NewVolumes) -> Result<Found> {
    let path = device_path(place);
    match place {
        Place::Path(_) | Place::Nbd(_) | Place::Image { .. } => Ok(Found::Present(path)),
        Place::Lvm { group, volume } => find_lvm(place, group, volume, job, wishes),
        Place::Zfs(dataset) => find_zfs(place, dataset, job, wishes),
        Place::Qemu { .. } | Place::Libvirt { .. } => {
            Err(refused(place, "a restore cannot write to a VM that runs")
                .hint("stop the VM, and name the image or the device of its disk"))
        }
    }
}

fn refused(place: &Place, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::TargetRefused, message).on(place.to_string())
}

fn find_lvm(
    place: &Place,
    group: &str,
    volume: &str,
    job: &Job,
    wishes: &NewVolumes,
) -> Result<Found> {
    let volumes = lvm::volumes(Some(group)).map_err(|error| {
        refused(place, "cannot ask for the volumes of the volume group")
            .because(error)
            .hint("`vgs` lists the volume groups")
    })?;
    if let Some(found) = volumes.iter().find(|found| found.name == volume) {
        return match found.kind {
            lvm::Kind::Internal => {
                Err(refused(place, "the name is that of a part of volumes")
                    .hint("choose another name"))
            }
            _ => Ok(Found::Present(device_path(place))),
        };
    }
    let pools = lvm::thin_pools(group)?;
    let named = |name: &str| pools.iter().find(|pool| pool.name == name).cloned();
    let recorded = job.volume.proof.get(thin::POOL).and_then(|name| named(name));
    let kind = match wishes.thin_pool.as_deref() {
        Some("none") => Kind::Thick,
        Some(name) => Kind::Thin(named(name).ok_or_else(|| {
            refused(place, format!("there is no thin pool {name:?} in the group"))
                .hint("`lvs` lists the pools; --thin-pool none makes a thick volume")
        })?),
        None => recorded.map_or(Kind::Thick, Kind::Thin),
    };
    Ok(Found::Absent(NewVolume { place: place.clone(), kind, len: job.shape.size() }))
}

fn find_zfs(place: &Place, dataset: &str, job: &Job, wishes: &NewVolumes) -> Result<Found> {
    let (parent, _) = dataset.rsplit_once('/').unwrap_or((dataset, ""));
    zfs::datasets(&[parent]).map_err(|error| {
        refused(place, "cannot ask for the datasets beside the volume")
            .because(error)
            .hint("`zfs list` lists the datasets; the one above the volume must exist")
    })?;
    match zfs::datasets(&[dataset]) {
        Ok(_) => return Ok(Found::Present(device_path(place))),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let recorded = || job.volume.proof.get(zvol::BLOCK_LEN).and_then(|text| text.parse().ok());
    let block_len = wishes.zvol_block_len.or_else(recorded);
    let len = match block_len {
        Some(block_len) => job.shape.size().next_multiple_of(block_len),
        // The largest default there is.
        None => job.shape.size().next_multiple_of(128 << 10),
    };
    Ok(Found::Absent(NewVolume { place: place.clone(), kind: Kind::Zvol(block_len), len }))
}

impl NewVolume {
    /// Where its device will be.
    pub fn path(&self) -> PathBuf {
        device_path(&self.place)
    }

    /// Whether it reads as zeroes when it is new.
    pub fn is_blank(&self) -> bool {
        match &self.kind {
            Kind::Thick => false,
            // What a write leaves of a block is what lay there before, if the pool does not zero.
            Kind::Thin(pool) => pool.zeroes,
            Kind::Zvol(_) => true,
        }
    }

    /// Creates it; its device is there then.
    ///
    /// # Errors
    /// Of the tools; nothing is left then.
    pub fn create(&self) -> Result<()> {
        let size = format!("{}b", self.len);
        let tool = match (&self.place, &self.kind) {
            (Place::Lvm { group, volume }, Kind::Thin(pool)) => Tool::new("lvcreate")
                .args(["--yes", "--virtualsize", &size, "--name", volume])
                .args(["--thinpool", &pool.name, group]),
            (Place::Lvm { group, volume }, _) => Tool::new("lvcreate")
                .args(["--yes", "--wipesignatures", "y", "--size", &size])
                .args(["--name", volume, group]),
            (Place::Zfs(dataset), Kind::Zvol(Some(block_len))) => Tool::new("zfs")
                .args(["create", "-s", "-o", &format!("volblocksize={block_len}")])
                .args(["-V", &self.len.to_string(), dataset]),
            (Place::Zfs(dataset), _) => {
                Tool::new("zfs").args(["create", "-s", "-V", &self.len.to_string(), dataset])
            }
            (_, _) => return Ok(()),
        };
        tool.answer().map_err(|error| {
            refused(&self.place, "cannot create the target").because(error).hint(
                "see whether there is room for it; --thin-pool and --volblocksize choose its kind",
            )
        })?;
        let Place::Zfs(dataset) = &self.place else { return Ok(()) };
        zvol::wait_for_device(dataset, self.len).map_err(|error| {
            // Nothing better can be done: that the device did not come is reported.
            let _ = self.destroy();
            refused(&self.place, "the new volume has no device").because(error)
        })
    }

    /// Takes it away again.
    ///
    /// # Errors
    /// Of the tools.
    pub fn destroy(&self) -> Result<()> {
        match &self.place {
            Place::Lvm { group, volume } => lvm::remove_named(group, volume),
            Place::Zfs(dataset) => zfs::destroy(dataset),
            _ => Ok(()),
        }
    }
}
