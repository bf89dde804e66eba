//! What the scaling of pods sees and does, and how: what brokers say of their pods, what Kubernetes says of them, and the calls
//! that change either. Decides nothing and owns nothing.

use std::pin::Pin;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::ResourceExt as _;
use serde_json::json;
use weir_operator_api::Broker;

use super::decide::Load;
use crate::broker::desired::BROKER_LABEL;
use crate::brokers::AdminError;
use crate::context::MANAGER;
use crate::error::Error;

/// Kubernetes takes the pod with the lowest cost first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// On the pod that is being drained to go: since when.
pub(super) const LEAVING: &str = "weir.dev/leaving-since";
/// Of figures, what is older than this does not count.
const FRESH_MILLIS: u64 = 5000;

/// A call that has not ended.
pub(crate) type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, AdminError>> + Send + 'a>>;

/// What a broker says of one of its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Its id at the broker.
    pub(crate) id: String,
    /// Host of its address for other pods.
    pub(crate) host: String,
    /// All that it has to do; the name of the pod is not known.
    pub(crate) load: Load,
    pub(crate) is_drained: bool,
    pub(crate) age_millis: u64,
}

/// The pods of Brokers, by any of them. Calls end in bounded time and may be repeated.
pub(crate) trait PodAdmin: Send + Sync + 'static {
    /// Every pod and what it has to do.
    fn describe<'a>(&'a self, broker: &'a Broker) -> Pending<'a, Vec<Figures>>;
    /// Has the clients and shards of a pod go to the others.
    fn drain<'a>(&'a self, broker: &'a Broker, id: &'a str) -> Pending<'a, ()>;
    /// Ends that.
    fn resume<'a>(&'a self, broker: &'a Broker, id: &'a str) -> Pending<'a, ()>;
}

/// A pod as Kubernetes and its broker see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) name: String,
    /// It is being drained to go, since then.
    pub(super) leaving: Option<String>,
    /// Its id at the broker; none if that says nothing of it.
    pub(super) id: Option<String>,
    pub(super) is_drained: bool,
    pub(super) load: Load,
}

/// The pods that stay, each with what it has to do, if that is known, and whether that `counts`.
pub(super) fn seen(pods: &[Pod], figures: &[Figures], counts: bool) -> Vec<Seen> {
    let staying = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let seen = staying.map(|pod| {
        let name = pod.name_any();
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).unwrap_or_default();
        // A container that started anew is another pod to its broker: the youngest word is its.
        let of_pod = figures.iter().filter(|figures| !ip.is_empty() && figures.host == ip);
        let figures = of_pod.min_by_key(|figures| figures.age_millis);
        let mut load = figures.map(|figures| figures.load.clone()).unwrap_or_default();
        load.pod.clone_from(&name);
        load.is_fresh = counts && figures.is_some_and(|figures| figures.age_millis <= FRESH_MILLIS);
        Seen {
            leaving: pod.annotations().get(LEAVING).cloned(),
            id: figures.map(|figures| figures.id.clone()),
            is_drained: figures.is_some_and(|figures| figures.is_drained),
            load,
            name,
        }
    });
    seen.collect()
}

/// HorizontalPodAutoscalers by what they move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Autoscalers {
    pub(super) deployment: Option<String>,
    pub(super) broker: Option<String>,
}

/// What Kubernetes knows of the pods of a Broker.
pub(super) struct Cluster<'c> {
    pub(super) client: &'c Client,
    pub(super) namespace: &'c str,
    pub(super) broker: &'c str,
}

