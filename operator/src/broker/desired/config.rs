//! The configuration of the pods: the settings that docs/configuration.md names.

use std::collections::BTreeSet;

use kube::core::ResourceExt as _;
use serde_json::{Map, Value, json};
use weir_operator_api::{Broker, Listener, ListenerType};

use super::{ADMIN_PORT, HTTP_PORT, PEER_PORT, POD_TLS_KEYS, TOKEN_KEY, pod_name};

/// Where the pod finds its configuration.
pub(super) const CONFIG_DIR: &str = "/etc/weir/config";
/// Where the pod finds what it shares with its peers and the operator.
pub(super) const INTERNAL_DIR: &str = "/etc/weir/internal";
/// Where the pod finds the certificate that it shows to its peers, and who signs theirs.
pub(super) const PEER_DIR: &str = "/etc/weir/peer";
/// Where the pod finds the certificate of its admin API, and who signs those of its callers.
pub(super) const ADMIN_DIR: &str = "/etc/weir/admin";
/// Where the pod finds certificates, a folder for each Secret.
pub(super) const TLS_DIR: &str = "/etc/weir/tls";
/// Where the pod finds users, rules and keys.
pub(super) const AUTH_DIR: &str = "/etc/weir/auth";
/// Where the pod finds what it needs for a store server.
pub(super) const REMOTE_DIR: &str = "/etc/weir/remote";
/// Where the pod finds what subscriptions may create.
pub(super) const MANIFESTS_DIR: &str = "/etc/weir/manifests";
/// Where an embedded store is.
pub(super) const DATA_DIR: &str = "/var/lib/weir";
/// Where FoundationDB's client library and cluster file are; the client writes the file.
pub(super) const FDB_DIR: &str = "/var/lib/fdb";

/// Files of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    /// `weir.toml`.
    pub(crate) config: String,
    /// A manifest of the Broker, where subscriptions may create queues or streams.
    pub(crate) manifest: Option<String>,
}

/// The files of a Broker's pods.
pub(crate) fn files(broker: &Broker) -> Files {
    let spec = &broker.spec;
    let creates = !(spec.auto_create.queues.is_empty() && spec.auto_create.streams.is_empty());
    let mut config = json!({
        "store": store(broker),
        "listen": spec.listeners.iter().map(listen).collect::<Vec<_>>(),
        "http": format!("0.0.0.0:{HTTP_PORT}"),
        "admin": format!("0.0.0.0:{ADMIN_PORT}"),
        "adminTokenFile": format!("{INTERNAL_DIR}/{TOKEN_KEY}"),
        "allowAnonymous": spec.auth.allow_anonymous,
        "waitForQueue": spec.wait_for_queue,
        "log": { "format": "json" },
    });
    let Some(settings) = config.as_object_mut() else { unreachable!("it was made as an object") };
    if spec.store.embedded.is_none() {
        settings.insert("peer".into(), format!("0.0.0.0:{PEER_PORT}").into());
        settings.insert("peerTokenFile".into(), format!("{INTERNAL_DIR}/{TOKEN_KEY}").into());
        if spec.peer_tls.is_some() {
            insert_files(settings, ["peerCertificateFile", "peerKeyFile", "peerCaFile"], PEER_DIR);
            settings.insert("peerServerName".into(), pod_name(broker).into());
        }
    }
    if spec.admin_tls.is_some() {
        insert_files(settings, ["adminCertificateFile", "adminKeyFile", "adminClientCaFile"], ADMIN_DIR);
    }
    if creates {
        settings.insert("manifests".into(), MANIFESTS_DIR.into());
    }
    insert(settings, "tls", tls(broker));
    insert(settings, "auth", auth(broker));
    insert(settings, "fdb", fdb(broker));
    insert(settings, "remote", remote(broker));
    let config = toml::to_string(&config).expect("texts, numbers and tables are TOML");
    Files { config, manifest: creates.then(|| manifest(broker)) }
}

/// The settings that name the files of a Secret with certificates.
fn insert_files(settings: &mut Map<String, Value>, names: [&str; 3], dir: &str) {
    for (setting, file) in names.into_iter().zip(POD_TLS_KEYS) {
        settings.insert(setting.into(), format!("{dir}/{file}").into());
    }
}

fn insert(settings: &mut Map<String, Value>, name: &str, table: Map<String, Value>) {
    if !table.is_empty() {
        settings.insert(name.to_owned(), table.into());
    }
}

