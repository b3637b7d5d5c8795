//! What an NBD server says before there are requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::nbd::handshake(data));