impl Cluster<'_> {
    /// HorizontalPodAutoscalers of the Deployment and of the Broker; KEDA makes them too.
    pub(super) async fn autoscalers(&self) -> Result<Autoscalers, Error> {
        let all: Api<HorizontalPodAutoscaler> = Api::namespaced(self.client.clone(), self.namespace);
        let all =
            all.list(&ListParams::default()).await.map_err(Error::kube("list HorizontalPodAutoscalers"))?;
        let of = |kind: &str, group: &str| {
            let ours = all.items.iter().find(|autoscaler| {
                autoscaler.spec.as_ref().is_some_and(|spec| {
                    let target = &spec.scale_target_ref;
                    let of = target.api_version.as_deref().and_then(|version| version.split_once('/'));
                    let of = of.map_or("", |(group, _)| group);
                    target.name == self.broker && (target.kind.as_str(), of) == (kind, group)
                })
            });
            ours.map(|autoscaler| autoscaler.name_any())
        };
        Ok(Autoscalers { deployment: of("Deployment", "apps"), broker: of("Broker", "weir.dev") })
    }

    /// The Deployment of the Broker.
    pub(super) async fn deployment(&self) -> Result<Option<Deployment>, Error> {
        self.deployments().get_opt(self.broker).await.map_err(Error::kube("read the Deployment"))
    }

    /// All pods of the Broker.
    pub(super) async fn pods(&self) -> Result<Vec<Pod>, Error> {
        let selected = ListParams::default().labels(&format!("{BROKER_LABEL}={}", self.broker));
        Ok(self.all_pods().list(&selected).await.map_err(Error::kube("list the pods of a Broker"))?.items)
    }

    /// Has the Deployment have so many pods, if it is as it was seen.
    pub(super) async fn scale(&self, seen: &Deployment, replicas: u32) -> Result<(), Error> {
        let patch = json!({
            "metadata": { "resourceVersion": seen.metadata.resource_version },
            "spec": { "replicas": replicas },
        });
        let how = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let scaled = self.deployments().patch(self.broker, &how, &Patch::Merge(&patch)).await;
        scaled.map(drop).map_err(Error::kube("scale the Deployment"))
    }

    /// Has Kubernetes take this pod first when one is to go, and notes since when it is to; or takes that back.
    pub(super) async fn mark(&self, pod: &str, leaving: Option<&str>) -> Result<(), Error> {
        let cost = leaving.map(|_| "-1000000");
        let patch = json!({ "metadata": { "annotations": { DELETION_COST: cost, LEAVING: leaving } } });
        let how = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let marked = self.all_pods().patch(pod, &how, &Patch::Merge(&patch)).await;
        marked.map(drop).map_err(Error::kube("mark a pod that is to go"))
    }

    fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    fn all_pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), self.namespace)
    }
}

/// Thousandths of a processor, rounded up, of an amount as Kubernetes writes it.
pub(super) fn millis(amount: &str) -> Option<u64> {
    let (number, per_unit) = match amount.char_indices().last()? {
        (at, 'n') => (&amount[..at], 1e-6),
        (at, 'u') => (&amount[..at], 1e-3),
        (at, 'm') => (&amount[..at], 1.0),
        _ => (amount, 1000.0),
    };
    let millis = (number.parse::<f64>().ok()? * per_unit).ceil();
    whole(millis)
}

/// A figure without its fraction; nothing if it is none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what does not fit is cut off")]
pub(crate) fn whole(figure: f64) -> Option<u64> {
    (figure.is_finite() && figure >= 0.0).then_some(figure as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_as_kubernetes_writes_it() {
        for (text, expected) in [
            ("123456789n", Some(124)),
            ("1500u", Some(2)),
            ("250m", Some(250)),
            ("2", Some(2000)),
            ("0.5", Some(500)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("x", None),
        ] {
            assert_eq!(millis(text), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_is_known_by_its_address_and_only_while_it_speaks() {
        let pod = |name: &str, ip: &str| -> Pod {
            serde_json::from_value(json!({ "metadata": { "name": name }, "status": { "podIP": ip } }))
                .unwrap()
        };
        let figures = |id: &str, host: &str, age_millis| Figures {
            id: id.to_owned(),
            host: host.to_owned(),
            load: Load { connections: 7, ..Load::default() },
            age_millis,
            ..Figures::default()
        };
        let mut going = pod("going", "10.0.0.9");
        going.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        let pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", ""), going];
        let all =
            [figures("1", "10.0.0.1", 100), figures("0", "10.0.0.1", 9000), figures("2", "10.0.0.2", 9000)];
        let known: Vec<_> = seen(&pods, &all, true)
            .into_iter()
            .map(|seen| (seen.name, seen.id, seen.load.is_fresh, seen.load.connections))
            .collect();
        let expected = [("a", Some("1"), true, 7), ("b", Some("2"), false, 7), ("c", None, false, 0)];
        let expected = expected.map(|(name, id, fresh, connections)| {
            (name.to_owned(), id.map(str::to_owned), fresh, connections)
        });
        assert_eq!(known, expected);
        assert!(seen(&pods, &all, false).iter().all(|seen| !seen.load.is_fresh));
    }
}
