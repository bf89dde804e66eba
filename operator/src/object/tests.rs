//! Objects, Brokers and an API server in memory; the reconciliation is the real one.

mod complaints;
mod plans;
pub(crate) mod server;
mod writes;
