//! Pages of an index run: order, filters, look-ups; building the run again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voltar_fuzz::parsers::pages(data));
