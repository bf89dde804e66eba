//! The codec from outside: bytes in, packets out, and back.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a helper that fails fails the test that calls it"
)]

mod arbitrary;
mod limits;
mod properties;
mod reasons;
mod refusals;
mod support;
mod vectors_v31;
mod vectors_v311;
mod vectors_v5;
mod wire;
