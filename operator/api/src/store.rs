//! Where the messages of a Broker are stored.

use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::broker::SecretKeyRef;
use crate::format::{address_schema, kube_name_schema, store_prefix_schema};
use crate::rules::immutable_option;
use crate::size::ByteSize;

/// Where messages are stored: exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("(has(self.fdb) ? 1 : 0) + (has(self.embedded) ? 1 : 0) + (has(self.remote) ? 1 : 0) == 1")
        .message("exactly one of fdb, embedded and remote is needed")
]))]
pub struct BrokerStore {
    /// FoundationDB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fdb: Option<FdbStore>,
    /// An embedded store on a volume: one pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedded: Option<EmbeddedStore>,
    /// A store that `weir store serve` serves: several pods without FoundationDB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteStore>,
}

/// A FoundationDB cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [immutable_option("prefix")]))]
pub struct FdbStore {
    /// Where the cluster file is.
    pub cluster_file: ClusterFileSource,
    /// Image that brings the client library: `libfdb_c.so` 7.3 or later at `/usr/lib`, and `cp`. Default: FoundationDB's own of
    /// 7.3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub client_image: Option<String>,
    /// Name of this installation in the cluster, before each of its keys. Immutable: with another one it would be empty.
    /// Default: the Broker's namespace and name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "store_prefix_schema")]
    pub prefix: Option<String>,
}

/// Where the cluster file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFileSource {
    /// A key of a ConfigMap in the Broker's namespace.
    pub config_map_ref: ConfigMapKeyRef,
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap.
    #[schemars(schema_with = "kube_name_schema")]
    pub name: String,
    /// Key inside of it. Default `cluster-file`.
    #[serde(default = "cluster_file_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// An embedded store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddedStore {
    /// Size of the volume, such as `10Gi`. Can grow later where the storage class allows.
    pub storage: ByteSize,
    /// Storage class of the volume. Default: the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "kube_name_schema")]
    pub storage_class_name: Option<String>,
}

/// A store server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemoteStore {
    /// Where it listens, as `HOST:PORT`.
    #[schemars(schema_with = "address_schema")]
    pub address: String,
    /// The token that it asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
    /// Authorities (PEM) that its certificate must come from; with them TLS is spoken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
}

fn cluster_file_key() -> String {
    "cluster-file".into()
}
