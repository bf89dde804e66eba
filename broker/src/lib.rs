//! Weir as a library: what the `weir` binary is made of, so that tests can drive it.

mod admin;
pub mod auth;
mod broker;
pub mod cli;
pub mod client;
mod clients;
pub mod config;
mod connection;
mod convert;
mod disk;
pub mod http;
pub mod listen;
mod mailbox;
mod manifests;
pub mod metrics;
mod persistent;
mod process;
pub mod responses;
mod router;
pub mod server;
mod shared;
mod slots;
pub mod store;
mod sys;
pub mod telemetry;
pub mod transport;
mod under_way;
