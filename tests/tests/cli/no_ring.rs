//! Where io_uring is refused, as under many containers' system call filters.

use nix::errno::Errno;
use nix::libc::SYS_io_uring_setup;
use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::filter::Refusal;
use voltar_tests::{Ran, Scratch, Voltar};

/// Refuses io_uring_setup.
fn no_ring(test: &str) -> Option<Refusal> {
    Refusal::new(test, SYS_io_uring_setup, Errno::EPERM)
}

fn run(refusal: Refusal, scratch: &Scratch, line: &str) -> Ran {
    refusal.voltar(scratch).args(words(line)).run()
}

/// Lines that speak of io_uring.
fn notices(ran: &Ran) -> usize {
    ran.stderr.lines().filter(|line| line.contains("io_uring")).count()
}

#[test]
fn auto_works_without_io_uring_and_says_so_once() {
    let Some(refused) = no_ring("auto_works_without_io_uring_and_says_so_once") else { return };
    let scratch = Scratch::new();
    let bytes = disk(1, 3_000_001);
    scratch.write("disk", &bytes);
    for line in ["backup disk a.voltar", "verify a.voltar", "restore a.voltar out"] {
        let ran = run(refused, &scratch, line).expect(0);
        assert_eq!(notices(&ran), 1, "{line}: {}", ran.stderr);
    }
    assert_same(&scratch.read("out"), &bytes, "without io_uring");
    // Reading a few bytes needs no ring, and has nothing to say about it.
    for line in ["list a.voltar", "show a.voltar", "inspect a.voltar"] {
        assert_eq!(notices(&run(refused, &scratch, line).expect(0)), 0, "{line}");
    }
}

#[test]
fn insisting_on_io_uring_fails_in_words() {
    let Some(refused) = no_ring("insisting_on_io_uring_fails_in_words") else { return };
    let scratch = Scratch::new();
    scratch.write("disk", &disk(1, 300_000));
    Voltar::new(&scratch).args(words("backup disk a.voltar")).ok();
    let before = scratch.contents();
    for line in
        ["backup disk b.voltar", "backup disk a.voltar", "verify a.voltar", "restore a.voltar out"]
    {
        let ran = run(refused, &scratch, &format!("{line} --io uring")).expect(1);
        assert!(ran.stderr.contains("error: io_uring"), "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains("seccomp"), "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint: "), "{line}: {}", ran.stderr);
    }
    assert!(scratch.contents() == before, "a refused run left something behind");
}

#[test]
fn blocking_works_without_io_uring_in_silence() {
    let Some(refused) = no_ring("blocking_works_without_io_uring_in_silence") else { return };
    let scratch = Scratch::new();
    let bytes = disk(1, 3_000_001);
    scratch.write("disk", &bytes);
    for line in ["backup disk a.voltar", "verify a.voltar", "restore a.voltar out"] {
        let ran = run(refused, &scratch, &format!("{line} --io blocking")).expect(0);
        assert_eq!(notices(&ran), 0, "{line}: {}", ran.stderr);
    }
    assert_same(&scratch.read("out"), &bytes, "with --io blocking");
}
