//! Bytes as a client or a server would receive them. See `../README.md`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir_codec::fuzz::decode(data));
