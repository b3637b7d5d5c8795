//! A valid archive, edited, its checksums repaired so that deeper checks are reached.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::whole::repaired(data));
