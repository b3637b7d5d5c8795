//! NBD servers that fail, die, come back or were never ones: what is said of it, and that what was
//! stored is right.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::nbd::{self, Server};
use voltar_tests::{Ran, Rng, Running, Scratch, Voltar};

const MIB: usize = 1 << 20;

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// An archive of one volume `disk` that holds `bytes`.
fn archive_of(scratch: &Scratch, bytes: &[u8]) -> &'static str {
    scratch.write("disk", bytes);
    voltar(scratch, "backup disk a.voltar").ok();
    "a.voltar"
}

#[track_caller]
fn assert_restores(scratch: &Scratch, archive: &str, bytes: &[u8], code: i32) {
    voltar(scratch, &format!("restore {archive} out")).run().expect(code);
    assert_same(&scratch.read("out"), bytes, archive);
    std::fs::remove_file(scratch.path("out")).unwrap();
}

fn number(object: &Value, name: &str) -> usize {
    object[name].as_u64().unwrap_or_else(|| panic!("{name} in {object}")) as usize
}

/// A run that failed as it should: nothing was committed, and it says so. The archive has no
/// snapshot.
#[track_caller]
fn assert_not_committed(scratch: &Scratch, archive: &str, ran: Ran, words: &str) {
    let ran = ran.expect(1);
    assert!(ran.stderr.contains(words), "not {words:?}: {}", ran.stderr);
    assert!(ran.stderr.contains("nothing was committed"), "{}", ran.stderr);
    if scratch.path(archive).exists() {
        let list = voltar(scratch, &format!("list {archive}")).json();
        assert_eq!(list["snapshots"], serde_json::json!([]));
    }
}

/// Waits until the server was asked `count` times for `kind`.
#[track_caller]
fn until_asked(running: &mut Running, server: &Server, kind: &str, count: usize) {
    let is_far = || server.requests_for(kind).len() >= count;
    assert!(running.until(is_far), "it ended too early");
}

#[test]
fn a_read_that_fails_is_named_or_recorded() {
    let test = "a_read_that_fails_is_named_or_recorded";
    let Some(scratch) = nbd::scratch(test) else { return };
    let mut bytes = Rng::new(41).bytes(4 * MIB);
    let source = scratch.write("source", &bytes);
    let bad = 2 * MIB..2 * MIB + 8192;
    let pread = format!(
        "pread=if [ $4 -lt {} ] && [ $(($4 + $3)) -gt {} ]; then echo EIO bad >&2; exit 1; fi; \
         dd if={} iflag=skip_bytes,count_bytes skip=$4 count=$3",
        bad.end,
        bad.start,
        source.display()
    );
    let size = format!("get_size=echo {}", bytes.len());
    let server = Server::nbdkit(&scratch, "bad", &["eval", &size, &pread]);
    let line = format!("backup disk={} a.voltar --json", server.uri());
    let ran = voltar(&scratch, &line).run();
    let error = ran.json()["error"].clone();
    assert_eq!(error["kind"], "source-unreadable", "{error}");
    assert_eq!(number(&error["range"], "offset"), bad.start, "{error}");
    assert_not_committed(&scratch, "a.voltar", ran, &server.uri());

    let ran = voltar(&scratch, &format!("{line} --on-read-error record")).run().expect(4);
    let lost = &ran.json()["volumes"][0]["unreadable"];
    let want = serde_json::json!([{ "offset": bad.start, "length": bad.len() }]);
    assert_eq!(*lost, want, "{}", ran.stderr);
    bytes[bad].fill(0);
    assert_restores(&scratch, "a.voltar", &bytes, 4);
}

