//! Queues and streams over a store, as the broker uses them.
#![expect(clippy::unwrap_used, reason = "what fails fails the test")]

mod acks;
mod asides;
mod catalog;
mod cluster_chaos;
mod cluster_members;
mod cluster_queues;
mod cluster_shards;
mod cluster_support;
mod compacted;
mod compacted_model;
mod controls;
mod costs;
mod crashes;
mod dead_letters;
mod delays;
mod expiry;
mod faults;
mod group_model;
mod groups;
mod last_value;
mod model;
mod operations;
mod overflow;
mod priorities;
mod queue_model;
mod queues;
mod reading;
mod retention;
mod session_moves;
mod sessions;
mod stream_damage;
mod stream_model;
mod stream_operations;
mod streams;
mod support;
