//! One copy of a commit; encoding it again gives the same bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::parsers::commit(data));
