//! Whether the kernel grants io_uring, with which flags, and if not, why not, in words.

use std::fmt;
use std::fs;
use std::io;

use io_uring::IoUring;
use nix::errno::Errno;

use super::IoEngine;

/// Where the kernel says whether io_uring is switched off (Linux 6.6, `admin-guide/sysctl/kernel`).
const DISABLED_SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// Sets of set-up flags, best first. A kernel that does not know a flag answers `EINVAL`.
const SETUPS: [Setup; 4] = [Setup::NoArray, Setup::Defer, Setup::Coop, Setup::Plain];

/// A set of set-up flags and the kernel that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// `SINGLE_ISSUER | DEFER_TASKRUN | NO_SQARRAY` (6.6).
    NoArray,
    /// `SINGLE_ISSUER | DEFER_TASKRUN` (6.1).
    Defer,
    /// `COOP_TASKRUN` (5.19).
    Coop,
    /// None.
    Plain,
}

impl Setup {
    /// The flags in words.
    pub fn words(self) -> &'static str {
        match self {
            Setup::NoArray => "single_issuer, defer_taskrun, no_sqarray",
            Setup::Defer => "single_issuer, defer_taskrun",
            Setup::Coop => "coop_taskrun",
            Setup::Plain => "no set-up flags",
        }
    }

    fn build(self, entries: u32) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.dontfork();
        match self {
            Setup::NoArray => builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
                .setup_no_sqarray(),
            Setup::Defer => builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all(),
            Setup::Coop => builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all(),
            Setup::Plain => &mut builder,
        };
        builder.build(entries)
    }
}

/// A ring of `entries` (a power of two) with the best flags the kernel knows.
pub(super) fn set_up(entries: u32) -> io::Result<(IoUring, Setup)> {
    let mut last = io::Error::from(Errno::EINVAL);
    for setup in SETUPS {
        match setup.build(entries) {
            Ok(ring) => return Ok((ring, setup)),
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// What the kernel grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFacts {
    /// The best flags it accepts.
    pub setup: Setup,
    /// Whether a wait can have a time limit (`IORING_FEAT_EXT_ARG`, 5.11).
    pub timed_wait: bool,
}

/// Why io_uring cannot be had.
#[derive(Debug)]
pub struct Unavailable {
    /// The likely cause, in words.
    pub reason: String,
    /// What the kernel answered.
    pub source: io::Error,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring is unavailable: {}", self.reason)
    }
}

impl std::error::Error for Unavailable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<Unavailable> for io::Error {
    fn from(unavailable: Unavailable) -> Self {
        io::Error::new(unavailable.source.kind(), unavailable)
    }
}

/// Sets up a small ring and gives it back.
///
/// # Errors
/// [`Unavailable`] with the likely cause.
pub fn probe() -> Result<RingFacts, Unavailable> {
    let (ring, setup) = set_up(4).map_err(explain)?;
    Ok(RingFacts { setup, timed_wait: ring.params().is_feature_ext_arg() })
}

/// The engine to run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// What was wanted, or [`IoEngine::Blocking`] instead of `Auto`.
    pub engine: IoEngine,
    /// What to tell the user, once, if it is not what they might expect.
    pub notice: Option<String>,
}

/// Settles `Auto` if the kernel refuses io_uring: plain reads and writes, with a notice.
///
/// # Errors
/// If `wanted` is [`IoEngine::Uring`] and the kernel refuses it: an error that says why.
pub fn choose(wanted: IoEngine) -> io::Result<Chosen> {
    let plain = |engine| Chosen { engine, notice: None };
    match wanted {
        IoEngine::Blocking => Ok(plain(IoEngine::Blocking)),
        IoEngine::Uring => probe().map(|_| plain(IoEngine::Uring)).map_err(io::Error::from),
        IoEngine::Auto => Ok(match probe() {
            Ok(_) => plain(IoEngine::Auto),
            Err(why) => Chosen { engine: IoEngine::Blocking, notice: Some(falling_back(&why)) },
        }),
    }
}

/// What the user is told of a ring that cannot be had.
pub(super) fn falling_back(why: &dyn fmt::Display) -> String {
    format!("{why}; using plain reads and writes")
}

