//! The player of the nodes: what kubelet, kube-proxy and a provisioner of volumes do, for pods of Weir.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1 as core;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::process::Command;

use super::Programs;
use crate::now_rfc3339;

/// The nodes, each in a zone of its own. They are one machine.
const NODES: [(&str, &str); 3] = [("node-1", "zone-a"), ("node-2", "zone-b"), ("node-3", "zone-c")];
/// The network of pods: a bridge, which has the nodes' address.
const NETWORK: &str =
    "ip link add pods type bridge && ip addr add 10.244.0.1/16 dev pods && ip link set pods up";

/// The running player.
#[derive(Debug)]
pub struct Node {}

impl Node {
    pub(super) async fn start(client: Client, _programs: Programs, _logs: PathBuf) -> Result<Self> {
        for (name, zone) in NODES {
            register(&client, name, zone).await.with_context(|| format!("register {name}"))?;
        }
        Ok(Self {})
    }
}

/// Makes the network of pods inside the sandbox.
pub(super) async fn make_network() -> Result<()> {
    shell(NETWORK).await
}

/// Runs `script`, which must succeed.
async fn shell(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", script]).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Makes the Node object, ready to take pods.
async fn register(client: &Client, name: &str, zone: &str) -> Result<()> {
    let nodes: Api<core::Node> = Api::all(client.clone());
    let node = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": zone,
        }},
    }))?;
    nodes.create(&PostParams::default(), &node).await?;
    let room = json!({ "cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "1000" });
    let now = now_rfc3339();
    let status = json!({ "status": {
        "capacity": room,
        "allocatable": room,
        "addresses": [{ "type": "InternalIP", "address": super::NODE }, { "type": "Hostname", "address": name }],
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Played", "message": "pods are run as processes",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }],
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    Ok(())
}