fn store(broker: &Broker) -> String {
    let store = &broker.spec.store;
    match (&store.fdb, &store.remote) {
        (Some(_), _) => format!("fdb:{FDB_DIR}/fdb.cluster"),
        (None, Some(remote)) => format!("remote:{}", remote.address),
        (None, None) => format!("embedded:{DATA_DIR}/store"),
    }
}

fn listen(listener: &Listener) -> String {
    let scheme = match listener.protocol {
        ListenerType::Mqtt => "mqtt",
        ListenerType::Mqtts => "mqtts",
        ListenerType::Ws => "ws",
        ListenerType::Wss => "wss",
    };
    format!("{scheme}://0.0.0.0:{}", listener.port)
}

/// The Secrets with certificates; a client gets the one for the name that it asks for.
pub(super) fn certificates(listeners: &[Listener]) -> BTreeSet<&str> {
    listeners.iter().filter_map(|listener| Some(listener.tls_secret_ref.as_ref()?.name.as_str())).collect()
}

fn tls(broker: &Broker) -> Map<String, Value> {
    let (secrets, auth) = (certificates(&broker.spec.listeners), &broker.spec.auth);
    let mut tls = Map::new();
    for (key, file) in [("cert", "tls.crt"), ("key", "tls.key")] {
        let files: Vec<String> = secrets.iter().map(|secret| format!("{TLS_DIR}/{secret}/{file}")).collect();
        if !files.is_empty() {
            tls.insert(key.to_owned(), files.into());
        }
    }
    if auth.client_ca_secret_ref.is_some() {
        tls.insert("clientCa".into(), format!("{AUTH_DIR}/client-ca/ca.crt").into());
    }
    if let Some(client_auth) = auth.client_auth {
        tls.insert("clientAuth".into(), json!(client_auth));
    }
    tls
}

fn auth(broker: &Broker) -> Map<String, Value> {
    let auth = &broker.spec.auth;
    let mut settings = Map::new();
    if auth.users_secret_ref.is_some() {
        settings.insert("usersFile".into(), format!("{AUTH_DIR}/users/users").into());
    }
    if auth.rules_config_map_ref.is_some() {
        settings.insert("rulesFile".into(), format!("{AUTH_DIR}/rules/rules.toml").into());
    }
    if auth.jwks_secret_ref.is_some() {
        settings.insert("jwt".into(), json!({ "jwksFile": format!("{AUTH_DIR}/jwks/jwks.json") }));
    }
    if auth.certificate_as_user {
        settings.insert("certificateAsUser".into(), true.into());
    }
    settings
}

fn fdb(broker: &Broker) -> Map<String, Value> {
    let mut settings = Map::new();
    if let Some(fdb) = &broker.spec.store.fdb {
        settings.insert("clientLibrary".into(), format!("{FDB_DIR}/libfdb_c.so").into());
        let prefix = fdb.prefix.clone().unwrap_or_else(|| fdb_prefix(broker));
        settings.insert("prefix".into(), prefix.into());
    }
    settings
}

/// A name of its own for each Broker in a cluster that several share: 1 to 32 characters.
fn fdb_prefix(broker: &Broker) -> String {
    let whole = format!("{}.{}", broker.namespace().unwrap_or_default(), broker.name_any());
    if whole.len() <= 32 {
        return whole;
    }
    let hash = xxhash_rust::xxh3::xxh3_64(whole.as_bytes());
    format!("{}-{hash:016x}", whole.chars().take(15).collect::<String>())
}

fn remote(broker: &Broker) -> Map<String, Value> {
    let mut settings = Map::new();
    if let Some(remote) = &broker.spec.store.remote {
        if remote.token_secret_ref.is_some() {
            settings.insert("tokenFile".into(), format!("{REMOTE_DIR}/token/token").into());
        }
        if remote.ca_secret_ref.is_some() {
            settings.insert("caFile".into(), format!("{REMOTE_DIR}/ca/ca.crt").into());
        }
    }
    settings
}

/// What a pod applies of its Broker.
fn manifest(broker: &Broker) -> String {
    let spec = &broker.spec;
    let manifest = json!({
        "apiVersion": "weir.dev/v1alpha1",
        "kind": "Broker",
        "metadata": { "name": broker.name_any(), "namespace": broker.namespace() },
        "spec": { "store": spec.store, "waitForQueue": spec.wait_for_queue, "autoCreate": spec.auto_create },
    });
    serde_yaml::to_string(&manifest).expect("JSON is YAML")
}
