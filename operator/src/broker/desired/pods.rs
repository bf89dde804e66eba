//! The pods of a Broker.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, KeyToPath, Lifecycle, LifecycleHandler, LocalObjectReference,
    ObjectFieldSelector, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec,
    Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, SleepAction,
    Toleration, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::ResourceExt as _;
use weir_operator_api::{Broker, ResourceAmount, SecretKeyRef};

use super::around::{config_name, volume_name};
use super::config::{
    ADMIN_DIR, AUTH_DIR, CONFIG_DIR, DATA_DIR, FDB_DIR, Files, INTERNAL_DIR, MANIFESTS_DIR, PEER_DIR,
    REMOTE_DIR, TLS_DIR, certificates,
};
use super::{
    ADMIN_PORT, ADMIN_TLS_VOLUME, HTTP_PORT, PEER_PORT, POD_TLS_KEYS, Runs, internal_secret, label_selector,
    labels, metadata, selector,
};

/// The user of the image.
const USER: i64 = 65532;
/// Longest time from SIGTERM to the end: shards are handed over, clients sent elsewhere.
const GRACE_SECONDS: i64 = 60;
/// From the moment a pod is told to end to SIGTERM: those who route to it hear of it first.
const BEFORE_SIGTERM_SECONDS: i64 = 2;
/// A pod that was ready for so long counts as available: it has taken its shards over.
const SETTLED_SECONDS: i32 = 5;
/// FoundationDB's own image, which has the client library.
const FDB_IMAGE: &str = "foundationdb/foundationdb:7.3.63";

/// What is mounted where.
#[derive(Default)]
struct Mounts {
    volumes: Vec<Volume>,
    mounts: Vec<VolumeMount>,
}

impl Mounts {
    fn add(&mut self, volume: Volume, path: String, read_only: bool) {
        self.mounts.push(VolumeMount {
            name: volume.name.clone(),
            mount_path: path,
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        });
        self.volumes.push(volume);
    }

    /// One key of a Secret as the file `path`/`file`.
    fn secret_key(&mut self, name: &str, from: &SecretKeyRef, path: String, file: &str) {
        let items = Some(vec![KeyToPath { key: from.key.clone(), path: file.to_owned(), mode: None }]);
        self.add(secret(name, &from.name, items), path, true);
    }
}

fn secret(name: &str, secret: &str, items: Option<Vec<KeyToPath>>) -> Volume {
    let source =
        SecretVolumeSource { secret_name: Some(secret.to_owned()), items, ..SecretVolumeSource::default() };
    Volume { name: name.to_owned(), secret: Some(source), ..Volume::default() }
}

fn config_map(name: &str, config_map: &str, key: &str, path: &str) -> Volume {
    let source = ConfigMapVolumeSource {
        name: config_map.to_owned(),
        items: Some(vec![KeyToPath { key: key.to_owned(), path: path.to_owned(), mode: None }]),
        ..ConfigMapVolumeSource::default()
    };
    Volume { name: name.to_owned(), config_map: Some(source), ..Volume::default() }
}

fn empty(name: &str) -> Volume {
    let source = EmptyDirVolumeSource::default();
    Volume { name: name.to_owned(), empty_dir: Some(source), ..Volume::default() }
}

