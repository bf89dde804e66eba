//! The session seen from outside: scripts clause by clause, a client on a lossy link, arbitrary input.

mod bounds;
mod clauses;
mod pair;
mod resumption;
mod script;
