//! What the kernel writes of thin pools.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::volumes::thin(data));
