//! What a QEMU says of its VM.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::qmp::replies(data));
