//! Where the pods of Brokers are, and what the operator proves itself by to them: watched in Kubernetes, so that no call has to
//! ask. Owns the watches' stores; knows no call.

use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::core::ResourceExt as _;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Uri;
use weir_operator_api::Broker;

use crate::broker::desired::{ADMIN_PORT, BROKER_LABEL, TOKEN_KEY, internal_secret};
use crate::tasks::Tasks;

/// The pods of Brokers, and their Secrets.
pub(crate) struct Pods {
    pods: Vec<Store<Pod>>,
    secrets: Vec<Store<Secret>>,
}

/// Who knows where the pods of a Broker are.
pub(crate) trait Whereabouts: Send + Sync + 'static {
    /// Its ready pods, by name.
    fn ready(&self, broker: &Broker) -> Vec<Door>;
}

/// A pod that can be called.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) address: Uri,
    /// What every call must bring.
    pub(crate) token: Option<MetadataValue<Ascii>>,
}

impl Pods {
    /// Watches the pods of Brokers in the `scopes`; `None` is all namespaces.
    pub(crate) fn follow(client: &Client, scopes: &[Option<String>], tasks: &Tasks) -> Arc<Self> {
        let pods = watcher::Config::default()
            .labels("app.kubernetes.io/name=weir,app.kubernetes.io/component=broker");
        let secrets = watcher::Config::default().labels("app.kubernetes.io/managed-by=weir-operator");
        Arc::new(Self {
            pods: watched(client, scopes, &pods, tasks),
            secrets: watched(client, scopes, &secrets, tasks),
        })
    }

    fn token(&self, broker: &Broker) -> Option<MetadataValue<Ascii>> {
        let namespace = broker.namespace()?;
        let secret = ObjectRef::<Secret>::new(&internal_secret(broker)).within(&namespace);
        let secret = self.secrets.iter().find_map(|store| store.get(&secret))?;
        let token = std::str::from_utf8(&secret.data.as_ref()?.get(TOKEN_KEY)?.0).ok()?;
        let mut token: MetadataValue<Ascii> = format!("Bearer {}", token.trim()).parse().ok()?;
        token.set_sensitive(true);
        Some(token)
    }
}

impl Whereabouts for Pods {
    fn ready(&self, broker: &Broker) -> Vec<Door> {
        let token = self.token(broker);
        let mut pods: Vec<Arc<Pod>> =
            self.pods.iter().flat_map(Store::state).filter(|pod| is_of(pod, broker)).collect();
        pods.sort_by_key(|pod| pod.name_any());
        let doors = pods.iter().filter_map(|pod| Some(Door { address: address(pod)?, token: token.clone() }));
        doors.collect()
    }
}

/// A store for each of the `scopes`, which a watch fills for as long as `tasks` run; `None` is all namespaces.
pub(crate) fn watched<K>(
    client: &Client,
    scopes: &[Option<String>],
    config: &watcher::Config,
    tasks: &Tasks,
) -> Vec<Store<K>>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    scopes.iter().map(|scope| store(client, scope.as_deref(), config, tasks)).collect()
}

fn store<K>(client: &Client, scope: Option<&str>, config: &watcher::Config, tasks: &Tasks) -> Store<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let api: Api<K> = match scope {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let (store, writer) = reflector::store();
    let watch = watcher(api, config.clone()).default_backoff().reflect(writer);
    tasks.spawn_droppable(tasks.cancel().clone(), async move {
        let mut watch = watch.boxed();
        while let Some(event) = watch.next().await {
            if let Err(error) = event {
                tracing::warn!(kind = %K::kind(&()), %error, "what Brokers have cannot be watched");
            }
        }
    });
    store
}

fn is_of(pod: &Pod, broker: &Broker) -> bool {
    pod.namespace() == broker.namespace()
        && pod.labels().get(BROKER_LABEL).is_some_and(|name| *name == broker.name_any())
}

/// Where the admin API of a pod is, if it is ready and not on its way out.
fn address(pod: &Pod) -> Option<Uri> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let is_ready =
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    if !is_ready || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ip = status.pod_ip.as_deref().filter(|ip| !ip.is_empty())?;
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    format!("http://{host}:{ADMIN_PORT}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ip: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "messaging", "labels": { BROKER_LABEL: "main" } },
            "status": { "podIP": ip, "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .unwrap()
    }

    fn pods(all: Vec<Pod>, secret: Option<Secret>) -> Pods {
        let (pods, mut writer) = reflector::store();
        all.into_iter().for_each(|pod| writer.apply_watcher_event(&watcher::Event::Apply(pod)));
        let (secrets, mut writer) = reflector::store();
        secret.into_iter().for_each(|secret| writer.apply_watcher_event(&watcher::Event::Apply(secret)));
        Pods { pods: vec![pods], secrets: vec![secrets] }
    }

    fn broker(name: &str) -> Broker {
        let spec = json!({ "store": { "remote": { "address": "a:1" } } });
        serde_json::from_value(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Broker",
            "metadata": { "name": name, "namespace": "messaging" }, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn only_ready_pods_that_stay_are_asked() {
        let mut going = pod("d", "10.0.0.4", "True");
        going.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        let all = vec![
            pod("a", "10.0.0.1", "True"),
            pod("b", "fd00::2", "True"),
            pod("c", "10.0.0.3", "False"),
            going,
            pod("e", "", "True"),
        ];
        let pods = pods(all, None);
        let asked: Vec<String> =
            pods.ready(&broker("main")).iter().map(|door| door.address.to_string()).collect();
        assert_eq!(asked, ["http://10.0.0.1:8081/", "http://[fd00::2]:8081/"]);
        assert!(pods.ready(&broker("other")).is_empty());
    }

    #[test]
    fn calls_bring_the_token_of_the_broker() {
        let secret: Secret = serde_json::from_value(json!({
            "metadata": { "name": "main-internal", "namespace": "messaging" }, "data": { "token": "YWJj" },
        }))
        .unwrap();
        let pods = pods(vec![pod("a", "10.0.0.1", "True")], Some(secret));
        let door = pods.ready(&broker("main")).remove(0);
        assert!(format!("{door:?}").contains("Sensitive"), "tokens are not shown");
        assert_eq!(door.token.unwrap().to_str().unwrap(), "Bearer abc");
    }
}
