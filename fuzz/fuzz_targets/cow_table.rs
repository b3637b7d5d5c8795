//! What the kernel writes of thick snapshots.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::volumes::cow(data));
