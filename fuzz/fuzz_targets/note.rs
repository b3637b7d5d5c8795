//! A session's note.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::parsers::note(data));