#[test]
fn a_write_that_fails_leaves_a_target_that_is_named_partial() {
    let test = "a_write_that_fails_leaves_a_target_that_is_named_partial";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = [Rng::new(42).bytes(4 * MIB), vec![0; 4 * MIB]].concat();
    let archive = archive_of(&scratch, &bytes);
    for what in ["pwrite", "zero"] {
        let target = scratch.write(&format!("{what}-target"), &vec![0xee; 8 * MIB]);
        let file = format!("file={}", target.display());
        let rate = format!("error-{what}-rate=100%");
        let fails = scratch.write(&format!("{what}-fails"), &[]);
        let while_there = format!("error-{what}-file={}", fails.display());
        let args = ["--filter=error", "file", &file, &rate, &while_there];
        let server = Server::nbdkit(&scratch, what, &args);
        let line = format!("restore {archive} {} --overwrite --json", server.uri());
        let ran = voltar(&scratch, &line).run().expect(6);
        let error = &ran.json()["error"];
        assert_eq!(error["kind"], "target-partial", "{error}");
        assert_eq!(error["subject"], server.uri(), "{error}");
        assert!(number(&error["range"], "length") > 0, "{error}");
        assert!(ran.stderr.contains("do not use it yet"), "{}", ran.stderr);
        assert!(server.complaints().contains(&format!("injecting EIO error into {what}")));
        std::fs::remove_file(fails).unwrap();
        voltar(&scratch, &format!("{line} --read-back")).ok();
        drop(server);
        assert_same(&std::fs::read(target).unwrap(), &bytes, what);
    }
}

#[test]
fn a_backup_goes_on_with_a_server_that_comes_back() {
    let test = "a_backup_goes_on_with_a_server_that_comes_back";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(43, 24 * MIB);
    scratch.write("source", &bytes);
    for io in ["uring", "blocking"] {
        let mut server = Server::nbdkit(&scratch, io, &["file", "source"]);
        let archive = format!("{io}.voltar");
        let line = format!("backup disk={} {archive} --limit 24M --io {io} --json", server.uri());
        let mut running = voltar(&scratch, &line).start();
        for _ in 0..2 {
            until_asked(&mut running, &server, "Read", 4);
            server.kill();
            server.forget_requests();
            std::thread::sleep(Duration::from_millis(150));
            server.start_again();
        }
        until_asked(&mut running, &server, "Read", 1);
        let made = running.wait().expect(0).json();
        assert_eq!(number(&made["volumes"][0], "read_bytes"), bytes.len(), "{made}");
        assert_restores(&scratch, &archive, &bytes, 0);
    }
}

#[test]
fn a_backup_ends_when_its_server_stays_away() {
    let test = "a_backup_ends_when_its_server_stays_away";
    let Some(scratch) = nbd::scratch(test) else { return };
    scratch.write("source", &disk(44, 24 * MIB));
    let mut server = Server::nbdkit(&scratch, "mortal", &["file", "source"]);
    let line = format!("backup disk={} a.voltar --limit 12M", server.uri());
    let mut running = voltar(&scratch, &line).start();
    until_asked(&mut running, &server, "Read", 4);
    server.kill();
    let ran = running.wait();
    assert_not_committed(
        &scratch,
        "a.voltar",
        ran,
        "the connection was lost, and cannot be made again",
    );
}

#[test]
fn a_backup_does_not_go_on_with_another_export() {
    let test = "a_backup_does_not_go_on_with_another_export";
    let Some(scratch) = nbd::scratch(test) else { return };
    let source = scratch.write("source", &disk(45, 24 * MIB));
    let mut server = Server::nbdkit(&scratch, "shrinks", &["file", "source"]);
    let line = format!("backup disk={} a.voltar --limit 12M", server.uri());
    let mut running = voltar(&scratch, &line).start();
    until_asked(&mut running, &server, "Read", 4);
    server.kill();
    std::fs::File::options().write(true).open(source).unwrap().set_len(20 << 20).unwrap();
    server.start_again();
    let ran = running.wait();
    assert_not_committed(&scratch, "a.voltar", ran, "the export is not what it was");
}

