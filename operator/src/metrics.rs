//! What the operator counts. Owns the registry; knows no client.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Steps by which the number of pods follows the load.
const STEPS: [&str; 4] = ["up", "drain", "down", "called_off"];

/// A kind and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    kind: &'static str,
    outcome: &'static str,
}

/// A kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfKind {
    kind: &'static str,
}

/// A call of a broker's admin API and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Call {
    call: &'static str,
    outcome: &'static str,
}

/// A request to the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Request {
    verb: &'static str,
    resource: String,
}

/// A Broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfBroker {
    namespace: String,
    broker: String,
}

/// A change of the pods of a Broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Scaling {
    namespace: String,
    broker: String,
    step: &'static str,
}

/// All that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    reconciliations: Family<Outcome, Counter>,
    seconds: Family<OfKind, Histogram>,
    drift: Family<OfKind, Counter>,
    calls: Family<Call, Counter>,
    requests: Family<Request, Counter>,
    up: Family<OfBroker, Gauge>,
    scalings: Family<Scaling, Counter>,
    scaling_desired: Family<OfBroker, Gauge>,
    unknown: Gauge,
    leader: Gauge,
}

impl Metrics {
    /// Nothing counted yet.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("weir_operator");
        let seconds = Family::<OfKind, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 2.0, 16))
        });
        let metrics = Self {
            reconciliations: Family::default(),
            seconds,
            drift: Family::default(),
            calls: Family::default(),
            requests: Family::default(),
            up: Family::default(),
            scalings: Family::default(),
            scaling_desired: Family::default(),
            unknown: Gauge::default(),
            leader: Gauge::default(),
            registry: Mutex::default(),
        };
        registry.register(
            "reconciliations",
            "Reconciliations of objects and what came of them",
            metrics.reconciliations.clone(),
        );
        registry.register("reconcile_seconds", "Time that reconciliations took", metrics.seconds.clone());
        registry.register(
            "drift_repaired",
            "Queues and streams that somebody else had changed or deleted and that were set back",
            metrics.drift.clone(),
        );
        registry.register("admin_calls", "Calls of brokers and what came of them", metrics.calls.clone());
        registry.register("kube_requests", "Requests to the API server", metrics.requests.clone());
        registry.register("broker_up", "Whether calls of the Broker succeed", metrics.up.clone());
        registry.register(
            "scalings",
            "Steps by which the number of pods followed the load",
            metrics.scalings.clone(),
        );
        registry.register(
            "scaling_desired_pods",
            "Pods that a Broker should have by its load",
            metrics.scaling_desired.clone(),
        );
        registry.register(
            "brokers_unknown",
            "Brokers that this operator cannot read, and namespaces of which it cannot list the Brokers",
            metrics.unknown.clone(),
        );
        registry.register("leader", "Whether this operator leads", metrics.leader.clone());
        *metrics.registry.lock() = registry;
        metrics
    }

    /// All as OpenMetrics text.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock())
            .expect("a string takes everything");
        text
    }

    /// A reconciliation has ended.
    pub(crate) fn reconciled(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        self.reconciliations.get_or_create(&Outcome { kind, outcome }).inc();
        self.seconds.get_or_create(&OfKind { kind }).observe(took.as_secs_f64());
    }

    /// What somebody else had changed was set back.
    pub(crate) fn repaired(&self, kind: &'static str) {
        self.drift.get_or_create(&OfKind { kind }).inc();
    }

    /// A broker was called.
    pub(crate) fn called(&self, call: &'static str, outcome: &'static str) {
        self.calls.get_or_create(&Call { call, outcome }).inc();
    }

    /// The API server is asked.
    pub(crate) fn asked(&self, verb: &'static str, resource: String) {
        self.requests.get_or_create(&Request { verb, resource }).inc();
    }

    /// Whether calls of a Broker succeed.
    pub(crate) fn broker_up(&self, namespace: &str, broker: &str, up: bool) {
        self.up.get_or_create(&of_broker(namespace, broker)).set(i64::from(up));
    }

    /// A Broker is gone.
    pub(crate) fn broker_gone(&self, namespace: &str, broker: &str) {
        self.up.remove(&of_broker(namespace, broker));
        self.scaling_desired.remove(&of_broker(namespace, broker));
        for step in STEPS {
            let (namespace, broker) = (namespace.to_owned(), broker.to_owned());
            self.scalings.remove(&Scaling { namespace, broker, step });
        }
    }

    /// A `step` of [`STEPS`] was made.
    pub(crate) fn scaled(&self, namespace: &str, broker: &str, step: &'static str) {
        let (namespace, broker) = (namespace.to_owned(), broker.to_owned());
        self.scalings.get_or_create(&Scaling { namespace, broker, step }).inc();
    }

    /// Pods that a Broker should have by its load.
    pub(crate) fn scaling_desired(&self, namespace: &str, broker: &str, pods: i32) {
        self.scaling_desired.get_or_create(&of_broker(namespace, broker)).set(pods.into());
    }

    /// Brokers that cannot be read, and namespaces of which they cannot be listed.
    pub(crate) fn brokers_unknown(&self, count: usize) {
        self.unknown.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether this operator leads.
    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }
}

fn of_broker(namespace: &str, broker: &str) -> OfBroker {
    OfBroker { namespace: namespace.to_owned(), broker: broker.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each series once; the chart's dashboards and alerts are checked against this list.
    #[test]
    fn list_of_metrics() {
        let metrics = Metrics::new();
        for outcome in ["done", "retry", "stalled"] {
            metrics.reconciled("MessageQueue", outcome, Duration::from_millis(1));
        }
        metrics.repaired("MessageQueue");
        metrics.called("DeclareQueue", "ok");
        metrics.asked("get", "leases".to_owned());
        metrics.broker_up("messaging", "main", true);
        metrics.leads(true);
        let text = metrics.encode();
        // One bucket of a histogram stands for all. Series come in no order.
        let told = text.lines().filter(|line| !line.contains("le=") || line.contains("le=\"+Inf\""));
        let (comments, series): (Vec<&str>, Vec<&str>) = told.partition(|line| line.starts_with('#'));
        let series = series.into_iter().filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series);
        let series = std::collections::BTreeSet::from_iter(series);
        let list: Vec<&str> = comments.into_iter().chain(series).collect();
        insta::assert_snapshot!(list.join("\n"));
    }

    #[test]
    fn a_broker_that_is_gone_has_no_series() {
        let metrics = Metrics::new();
        metrics.broker_up("messaging", "main", false);
        assert!(
            metrics.encode().contains("weir_operator_broker_up{namespace=\"messaging\",broker=\"main\"} 0\n")
        );
        metrics.broker_gone("messaging", "main");
        assert!(!metrics.encode().contains("broker=\"main\""));
    }
}
