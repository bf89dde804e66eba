//! The provisioner of the default storage class: each claim gets a folder, kept for as long as the cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;

/// The name of the class.
const CLASS: &str = "standard";

/// Makes the class.
pub(super) async fn make_class(client: &Client) -> Result<()> {
    let class: StorageClass = serde_json::from_value(json!({
        "metadata": { "name": CLASS, "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } },
        "provisioner": "weir.dev/e2e",
        "reclaimPolicy": "Retain",
        "volumeBindingMode": "Immediate",
    }))?;
    Api::all(client.clone())
        .create(&PostParams::default(), &class)
        .await
        .map(drop)
        .context("the storage class")
}

/// Runs until it is dropped.
pub(super) async fn run(client: Client, folder: PathBuf) {
    let claims = watcher(Api::<PersistentVolumeClaim>::all(client.clone()), watcher::Config::default());
    let mut claims = Box::pin(claims.default_backoff().applied_objects());
    while let Some(claim) = claims.next().await {
        let Ok(claim) = claim else {
            continue;
        };
        if let Err(error) = provide(&client, &claim, &folder).await {
            eprintln!("a volume for the claim {:?}: {error:#}", claim.metadata.name);
        }
    }
}

async fn provide(client: &Client, claim: &PersistentVolumeClaim, folder: &Path) -> Result<()> {
    let Some(spec) = claim.spec.as_ref().filter(|spec| spec.volume_name.is_none()) else {
        return Ok(());
    };
    if spec.storage_class_name.as_deref() != Some(CLASS) {
        return Ok(());
    }
    let uid = claim.metadata.uid.as_deref().context("a uid")?;
    let path = folder.join(uid);
    std::fs::create_dir_all(&path)?;
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": { "name": format!("pvc-{uid}") },
        "spec": {
            "capacity": spec.resources.as_ref().and_then(|resources| resources.requests.clone()),
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": CLASS,
            "hostPath": { "path": path },
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": uid,
                "name": claim.metadata.name, "namespace": claim.metadata.namespace,
            },
        },
    }))?;
    match Api::<PersistentVolume>::all(client.clone()).create(&PostParams::default(), &volume).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
