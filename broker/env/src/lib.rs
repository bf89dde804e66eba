//! Time and randomness: the two inputs that would make one run of Weir differ from the next.
//!
//! Everything that needs the time takes a [`clock::Clock`]; everything that needs randomness takes a
//! [`seed::Seed`]. With a simulated clock and a fixed seed a whole broker runs deterministically.
//!
//! Nothing outside this crate may read a system clock or draw unseeded random numbers; `clippy.toml`
//! enforces it.

pub mod clock;
pub mod seed;
