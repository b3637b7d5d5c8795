//! What an NBD server answers to requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::nbd::link(data));
