//! `cargo +nightly fuzz run decode` in `broker/codec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir_codec::fuzz::decode(data));
