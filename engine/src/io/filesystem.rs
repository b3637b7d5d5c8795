//! What file systems are asked beyond reading and writing: reflink copies, where extents lie,
//! flags, attributes.
//!
//! Request numbers are those of `include/uapi/linux/fs.h`, `fiemap.h`, `btrfs.h` and of XFS's `xfs_fs.h`.
//! Everything takes an open file and returns the kernel's error as it is.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

/// The request numbers and argument types, as `nix` makes functions of them.
mod raw {
    use nix::libc;
    use nix::{request_code_read, request_code_readwrite, request_code_write};

    /// Length of `struct fiemap` without its extents, which the request number has in it.
    const FIEMAP_LEN: usize = 32;
    /// Length of `struct btrfs_ioctl_search_args_v2` without its items.
    const SEARCH_LEN: usize = 112;
    /// Length of `struct btrfs_ioctl_fs_info_args`.
    pub const BTRFS_INFO_LEN: usize = 1024;
    /// Length of `struct xfs_fsop_geom_v1`.
    pub const XFS_GEOMETRY_LEN: usize = 112;
    /// Length of `struct fsxattr`.
    pub const FSXATTR_LEN: usize = 28;

    nix::ioctl_write_int_bad!(ficlone, request_code_write!(0x94, 9, size_of::<libc::c_int>()));
    nix::ioctl_readwrite_bad!(fiemap, request_code_readwrite!(b'f', 11, FIEMAP_LEN), u8);
    nix::ioctl_readwrite_bad!(tree_search, request_code_readwrite!(0x94, 17, SEARCH_LEN), u8);
    nix::ioctl_read_bad!(
        btrfs_info,
        request_code_read!(0x94, 31, BTRFS_INFO_LEN),
        [u8; BTRFS_INFO_LEN]
    );
    nix::ioctl_read_bad!(
        xfs_geometry,
        request_code_read!(b'X', 100, XFS_GEOMETRY_LEN),
        [u8; XFS_GEOMETRY_LEN]
    );
    nix::ioctl_read_bad!(
        get_xattr_flags,
        request_code_read!(b'X', 31, FSXATTR_LEN),
        [u8; FSXATTR_LEN]
    );
    // These two are declared with a long and answer an int.
    nix::ioctl_read_bad!(
        get_flags,
        request_code_read!(b'f', 1, size_of::<libc::c_long>()),
        [u32; 2]
    );
    nix::ioctl_read_bad!(
        get_generation,
        request_code_read!(b'v', 1, size_of::<libc::c_long>()),
        [u32; 2]
    );
}

/// Makes `to`, which is empty, share all extents of `from` (`FICLONE`). What was written to `from` before
/// is in it, what is written later is not.
pub fn reflink(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: the argument is a descriptor, open for as long as `from` is borrowed; no memory is
    // involved.
    unsafe { raw::ficlone(to.as_raw_fd(), from.as_raw_fd()) }?;
    Ok(())
}

/// Fills `answer` with a `struct fiemap` and as many of the file's extents behind `from` as it has room
/// for, writing back first what is not on the medium yet: without that, a block that was just
/// overwritten is still said to lie where the old one does.
pub fn fiemap(file: &File, from: u64, answer: &mut [u8]) -> io::Result<()> {
    const HEAD_LEN: usize = 32;
    const EXTENT_LEN: usize = 56;
    const SYNC: u32 = 1;
    let room = answer.len().checked_sub(HEAD_LEN).ok_or(Errno::EINVAL)? / EXTENT_LEN;
    let room = u32::try_from(room).map_err(io::Error::other)?;
    answer.fill(0);
    put(answer, 0, from);
    put(answer, 8, u64::MAX);
    put(answer, 16, u64::from(SYNC));
    put(answer, 24, u64::from(room));
    // SAFETY: the kernel reads and writes the head and writes at most `room` extents behind it,
    // all inside `answer`, which is borrowed for the call. It copies bytes, so that their
    // alignment does not matter.
    unsafe { raw::fiemap(file.as_raw_fd(), answer.as_mut_ptr()) }?;
    Ok(())
}

