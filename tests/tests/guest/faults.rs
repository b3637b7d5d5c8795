//! Devices that device mapper makes fail.

use voltar_tests::guest::{Disk, run};

use crate::SECTORS;

#[test]
fn failing_and_forgetful_devices_cost_nothing_that_was_committed() {
    let test = "failing_and_forgetful_devices_cost_nothing_that_was_committed";
    run(test, "dm_faults", &[Disk::Blank(64), Disk::Blank(64)], SECTORS);
}
