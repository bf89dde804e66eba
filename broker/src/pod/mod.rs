//! This pod as one that others describe: what it says of itself, what it has to do, and whether its clients are to go.

pub(crate) mod drain;
pub(crate) mod load;

use weir_core::cluster::PodInfo;
use weir_env::clock::Clock;

use crate::config::Config;

/// What a pod says of itself that starts now, alone.
pub(crate) fn info(config: &Config, clock: Clock) -> PodInfo {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    PodInfo {
        admin: config.admin.to_string().into(),
        server_reference: text(&config.drain.server_reference),
        zone: text(&config.drain.zone),
        version: env!("CARGO_PKG_VERSION").into(),
        started: clock.wall(),
        ..PodInfo::default()
    }
}
