//! Saying that a test cannot run on this machine: loudly, and where the runner counts it.

use std::fs::OpenOptions;
use std::io::Write;

/// Records that the test `name` cannot run here because of `why`. The caller returns.
pub fn skip(name: &str, why: &str) {
    let line = format!("SKIP: {name}: {why}\n");
    eprint!("{line}");
    let Some(log) = std::env::var_os("VOLTAR_SKIP_LOG") else { return };
    let log = OpenOptions::new().create(true).append(true).open(log);
    log.and_then(|mut log| log.write_all(line.as_bytes())).expect("the skip log can be written");
}
