//! What the pods of a Broker need around them, and what others need to reach them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, Service, ServiceAccount, ServicePort,
    ServiceSpec, VolumeResourceRequirements,
};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::ResourceExt as _;
use weir_operator_api::{Broker, ServiceType};

use super::config::Files;
use super::{ADMIN_PORT, HTTP_PORT, PEER_PORT, label_selector, labels, metadata, selector};

pub(super) fn account(broker: &Broker) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(broker, broker.name_any()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// Name of the ConfigMap.
pub(super) fn config_name(broker: &Broker) -> String {
    format!("{}-config", broker.name_any())
}

pub(super) fn config(broker: &Broker, files: &Files) -> ConfigMap {
    let mut data = BTreeMap::from([("weir.toml".to_owned(), files.config.clone())]);
    if let Some(manifest) = &files.manifest {
        data.insert("broker.yaml".to_owned(), manifest.clone());
    }
    ConfigMap { metadata: metadata(broker, config_name(broker)), data: Some(data), ..ConfigMap::default() }
}

fn port(name: &str, port: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port,
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}

/// Where MQTT clients connect.
pub(super) fn client_service(broker: &Broker) -> Service {
    let settings = &broker.spec.service;
    let kind = match settings.kind {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let annotations = Some(settings.annotations.clone()).filter(|annotations| !annotations.is_empty());
    Service {
        metadata: ObjectMeta { annotations, ..metadata(broker, broker.name_any()) },
        spec: Some(ServiceSpec {
            type_: Some(kind.to_owned()),
            load_balancer_class: settings
                .load_balancer_class
                .clone()
                .filter(|_| settings.kind == ServiceType::LoadBalancer),
            selector: Some(selector(broker)),
            ports: Some(broker.spec.listeners.iter().map(|l| port(&l.name, l.port)).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Where people reach the admin API; the operator asks pods one by one.
pub(super) fn admin_service(broker: &Broker) -> Service {
    Service {
        metadata: metadata(broker, format!("{}-admin", broker.name_any())),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(selector(broker)),
            ports: Some(vec![port("admin", ADMIN_PORT), port("http", HTTP_PORT)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Evictions take one pod at a time; one that is not ready anyway may always go.
pub(super) fn disruption_budget(broker: &Broker) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(broker, broker.name_any()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(label_selector(broker)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

/// Clients and metrics for everybody, the admin API for operators and the Broker's own pods, peers for these alone.
pub(super) fn network_policy(broker: &Broker) -> NetworkPolicy {
    let port = |port: i32| NetworkPolicyPort {
        port: Some(IntOrString::Int(port)),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    let own =
        NetworkPolicyPeer { pod_selector: Some(label_selector(broker)), ..NetworkPolicyPeer::default() };
    let operators = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "weir".to_owned()),
        ("app.kubernetes.io/component".to_owned(), "operator".to_owned()),
    ]);
    let operators = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector::default()),
        pod_selector: Some(LabelSelector { match_labels: Some(operators), ..LabelSelector::default() }),
        ..NetworkPolicyPeer::default()
    };
    let open: Vec<_> = broker.spec.listeners.iter().map(|l| l.port).chain([HTTP_PORT]).map(port).collect();
    let rule = |ports: Vec<NetworkPolicyPort>, from: Option<Vec<NetworkPolicyPeer>>| {
        NetworkPolicyIngressRule { ports: Some(ports), from }
    };
    NetworkPolicy {
        metadata: metadata(broker, broker.name_any()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(label_selector(broker)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                rule(open, None),
                rule(vec![port(ADMIN_PORT)], Some(vec![operators, own.clone()])),
                rule(vec![port(PEER_PORT)], Some(vec![own])),
            ]),
            ..NetworkPolicySpec::default()
        }),
    }
}

/// Name of the volume of an embedded store.
pub(super) fn volume_name(broker: &Broker) -> String {
    format!("{}-data", broker.name_any())
}

/// The volume of an embedded store. It outlives the Broker: messages are not lost because an object was deleted, and a new
/// Broker of the same name finds them.
pub(super) fn volume(broker: &Broker) -> Option<PersistentVolumeClaim> {
    let embedded = broker.spec.store.embedded.as_ref()?;
    let size = Quantity(embedded.storage.to_string());
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(volume_name(broker)),
            namespace: broker.namespace(),
            labels: Some(labels(broker)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: embedded.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), size)])),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    })
}
