//! End-to-end tests: the real broker and foreign clients, seen from outside.
//!
//! `scenarios` holds what ordinary MQTT clients may expect of any broker; `control` proves the client drivers
//! with it against mosquitto's broker, `foreign` runs it, and queues and streams, against Weir.

mod control;

mod matrix;
mod scenarios;
