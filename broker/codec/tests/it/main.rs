//! The codec from outside: bytes in, packets out, and back.

mod arbitrary;
mod limits;
mod properties;
mod reasons;
mod refusals;
mod support;
mod vectors_v311;
mod vectors_v5;
mod wire;
