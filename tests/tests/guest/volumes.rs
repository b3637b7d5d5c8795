//! LVM and ZFS volumes: as the plain block devices that they are, created by a restore, and held
//! still and tracked by what their managers know.

use voltar_tests::guest::{Disk, run};

use crate::SECTORS;

const DISKS: [Disk<'_>; 2] = [Disk::Blank(128), Disk::Blank(128)];
const ZFS_DISKS: [Disk<'_>; 1] = [Disk::Blank(256)];

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

#[test]
fn a_zvol_with_a_random_history_comes_back() {
    run("a_zvol_with_a_random_history_comes_back", "zvol", &ZFS_DISKS, SECTORS);
}

#[test]
fn only_what_the_parent_recorded_is_a_base_of_a_zvol() {
    run("only_what_the_parent_recorded_is_a_base_of_a_zvol", "zvol_bases", &ZFS_DISKS, SECTORS);
}

#[test]
fn streams_of_a_zvol_that_break_or_lie_cost_a_full_read() {
    run("streams_of_a_zvol_that_break_or_lie_cost_a_full_read", "zvol_lies", &ZFS_DISKS, SECTORS);
}

#[test]
fn locked_zvols_are_refused_and_what_others_made_stays() {
    let test = "locked_zvols_are_refused_and_what_others_made_stays";
    run(test, "zvol_refusals", &ZFS_DISKS, SECTORS);
}

#[test]
fn killed_backups_of_a_zvol_leave_nothing_behind_the_next() {
    let test = "killed_backups_of_a_zvol_leave_nothing_behind_the_next";
    run(test, "zvol_kills", &ZFS_DISKS, SECTORS);
}

#[test]
fn received_cloned_and_promoted_zvols_are_known_for_what_they_are() {
    let test = "received_cloned_and_promoted_zvols_are_known_for_what_they_are";
    run(test, "zvol_received", &ZFS_DISKS, SECTORS);
}

#[test]
fn a_file_system_on_a_zvol_rests_while_the_snapshot_is_made() {
    run(
        "a_file_system_on_a_zvol_rests_while_the_snapshot_is_made",
        "zvol_frozen",
        &ZFS_DISKS,
        SECTORS,
    );
}
