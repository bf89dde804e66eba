//! Packets, calls and time in any order for the protocol state of a client. See `../README.md`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    weir_session::fuzz::run(data, weir_env::clock::Clock::system().now().into_std());
});
