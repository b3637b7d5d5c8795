//! A clock that goes backwards, or is far off: order is where a snapshot lies in the log.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::data::assert_same;
use voltar_tests::{Rng, Scratch, Voltar};

/// A library that shifts the clock by `SHIFT_S` seconds, or stops it at `STOP_S`.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    const char *shift = getenv("SHIFT_S"), *stop = getenv("STOP_S");
    if (!failed && id == CLOCK_REALTIME && shift) now->tv_sec += atoll(shift);
    if (!failed && id == CLOCK_REALTIME && stop) *now = (struct timespec){ atoll(stop), 0 };
    return failed;
}
"#;

/// Builds the library; whoever builds Rust has a C compiler, for Rust links with it.
fn clock(scratch: &Scratch) -> PathBuf {
    let source = scratch.write("clock.c", CLOCK.as_bytes());
    let library = scratch.path("clock.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .expect("cc runs");
    assert!(built.success(), "the clock does not build");
    library
}

fn ids(list: &Value) -> Vec<&str> {
    let snapshots = list["snapshots"].as_array().unwrap();
    snapshots.iter().map(|snapshot| snapshot["id"].as_str().unwrap()).collect()
}

#[test]
fn order_is_that_of_the_log_whatever_the_clock_says() {
    const DAY_S: i64 = 86_400;
    let scratch = Scratch::new();
    let library = clock(&scratch);
    // Now, last year, the next century, before 1970, twice the same instant.
    let clocks = [
        ("SHIFT_S", 0),
        ("SHIFT_S", -365 * DAY_S),
        ("SHIFT_S", 36_500 * DAY_S),
        ("STOP_S", -DAY_S),
        ("STOP_S", 1_000_000_000),
        ("STOP_S", 1_000_000_000),
    ];
    let mut made = Vec::new();
    let mut states = Vec::new();
    for (name, seconds) in clocks {
        let bytes = Rng::new(made.len() as u64).bytes(300_000);
        scratch.write("disk", &bytes);
        let backup = Voltar::new(&scratch).args(words("backup disk a.voltar"));
        let shifted = backup.env("LD_PRELOAD", &library).env(name, seconds.to_string());
        let report = shifted.json();
        let parent = made.last().map(|id: &String| Value::from(id.as_str()));
        assert_eq!(report["parent"], parent.unwrap_or(Value::Null), "{name} {seconds}");
        made.push(report["snapshot"].as_str().unwrap().to_string());
        states.push(bytes);
    }
    let list = Voltar::new(&scratch).args(words("list a.voltar")).json();
    assert_eq!(ids(&list), made, "{list}");
    let times: Vec<&str> =
        list["snapshots"].as_array().unwrap().iter().map(|s| s["time"].as_str().unwrap()).collect();
    assert!(times[1] < times[0] && times[0] < times[2], "the clock was not shifted: {times:?}");
    assert_eq!(times[4], times[5]);
    assert!(times[4].starts_with("2001-09-09T01:46:40"), "{times:?}");
    for (age, bytes) in states.iter().rev().enumerate() {
        let line = format!("restore a.voltar@latest~{age} out-{age}");
        Voltar::new(&scratch).args(words(&line)).ok();
        assert_same(&scratch.read(&format!("out-{age}")), bytes, &line);
    }
    // Of two from the same instant, a date means the later one.
    Voltar::new(&scratch).args(words("restore a.voltar@2001-09-09 dated")).ok();
    assert_same(&scratch.read("dated"), states.last().unwrap(), "by date");
    Voltar::new(&scratch).args(words("verify a.voltar")).ok();
}
