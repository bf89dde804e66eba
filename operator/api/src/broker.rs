//! The kind `Broker`: the pods that serve queues, streams and plain MQTT, and where they store.
#![expect(clippy::duplicated_attributes, reason = "the columns of one kind have types of their own")]

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use kube::core::Rule;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};

use crate::common::{ObjectRef, conditions_schema};
use crate::duration::KubeDuration;
use crate::format::{kube_name_schema, name_pattern_schema, port_name_schema, quantity_schema};
use crate::placement::{PodSettings, ServiceSettings};
use crate::problem::Problem;
use crate::queue::QueueSettings;
use crate::rules::DurationRange;
use crate::store::BrokerStore;
use crate::stream::StreamSettings;

/// Which pods run, where they listen and where they store.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "Broker",
    namespaced,
    status = "BrokerStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    derive = "PartialEq",
    shortname = "weirbroker",
    category = "weir",
    doc = "An installation of Weir: broker pods that are all alike, and the store that holds what must survive.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether clients are accepted."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why it is ready or not."
    ),
    printcolumn(
        name = "Pods",
        type_ = "string",
        json_path = ".status.pods",
        description = "Pods that accept clients, of those there should be."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Image",
        type_ = "string",
        json_path = ".spec.image",
        description = "Container image of the pods.",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "What a person should know.",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("!(has(self.replicas) && has(self.scaling))")
        .message("replicas and scaling exclude each other")
        .field_path(".replicas"),
    Rule::new(
        "(has(self.store.embedded) == has(oldSelf.store.embedded)) && (has(self.store.fdb) == has(oldSelf.store.fdb))"
    )
    .message("the kind of store is immutable: messages do not move by themselves; back up and restore into a new Broker")
    .field_path(".store"),
    Rule::new(
        "!has(self.store.embedded) || (!has(self.scaling) && (!has(self.replicas) || self.replicas <= 1))"
    )
    .message("an embedded store serves one pod: replicas at most 1 and no scaling")
    .field_path(".store.embedded"),
    Rule::new("!(has(self.store.embedded) && has(self.peerTls))")
        .message("with an embedded store there is one pod, which has no peers: leave peerTls out")
        .field_path(".peerTls"),
    Rule::new(
        "!has(self.auth) || !has(self.auth.clientCaSecretRef) || \
         (has(self.listeners) && self.listeners.exists(listener, listener.type in ['mqtts', 'wss']))"
    )
    .message("clientCaSecretRef needs a listener of the type mqtts or wss, where clients show certificates")
    .field_path(".auth.clientCaSecretRef"),
]))]
pub struct BrokerSpec {
    /// Container image of the pods. Default: the one that the operator was installed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// Number of pods, 0 to 1000. Absent where `scaling` decides; 1 without both.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Bounds and targets within which the number of pods follows the load. Excludes `replicas`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<BrokerScaling>,
    /// Where clients connect, 1 to 16. Default: `mqtt` on port 1883.
    #[serde(default = "default_listeners")]
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub listeners: Vec<Listener>,
    /// Who may connect and do what.
    #[serde(default)]
    pub auth: BrokerAuth,
    /// Where messages are stored: exactly one kind of store.
    pub store: BrokerStore,
    /// Whether a subscription to a queue or stream that does not exist yet is granted and waits for it. Default
    /// true.
    #[serde(default = "default_true")]
    pub wait_for_queue: bool,
    /// Queues and streams that come into being by their first subscription. Default: none.
    #[serde(default)]
    pub auto_create: AutoCreate,
    /// Namespaces whose queues and streams this Broker may serve besides its own; `*` is all. Default `["*"]`.
    #[serde(default = "all_namespaces")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub allowed_namespaces: Vec<String>,
    /// Certificates by which pods prove themselves to each other, besides their token; what they say to each other is then
    /// encrypted. Not with an embedded store. Default: the token alone, and no encryption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_tls: Option<PodTls>,
    /// Certificates by which pods and those who call their admin API (the operator, KEDA's scaler, `weir`) prove themselves to
    /// each other, besides the token; what they say is then encrypted. May name the Secret of `peerTls`. Default: the token
    /// alone, and no encryption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_tls: Option<PodTls>,
    /// CPU and memory of each pod. Default: no requests, no limits.
    #[serde(default)]
    pub resources: Resources,
    /// How clients in and outside of the cluster reach the pods.
    #[serde(default)]
    pub service: ServiceSettings,
    /// Where pods run and what they carry.
    #[serde(default)]
    pub pods: PodSettings,
}

