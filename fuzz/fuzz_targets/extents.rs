//! What the kernel says of the extents of two files on XFS or btrfs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::extents::extents(data));
