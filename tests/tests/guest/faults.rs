//! Devices that device mapper makes fail, and a quota that is used up.

use voltar_tests::guest::{Disk, run};

use crate::SECTORS;

#[test]
fn failing_and_forgetful_devices_cost_nothing_that_was_committed() {
    let test = "failing_and_forgetful_devices_cost_nothing_that_was_committed";
    run(test, "dm_faults", &[Disk::Blank(64), Disk::Blank(64)], SECTORS);
}

#[test]
fn an_archive_over_quota_goes_on_when_there_is_more() {
    let test = "an_archive_over_quota_goes_on_when_there_is_more";
    run(test, "quota", &[Disk::Blank(320)], SECTORS);
}
