//! This pod as one of many: sessions that move between pods.
//!
//! A broker that runs alone uses none of this.

pub(crate) mod follow;
pub(crate) mod holds;
pub(crate) mod notices;
pub(crate) mod orphans;
pub(crate) mod takeover;
