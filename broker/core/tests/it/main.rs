//! Queues and streams over a store, as the broker uses them.

mod faults;
mod queues;
mod streams;
mod support;
