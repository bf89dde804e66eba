//! Where Brokers answer, and what they say is waiting. Owns the connections to them, one each.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use weir_env::clock::{Clock, Instant};
use weir_env::seed::HashMap;
use weir_operator_api::Broker;
use weir_proto::admin::v1::admin_client::AdminClient;
use weir_proto::admin::v1::{DescribeQueueRequest, ListGroupsRequest};

use super::trigger::{Counted, Trigger};

/// Longest time that a Broker is waited for; KEDA gives up after some more.
const CALL: Duration = Duration::from_secs(5);
/// How long a Broker is taken to be as it was found.
const KNOWN: Duration = Duration::from_secs(30);
/// Brokers that are kept in mind; with more, those that were found longest ago are looked up again.
const BROKERS_MAX: usize = 256;
/// Port of the admin API of the pods of a Broker.
const ADMIN_PORT: u16 = 8081;

/// Something that takes time and may fail.
pub(super) type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send + 'a>>;

/// Where a Broker answers, and whom it serves.
#[derive(Clone)]
pub(super) struct Place {
    /// `http://HOST:PORT` of its admin API.
    pub(super) url: String,
    /// What it wants to be shown, as a header.
    pub(super) token: Option<MetadataValue<Ascii>>,
    /// Namespaces that it serves besides its own; `*` is all.
    pub(super) allowed: Vec<String>,
}

/// Knows where Brokers are.
pub(super) trait Directory: Send + Sync + 'static {
    /// Finds a Broker by namespace and name.
    fn find<'a>(&'a self, namespace: &'a str, name: &'a str) -> Pending<'a, Place>;
}

/// Brokers at addresses that do not change.
pub(super) struct Fixed {
    pub(super) urls: HashMap<(String, String), String>,
    pub(super) token: Option<MetadataValue<Ascii>>,
}

impl Directory for Fixed {
    fn find<'a>(&'a self, namespace: &'a str, name: &'a str) -> Pending<'a, Place> {
        Box::pin(async move {
            match self.urls.get(&(namespace.to_owned(), name.to_owned())) {
                Some(url) => {
                    let allowed = vec!["*".to_owned()];
                    Ok(Place { url: url.clone(), token: self.token.clone(), allowed })
                }
                None => {
                    Err(Status::not_found(format!("no address of the Broker {namespace}/{name} was given")))
                }
            }
        })
    }
}

/// The Brokers of the cluster, by their Services.
pub(super) struct Cluster(pub(super) Client);

impl Directory for Cluster {
    fn find<'a>(&'a self, namespace: &'a str, name: &'a str) -> Pending<'a, Place> {
        Box::pin(async move {
            let failed = |error: kube::Error| {
                Status::unavailable(format!("the Broker {namespace}/{name} cannot be looked up: {error}"))
            };
            let brokers: Api<Broker> = Api::namespaced(self.0.clone(), namespace);
            let Some(broker) = brokers.get_opt(name).await.map_err(failed)? else {
                return Err(Status::not_found(format!("there is no Broker {namespace}/{name}")));
            };
            let secrets: Api<Secret> = Api::namespaced(self.0.clone(), namespace);
            let secret = secrets.get_opt(&format!("{name}-internal")).await.map_err(failed)?;
            let token = match secret.and_then(|secret| secret.data?.remove("token")) {
                None => None,
                Some(token) => Some(header(&String::from_utf8_lossy(&token.0)).ok_or_else(|| {
                    Status::failed_precondition(format!(
                        "the token in {namespace}/{name}-internal is no token"
                    ))
                })?),
            };
            let url = format!("http://{name}-admin.{namespace}.svc:{ADMIN_PORT}");
            Ok(Place { url, token, allowed: broker.spec.allowed_namespaces })
        })
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
    directory: Box<dyn Directory>,
    clock: Clock,
    known: Mutex<HashMap<(String, String), Arc<Known>>>,
}

struct Known {
    channel: Channel,
    place: Place,
    found: Instant,
}

impl Brokers {
    pub(super) fn new(directory: Box<dyn Directory>, clock: Clock) -> Self {
        Self { directory, clock, known: Mutex::default() }
    }

