//! What an interrupted backup left behind, damaged; the next backup must be right.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::whole::resume(data));
