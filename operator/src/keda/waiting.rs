//! What Brokers say is waiting. Owns who the Brokers are and the way to their pods.

use std::sync::Arc;
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::runtime::reflector::{ObjectRef, Store};
use serde_json::json;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Uri;
use tonic::{Request, Status};
use weir_env::clock::Clock;
use weir_env::seed::HashMap;
use weir_operator_api::Broker;
use weir_proto::admin::v1::admin_client::AdminClient;
use weir_proto::admin::v1::{DescribeQueueRequest, ListGroupsRequest};

use super::trigger::{Counted, Trigger};
use crate::brokers::{BrokerId, Door, Remote, Whereabouts};

/// Longest time that a Broker is waited for; KEDA gives up after some more.
const CALL: Duration = Duration::from_secs(5);
/// Longest time that one of its pods is: another may answer.
const TRY: Duration = Duration::from_secs(2);

/// Which Brokers there are.
pub(super) enum Directory {
    /// These.
    Fixed(HashMap<BrokerId, Arc<Broker>>),
    /// Those of the cluster, by the namespaces that are watched.
    Cluster(Vec<Store<DeserializeGuard<Broker>>>),
}

impl Directory {
    async fn find(&self, id: &BrokerId) -> Result<Arc<Broker>, Status> {
        let found = match self {
            Self::Fixed(brokers) => brokers.get(id).cloned(),
            Self::Cluster(stores) => {
                let place = ObjectRef::new(&id.name).within(&id.namespace);
                let find = || stores.iter().find_map(|store| store.get(&place));
                // One that is known is, whatever cannot be read beside it.
                let there = match find() {
                    Some(there) => Some(there),
                    None => {
                        for store in stores {
                            let ended = |_| Status::unavailable("Brokers are not watched any more");
                            store.wait_until_ready().await.map_err(ended)?;
                        }
                        find()
                    }
                };
                there.and_then(|broker| broker.0.as_ref().ok().cloned().map(Arc::new))
            }
        };
        found.ok_or_else(|| Status::not_found("there is no such Broker"))
    }
}

/// Brokers at addresses that do not change.
pub(super) struct Fixed {
    pub(super) addresses: HashMap<BrokerId, Uri>,
    pub(super) token: Option<MetadataValue<Ascii>>,
}

impl Fixed {
    /// These Brokers; each serves all namespaces.
    pub(super) fn directory(&self) -> Directory {
        let brokers = self.addresses.keys().map(|id| {
            let broker = json!({
                "apiVersion": "weir.dev/v1alpha1",
                "kind": "Broker",
                "metadata": { "name": id.name, "namespace": id.namespace },
                "spec": { "store": {}, "allowedNamespaces": ["*"] },
            });
            (id.clone(), Arc::new(serde_json::from_value(broker).expect("it is a Broker")))
        });
        Directory::Fixed(brokers.collect())
    }
}

impl Whereabouts for Fixed {
    fn ready(&self, broker: &Broker) -> Vec<Door> {
        let address = self.addresses.get(&BrokerId::of(broker)).cloned();
        let door = |address| Door { address, token: self.token.clone(), certificates: None };
        address.map(door).into_iter().collect()
    }
}

/// The header that shows `token`; nothing if that cannot be one.
pub(super) fn header(token: &str) -> Option<MetadataValue<Ascii>> {
    let mut header: MetadataValue<Ascii> = format!("Bearer {}", token.trim()).parse().ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// What waits for a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) messages: u64,
    /// Whether there is no such group yet: its first member makes it.
    pub(super) is_new: bool,
}

/// Asks Brokers.
pub(super) struct Brokers {
    directory: Directory,
    remote: Remote,
}

impl Brokers {
    /// Those of the `directory`, each at a fixed address or where its `pods` are.
    pub(super) fn new(
        directory: Directory,
        addresses: HashMap<BrokerId, Uri>,
        pods: Arc<dyn Whereabouts>,
        clock: Clock,
    ) -> Self {
        Self { directory, remote: Remote::new(addresses, pods, clock) }
    }