fn mounts(broker: &Broker, files: &Files) -> Mounts {
    let spec = &broker.spec;
    let mut all = Mounts::default();
    all.add(
        config_map("config", &config_name(broker), "weir.toml", "weir.toml"),
        CONFIG_DIR.to_owned(),
        true,
    );
    if files.manifest.is_some() {
        let manifest = config_map("manifests", &config_name(broker), "broker.yaml", "broker.yaml");
        all.add(manifest, MANIFESTS_DIR.to_owned(), true);
    }
    all.add(secret("internal", &internal_secret(broker), None), INTERNAL_DIR.to_owned(), true);
    for (volume, tls, dir) in
        [("peer-tls", &spec.peer_tls, PEER_DIR), (ADMIN_TLS_VOLUME, &spec.admin_tls, ADMIN_DIR)]
    {
        let Some(tls) = tls else { continue };
        let key = |key: &str| KeyToPath { key: key.to_owned(), path: key.to_owned(), mode: None };
        let items = POD_TLS_KEYS.map(key).into();
        all.add(secret(volume, &tls.secret_ref.name, Some(items)), dir.to_owned(), true);
    }
    for (n, name) in certificates(&spec.listeners).into_iter().enumerate() {
        all.add(secret(&format!("tls-{n}"), name, None), format!("{TLS_DIR}/{name}"), true);
    }
    if let Some(users) = &spec.auth.users_secret_ref {
        all.secret_key("users", users, format!("{AUTH_DIR}/users"), "users");
    }
    if let Some(rules) = &spec.auth.rules_config_map_ref {
        let rules = config_map("rules", &rules.name, &rules.key, "rules.toml");
        all.add(rules, format!("{AUTH_DIR}/rules"), true);
    }
    if let Some(jwks) = &spec.auth.jwks_secret_ref {
        all.secret_key("jwks", jwks, format!("{AUTH_DIR}/jwks"), "jwks.json");
    }
    if let Some(ca) = &spec.auth.client_ca_secret_ref {
        all.secret_key("client-ca", ca, format!("{AUTH_DIR}/client-ca"), "ca.crt");
    }
    if let Some(remote) = &spec.store.remote {
        if let Some(token) = &remote.token_secret_ref {
            all.secret_key("store-token", token, format!("{REMOTE_DIR}/token"), "token");
        }
        if let Some(ca) = &remote.ca_secret_ref {
            all.secret_key("store-ca", ca, format!("{REMOTE_DIR}/ca"), "ca.crt");
        }
    }
    if spec.store.fdb.is_some() {
        all.add(empty("fdb"), FDB_DIR.to_owned(), false);
    }
    if spec.store.embedded.is_some() {
        let claim = PersistentVolumeClaimVolumeSource {
            claim_name: volume_name(broker),
            ..PersistentVolumeClaimVolumeSource::default()
        };
        let volume =
            Volume { name: "data".into(), persistent_volume_claim: Some(claim), ..Volume::default() };
        all.add(volume, DATA_DIR.to_owned(), false);
    }
    all
}

/// The Deployment. Errors say what in the `spec` of the Broker cannot be.
pub(super) fn deployment(broker: &Broker, runs: Runs<'_>, files: &Files) -> Result<Deployment, String> {
    let spec = &broker.spec;
    let is_alone = spec.store.embedded.is_some();
    let strategy = if is_alone {
        // The volume is one pod's at a time.
        DeploymentStrategy { type_: Some("Recreate".to_owned()), rolling_update: None }
    } else {
        let rolling = RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(1)),
            max_unavailable: Some(IntOrString::Int(0)),
        };
        DeploymentStrategy { type_: Some("RollingUpdate".to_owned()), rolling_update: Some(rolling) }
    };
    Ok(Deployment {
        metadata: metadata(broker, broker.name_any()),
        spec: Some(DeploymentSpec {
            replicas: Some(spec.replicas.unwrap_or(runs.replicas)),
            selector: label_selector(broker),
            strategy: Some(strategy),
            min_ready_seconds: Some(SETTLED_SECONDS),
            revision_history_limit: Some(3),
            progress_deadline_seconds: Some(600),
            template: template(broker, runs, files)?,
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    })
}

fn template(broker: &Broker, runs: Runs<'_>, files: &Files) -> Result<PodTemplateSpec, String> {
    let pods = &broker.spec.pods;
    let mut all_labels = pods.labels.clone();
    all_labels.extend(labels(broker));
    let mut annotations = pods.annotations.clone();
    // The configuration is read at the start: pods of another one are other pods.
    let hash = xxhash_rust::xxh3::xxh3_64(format!("{files:?}").as_bytes());
    annotations.insert("weir.dev/config".to_owned(), format!("{hash:016x}"));
    annotations.insert("kubectl.kubernetes.io/default-container".to_owned(), "weir".to_owned());
    Ok(PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(all_labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(broker, runs, files)?),
    })
}

