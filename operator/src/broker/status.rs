//! How a Broker is, by what there is of it. Pure: knows no client.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::jiff::Timestamp;
use kube::core::ResourceExt as _;
use weir_operator_api::{Broker, BrokerStatus};

use super::desired;
use crate::conditions::Verdict;
use crate::error::Error;

/// What there is of a Broker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Observed<'a> {
    pub(super) deployment: Option<&'a Deployment>,
    /// Something that its pods refer to and that is not there, in words for people.
    pub(super) missing: Option<&'a str>,
}

/// Secrets and keys that the pods refer to.
pub(super) fn secrets(broker: &Broker) -> Vec<(String, &str)> {
    let spec = &broker.spec;
    let mut all: Vec<(String, &str)> = Vec::new();
    for secret in spec.listeners.iter().filter_map(|listener| listener.tls_secret_ref.as_ref()) {
        all.extend([(secret.name.clone(), "tls.crt"), (secret.name.clone(), "tls.key")]);
    }
    for tls in [&spec.peer_tls, &spec.admin_tls].into_iter().flatten() {
        all.extend(desired::POD_TLS_KEYS.map(|key| (tls.secret_ref.name.clone(), key)));
    }
    let remote = spec.store.remote.as_ref();
    let auth = &spec.auth;
    let referred = [&auth.users_secret_ref, &auth.jwks_secret_ref, &auth.client_ca_secret_ref]
        .into_iter()
        .flatten()
        .chain(remote.and_then(|remote| remote.token_secret_ref.as_ref()))
        .chain(remote.and_then(|remote| remote.ca_secret_ref.as_ref()));
    all.extend(referred.map(|secret| (secret.name.clone(), secret.key.as_str())));
    all
}

/// ConfigMaps and keys that the pods refer to.
pub(super) fn config_maps(broker: &Broker) -> Vec<(String, &str)> {
    let spec = &broker.spec;
    let file = spec.store.fdb.as_ref().map(|fdb| &fdb.cluster_file.config_map_ref);
    let rules = spec.auth.rules_config_map_ref.as_ref();
    let file = file.map(|file| (file.name.clone(), file.key.as_str()));
    file.into_iter().chain(rules.map(|rules| (rules.name.clone(), rules.key.as_str()))).collect()
}

/// How the Broker is.
pub(super) fn verdict(broker: &Broker, observed: &Observed<'_>) -> Verdict {
    if let Some(missing) = observed.missing {
        return Verdict::working("ReferenceMissing", missing);
    }
    let Some(deployment) = observed.deployment else {
        return Verdict::working("Starting", "its Deployment is being made");
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let (ready, updated, all) = (
        status.ready_replicas.unwrap_or(0),
        status.updated_replicas.unwrap_or(0),
        status.replicas.unwrap_or(0),
    );
    if status.observed_generation < deployment.metadata.generation {
        return Verdict::working("Starting", "its Deployment has changed");
    }
    if wanted == 0 {
        return Verdict::working("ScaledToZero", "it is to have no pods: set spec.replicas to have some");
    }
    if let Some(problem) = problem(&status) {
        return Verdict::working("PodsNotReady", format!("{ready} of {wanted} pods are ready: {problem}"));
    }
    if updated < wanted || all > wanted {
        let message = format!("{updated} of {wanted} pods run what was declared last; {ready} are ready");
        return Verdict::working("RollingOut", message);
    }
    if ready < wanted {
        let select = desired::selector_text(broker);
        let namespace = broker.namespace().unwrap_or_default();
        let hint = if broker.spec.says_who_may_connect() {
            ""
        } else {
            "; nothing says who may connect (spec.auth), without which pods do not start"
        };
        let message = format!(
            "{ready} of {wanted} pods are ready: see `kubectl -n {namespace} get pods -l {select}` and their logs{hint}"
        );
        return Verdict::working("PodsNotReady", message);
    }
    Verdict::ready(format!("{ready} of {wanted} pods accept clients"))
}

/// What to say if the API server refuses an object; nothing if it may take it the next time.
pub(super) fn refused(what: &str, error: &Error) -> Option<Verdict> {
    let Error::Kube { source: kube::Error::Api(said), .. } = error else { return None };
    let message = format!("the API server refuses {what}: {}", said.message);
    match said.code {
        // It is not valid, whoever asks.
        400 | 413 | 422 => Some(Verdict::stuck("ApplyFailed", format!("{message}; edit the Broker"))),
        // It is not allowed: by rights, a quota or a policy.
        403 => Some(Verdict::working("ApplyFailed", message)),
        _ => None,
    }
}

/// What the Deployment says is wrong.
fn problem(status: &DeploymentStatus) -> Option<String> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let failed = conditions.iter().find(|condition| {
        (condition.type_ == "ReplicaFailure" && condition.status == "True")
            || (condition.type_ == "Progressing" && condition.status == "False")
    })?;
    Some(failed.message.clone().or_else(|| failed.reason.clone()).unwrap_or_else(|| failed.type_.clone()))
}

/// The status that says so.
pub(super) fn status(
    broker: &Broker,
    verdict: &Verdict,
    deployment: Option<&Deployment>,
    now: Timestamp,
) -> BrokerStatus {
    let generation = broker.metadata.generation.unwrap_or(0);
    let old = broker.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let there = deployment.and_then(|deployment| deployment.status.as_ref());
    let wanted = deployment.and_then(|deployment| deployment.spec.as_ref()?.replicas);
    let ready = there.and_then(|status| status.ready_replicas).unwrap_or(0);
    BrokerStatus {
        observed_generation: Some(generation),
        conditions: verdict.conditions(old, generation, now),
        replicas: Some(there.and_then(|status| status.replicas).unwrap_or(0)),
        ready_replicas: Some(ready),
        pods: wanted.map(|wanted| format!("{ready}/{wanted}")),
        selector: Some(desired::selector_text(broker)),
        // Another writer's.
        scaling: None,
    }
}
