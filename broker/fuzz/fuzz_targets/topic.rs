//! Topic names, filters, subscriptions and the match trie. See `../README.md`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir_topic::fuzz::fuzz_topic(data));