/// What the operator has observed of a Broker. Never written by people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokerStatus {
    /// The `metadata.generation` that the conditions speak of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`, and the kind's own; one of each type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Pods that there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Pods that accept clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Ready pods of those there should be, as `2/3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<String>,
    /// The labels of the pods, as autoscalers want them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// What the load makes of the number of pods. Absent without `spec.scaling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingStatus>,
}

/// What the load makes of the number of pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingStatus {
    /// Pods that there should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<i32>,
    /// Why, as one CamelCase word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Since when that holds.
    pub since: Time,
    /// The pod that is being drained, to go.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub draining: Option<String>,
}

/// Within which bounds, and to keep which load, the number of pods changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("self.minReplicas <= self.maxReplicas")
        .message("minReplicas must not be above maxReplicas")
        .field_path(".minReplicas")
]))]
pub struct BrokerScaling {
    /// Fewest pods, 1 to 1000. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    /// Most pods, 1 to 1000.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// Client connections per pod to aim at, 1 to 1000000. Absent: connections do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections_per_pod: Option<i32>,
    /// Connections that clients open per pod in a second to aim at, 1 to 1000000. Absent: they do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connect_rate_per_pod: Option<i32>,
    /// Bytes from and to clients per pod in a second to aim at, 1 to 1000000000000. Absent: bytes do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub bytes_rate_per_pod: Option<i64>,
    /// Messages stored in queues, streams and sessions per pod in a second to aim at, 1 to 1000000000. Absent: they do not
    /// count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub append_rate_per_pod: Option<i32>,
    /// Messages sent to clients per pod in a second to aim at, 1 to 1000000000. Absent: they do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub deliver_rate_per_pod: Option<i32>,
    /// Virtual shards in use that a pod owns to aim at, 1 to 65535. Absent: they do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub shards_per_pod: Option<i32>,
    /// CPU use to aim at, in percent of `resources.requests.cpu`, 1 to 100. Without a request CPU brings no pods, and none goes.
    /// Absent: CPU does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub cpu_percent: Option<i32>,
    /// How long more pods have to make sense before they come, 0s to 1h. Default 0s: at once.
    #[serde(default = "at_once")]
    #[schemars(extend("x-kubernetes-validations" = UP_AFTER.rules()))]
    pub scale_up_after: KubeDuration,
    /// How long fewer pods have to do before one goes, 0s to 24h. Default 5m.
    #[serde(default = "five_minutes")]
    #[schemars(extend("x-kubernetes-validations" = DOWN_AFTER.rules()))]
    pub scale_down_after: KubeDuration,
}

const UP_AFTER: DurationRange = DurationRange::new(KubeDuration::ZERO, KubeDuration::from_hours(1));
const DOWN_AFTER: DurationRange = DurationRange::new(KubeDuration::ZERO, KubeDuration::from_hours(24));

/// A port at which clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("(self.type in ['mqtts', 'wss']) == has(self.tlsSecretRef)")
        .message("tlsSecretRef is needed with mqtts and wss, and only there"),
    Rule::new("!(self.name in ['admin', 'http', 'peer'])")
        .message("admin, http and peer are names of ports that every pod has")
        .field_path(".name"),
    Rule::new("self.port < 8080 || self.port > 8082")
        .message("8080 to 8082 are ports that every pod has")
        .field_path(".port"),
]))]
pub struct Listener {
    /// Name of the port: 1 to 15 lower-case letters, digits and, inside, `-`; one of each.
    #[schemars(schema_with = "port_name_schema")]
    pub name: String,
    /// Protocol.
    #[serde(rename = "type")]
    pub protocol: ListenerType,
    /// TCP port, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Secret of the type `kubernetes.io/tls` in the Broker's namespace. With `mqtts` and `wss` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_secret_ref: Option<ObjectRef>,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListenerType {
    /// MQTT over TCP.
    Mqtt,
    /// MQTT over TLS.
    Mqtts,
    /// MQTT over WebSocket.
    Ws,
    /// MQTT over WebSocket over TLS.
    Wss,
}

impl ListenerType {
    const fn is_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }
}

/// Certificates of the pods, and of those who call them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTls {
    /// Secret in the Broker's namespace with `tls.crt`, `tls.key` and `ca.crt`, as cert-manager makes them. The certificate is for
    /// the name `BROKER.NAMESPACE.weir.internal`, to be used by servers and clients. Read again when it changes.
    pub secret_ref: ObjectRef,
}

/// Whether clients at these listeners show a certificate: `required` (they must) or `optional` (who does not needs a password or
/// a token). Default `required`. With `clientCaSecretRef` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// They must.
    Required,
    /// They may.
    Optional,
}

