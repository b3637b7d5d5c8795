//! The wishes of a request for disks of running VMs: each VM is held still once, for all of its own.

use super::hold::{Capture, Wanted, tell};
use crate::error::{Error, ErrorKind, Result};
use crate::observe::Observer;
use crate::options::Place;

/// Has `prepare` get each VM ready that the wishes name; `vm_of` says which one a place is of.
///
/// # Errors
/// The first that `prepare` says; nothing is left of what was made, or the observer is told so.
pub fn prepare_each<K: PartialEq>(
    wanted: Vec<Wanted>,
    vm_of: impl Fn(&Place) -> Option<K>,
    observer: &dyn Observer,
    prepare: impl Fn(K, Vec<Wanted>) -> Result<Box<dyn Capture>>,
) -> Result<Vec<Box<dyn Capture>>> {
    let mut captures: Vec<Box<dyn Capture>> = Vec::new();
    for (vm, wishes) in by_vm(wanted, vm_of)? {
        match prepare(vm, wishes) {
            Ok(capture) => captures.push(capture),
            Err(error) => {
                for capture in &mut captures {
                    tell(observer, capture.abandon());
                }
                return Err(error);
            }
        }
    }
    Ok(captures)
}

fn by_vm<K: PartialEq>(
    wanted: Vec<Wanted>,
    vm_of: impl Fn(&Place) -> Option<K>,
) -> Result<Vec<(K, Vec<Wanted>)>> {
    let mut vms: Vec<(K, Vec<Wanted>)> = Vec::new();
    for wish in wanted {
        let vm = vm_of(&wish.place).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "something else is taken for a VM")
                .on(wish.place.to_string())
        })?;
        match vms.iter_mut().find(|(other, _)| *other == vm) {
            Some((_, wishes)) => wishes.push(wish),
            None => vms.push((vm, vec![wish])),
        }
    }
    Ok(vms)
}

/// The number in the request and the name in the archive of each of these disks of one VM: what a wish for
/// that very disk says, or else the name of the wish for the whole VM with the disk's behind it.
pub fn names(wishes: &[Wanted], disks: &[String]) -> Vec<(usize, String)> {
    let all = wishes.iter().find(|wish| wish.place.disk().is_none());
    let named = |disk: &String| {
        let own = wishes.iter().find(|wish| wish.place.disk() == Some(disk));
        let own = own.map(|wish| (wish.number, wish.name.clone()));
        own.or_else(|| all.map(|wish| (wish.number, format!("{}-{disk}", wish.name))))
    };
    disks.iter().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_its_own_name_or_one_from_the_vm() {
        let wish = |number, name: &str, disk: Option<&str>| Wanted {
            number,
            name: name.into(),
            place: Place::Qemu { monitor: "web".into(), disk: disk.map(str::to_owned) },
        };
        let disks = ["vda".to_owned(), "vdb".to_owned()];
        let whole = names(&[wish(3, "web", None)], &disks);
        assert_eq!(whole, [(3, "web-vda".to_owned()), (3, "web-vdb".to_owned())]);
        let both = names(&[wish(1, "data", Some("vdb")), wish(0, "web", None)], &disks);
        assert_eq!(both, [(0, "web-vda".to_owned()), (1, "data".to_owned())]);
    }
}