fn pod(broker: &Broker, runs: Runs<'_>, files: &Files) -> Result<PodSpec, String> {
    let pods = &broker.spec.pods;
    let Mounts { volumes, mounts } = mounts(broker, files);
    let image = broker.spec.image.clone().unwrap_or_else(|| runs.image.to_owned());
    let mut volumes = volumes;
    let mut init = Vec::new();
    if let Some((container, volume)) = fdb_files(broker) {
        init.push(container);
        volumes.push(volume);
    }
    let affinity = pods.affinity.clone().map(serde_json::from_value::<Affinity>).transpose();
    let tolerations: Result<Vec<Toleration>, _> =
        pods.tolerations.iter().cloned().map(serde_json::from_value).collect();
    let tolerations = tolerations.map_err(|error| format!("spec.pods.tolerations: {error}"))?;
    let secrets = pods.image_pull_secrets.iter().map(|s| LocalObjectReference { name: s.name.clone() });
    Ok(PodSpec {
        service_account_name: Some(broker.name_any()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        init_containers: Some(init).filter(|init| !init.is_empty()),
        containers: vec![container(broker, image, mounts)],
        volumes: Some(volumes),
        node_selector: Some(pods.node_selector.clone()).filter(|labels| !labels.is_empty()),
        tolerations: Some(tolerations).filter(|tolerations| !tolerations.is_empty()),
        affinity: affinity.map_err(|error| format!("spec.pods.affinity: {error}"))?,
        priority_class_name: pods.priority_class_name.clone(),
        image_pull_secrets: Some(secrets.collect::<Vec<_>>()).filter(|secrets| !secrets.is_empty()),
        topology_spread_constraints: Some(
            ["topology.kubernetes.io/zone", "kubernetes.io/hostname"].map(|key| spread(broker, key)).into(),
        ),
        ..PodSpec::default()
    })
}

fn spread(broker: &Broker, key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        topology_key: key.to_owned(),
        max_skew: 1,
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(label_selector(broker)),
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }
}

fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

fn container(broker: &Broker, image: String, mounts: Vec<VolumeMount>) -> Container {
    let spec = &broker.spec;
    let has_peers = spec.store.embedded.is_none();
    let mut command: Vec<String> = ["weir", "serve", "--config"].map(str::to_owned).into();
    command.push(format!("{CONFIG_DIR}/weir.toml"));
    if has_peers {
        command.push(format!("--peer-advertise=$(POD_IP):{PEER_PORT}"));
    }
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.to_owned(), api_version: None }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let mut env = vec![field("POD_NAME", "metadata.name"), field("POD_IP", "status.podIP")];
    env.extend(spec.pods.env.iter().map(|(name, value)| EnvVar {
        name: name.clone(),
        value: Some(value.clone()),
        ..EnvVar::default()
    }));
    let mut ports: Vec<(&str, i32)> = spec.listeners.iter().map(|l| (l.name.as_str(), l.port)).collect();
    ports.extend([("http", HTTP_PORT), ("admin", ADMIN_PORT)]);
    if has_peers {
        ports.push(("peer", PEER_PORT));
    }
    let port = |(name, port): (&str, i32)| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    Container {
        name: "weir".to_owned(),
        image: Some(image),
        command: Some(command),
        env: Some(env),
        ports: Some(ports.into_iter().map(port).collect()),
        startup_probe: Some(probe("/healthz", 1, 120)),
        liveness_probe: Some(probe("/healthz", 10, 3)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: BEFORE_SIGTERM_SECONDS }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        resources: resources(broker),
        security_context: Some(restricted()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn resources(broker: &Broker) -> Option<ResourceRequirements> {
    let amounts = |amounts: &BTreeMap<String, ResourceAmount>| {
        let amounts: BTreeMap<String, Quantity> =
            amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.0.clone()))).collect();
        Some(amounts).filter(|amounts| !amounts.is_empty())
    };
    let resources = &broker.spec.resources;
    let (requests, limits) = (amounts(&resources.requests), amounts(&resources.limits));
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}

/// What brings FoundationDB's client library, and a cluster file that the client can write, to where the pod looks for them.
fn fdb_files(broker: &Broker) -> Option<(Container, Volume)> {
    let fdb = broker.spec.store.fdb.as_ref()?;
    let from = &fdb.cluster_file.config_map_ref;
    let source = "/etc/weir/fdb";
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    };
    let script =
        format!("cp /usr/lib/libfdb_c.so {FDB_DIR}/ && cp {source}/fdb.cluster {FDB_DIR}/fdb.cluster");
    let container = Container {
        name: "foundationdb-client".to_owned(),
        image: Some(fdb.client_image.clone().unwrap_or_else(|| FDB_IMAGE.to_owned())),
        command: Some(vec!["sh".to_owned(), "-c".to_owned(), script]),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![mount("fdb", FDB_DIR), mount("fdb-cluster-file", source)]),
        ..Container::default()
    };
    Some((container, config_map("fdb-cluster-file", &from.name, &from.key, "fdb.cluster")))
}

/// The labels of the pods as one text, for autoscalers.
pub(crate) fn selector_text(broker: &Broker) -> String {
    let pairs: Vec<String> = selector(broker).iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}
