//! What every controller shares. Owned by the process while it leads.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::runtime::events::Recorder;
use parking_lot::RwLock;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_operator_api::Broker;

use crate::brokers::{Known, Links};
use crate::metrics::Metrics;

/// The field manager of everything that the operator writes.
pub(crate) const MANAGER: &str = "weir-operator";

/// What every controller shares.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) links: Arc<Links>,
    /// All Brokers of the namespaces that are watched; their controller sets it.
    pub(crate) known: RwLock<Known>,
    pub(crate) cluster: String,
    pub(crate) resync: Duration,
    pub(crate) clock: Clock,
    pub(crate) seed: Seed,
}

impl Context {
    /// All Brokers that are watched.
    pub(crate) fn brokers(&self) -> Arc<[Arc<Broker>]> {
        self.known.read().brokers.clone()
    }

    /// As [`Self::brokers`], and what else there may be.
    pub(crate) fn known(&self) -> Known {
        self.known.read().clone()
    }
}
