//! Logical volumes that are held still by snapshots, and known by what LVM keeps about them.

use voltar_tests::guest::{Disk, run};

use crate::SECTORS;

/// Runs a script with one disk for LVM.
fn on_one_disk(test: &str, script: &str) {
    run(test, script, &[Disk::Blank(200)], SECTORS);
}

#[test]
fn a_chain_of_a_thin_volume_comes_back() {
    on_one_disk("a_chain_of_a_thin_volume_comes_back", "lvm_thin_chain");
}

#[test]
fn a_chain_of_a_thick_volume_comes_back() {
    on_one_disk("a_chain_of_a_thick_volume_comes_back", "lvm_thick_chain");
}

#[test]
fn killed_backups_of_thin_volumes_leave_nothing() {
    on_one_disk("killed_backups_of_thin_volumes_leave_nothing", "lvm_kills");
}

#[test]
fn a_base_that_is_not_what_it_was_is_not_used() {
    on_one_disk("a_base_that_is_not_what_it_was_is_not_used", "lvm_bases");
}

#[test]
fn a_thick_snapshot_that_runs_full_fails_loudly() {
    on_one_disk("a_thick_snapshot_that_runs_full_fails_loudly", "lvm_full");
}

#[test]
fn sick_thin_pools_are_refused_and_well_ones_go_on() {
    on_one_disk("sick_thin_pools_are_refused_and_well_ones_go_on", "lvm_sick");
}

#[test]
fn pools_whose_metadata_is_damaged_or_forged_cost_a_full_read() {
    on_one_disk("pools_whose_metadata_is_damaged_or_forged_cost_a_full_read", "lvm_lies");
}

#[test]
fn what_a_thin_volume_has_of_an_external_origin_is_read() {
    on_one_disk("what_a_thin_volume_has_of_an_external_origin_is_read", "lvm_external");
}

#[test]
fn volumes_on_several_disks_and_in_a_cache_come_back() {
    let test = "volumes_on_several_disks_and_in_a_cache_come_back";
    run(test, "lvm_kinds", &[Disk::Blank(64), Disk::Blank(64)], SECTORS);
}
