//! System calls on files and block devices that the standard library lacks, wrapped safely.
//!
//! Request numbers are those of `include/uapi/linux/fs.h` and `loop.h`. Everything takes an open file and
//! returns the kernel's error as it is.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};
use nix::libc;
use nix::unistd::{SysconfVar, Whence, lseek64, sysconf};

/// The request numbers and argument types, as `nix` makes functions of them.
mod raw {
    use nix::libc;

    /// The start of `struct loop_info64` (`include/uapi/linux/loop.h`), and room for the rest.
    #[repr(C)]
    pub struct LoopInfo64 {
        pub device: u64,
        pub inode: u64,
        pub rdevice: u64,
        rest: [u64; 26],
    }

    nix::ioctl_read!(blk_get_size64, 0x12, 114, u64);
    nix::ioctl_read!(blk_get_diskseq, 0x12, 128, u64);
    nix::ioctl_read_bad!(blk_ssz_get, nix::request_code_none!(0x12, 104), libc::c_int);
    nix::ioctl_read_bad!(blk_ro_get, nix::request_code_none!(0x12, 94), libc::c_int);
    nix::ioctl_read_bad!(loop_get_status64, 0x4c05, LoopInfo64);
    nix::ioctl_read!(blk_zname, 0x12, 125, [u8; 256]);
    nix::ioctl_none_bad!(blk_flsbuf, nix::request_code_none!(0x12, 97));
    nix::ioctl_write_ptr_bad!(blk_discard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blk_zeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// Length of a page of memory in bytes, which is that of a page of the page cache.
pub fn page_len() -> Option<u32> {
    let len = sysconf(SysconfVar::PAGE_SIZE).ok().flatten()?;
    u32::try_from(len).ok()
}

/// Length of a block device in bytes (`BLKGETSIZE64`).
pub fn block_device_len(file: &File) -> io::Result<u64> {
    let mut len = 0;
    // SAFETY: the kernel writes one u64 to the pointer, which is to a live local; the descriptor
    // is open for as long as `file` is borrowed. On another kind of file it answers ENOTTY.
    unsafe { raw::blk_get_size64(file.as_raw_fd(), &raw mut len) }?;
    Ok(len)
}

/// Logical sector length in bytes (`BLKSSZGET`).
pub fn logical_block_len(file: &File) -> io::Result<u32> {
    let mut len = 0;
    // SAFETY: the kernel writes one int to the pointer, which is to a live local.
    unsafe { raw::blk_ssz_get(file.as_raw_fd(), &raw mut len) }?;
    u32::try_from(len).map_err(io::Error::other)
}

/// Whether a block device refuses writes (`BLKROGET`).
pub fn is_read_only(file: &File) -> io::Result<bool> {
    let mut flag = 0;
    // SAFETY: the kernel writes one int to the pointer, which is to a live local.
    unsafe { raw::blk_ro_get(file.as_raw_fd(), &raw mut flag) }?;
    Ok(flag != 0)
}

/// The disk sequence number (`BLKGETDISKSEQ`, 5.15): another one means another disk behind the
/// same device number, such as a loop device set up anew.
pub fn disk_sequence(file: &File) -> io::Result<u64> {
    let mut sequence = 0;
    // SAFETY: the kernel writes one u64 to the pointer, which is to a live local.
    unsafe { raw::blk_get_diskseq(file.as_raw_fd(), &raw mut sequence) }?;
    Ok(sequence)
}

/// The name of the volume or snapshot of ZFS that a device is (`BLKZNAME` of OpenZFS).
pub fn zvol_name(file: &File) -> io::Result<String> {
    let mut name = [0; 256];
    // SAFETY: the kernel writes at most 256 bytes to the pointer, which is to a live local of that
    // length. Devices of other drivers answer ENOTTY.
    unsafe { raw::blk_zname(file.as_raw_fd(), &raw mut name) }?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8(name.to_vec()).map_err(io::Error::other)
}

/// What a loop device stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopBacking {
    /// Device number of the file system that holds the file.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
    /// Device number if the file is a block device; otherwise 0, or `dev` on older kernels.
    pub rdev: u64,
}

/// The file that a loop device stands on (`LOOP_GET_STATUS64`), whatever became of its name.
pub fn loop_backing(file: &File) -> io::Result<LoopBacking> {
    let mut info = MaybeUninit::<raw::LoopInfo64>::zeroed();
    // SAFETY: the kernel writes one `struct loop_info64` to the pointer, which is to a live local
    // of that length. On another kind of device it answers ENOTTY.
    unsafe { raw::loop_get_status64(file.as_raw_fd(), info.as_mut_ptr()) }?;
    // SAFETY: all-zero bytes are a valid `LoopInfo64` (integers only), and the kernel wrote over
    // them.
    let info = unsafe { info.assume_init() };
    Ok(LoopBacking { dev: info.device, ino: info.inode, rdev: info.rdevice })
}

/// Writes back and forgets what the page cache holds of a block device (`BLKFLSBUF`).
/// Needs `CAP_SYS_ADMIN`.
pub fn flush_block_cache(file: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { raw::blk_flsbuf(file.as_raw_fd()) }?;
    Ok(())
}

/// Makes `range` of a block device read as zeroes (`BLKZEROOUT`), by writing them if need be.
/// Offsets and lengths are multiples of the logical sector, else `EINVAL`.
pub fn zero_block_range(file: &File, range: &Range<u64>) -> io::Result<()> {
    let argument = [range.start, length(range)];
    // SAFETY: the kernel reads two u64 from the pointer, which is to a live local.
    unsafe { raw::blk_zeroout(file.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

/// Releases `range` of a block device (`BLKDISCARD`). **What it reads as afterwards is
/// undefined**: a discard is never taken for a zero.
pub fn discard_block_range(file: &File, range: &Range<u64>) -> io::Result<()> {
    let argument = [range.start, length(range)];
    // SAFETY: the kernel reads two u64 from the pointer, which is to a live local.
    unsafe { raw::blk_discard(file.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

/// Zeroes and releases `range` (`fallocate(PUNCH_HOLE | KEEP_SIZE)`), on files and, since 4.9, on
/// block devices, where it fails rather than leave old bytes.
pub fn punch_hole(file: &File, range: &Range<u64>) -> io::Result<()> {
    allocate_with(
        file,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        range,
    )
}

/// Zeroes `range` (`fallocate(ZERO_RANGE | KEEP_SIZE)`).
pub fn zero_range(file: &File, range: &Range<u64>) -> io::Result<()> {
    allocate_with(
        file,
        FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        range,
    )
}

fn allocate_with(file: &File, flags: FallocateFlags, range: &Range<u64>) -> io::Result<()> {
    let (offset, len) = (signed(range.start)?, signed(length(range))?);
    loop {
        match fallocate(file, flags, offset, len) {
            Err(Errno::EINTR) => continue,
            other => return other.map_err(io::Error::from),
        }
    }
}

/// The first byte at or behind `offset` that may hold data (`SEEK_DATA`); `None` if only a hole
/// follows.
pub fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, Whence::SeekData)
}

/// The first byte at or behind `offset` that is in a hole (`SEEK_HOLE`); the file's end counts
/// as one. `None` if `offset` is not inside the file.
pub fn seek_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, Whence::SeekHole)
}

fn seek(file: &File, offset: u64, whence: Whence) -> io::Result<Option<u64>> {
    match lseek64(file, signed(offset)?, whence) {
        Ok(found) => u64::try_from(found).map(Some).map_err(io::Error::other),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Forgets clean pages of `range` in the page cache; a wish.
pub fn forget_cached(file: &File, range: &Range<u64>) -> io::Result<()> {
    let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    posix_fadvise(file, signed(range.start)?, signed(length(range))?, advice)?;
    Ok(())
}

/// What direct I/O on a file needs (`statx(STATX_DIOALIGN)`, 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlign {
    /// Alignment of memory in bytes; 0 if the file refuses direct I/O.
    pub memory: u32,
    /// Alignment of offsets and lengths in bytes; 0 if the file refuses direct I/O.
    pub offset: u32,
}

/// The alignment for direct I/O, or `None` if the kernel or the file system does not say.
pub fn direct_align(file: &File) -> io::Result<Option<DirectAlign>> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a constant with its terminating zero, AT_EMPTY_PATH makes the call
    // speak of the descriptor, and the kernel writes one `struct statx` to a live local.
    let status = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    Errno::result(status)?;
    // SAFETY: all-zero bytes are a valid `struct statx` (integers only), and the kernel wrote
    // over them.
    let answer = unsafe { answer.assume_init() };
    let known = answer.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(known.then_some(DirectAlign {
        memory: answer.stx_dio_mem_align,
        offset: answer.stx_dio_offset_align,
    }))
}

/// A lock that somebody else holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// First locked byte.
    pub start: u64,
    /// Whether it is exclusive.
    pub exclusive: bool,
}

/// Whether somebody else's lock would refuse an exclusive one on `range` (`F_OFD_GETLK`); takes
/// none itself. Needs any open mode.
pub fn probe_lock(file: impl AsFd, range: &Range<u64>) -> io::Result<Option<HeldLock>> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: signed(range.start)?,
        l_len: signed(length(range))?,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(Some(HeldLock {
        start: u64::try_from(lock.l_start).map_err(io::Error::other)?,
        exclusive: i32::from(lock.l_type) == libc::F_WRLCK,
    }))
}

/// Whether the system or the device lacks the call, as opposed to the call having failed.
pub fn is_unsupported(error: &io::Error) -> bool {
    // EINVAL is how old file systems refuse fallocate modes they do not know, and ENOTTY how a
    // driver refuses a request.
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENOTTY | Errno::ENODEV)
    )
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from(Errno::EOVERFLOW))
}
