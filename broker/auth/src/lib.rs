//! Who a client is and what it may do.
//!
//! Credentials: [`PasswordFile`] and [`JwtVerifier`]. Access: [`Rules`], bound to one client as [`Access`], and
//! [`Explanation`] for people. Guessing is slowed by [`Throttle`]; [`Recent`] spares a client that has just proved
//! who it is the cost of a second proof.
//!
//! This crate knows no socket, no packet and no task; files come in as text and time as `now`. Whoever calls it owns
//! the state. No secret is in a `Debug` or an error.
#![warn(missing_docs)]

mod access;
mod address;
mod bounded;
mod explain;
mod jwt;
mod passwords;
mod pattern;
mod recent;
mod rules;
mod rules_file;
mod throttle;

use std::fmt;

pub use access::Access;
pub use address::Network;
pub use explain::{Explanation, Passed};
pub use jwt::{Algorithms, JwtConfig, JwtError, JwtKeys, JwtVerifier, Token};
pub use passwords::{PasswordFile, hash_password};
pub use pattern::{NamePattern, TopicPattern};
pub use recent::{Proof, Recent};
pub use rules::{Action, Client, Decision, Request, Rule, Rules, Verdict};
pub use throttle::{Throttle, ThrottleConfig};

/// A mistake in a file, and what is allowed instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1; 0 if it concerns the file as a whole.
    pub line: usize,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

/// Whether two secrets are the same, in a time that tells nothing of where they differ.
#[must_use]
pub fn is_same_secret(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}