#[test]
fn a_restore_ends_when_its_server_may_have_forgotten_writes() {
    let test = "a_restore_ends_when_its_server_may_have_forgotten_writes";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(46, 24 * MIB);
    let archive = archive_of(&scratch, &bytes);
    scratch.write("target", &vec![0; bytes.len()]);
    let mut server = Server::nbdkit(&scratch, "forgets", &["file", "target"]);
    let line = format!("restore {archive} {}", server.uri());
    let mut running = voltar(&scratch, &format!("{line} --limit 12M")).start();
    until_asked(&mut running, &server, "Write", 4);
    server.kill();
    server.start_again();
    let ran = running.wait().expect(6);
    assert!(ran.stderr.contains("not yet made durable, and may have forgotten"), "{}", ran.stderr);
    assert!(ran.stderr.contains("do not use it yet"), "{}", ran.stderr);
    let made = voltar(&scratch, &format!("{line} --read-back --json")).ok().json();
    let kept = number(&made["volumes"][0], "kept_bytes");
    assert!(kept > 0, "what the server did not forget was written again: {made}");
    drop(server);
    assert_same(&scratch.read("target"), &bytes, "the target");
}

#[test]
fn a_server_that_keeps_shutting_down_is_given_up() {
    let test = "a_server_that_keeps_shutting_down_is_given_up";
    let Some(scratch) = nbd::scratch(test) else { return };
    scratch.write("source", &disk(47, MIB));
    let args = ["--filter=error", "file", "source", "error=ESHUTDOWN", "error-pread-rate=100%"];
    let server = Server::nbdkit(&scratch, "leaving", &args);
    let line = format!("backup disk={} a.voltar", server.uri());
    let ran = voltar(&scratch, &line).run();
    assert_not_committed(&scratch, "a.voltar", ran, "the connection was lost again and again");
}

#[test]
fn whoever_is_no_server_is_named() {
    let test = "whoever_is_no_server_is_named";
    let Some(scratch) = nbd::scratch(test) else { return };
    let refused = |socket: &str, words: &str| {
        let uri = format!("nbd+unix:///?socket={}", scratch.path(socket).display());
        let ran = voltar(&scratch, &format!("backup disk={uri} a.voltar")).run();
        assert!(ran.stderr.contains("cannot connect to the NBD server"), "{}", ran.stderr);
        assert!(ran.stderr.contains(&uri), "{}", ran.stderr);
        assert_not_committed(&scratch, "a.voltar", ran, words);
    };
    let table: [(&str, &[u8], &str); 3] = [
        ("closes", b"", "the connection broke during the NBD handshake"),
        ("ssh", b"SSH-2.0-OpenSSH_9.2\r\n", "no NBD server listens there: it says \"SSH-2.0-\""),
        ("old", b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53", "oldstyle NBD protocol"),
    ];
    for (name, says, words) in table {
        let listener = UnixListener::bind(scratch.path(name)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| listener.accept().unwrap().0.write_all(says).unwrap());
            refused(name, words);
        });
    }
    // The socket is there, and whoever listened is gone.
    refused("ssh", "nobody answers there");
    refused("none", "nobody answers there");
}

#[test]
fn an_interrupted_backup_does_not_wait_for_a_slow_server() {
    let test = "an_interrupted_backup_does_not_wait_for_a_slow_server";
    let Some(scratch) = nbd::scratch(test) else { return };
    scratch.write("source", &Rng::new(48).bytes(64 * MIB));
    let args = ["--filter=delay", "file", "source", "rdelay=2"];
    let server = Server::nbdkit(&scratch, "slow", &args);
    let line = format!("backup disk={} a.voltar", server.uri());
    let mut running = voltar(&scratch, &line).start();
    until_asked(&mut running, &server, "Read", 4);
    let sent = Instant::now();
    running.signal(Signal::SIGINT);
    let ran = running.wait().expect(130);
    assert!(sent.elapsed() < Duration::from_secs(8), "{:?}", sent.elapsed());
    assert!(ran.stderr.contains("the archive is as it was"), "{}", ran.stderr);
}
