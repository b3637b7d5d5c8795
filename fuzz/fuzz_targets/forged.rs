//! An archive that no writer would write, its checksums right from the start.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::whole::forged(data));
