//! Where the pods of a Broker run, what they carry, and how clients reach them.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::common::ObjectRef;
use crate::format::kube_name_schema;

/// The Service that clients connect to. It has a port for each listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSettings {
    /// Who can reach it. Default `ClusterIP`.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// Annotations, as load balancers want them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "texts_schema")]
    pub annotations: BTreeMap<String, String>,
    /// Which load balancer, with the type `LoadBalancer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub load_balancer_class: Option<String>,
}

/// Who can reach a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Pods of the cluster.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Whoever reaches a node.
    NodePort,
    /// Whoever reaches the load balancer.
    LoadBalancer,
}

/// Where pods run and what they carry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSettings {
    /// Labels, besides the operator's own, which win.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "texts_schema")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "texts_schema")]
    pub annotations: BTreeMap<String, String>,
    /// Labels of the nodes that pods may run on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "texts_schema")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that pods bear, as in a pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "tolerations_schema")]
    pub tolerations: Vec<Value>,
    /// Affinity, as in a pod. Default: none; pods are spread over zones and nodes in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open_schema")]
    pub affinity: Option<Value>,
    /// PriorityClass.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "kube_name_schema")]
    pub priority_class_name: Option<String>,
    /// Secrets for registries that ask who you are, up to 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub image_pull_secrets: Vec<ObjectRef>,
    /// More environment variables, such as `WEIR_LOG_FILTER`: every setting of docs/configuration.md has one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "texts_schema")]
    pub env: BTreeMap<String, String>,
}

fn texts_schema(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 4096 },
    })
}

fn open_schema(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

fn tolerations_schema(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}