/// Who may connect and do what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("!has(self.clientAuth) || has(self.clientCaSecretRef)")
        .message("clientAuth makes no sense without clientCaSecretRef")
        .field_path(".clientAuth"),
    Rule::new("!has(self.certificateAsUser) || !self.certificateAsUser || has(self.clientCaSecretRef)")
        .message("certificateAsUser makes no sense without clientCaSecretRef")
        .field_path(".certificateAsUser"),
]))]
pub struct BrokerAuth {
    /// Whether clients are accepted beyond the pod itself without proving who they are. Default false.
    pub allow_anonymous: bool,
    /// Users and passwords, a line each, as `weir auth hash` prints them. Read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_secret_ref: Option<SecretKeyRef>,
    /// Access rules (TOML, `[[rules]]`): the first that applies decides, what none allows is denied. Read again when it
    /// changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules_config_map_ref: Option<RulesRef>,
    /// JSON Web Key Set that verifies tokens of clients. Read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_secret_ref: Option<SecretKeyRef>,
    /// Certificates (PEM) of the authorities that sign those of clients, which these show at listeners of the types `mqtts` and
    /// `wss`. Read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca_secret_ref: Option<SecretKeyRef>,
    /// Whether clients at these listeners show a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuth>,
    /// Whether the common name of a client's certificate is its user name. Default false.
    pub certificate_as_user: bool,
}

/// A key of a Secret in the Broker's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(schema_with = "kube_name_schema")]
    pub name: String,
    /// Key inside of it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A key of a ConfigMap in the Broker's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RulesRef {
    /// Name of the ConfigMap.
    #[schemars(schema_with = "kube_name_schema")]
    pub name: String,
    /// Key inside of it. Default `rules.toml`.
    #[serde(default = "rules_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Queues and streams that come into being by their first subscription.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoCreate {
    /// Templates of queues, up to 32; the first whose pattern matches is taken.
    #[schemars(length(max = 32))]
    pub queues: Vec<QueueTemplate>,
    /// Templates of streams, up to 32; the first whose pattern matches is taken.
    #[schemars(length(max = 32))]
    pub streams: Vec<StreamTemplate>,
}

/// What an automatically created queue is like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueTemplate {
    /// Names that may be created: a name, or the start of one and `*`, such as `auto-*`.
    #[schemars(schema_with = "name_pattern_schema")]
    pub name_pattern: String,
    /// How the queue works. Default: as a MessageQueue.
    #[serde(default)]
    pub spec: QueueSettings,
}

/// What an automatically created stream is like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamTemplate {
    /// Names that may be created: a name, or the start of one and `*`, such as `auto-*`.
    #[schemars(schema_with = "name_pattern_schema")]
    pub name_pattern: String,
    /// How the stream works. Default: as a Stream.
    #[serde(default)]
    pub spec: StreamSettings,
}

/// CPU and memory of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What a pod is promised, such as `cpu: 500m` and `memory: 1Gi`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "amounts_schema")]
    pub requests: BTreeMap<String, ResourceAmount>,
    /// What a pod may use at most.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "amounts_schema")]
    pub limits: BTreeMap<String, ResourceAmount>,
}

/// An amount of CPU, memory or another resource, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ResourceAmount(pub String);

impl<'de> Deserialize<'de> for ResourceAmount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor)
    }
}

struct AmountVisitor;

impl Visitor<'_> for AmountVisitor {
    type Value = ResourceAmount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity such as 500m, 2 or 1Gi")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ResourceAmount, E> {
        Ok(ResourceAmount(text.to_owned()))
    }

    fn visit_u64<E: serde::de::Error>(self, amount: u64) -> Result<ResourceAmount, E> {
        Ok(ResourceAmount(amount.to_string()))
    }
}

fn amounts_schema(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": quantity_schema(),
    })
}

/// Ports of a pod besides its listeners: health and metrics, admin API, peers.
const POD_PORTS: std::ops::RangeInclusive<i32> = 8080..=8082;
const POD_PORT_NAMES: [&str; 3] = ["admin", "http", "peer"];

fn default_listeners() -> Vec<Listener> {
    vec![Listener { name: "mqtt".into(), protocol: ListenerType::Mqtt, port: 1883, tls_secret_ref: None }]
}

fn default_true() -> bool {
    true
}

fn all_namespaces() -> Vec<String> {
    vec!["*".into()]
}

fn rules_key() -> String {
    "rules.toml".into()
}

fn one() -> i32 {
    1
}

fn at_once() -> KubeDuration {
    KubeDuration::ZERO
}

fn five_minutes() -> KubeDuration {
    KubeDuration::from_secs(300)
}

