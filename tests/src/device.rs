//! Loop devices and mounts that are gone when the test is, however it ends.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a system program; its standard output, or what it complained about.
pub fn system(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .env("PATH", path_with_sbin())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
        false => Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn path_with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A loop device over a file.
#[derive(Debug)]
pub struct Loop(PathBuf);

impl Loop {
    /// With logical sectors of `sector` bytes.
    pub fn new(file: &Path, sector: u32) -> Result<Loop, String> {
        Loop::with(file, &["-b", &sector.to_string()])
    }

    /// Write-protected.
    pub fn read_only(file: &Path) -> Result<Loop, String> {
        Loop::with(file, &["-r"])
    }

    /// With more arguments for `losetup`.
    pub fn with(file: &Path, extra: &[&str]) -> Result<Loop, String> {
        let mut args = vec!["-f", "--show"];
        args.extend(extra);
        let file = file.to_str().ok_or("a path that is no UTF-8")?;
        args.push(file);
        // Others may take the free device that losetup found; then it is asked again.
        let mut outcome = system("losetup", &args);
        for _ in 0..5 {
            if outcome.as_ref().err().is_none_or(|error| !error.contains("busy")) {
                break;
            }
            outcome = system("losetup", &args);
        }
        outcome.map(|device| Loop(device.into()))
    }

    /// Detaches it now. The kernel keeps it as long as somebody has it open.
    pub fn detach(self) -> Result<(), String> {
        let mut device = std::mem::ManuallyDrop::new(self);
        let device = std::mem::take(&mut device.0);
        system("losetup", &["-d", device.to_str().unwrap()]).map(drop)
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `/dev/loopN`, as an argument.
    pub fn arg(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = system("losetup", &["-d", self.arg()]) {
            eprintln!("{error}");
        }
    }
}

/// Something mounted.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// A tmpfs with room for `size` (as `mount` writes sizes) at `at`, which is made.
    pub fn tmpfs(at: &Path, size: &str) -> Result<Mount, String> {
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let options = format!("size={size}");
        let at_arg = at.to_str().ok_or("a path that is no UTF-8")?;
        system("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", at_arg])?;
        Ok(Mount(at.into()))
    }

    /// What is on `device`, at `at`, which is made.
    pub fn device(device: &str, at: &Path) -> Result<Mount, String> {
        Mount::with(device, at, "rw")
    }

    /// As [`device`](Mount::device), with these options (as `mount -o` takes them).
    pub fn with(device: &str, at: &Path, options: &str) -> Result<Mount, String> {
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let at_arg = at.to_str().ok_or("a path that is no UTF-8")?;
        system("mount", &["-o", options, device, at_arg])?;
        Ok(Mount(at.into()))
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = system("umount", &[self.0.to_str().unwrap()]) {
            eprintln!("{error}");
            drop(system("umount", &["-l", self.0.to_str().unwrap()]));
        }
    }
}
