//! The chart on a real cluster: what a release brings, and what outlives it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_e2e::kubernetes::{Cluster, until};

use crate::{on_bare_kubernetes, on_kubernetes};

#[test]
fn a_release_brings_the_definitions_and_its_broker_and_takes_neither_away() -> Result<()> {
    on_bare_kubernetes(
        "chart::a_release_brings_the_definitions_and_its_broker_and_takes_neither_away",
        async |cluster: &mut Cluster| {
            let kubectl = cluster.kubectl();
            cluster.helm(&install("install", "trial")).await?;
            let broker = kubectl.get("broker main -n weir-system").await?;
            ensure!(broker["spec"]["auth"]["allowAnonymous"] == true, "{broker}");
            let generation = broker["metadata"]["generation"].clone();

            cluster.helm(&install("upgrade", "trial")).await?;
            let again = kubectl.get("broker main -n weir-system").await?;
            ensure!(
                again["metadata"]["generation"] == generation,
                "an upgrade without changes changed {again}"
            );

            // Its roles let the operator do all that a Broker and a queue take.
            let ready = "wait --for=condition=Ready broker.weir.dev/main -n weir-system --timeout=50s";
            kubectl.run(ready).await?;
            // As the README does.
            kubectl
                .run(&format!("apply -f {}", repository().join("docs/examples/city.yaml").display()))
                .await?;
            kubectl.run("wait --for=condition=Ready mq/traffic mqstream/telemetry --timeout=50s").await?;
            refused_by_roles(cluster).await?;

            cluster.helm("uninstall weir -n weir-system --timeout 50s").await?;
            let left = kubectl.get("deployments,jobs -n weir-system").await?;
            let left = left["items"].as_array().context("a list")?;
            let of_release =
                |item: &&Value| item["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm";
            ensure!(!left.iter().any(|item| of_release(&item)), "{left:?}");
            kubectl.get("broker main -n weir-system").await?;
            Ok(())
        },
    )
}

#[test]
fn the_operator_of_a_release_leads_and_another_takes_over() -> Result<()> {
    on_bare_kubernetes(
        "chart::the_operator_of_a_release_leads_and_another_takes_over",
        async |cluster: &mut Cluster| {
            let kubectl = cluster.kubectl();
            cluster.helm(&install("install", "default")).await?;
            kubectl.run("rollout status deployment/weir-operator -n weir-system --timeout=50s").await?;
            cluster.helm("test weir -n weir-system --timeout 50s").await?;
            missing_its_broker(cluster, "default", "first").await?;

            let leader = leader(cluster).await?;
            let pod = leader.clone();
            kubectl.run(&format!("delete pod {pod} -n weir-system --grace-period=0 --force")).await?;
            missing_its_broker(cluster, "default", "second").await?;
            let now = self::leader(cluster).await?;
            ensure!(now != leader, "{now} leads, and was deleted");
            Ok(())
        },
    )
}

/// A queue of a cluster without Brokers is told so, which takes an operator that may watch and write.
async fn missing_its_broker(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    let queue = format!(
        "{{apiVersion: weir.dev/v1alpha1, kind: MessageQueue, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{}}}}"
    );
    cluster.kubectl().apply(&queue).await?;
    until("the operator to say that there is no Broker", || async {
        let object = cluster.kubectl().get(&format!("mq {name} -n {namespace}")).await?;
        let conditions = object["status"]["conditions"].as_array();
        Ok(conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["reason"] == "BrokerMissing")
            .then_some(()))
    })
    .await
}

/// The pod that holds the lease.
async fn leader(cluster: &Cluster) -> Result<String> {
    let lease = cluster.kubectl().get("lease weir-operator -n weir-system").await?;
    let holder = lease["spec"]["holderIdentity"].as_str().context("a holder")?.to_owned();
    let pods = cluster.kubectl().get("pods -n weir-system").await?;
    let mut names =
        pods["items"].as_array().into_iter().flatten().filter_map(|pod| pod["metadata"]["name"].as_str());
    let pod = names.find(|name| holder.starts_with(name));
    Ok(pod.map_or(holder.clone(), str::to_owned))
}

#[test]
fn an_operator_of_some_namespaces_may_nothing_in_others() -> Result<()> {
    on_kubernetes(
        "chart::an_operator_of_some_namespaces_may_nothing_in_others",
        async |cluster: &mut Cluster| {
            let kubectl = cluster.kubectl();
            for namespace in ["city", "harbour"] {
                kubectl.run(&format!("create namespace {namespace}")).await?;
            }
            cluster.helm(&install("install", "namespaced")).await?;
            missing_its_broker(cluster, "city", "first").await?;
            for (what, wanted) in [
                ("get secrets -n city", true),
                ("get namespace city", true),
                ("get secrets -n default", false),
                ("get namespace default", false),
                ("get brokers.weir.dev -n default", false),
            ] {
                let answer = kubectl.call(&format!("{what} {ACCOUNT}"), "").await?;
                ensure!(answer.is_ok() == wanted, "may the operator {what}? {answer:?}");
            }
            Ok(())
        },
    )
}

const ACCOUNT: &str = "--as=system:serviceaccount:weir-system:weir-operator";

/// The operator may do what it needs and no more.
async fn refused_by_roles(cluster: &Cluster) -> Result<()> {
    for (verb, what, wanted) in [
        ("patch", "messagequeues.weir.dev/status", "yes"),
        ("create", "deployments.apps", "yes"),
        ("watch", "secrets", "yes"),
        ("patch", "brokers.weir.dev", "no"),
        ("delete", "messagequeues.weir.dev", "no"),
        ("delete", "deployments.apps", "no"),
        ("delete", "services", "no"),
        ("delete", "configmaps", "no"),
        ("delete", "secrets", "no"),
        ("patch", "secrets", "no"),
        ("delete", "serviceaccounts", "no"),
        ("delete", "persistentvolumeclaims", "no"),
        ("list", "persistentvolumeclaims", "no"),
        ("delete", "poddisruptionbudgets.policy", "no"),
        ("delete", "networkpolicies.networking.k8s.io", "no"),
        ("delete", "pods", "no"),
        ("update", "messagequeues.weir.dev/finalizers", "no"),
        ("patch", "leases.coordination.k8s.io/weir-operator", "no"),
        ("list", "namespaces", "no"),
        ("delete", "namespaces", "no"),
        ("create", "clusterroles.rbac.authorization.k8s.io", "no"),
        ("create", "pods/exec", "no"),
    ] {
        let (kind, part) = what.split_once('/').unwrap_or((what, ""));
        let part = if part.is_empty() { String::new() } else { format!("--subresource={part}") };
        let arguments = format!("auth can-i {verb} {kind} {part} -n weir-system {ACCOUNT}");
        // `no` is told by the exit code too.
        let answer = match cluster.kubectl().call(&arguments, "").await? {
            Ok(yes) => yes,
            Err(_) => "no".to_owned(),
        };
        ensure!(answer.trim() == wanted, "may the operator {verb} {what}? {answer}");
    }
    Ok(())
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `helm install` or `helm upgrade` with one of the chart's value sets.
fn install(verb: &str, values: &str) -> String {
    let chart = repository().join("charts/weir");
    format!(
        "{verb} weir {chart} -n weir-system --values {chart}/ci/{values}-values.yaml --set image.tag=e2e --timeout 50s{}",
        if verb == "install" { " --create-namespace" } else { "" },
        chart = chart.display(),
    )
}
