//! Weir as a library: what the `weir` binary is made of, so that tests can drive it.

mod admin;
pub mod auth;
mod auto_create;
mod broker;
pub mod cli;
pub mod client;
mod clients;
mod cluster;
pub mod config;
mod connection;
mod convert;
mod dead_letters;
mod disk;
mod fetch;
pub mod http;
mod json;
pub mod listen;
mod mailbox;
mod manifests;
pub mod metrics;
mod peer;
mod persistent;
mod pod;
mod process;
pub mod responses;
mod router;
pub mod server;
mod shared;
#[cfg(test)]
mod simulation;
mod slots;
pub mod store;
mod sys;
pub mod telemetry;
pub mod transport;
mod under_way;
