//! What `zfs send` writes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::streams::zfs(data));
