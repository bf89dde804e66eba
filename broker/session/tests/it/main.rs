//! The session seen from outside: scripts clause by clause, a client on a lossy link, arbitrary input.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod bounds;
mod clauses;
mod pair;
mod resumption;
mod script;
