//! Scripts of writes, backups, interruptions, restores and diffs against plain bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::model::run(data));
