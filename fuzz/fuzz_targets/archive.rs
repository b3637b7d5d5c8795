//! Bytes as an archive, through everything that reads one, and a backup on top.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::whole::archive(data));
