//! The objects that a Broker stands for, as they should be. Pure: knows no client, no clock and nothing of what there is, but
//! for the number of pods where something else decides it.
//!
//! Pods keep nothing, so they are a Deployment: an upgrade starts a new pod before it stops an old one, and which pod goes
//! when there should be fewer can be chosen. With an embedded store there is one pod and its volume.

mod around;
mod config;
mod pods;

use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Resource as _;
use kube::api::{ApiResource, DynamicObject};
use kube::core::ResourceExt as _;
use serde::Serialize;
use weir_operator_api::Broker;

use config::files;
pub(crate) use pods::selector_text;

/// The label that names the Broker of an object.
pub(crate) const BROKER_LABEL: &str = "weir.dev/broker";
/// Port of `/healthz`, `/readyz` and `/metrics`.
pub(crate) const HTTP_PORT: i32 = 8080;
/// Port of the admin API.
pub(crate) const ADMIN_PORT: i32 = 8081;
/// Port by which pods reach each other.
pub(crate) const PEER_PORT: i32 = 8082;
/// Key of the secret that pods and operator share, in the Secret that [`internal_secret`] names.
pub(crate) const TOKEN_KEY: &str = "token";
/// Keys of the Secrets of `spec.peerTls` and `spec.adminTls`: certificate, private key, authorities.
pub(crate) const POD_TLS_KEYS: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
/// Volume with the certificate of the admin API, in pods that have one.
pub(crate) const ADMIN_TLS_VOLUME: &str = "admin-tls";

/// The name that the certificates of pods are for: their addresses are not known when those are made.
pub(crate) fn pod_name(broker: &Broker) -> String {
    format!("{}.{}.weir.internal", broker.name_any(), broker.namespace().unwrap_or_default())
}

/// An object with the resource that it is of.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) resource: ApiResource,
    pub(crate) object: DynamicObject,
}

/// What the pods run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs<'a> {
    /// Image, if the Broker names none.
    pub(crate) image: &'a str,
    /// Pods, if the Broker does not say.
    pub(crate) replicas: i32,
}

/// Every object that a Broker stands for, those first that others use. Errors say what in its `spec` cannot be.
pub(crate) fn desired(broker: &Broker, runs: Runs<'_>) -> Result<Vec<Owned>, String> {
    let files = files(broker);
    let mut objects = vec![
        owned(&around::account(broker))?,
        owned(&around::config(broker, &files))?,
        owned(&around::client_service(broker))?,
        owned(&around::admin_service(broker))?,
        owned(&around::disruption_budget(broker))?,
        owned(&around::network_policy(broker))?,
    ];
    if let Some(volume) = around::volume(broker) {
        objects.push(owned(&volume)?);
    }
    objects.push(owned(&pods::deployment(broker, runs, &files)?)?);
    Ok(objects)
}

/// Name of the Secret with what pods prove themselves by to each other, and the operator to them.
pub(crate) fn internal_secret(broker: &Broker) -> String {
    format!("{}-internal", broker.name_any())
}

/// The labels that pods of a Broker are found by. They never change.
pub(crate) fn selector(broker: &Broker) -> BTreeMap<String, String> {
    [("app.kubernetes.io/name", "weir".to_owned()), ("app.kubernetes.io/component", "broker".to_owned())]
        .into_iter()
        .chain([(BROKER_LABEL, broker.name_any())])
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn label_selector(broker: &Broker) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(broker)), ..LabelSelector::default() }
}

/// The labels of every object of a Broker.
pub(crate) fn labels(broker: &Broker) -> BTreeMap<String, String> {
    let mut labels = selector(broker);
    labels.insert("app.kubernetes.io/instance".to_owned(), broker.name_any());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "weir-operator".to_owned());
    labels.insert("app.kubernetes.io/part-of".to_owned(), "weir".to_owned());
    labels
}

/// What an object is called and whose it is; it goes with its Broker.
fn metadata(broker: &Broker, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: broker.namespace(),
        labels: Some(labels(broker)),
        owner_references: broker.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

fn owned<K>(object: &K) -> Result<Owned, String>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize,
{
    let written = serde_json::to_value(object).and_then(serde_json::from_value);
    let object = written.map_err(|error| format!("{} cannot be written: {error}", K::kind(&())))?;
    Ok(Owned { resource: ApiResource::erase::<K>(&()), object })
}

#[cfg(test)]
mod tests;
