//! The Kubernetes resources of Weir: what a platform team declares, and the schema the cluster checks it by.
//!
//! Three kinds of `weir.dev/v1alpha1`: [`MessageQueue`], [`Stream`] and [`Broker`]. These are wire types:
//! the operator and the manifest reader convert them at their edge, nothing further inside sees them. This
//! crate must never know a Kubernetes client, a broker or a store. It owns no state.
//!
//! Rules live twice, on purpose: in the schema (types, ranges, patterns, CEL), which a Kubernetes API server
//! enforces, and as `problems` in Rust, which work where there is none. A test runs one table of cases
//! through both.

mod broker;
mod common;
mod duration;
mod format;
mod placement;
mod problem;
mod queue;
mod rules;
mod size;
mod store;
mod stream;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSON};
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

pub use broker::{
    AutoCreate, Broker, BrokerAuth, BrokerScaling, BrokerSpec, BrokerStatus, Listener, ListenerType,
    QueueTemplate, ResourceAmount, Resources, RulesRef, ScalingStatus, SecretKeyRef, StreamTemplate,
};
pub use common::{BrokerRef, DeletionPolicy, ObjectRef, ObjectStatus, StatusBroker};
pub use duration::{DurationError, KubeDuration};
pub use format::{FORMATS, Format, check_namespace, check_object_name};
pub use placement::{PodSettings, ServiceSettings, ServiceType};
pub use problem::Problem;
pub use queue::{
    DeadLetter, Dedup, Dispatch, DispatchStrategy, MessageQueue, MessageQueueSpec, Ordering, Overflow,
    PublisherControl, QueueRetention, QueueSettings, RetryBackoff,
};
pub use size::{ByteSize, ByteSizeError};
pub use store::{BrokerStore, ClusterFileSource, ConfigMapKeyRef, EmbeddedStore, FdbStore, RemoteStore};
pub use stream::{Groups, Stream, StreamRetention, StreamSettings, StreamSpec};

/// The API group of every kind.
pub const GROUP: &str = "weir.dev";
/// The one version that is served and stored.
pub const VERSION: &str = "v1alpha1";

/// The custom resource definitions of all kinds, in the order of their names.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    [Broker::crd(), MessageQueue::crd(), Stream::crd()].map(without_nullable).map(with_pending_status).into()
}

/// A new object says that nothing is known of it, also while no operator runs: to many tools an object without
/// conditions is a good one.
fn with_pending_status(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let default = json!({
        "conditions": [{
            "type": "Ready",
            "status": "Unknown",
            "reason": "Pending",
            "message": "the operator has not come to it yet",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }],
    });
    for version in &mut crd.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let status = schema.and_then(|schema| schema.properties.as_mut()?.get_mut("status"));
        if let Some(status) = status {
            status.default = Some(JSON(default.clone()));
        }
    }
    crd
}

/// In a field that is not nullable the API server takes `null` for absent, which is what people mean; in one
/// that is, `null` stays and stands for nothing here.
fn without_nullable(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, value| name != "nullable" || !value.is_boolean());
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(crd).expect("a custom resource definition is JSON");
    strip(&mut value);
    serde_json::from_value(value).expect("`nullable` is optional in a schema")
}
