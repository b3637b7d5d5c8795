//! A map node, as it stands and in a volume's shape; encoding it again gives the same bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::parsers::node(data));