impl Broker {
    /// What is wrong beyond types, single-field ranges and formats; nothing in a good object.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let spec = &self.spec;
        if spec.replicas.is_some() && spec.scaling.is_some() {
            problems
                .push(Problem::new("spec.replicas", "replicas and scaling exclude each other; allowed: one"));
        }
        if let Some(scaling) = &spec.scaling {
            scaling.check(&mut problems);
        }
        if let Some(BrokerScaling { min_replicas, max_replicas, .. }) = spec.scaling
            && min_replicas > max_replicas
        {
            let message = format!("{min_replicas} is above maxReplicas; allowed: up to {max_replicas}");
            problems.push(Problem::new("spec.scaling.minReplicas", message));
        }
        spec.check_store(&mut problems);
        spec.check_auth(&mut problems);
        for (index, listener) in spec.listeners.iter().enumerate() {
            listener.check(&format!("spec.listeners[{index}]"), &mut problems);
            if spec.listeners.iter().take(index).any(|earlier| earlier.name == listener.name) {
                let message = format!(
                    "{:?} is the name of another listener; allowed: names of their own",
                    listener.name
                );
                problems.push(Problem::new(format!("spec.listeners[{index}].name"), message));
            }
        }
        for (index, template) in spec.auto_create.queues.iter().enumerate() {
            template.spec.check(&format!("spec.autoCreate.queues[{index}].spec"), &mut problems);
        }
        problems
    }
}

impl BrokerScaling {
    fn check(&self, problems: &mut Vec<Problem>) {
        UP_AFTER.check("spec.scaling.scaleUpAfter", self.scale_up_after, problems);
        DOWN_AFTER.check("spec.scaling.scaleDownAfter", self.scale_down_after, problems);
    }
}

impl BrokerSpec {
    /// Whether something says who may connect: pods do not start without. Variables and files that pods are given beside it
    /// may say more.
    #[must_use]
    pub fn says_who_may_connect(&self) -> bool {
        let auth = &self.auth;
        auth.allow_anonymous
            || auth.users_secret_ref.is_some()
            || auth.jwks_secret_ref.is_some()
            || auth.client_ca_secret_ref.is_some()
    }

    fn check_auth(&self, problems: &mut Vec<Problem>) {
        let has_ca = self.auth.client_ca_secret_ref.is_some();
        if self.auth.client_auth.is_some() && !has_ca {
            let message = "clientAuth makes no sense without clientCaSecretRef; allowed: both or none";
            problems.push(Problem::new("spec.auth.clientAuth", message));
        }
        if self.auth.certificate_as_user && !has_ca {
            let message = "certificateAsUser makes no sense without clientCaSecretRef; allowed: both or none";
            problems.push(Problem::new("spec.auth.certificateAsUser", message));
        }
        if has_ca && !self.listeners.iter().any(|listener| listener.protocol.is_tls()) {
            let message = "clients show certificates at listeners of the types mqtts and wss; allowed: with one of them";
            problems.push(Problem::new("spec.auth.clientCaSecretRef", message));
        }
    }

    fn check_store(&self, problems: &mut Vec<Problem>) {
        let BrokerStore { fdb, embedded, remote } = &self.store;
        if [fdb.is_some(), embedded.is_some(), remote.is_some()].iter().filter(|some| **some).count() != 1 {
            let message = "exactly one store is needed; allowed: fdb, embedded or remote";
            problems.push(Problem::new("spec.store", message));
        }
        let many_pods = self.scaling.is_some() || self.replicas.is_some_and(|replicas| replicas > 1);
        if self.store.embedded.is_some() && many_pods {
            let message = "an embedded store serves one pod; allowed: replicas up to 1 and no scaling";
            problems.push(Problem::new("spec.store.embedded", message));
        }
        if self.store.embedded.is_some() && self.peer_tls.is_some() {
            let message = "with an embedded store there is one pod, which has no peers; allowed: no peerTls";
            problems.push(Problem::new("spec.peerTls", message));
        }
    }
}

impl Listener {
    fn check(&self, at: &str, problems: &mut Vec<Problem>) {
        let message = match (self.protocol.is_tls(), self.tls_secret_ref.is_some()) {
            (true, false) => "tlsSecretRef is missing; needed with the types mqtts and wss",
            (false, true) => "tlsSecretRef makes no sense here; allowed with the types mqtts and wss",
            (true, true) | (false, false) => "",
        };
        if !message.is_empty() {
            problems.push(Problem::new(at, message));
        }
        if POD_PORT_NAMES.contains(&self.name.as_str()) {
            let message =
                format!("{:?} is the name of a port that every pod has; allowed: others", self.name);
            problems.push(Problem::new(format!("{at}.name"), message));
        }
        if POD_PORTS.contains(&self.port) {
            let message =
                format!("{} is a port that every pod has; allowed: all but 8080 to 8082", self.port);
            problems.push(Problem::new(format!("{at}.port"), message));
        }
    }
}
