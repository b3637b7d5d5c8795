//! Running the program where the kernel refuses one of its system calls.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use nix::errno::Errno;
use nix::libc::c_long;

use crate::{Scratch, Voltar, skip};

/// Makes the system call of a number fail with an error, and becomes the program in the arguments
/// behind these two.
const FILTER: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
call, errno = int(sys.argv[1]), int(sys.argv[2])
def op(code, jt, jf, k):
    return struct.pack("HBBI", code, jt, jf, k)
program = (op(0x20, 0, 0, 0) + op(0x15, 0, 1, call) + op(6, 0, 0, 0x00050000 | errno)
    + op(6, 0, 0, 0x7fff0000))
buffer = ctypes.create_string_buffer(program)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
filter = Program(4, ctypes.addressof(buffer))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter), 0, 0):
    sys.exit("no filter: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[3], sys.argv[3:])
"#;

/// A system call that fails.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    call: c_long,
    errno: Errno,
}

impl Refusal {
    /// Of `call`, with `errno`; a skip of `test` where filters cannot be set.
    pub fn new(test: &str, call: c_long, errno: Errno) -> Option<Refusal> {
        let refusal = Refusal { call, errno };
        let tried = Command::new("python3").args(refusal.args()).arg("/bin/true").output();
        let why = match tried {
            Ok(output) if output.status.success() => return Some(refusal),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => format!("python3: {error}"),
        };
        skip(test, &why);
        None
    }

    /// The program, which meets it.
    pub fn voltar(&self, scratch: &Scratch) -> Voltar {
        let args = self.args();
        let python: Vec<&OsStr> = [OsStr::new("python3")]
            .into_iter()
            .chain(args.iter().map(OsString::as_os_str))
            .collect();
        Voltar::through(scratch, &python)
    }

    fn args(&self) -> [OsString; 4] {
        let (call, errno) = (self.call.to_string(), (self.errno as i32).to_string());
        ["-c", FILTER, &call, &errno].map(OsString::from)
    }
}
