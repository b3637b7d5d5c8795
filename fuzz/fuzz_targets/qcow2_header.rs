//! What whoever writes a qcow2 image says of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::images::qcow2(data));