/// Puts a failed set-up into words.
pub(super) fn explain(source: io::Error) -> Unavailable {
    let switch = fs::read_to_string(DISABLED_SYSCTL).ok();
    let reason = words(&source, switch.as_deref().map(str::trim));
    Unavailable { reason, source }
}

/// The likely cause of `error`, given the value of `kernel.io_uring_disabled`.
fn words(error: &io::Error, switch: Option<&str>) -> String {
    match (error.raw_os_error().map(Errno::from_raw), switch) {
        (Some(Errno::EPERM), Some("2")) => "sysctl kernel.io_uring_disabled is 2 (off for all)",
        (Some(Errno::EPERM), Some("1")) => {
            "sysctl kernel.io_uring_disabled is 1 (only for CAP_SYS_ADMIN and the group \
             kernel.io_uring_group)"
        }
        (Some(Errno::EPERM | Errno::EACCES), _) => {
            "a sandbox forbids it (a container's seccomp profile, most likely)"
        }
        (Some(Errno::ENOSYS), _) => "the kernel has none, or a sandbox hides it",
        (Some(Errno::ENOMEM), _) => {
            "the limit of locked memory is too low (`ulimit -l`, RLIMIT_MEMLOCK)"
        }
        (Some(Errno::EMFILE | Errno::ENFILE), _) => "too many open files (`ulimit -n`)",
        _ => return format!("{error}"),
    }
    .to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn because(errno: Errno, switch: Option<&str>) -> String {
        words(&io::Error::from(errno), switch)
    }

    #[test]
    fn refusals_are_put_into_words() {
        assert!(because(Errno::EPERM, Some("2")).contains("io_uring_disabled is 2"));
        assert!(because(Errno::EPERM, Some("1")).contains("io_uring_group"));
        assert!(because(Errno::EPERM, Some("0")).contains("seccomp"));
        assert!(because(Errno::EPERM, None).contains("seccomp"));
        assert!(because(Errno::ENOSYS, None).contains("kernel has none"));
        assert!(because(Errno::ENOMEM, None).contains("RLIMIT_MEMLOCK"));
        assert!(because(Errno::EMFILE, None).contains("ulimit -n"));
        assert!(because(Errno::EIO, None).contains("os error 5"));
    }

    #[test]
    fn unavailable_keeps_its_words_as_an_io_error() {
        let error = io::Error::from(explain(io::Error::from(Errno::ENOSYS)));
        assert!(error.to_string().contains("io_uring is unavailable"), "{error}");
        assert_eq!(error.kind(), io::Error::from(Errno::ENOSYS).kind());
    }

    #[test]
    fn blocking_is_never_second_guessed() {
        let chosen = choose(IoEngine::Blocking).unwrap();
        assert_eq!(chosen, Chosen { engine: IoEngine::Blocking, notice: None });
    }

    #[test]
    fn auto_settles_and_says_so_only_when_it_falls_back() {
        let chosen = choose(IoEngine::Auto).unwrap();
        assert_eq!(chosen.engine == IoEngine::Blocking, chosen.notice.is_some());
        assert_eq!(choose(IoEngine::Uring).is_ok(), chosen.engine == IoEngine::Auto);
    }

    #[test]
    fn a_seccomp_profile_makes_auto_fall_back_and_uring_say_why() {
        // A filter binds the thread that installs it, and no other.
        let seen = std::thread::spawn(|| {
            forbid_io_uring().then(|| (choose(IoEngine::Auto), choose(IoEngine::Uring)))
        });
        let Some((auto, uring)) = seen.join().unwrap() else {
            eprintln!("skipped: no seccomp filters here");
            return;
        };
        let auto = auto.unwrap();
        assert_eq!(auto.engine, IoEngine::Blocking);
        assert!(auto.notice.unwrap().contains("plain reads and writes"));
        assert!(uring.unwrap_err().to_string().contains("io_uring is unavailable"));
    }

    /// What the default profiles of Docker and containerd do to `io_uring_setup`, done to the
    /// calling thread for good; `false` where filters are refused.
    pub(crate) fn forbid_io_uring() -> bool {
        use nix::libc::{self, sock_filter, sock_fprog};
        let step = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
        let mut program = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                0,
                1,
                libc::SYS_io_uring_setup as u32,
            ),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the kernel copies the program, which lives until the calls return; a filter on
        // this thread can make system calls fail, not memory invalid.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter)
                    == 0
        }
    }
}
