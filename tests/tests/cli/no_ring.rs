//! Where io_uring is refused, as under many containers' system call filters.

use std::ffi::OsStr;
use std::process::Command;

use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::{Ran, Scratch, Voltar, skip};

/// Makes io_uring_setup fail with EPERM and becomes the program in its arguments.
const FILTER: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def op(code, jt, jf, k):
    return struct.pack("HBBI", code, jt, jf, k)
program = op(0x20, 0, 0, 0) + op(0x15, 0, 1, 425) + op(6, 0, 0, 0x00050001) + op(6, 0, 0, 0x7fff0000)
buffer = ctypes.create_string_buffer(program)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
filter = Program(4, ctypes.addressof(buffer))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter), 0, 0):
    sys.exit("no filter: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
"#;

/// Whether filters can be set here.
fn can_filter(test: &str) -> bool {
    let tried = Command::new("python3").args(["-c", FILTER, "/bin/true"]).output();
    match tried {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            skip(test, String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(error) => {
            skip(test, &format!("python3: {error}"));
            false
        }
    }
}

fn filtered(scratch: &Scratch, line: &str) -> Ran {
    let python = ["python3", "-c", FILTER].map(OsStr::new);
    Voltar::through(scratch, &python).args(words(line)).run()
}

/// Lines that speak of io_uring.
fn notices(ran: &Ran) -> usize {
    ran.stderr.lines().filter(|line| line.contains("io_uring")).count()
}

#[test]
fn auto_works_without_io_uring_and_says_so_once() {
    if !can_filter("auto_works_without_io_uring_and_says_so_once") {
        return;
    }
    let scratch = Scratch::new();
    let bytes = disk(1, 3_000_001);
    scratch.write("disk", &bytes);
    for line in ["backup disk a.voltar", "verify a.voltar", "restore a.voltar out"] {
        let ran = filtered(&scratch, line).expect(0);
        assert_eq!(notices(&ran), 1, "{line}: {}", ran.stderr);
    }
    assert_same(&scratch.read("out"), &bytes, "without io_uring");
    // Reading a few bytes needs no ring, and has nothing to say about it.
    for line in ["list a.voltar", "show a.voltar", "inspect a.voltar"] {
        assert_eq!(notices(&filtered(&scratch, line).expect(0)), 0, "{line}");
    }
}

#[test]
fn insisting_on_io_uring_fails_in_words() {
    if !can_filter("insisting_on_io_uring_fails_in_words") {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("disk", &disk(1, 300_000));
    Voltar::new(&scratch).args(words("backup disk a.voltar")).ok();
    let before = scratch.contents();
    for line in
        ["backup disk b.voltar", "backup disk a.voltar", "verify a.voltar", "restore a.voltar out"]
    {
        let ran = filtered(&scratch, &format!("{line} --io uring")).expect(1);
        assert!(ran.stderr.contains("error: io_uring"), "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains("seccomp"), "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint: "), "{line}: {}", ran.stderr);
    }
    assert!(scratch.contents() == before, "a refused run left something behind");
}

#[test]
fn blocking_works_without_io_uring_in_silence() {
    if !can_filter("blocking_works_without_io_uring_in_silence") {
        return;
    }
    let scratch = Scratch::new();
    let bytes = disk(1, 3_000_001);
    scratch.write("disk", &bytes);
    for line in ["backup disk a.voltar", "verify a.voltar", "restore a.voltar out"] {
        let ran = filtered(&scratch, &format!("{line} --io blocking")).expect(0);
        assert_eq!(notices(&ran), 0, "{line}: {}", ran.stderr);
    }
    assert_same(&scratch.read("out"), &bytes, "with --io blocking");
}