    /// How many messages wait. Fails if that is not known within a bounded time.
    pub(super) async fn waiting(&self, trigger: &Trigger) -> Result<Waiting, Status> {
        let answer = match tokio::time::timeout(CALL, self.ask(trigger)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::unavailable(format!("it does not answer within {CALL:?}"))),
        };
        answer.map_err(|status| {
            Status::new(status.code(), format!("Broker {}: {}", trigger.broker, status.message()))
        })
    }

    async fn ask(&self, trigger: &Trigger) -> Result<Waiting, Status> {
        let broker = self.directory.find(&trigger.broker).await?;
        let is_own = trigger.broker.namespace == trigger.namespace;
        let allowed = &broker.spec.allowed_namespaces;
        if !is_own && !allowed.iter().any(|allowed| *allowed == "*" || *allowed == trigger.namespace) {
            return Err(Status::permission_denied(format!(
                "it does not serve the namespace {}; add it to its spec.allowedNamespaces",
                trigger.namespace
            )));
        }
        match &trigger.counted {
            Counted::Queue(queue) => {
                let answer = self.remote.ask(&broker, |way| {
                    let request = request(DescribeQueueRequest { name: queue.clone() });
                    async move { AdminClient::new(way).describe_queue(request).await }
                });
                Ok(Waiting { messages: answer.await?.queue.map_or(0, |queue| queue.depth), is_new: false })
            }
            Counted::Group { stream, group } => {
                let answer = self.remote.ask(&broker, |way| {
                    let request = request(ListGroupsRequest { stream: stream.clone() });
                    async move { AdminClient::new(way).list_groups(request).await }
                });
                Ok(match answer.await?.groups.iter().find(|there| there.name == *group) {
                    Some(group) => Waiting { messages: group.lag, is_new: false },
                    None => Waiting { messages: 0, is_new: true },
                })
            }
        }
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TRY);
    request
}

#[cfg(test)]
mod tests {
    use kube::runtime::{reflector, watcher};
    use tonic::Code;

    use super::*;

    fn place(text: &str) -> BrokerId {
        let (namespace, name) = text.split_once('/').unwrap();
        BrokerId { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn trigger(namespace: &str, broker: &str) -> Trigger {
        Trigger {
            namespace: namespace.into(),
            broker: place(broker),
            counted: Counted::Queue("q".into()),
            target: 1,
            activation: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn brokers_of_the_cluster_serve_the_namespaces_that_they_name() {
        let (store, mut writer) = reflector::store();
        let nowhere = Fixed { addresses: HashMap::default(), token: None };
        let directory = Directory::Cluster(vec![store]);
        let brokers = Brokers::new(directory, HashMap::default(), Arc::new(nowhere), Clock::system());
        let early = brokers.waiting(&trigger("mq", "mq/main")).await.unwrap_err();
        assert_eq!(early.code(), Code::Unavailable, "it is not known yet which there are");

        let broker = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Broker", "metadata": { "name": "main", "namespace": "mq" },
            "spec": { "store": { "embedded": { "storage": "1Gi" } }, "allowedNamespaces": ["city"] },
        });
        writer.apply_watcher_event(&watcher::Event::Init);
        writer.apply_watcher_event(&watcher::Event::InitApply(serde_json::from_value(broker).unwrap()));
        writer.apply_watcher_event(&watcher::Event::InitDone);
        for (namespace, broker, code, part) in [
            ("mq", "mq/main", Code::Unavailable, "no pod of the Broker mq/main is ready"),
            ("city", "mq/main", Code::Unavailable, "no pod of the Broker mq/main is ready"),
            ("village", "mq/main", Code::PermissionDenied, "spec.allowedNamespaces"),
            ("mq", "mq/other", Code::NotFound, "Broker mq/other: there is no such Broker"),
        ] {
            let error = brokers.waiting(&trigger(namespace, broker)).await.unwrap_err();
            assert!(error.code() == code && error.message().contains(part), "{namespace}: {error}");
        }
    }
}