    /// How many messages wait. Fails if that is not known within a bounded time.
    pub(super) async fn waiting(&self, trigger: &Trigger) -> Result<Waiting, Status> {
        let (namespace, name) = &trigger.broker;
        let answer = match tokio::time::timeout(CALL, self.ask(trigger)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::unavailable(format!("it does not answer within {CALL:?}"))),
        };
        answer.map_err(|status| {
            if matches!(status.code(), Code::Unavailable | Code::Unauthenticated) {
                // It may have moved, or have another token.
                self.known.lock().remove(&trigger.broker);
            }
            Status::new(status.code(), format!("Broker {namespace}/{name}: {}", status.message()))
        })
    }

    async fn ask(&self, trigger: &Trigger) -> Result<Waiting, Status> {
        let known = self.known(trigger).await?;
        let mut client = AdminClient::new(known.channel.clone());
        match &trigger.counted {
            Counted::Queue(queue) => {
                let request = known.request(DescribeQueueRequest { name: queue.clone() });
                let queue = client.describe_queue(request).await?.into_inner().queue;
                Ok(Waiting { messages: queue.map_or(0, |queue| queue.depth), is_new: false })
            }
            Counted::Group { stream, group } => {
                let request = known.request(ListGroupsRequest { stream: stream.clone() });
                let groups = client.list_groups(request).await?.into_inner().groups;
                Ok(match groups.iter().find(|there| there.name == *group) {
                    Some(group) => Waiting { messages: group.lag, is_new: false },
                    None => Waiting { messages: 0, is_new: true },
                })
            }
        }
    }

    async fn known(&self, trigger: &Trigger) -> Result<Arc<Known>, Status> {
        let (namespace, name) = &trigger.broker;
        let now = self.clock.now();
        let there = self.known.lock().get(&trigger.broker).cloned();
        let known = match there {
            Some(known) if now.saturating_duration_since(known.found) < KNOWN => known,
            there => {
                let place = self.directory.find(namespace, name).await?;
                let channel = match there {
                    Some(there) if there.place.url == place.url => there.channel.clone(),
                    _ => connection(&place.url)?,
                };
                let known = Arc::new(Known { channel, place, found: now });
                self.remember(&trigger.broker, &known);
                known
            }
        };
        let is_own = *namespace == trigger.namespace;
        let allowed = &known.place.allowed;
        if !is_own && !allowed.iter().any(|allowed| *allowed == "*" || *allowed == trigger.namespace) {
            return Err(Status::permission_denied(format!(
                "it does not serve the namespace {}; add it to its spec.allowedNamespaces",
                trigger.namespace
            )));
        }
        Ok(known)
    }

    fn remember(&self, broker: &(String, String), found: &Arc<Known>) {
        let mut known = self.known.lock();
        if known.len() >= BROKERS_MAX
            && !known.contains_key(broker)
            && let Some(oldest) =
                known.iter().min_by_key(|(_, known)| known.found).map(|(key, _)| key.clone())
        {
            known.remove(&oldest);
        }
        known.insert(broker.clone(), found.clone());
    }
}

impl Known {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(CALL);
        if let Some(token) = &self.place.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }
}

fn connection(url: &str) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| Status::failed_precondition(format!("{url:?} is no address: {error}")))?;
    Ok(endpoint.connect_timeout(CALL).connect_lazy())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Anywhere;

    impl Directory for Anywhere {
        fn find<'a>(&'a self, _: &'a str, _: &'a str) -> Pending<'a, Place> {
            let place = Place { url: "http://127.0.0.1:1".into(), token: None, allowed: vec!["city".into()] };
            Box::pin(std::future::ready(Ok(place)))
        }
    }

    fn trigger(namespace: &str, broker: usize) -> Trigger {
        Trigger {
            namespace: namespace.into(),
            broker: ("mq".into(), format!("b{broker}")),
            counted: Counted::Queue("q".into()),
            target: 1,
            activation: 0,
        }
    }

    #[tokio::test]
    async fn brokers_that_are_kept_in_mind_are_bounded() {
        let brokers = Brokers::new(Box::new(Anywhere), Clock::system());
        for broker in 0..=BROKERS_MAX {
            brokers.known(&trigger("city", broker)).await.unwrap();
        }
        assert_eq!(brokers.known.lock().len(), BROKERS_MAX);
        assert!(brokers.known.lock().contains_key(&("mq".into(), format!("b{BROKERS_MAX}"))));
    }

    #[tokio::test]
    async fn only_namespaces_that_a_broker_serves_learn_of_it() {
        let brokers = Brokers::new(Box::new(Anywhere), Clock::system());
        for namespace in ["city", "mq"] {
            assert!(brokers.known(&trigger(namespace, 0)).await.is_ok());
        }
        let refused = brokers.waiting(&trigger("village", 0)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("mq/b0") && refused.message().contains("spec.allowedNamespaces"));
    }

    /// What the API server answers to a request for `path`.
    type Scripted = (&'static str, u16, serde_json::Value);

    async fn found(script: Vec<Scripted>) -> Result<Place, Status> {
        use kube::client::Body;
        let (service, mut handle) = tower_test::mock::pair::<http::Request<Body>, http::Response<Body>>();
        let cluster = Cluster(Client::new(service, "default"));
        let answering = async {
            for (path, status, answer) in script {
                let (request, send) = handle.next_request().await.unwrap();
                assert_eq!(request.uri().path(), path);
                let body = Body::from(answer.to_string().into_bytes());
                send.send_response(http::Response::builder().status(status).body(body).unwrap());
            }
        };
        tokio::join!(cluster.find("mq", "main"), answering).0
    }

    #[tokio::test]
    async fn brokers_of_the_cluster_are_found_by_their_services() {
        const BROKER: &str = "/apis/weir.dev/v1alpha1/namespaces/mq/brokers/main";
        const SECRET: &str = "/api/v1/namespaces/mq/secrets/main-internal";
        let broker = serde_json::json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Broker", "metadata": { "name": "main", "namespace": "mq" },
            "spec": { "store": { "embedded": { "storage": "1Gi" } }, "allowedNamespaces": ["city"] },
        });
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "main-internal" },
            "data": { "token": "c2VjcmV0" },
        });
        let none = serde_json::json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "none",
        });
        let place = found(vec![(BROKER, 200, broker.clone()), (SECRET, 200, secret)]).await.unwrap();
        assert_eq!(place.url, "http://main-admin.mq.svc:8081");
        assert_eq!(place.token.unwrap().as_bytes(), b"Bearer secret");
        assert_eq!(place.allowed, ["city"]);
        let place = found(vec![(BROKER, 200, broker), (SECRET, 404, none.clone())]).await.unwrap();
        assert!(place.token.is_none());
        let missing = found(vec![(BROKER, 404, none)]).await.err().unwrap();
        assert_eq!((missing.code(), missing.message()), (Code::NotFound, "there is no Broker mq/main"));
    }
}