/// Fills `answer` with a `struct btrfs_ioctl_search_args_v2` and the items of `kind` of the file `inode`,
/// in the subvolume that `file` is in, whose offset is `from` or more. Needs `CAP_SYS_ADMIN`.
pub fn btrfs_items(
    file: &File,
    inode: u64,
    kind: u32,
    from: u64,
    answer: &mut [u8],
) -> io::Result<()> {
    const HEAD_LEN: usize = 112;
    let room = answer.len().checked_sub(HEAD_LEN).ok_or(Errno::EINVAL)? as u64;
    answer.fill(0);
    // The tree (0 is the file's own), objects, offsets and transactions from and to, kinds from and to,
    // and how many items at most.
    let (kinds, count) = (u64::from(kind) << 32 | u64::from(kind), u64::from(u32::MAX));
    let key = [0, inode, inode, from, u64::MAX, 0, u64::MAX, kinds, count];
    for (number, value) in key.into_iter().enumerate() {
        put(answer, number * 8, value);
    }
    put(answer, HEAD_LEN - 8, room);
    // SAFETY: the kernel reads and writes the head and writes at most `room` bytes behind it, all
    // inside `answer`, which is borrowed for the call. It copies bytes, so that their alignment
    // does not matter.
    unsafe { raw::tree_search(file.as_raw_fd(), answer.as_mut_ptr()) }?;
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// A file system's UUID.
pub type Uuid = [u8; 16];

/// The UUID of the btrfs that `file` is on (`BTRFS_IOC_FS_INFO`).
pub fn btrfs_uuid(file: &File) -> io::Result<Uuid> {
    let mut info = [0; raw::BTRFS_INFO_LEN];
    // SAFETY: the kernel writes `BTRFS_INFO_LEN` bytes to the pointer, which is to a live local.
    unsafe { raw::btrfs_info(file.as_raw_fd(), &raw mut info) }?;
    uuid_at(&info, 16)
}

/// The UUID of the XFS that `file` is on (`XFS_IOC_FSGEOMETRY_V1`).
pub fn xfs_uuid(file: &File) -> io::Result<Uuid> {
    let mut geometry = [0; raw::XFS_GEOMETRY_LEN];
    // SAFETY: the kernel writes `XFS_GEOMETRY_LEN` bytes to the pointer, which is to a live local.
    unsafe { raw::xfs_geometry(file.as_raw_fd(), &raw mut geometry) }?;
    uuid_at(&geometry, 64)
}

fn uuid_at(bytes: &[u8], at: usize) -> io::Result<Uuid> {
    let uuid = bytes.get(at..).and_then(|rest| rest.first_chunk());
    uuid.copied().ok_or_else(|| io::Error::from(Errno::EINVAL))
}

/// The flags of an inode that `chattr` changes (`FS_IOC_GETFLAGS`).
pub fn inode_flags(file: &File) -> io::Result<u32> {
    let mut flags = [0; 2];
    // SAFETY: the kernel writes at most 8 bytes to the pointer, which is to a live local.
    unsafe { raw::get_flags(file.as_raw_fd(), &raw mut flags) }?;
    Ok(flags[0])
}

/// Nothing of the file is ever written elsewhere than where it lies (`FS_NOCOW_FL`).
pub const FLAG_NO_COW: u32 = 0x0080_0000;

/// What tells a new file from an older one that had the same inode number (`FS_IOC_GETVERSION`).
pub fn inode_generation(file: &File) -> io::Result<u32> {
    let mut generation = [0; 2];
    // SAFETY: the kernel writes at most 8 bytes to the pointer, which is to a live local.
    unsafe { raw::get_generation(file.as_raw_fd(), &raw mut generation) }?;
    Ok(generation[0])
}

/// Whether an XFS file lies on the realtime device, which has addresses of its own
/// (`FS_IOC_FSGETXATTR`).
pub fn is_realtime(file: &File) -> io::Result<bool> {
    const REALTIME: u32 = 1;
    let mut attributes = [0; raw::FSXATTR_LEN];
    // SAFETY: the kernel writes `FSXATTR_LEN` bytes to the pointer, which is to a live local.
    unsafe { raw::get_xattr_flags(file.as_raw_fd(), &raw mut attributes) }?;
    let [a, b, c, d, ..] = attributes;
    Ok(u32::from_le_bytes([a, b, c, d]) & REALTIME != 0)
}

/// Sets an extended attribute.
pub fn set_attribute(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the name ends with a zero, and the kernel reads `value.len()` bytes of the value, which is
    // borrowed for the call.
    let status = unsafe {
        libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    Errno::result(status)?;
    Ok(())
}

/// An extended attribute of up to 256 bytes; `None` if the file has none of this name.
pub fn attribute(file: &File, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 256];
    // SAFETY: the name ends with a zero, and the kernel writes at most `value.len()` bytes to the value.
    let status = unsafe {
        libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    match Errno::result(status) {
        Ok(len) => {
            value.truncate(usize::try_from(len).map_err(io::Error::other)?);
            Ok(Some(value))
        }
        Err(Errno::ENODATA) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
