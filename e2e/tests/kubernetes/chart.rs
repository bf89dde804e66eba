//! The chart on a real cluster: what a release brings, and what outlives it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_e2e::kubernetes::Cluster;

use crate::on_bare_kubernetes;

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

/// The operator may do what it needs and no more.
async fn refused_by_roles(cluster: &Cluster) -> Result<()> {
    let account = "--as=system:serviceaccount:weir-system:weir-operator";
    for (verb, what, wanted) in [
        ("patch", "messagequeues.weir.dev/status", "yes"),
        ("create", "deployments.apps", "yes"),
        ("delete", "messagequeues.weir.dev", "no"),
        ("delete", "namespaces", "no"),
        ("create", "clusterroles.rbac.authorization.k8s.io", "no"),
        ("create", "pods/exec", "no"),
    ] {
        let (kind, part) = what.split_once('/').unwrap_or((what, ""));
        let part = if part.is_empty() { String::new() } else { format!("--subresource={part}") };
        let arguments = format!("auth can-i {verb} {kind} {part} -n weir-system {account}");
        // `no` is told by the exit code too.
        let answer = match cluster.kubectl().call(&arguments, "").await? {
            Ok(yes) => yes,
            Err(_) => "no".to_owned(),
        };
        ensure!(answer.trim() == wanted, "may the operator {verb} {what}? {answer}");
    }
    Ok(())
}

/// `helm install` or `helm upgrade` with one of the chart's value sets.
fn install(verb: &str, values: &str) -> String {
    let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/weir");
    format!(
        "{verb} weir {chart} -n weir-system --values {chart}/ci/{values}-values.yaml --set image.tag=e2e --timeout 50s{}",
        if verb == "install" { " --create-namespace" } else { "" },
        chart = chart.display(),
    )
}
