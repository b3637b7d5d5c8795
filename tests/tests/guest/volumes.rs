//! LVM and ZFS volumes, as the plain block devices that they are.

use voltar_tests::guest::{Disk, run};

use crate::SECTORS;

const DISKS: [Disk<'_>; 2] = [Disk::Blank(128), Disk::Blank(128)];

#[test]
fn thin_thick_and_zfs_volumes_there_and_back() {
    run("thin_thick_and_zfs_volumes_there_and_back", "smoke", &DISKS, SECTORS);
}

#[test]
fn volumes_that_lvm_zfs_or_a_mapping_use_are_refused() {
    run("volumes_that_lvm_zfs_or_a_mapping_use_are_refused", "guard", &DISKS, SECTORS);
}

#[test]
fn volumes_that_do_not_exist_are_created_by_a_restore() {
    run("volumes_that_do_not_exist_are_created_by_a_restore", "create", &DISKS, SECTORS);
}

#[test]
fn the_commands_of_readme_for_lvm_and_zfs_work() {
    run("the_commands_of_readme_for_lvm_and_zfs_work", "readme", &DISKS, SECTORS);
}
