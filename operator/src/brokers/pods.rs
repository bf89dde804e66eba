//! Where the pods of Brokers are, and what the operator proves itself by to them: watched in Kubernetes, so that no call has to
//! ask. Certificates are read when they are needed, as their Secrets have no label to watch by. Owns the watches' stores; knows no
//! call.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::core::ResourceExt as _;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, Uri};
use weir_env::clock::{Clock, Instant};
use weir_env::seed::HashMap;
use weir_operator_api::Broker;

use crate::broker::desired::{
    ADMIN_PORT, ADMIN_TLS_VOLUME, BROKER_LABEL, POD_TLS_KEYS, TOKEN_KEY, internal_secret,
};
use crate::tasks::Tasks;

/// How long certificates are taken to be as they were read.
const KNOWN: Duration = Duration::from_secs(30);
/// How long reading a Secret may take.
const READ: Duration = Duration::from_secs(5);
/// Secrets with certificates that are kept in mind; with more, those that were read longest ago are read again.
const CERTIFICATES_MAX: usize = 256;

/// The pods of Brokers, and their Secrets.
pub(crate) struct Pods {
    client: Client,
    clock: Clock,
    pods: Vec<Store<Pod>>,
    secrets: Vec<Store<Secret>>,
    certificates: Mutex<Known>,
}

/// Certificates by namespace and name of their Secret, with the time at which they were read.
type Known = HashMap<(String, String), (Instant, Arc<Certificates>)>;

/// Certificates that are being read.
pub(crate) type Reading<'a> = BoxFuture<'a, Result<Arc<Certificates>, Status>>;

/// Who knows where the pods of a Broker are.
pub(crate) trait Whereabouts: Send + Sync + 'static {
    /// Its ready pods, by name.
    fn ready(&self, broker: &Broker) -> Vec<Door>;

    /// What the Secret of this name has.
    fn certificates<'a>(&'a self, namespace: &'a str, secret: &'a str) -> Reading<'a> {
        let none = Status::unavailable(format!("there is no Secret {namespace}/{secret}"));
        Box::pin(std::future::ready(Err(none)))
    }
}

/// A pod that can be called.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) address: Uri,
    /// What every call must bring.
    pub(crate) token: Option<MetadataValue<Ascii>>,
    /// The Secret that the pod was started with, by which pod and callers prove themselves to each other.
    pub(crate) certificates: Option<String>,
}

/// A certificate with its key, and the authorities of those that it is shown to.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Certificates {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Vec<u8>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Certificates {
    /// What a Secret has; the error names the key that is missing.
    pub(crate) fn of(secret: &Secret) -> Result<Self, &'static str> {
        let file = |key: &'static str| {
            let found = secret.data.as_ref().and_then(|data| data.get(key));
            found.map(|file| file.0.clone()).ok_or(key)
        };
        let [certificate, key, authorities] = POD_TLS_KEYS;
        Ok(Self { certificate: file(certificate)?, key: file(key)?, authorities: file(authorities)? })
    }

    /// For calls to who has a certificate for `name`.
    pub(crate) fn client(&self, name: String) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authorities))
            .identity(Identity::from_pem(&self.certificate, &self.key))
            .domain_name(name)
    }
}

impl Pods {
    /// Watches the pods of Brokers in the `scopes`; `None` is all namespaces.
    pub(crate) fn follow(
        client: &Client,
        scopes: &[Option<String>],
        clock: Clock,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let pods = watcher::Config::default()
            .labels("app.kubernetes.io/name=weir,app.kubernetes.io/component=broker");
        let secrets = watcher::Config::default().labels("app.kubernetes.io/managed-by=weir-operator");
        Arc::new(Self {
            client: client.clone(),
            clock,
            certificates: Mutex::default(),
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

    async fn read_certificates(&self, namespace: &str, name: &str) -> Result<Certificates, Status> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let unavailable = |why: String| {
            Status::unavailable(format!("the Secret {namespace}/{name} of spec.adminTls {why}"))
        };
        let late = |_| unavailable(format!("could not be read within {READ:?}: is the API server well?"));
        let there = tokio::time::timeout(READ, secrets.get_opt(name)).await.map_err(late)?;
        let there = there.map_err(|error| unavailable(format!("cannot be read: {error}")))?;
        let secret = there.ok_or_else(|| unavailable("is missing: make it".to_owned()))?;
        Certificates::of(&secret).map_err(|key| unavailable(format!("has no key {key}: add it")))
    }

    fn remember(&self, key: (String, String), read: Arc<Certificates>) {
        let mut known = self.certificates.lock();
        if known.len() >= CERTIFICATES_MAX
            && !known.contains_key(&key)
            && let Some(oldest) = known.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone())
        {
            known.remove(&oldest);
        }
        known.insert(key, (self.clock.now(), read));
    }
}

impl Whereabouts for Pods {
    fn ready(&self, broker: &Broker) -> Vec<Door> {
        let token = self.token(broker);
        let mut pods: Vec<Arc<Pod>> =
            self.pods.iter().flat_map(Store::state).filter(|pod| is_of(pod, broker)).collect();
        pods.sort_by_key(|pod| pod.name_any());
        let door = |pod: &Arc<Pod>| {
            let certificates = certificates(pod);
            let address = address(pod, certificates.is_some())?;
            Some(Door { address, token: token.clone(), certificates })
        };
        pods.iter().filter_map(door).collect()
    }

    fn certificates<'a>(&'a self, namespace: &'a str, secret: &'a str) -> Reading<'a> {
        Box::pin(async move {
            let key = (namespace.to_owned(), secret.to_owned());
            let known = self.certificates.lock().get(&key).cloned();
            if let Some((at, known)) = &known
                && self.clock.now().saturating_duration_since(*at) < KNOWN
            {
                return Ok(Arc::clone(known));
            }
            match (self.read_certificates(namespace, secret).await, known) {
                (Ok(read), _) => {
                    let read = Arc::new(read);
                    self.remember(key, Arc::clone(&read));
                    Ok(read)
                }
                // The pods go on with what they have as well.
                (Err(error), Some((_, known))) => {
                    tracing::warn!(%error, "certificates are not read again; the last ones stay");
                    Ok(known)
                }
                (Err(error), None) => Err(error),
            }
        })
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
    K: Clone + fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    scopes.iter().map(|scope| store(client, scope.as_deref(), config, tasks)).collect()
}

fn store<K>(client: &Client, scope: Option<&str>, config: &watcher::Config, tasks: &Tasks) -> Store<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
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

/// The Secret by which the admin API of a pod proves itself: what this pod was started with, whatever the Broker says by now.
fn certificates(pod: &Pod) -> Option<String> {
    let volumes = pod.spec.as_ref()?.volumes.as_deref()?;
    let volume = volumes.iter().find(|volume| volume.name == ADMIN_TLS_VOLUME)?;
    volume.secret.as_ref()?.secret_name.clone()
}

/// Where the admin API of a pod is, if it is ready and not on its way out.
fn address(pod: &Pod, speaks_tls: bool) -> Option<Uri> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let is_ready =
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    if !is_ready || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ip = status.pod_ip.as_deref().filter(|ip| !ip.is_empty())?;
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let scheme = if speaks_tls { "https" } else { "http" };
    format!("{scheme}://{host}:{ADMIN_PORT}").parse().ok()
}

#[cfg(test)]
mod tests;
