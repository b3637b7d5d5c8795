//! Where notes between runs are kept. The engine never reads the environment, so we do.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::CommandError;
use crate::world::World;

/// The directory for notes: `$XDG_STATE_HOME/voltar`, else `/var/lib/voltar` for root and
/// `~/.local/state/voltar` for others; none for who has no home.
pub fn directory(world: &dyn World) -> Option<PathBuf> {
    // The XDG specification wants relative values ignored.
    let absolute = |name| world.env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(state) = absolute("XDG_STATE_HOME") {
        return Some(state.join("voltar"));
    }
    if world.is_root() {
        return Some(PathBuf::from("/var/lib/voltar"));
    }
    absolute("HOME").map(|home| home.join(".local/state/voltar"))
}

/// The note that `verify --resume` goes on from. Different things to prove have different notes:
/// bytes checked as stored are not proven end to end.
pub fn verify_note(
    archive: &Path,
    stored: bool,
    world: &dyn World,
) -> Result<PathBuf, CommandError> {
    let directory = directory(world).ok_or_else(|| {
        CommandError::usage(
            "there is no directory for notes between runs: HOME is not set",
            "set XDG_STATE_HOME to a directory of your own, or leave `--resume` out",
        )
    })?;
    let canonical = world.canonical(archive);
    let hash = fnv1a(FNV_BASIS, canonical.as_os_str().as_bytes());
    let scope = if stored { "stored" } else { "full" };
    let name = readable(canonical.file_name().unwrap_or_default());
    Ok(directory.join(format!("verify-{scope}-{hash:016x}-{name}")))
}

/// A start of the archive's name, for whoever looks into the directory.
fn readable(name: &OsStr) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    name.to_string_lossy().chars().filter(is_plain).take(64).collect()
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, for names only: the standard library's hasher may change between its versions.
fn fnv1a(basis: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(basis, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::fake::Fake;

    #[test]
    fn the_first_place_that_applies_wins() {
        let mut world = Fake { env: vec![("XDG_STATE_HOME", "/s")], root: true, ..Fake::default() };
        assert_eq!(directory(&world).unwrap(), Path::new("/s/voltar"));
        world.env = vec![("XDG_STATE_HOME", "relative"), ("HOME", "/root")];
        assert_eq!(directory(&world).unwrap(), Path::new("/var/lib/voltar"));
        world.root = false;
        assert_eq!(directory(&world).unwrap(), Path::new("/root/.local/state/voltar"));
        world.env.clear();
        assert_eq!(directory(&world), None);
        let refused = verify_note(Path::new("x"), false, &world).unwrap_err();
        assert_eq!(refused.exit.code(), 2);
    }

    #[test]
    fn notes_differ_by_archive_and_scope() {
        let world = Fake { root: true, ..Fake::default() };
        let note = |archive: &str, stored| verify_note(Path::new(archive), stored, &world).unwrap();
        let whole = note("vm 7.vlt", false);
        let text = whole.to_string_lossy().into_owned();
        assert!(text.starts_with("/var/lib/voltar/verify-full-") && text.ends_with("-vm7.vlt"));
        assert_eq!(whole, note("vm 7.vlt", false));
        assert_ne!(whole, note("vm7.vlt", false));
        assert_ne!(whole, note("vm 7.vlt", true));
    }

    #[test]
    fn fnv_is_fnv() {
        assert_eq!(fnv1a(FNV_BASIS, b"foobar"), 0x8594_4171_f739_67e8);
    }
}
