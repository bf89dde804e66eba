//! `weir pod list`: all pods at a glance.

use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::{all, state};
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, Table, bytes, harmless, rate};

pub(super) async fn run(admin: &AdminArgs) -> anyhow::Result<()> {
    let pods = all(admin).await?;
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&pods.iter().map(pod_json).collect())?,
        Format::Text => output.text(&list(&pods))?,
    }
    Ok(())
}

fn list(pods: &[wire::Pod]) -> String {
    let mut table = Table::new(&[
        "ID",
        "ADMIN",
        "ZONE",
        "VERSION",
        "STATE",
        "CONNECTIONS#",
        "SHARDS#",
        "PUBLISHED/S#",
        "DELIVERED/S#",
        "IN/S#",
        "OUT/S#",
        "CPU#",
    ]);
    for pod in pods {
        let load = pod.load.unwrap_or_default();
        table.row(vec![
            harmless(&pod.id),
            harmless(&pod.admin_address),
            harmless(&pod.zone),
            harmless(&pod.version),
            state(pod),
            load.connections.to_string(),
            load.shards.to_string(),
            rate(load.publish_rate),
            rate(load.deliver_rate),
            bytes(whole(load.bytes_in_rate)),
            bytes(whole(load.bytes_out_rate)),
            format!("{}m", whole(load.cpu_millis)),
        ]);
    }
    table.to_string()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, which is right")]
pub(super) fn whole(n: f64) -> u64 {
    n as u64
}

pub(super) fn pod_json(pod: &wire::Pod) -> Value {
    let load = pod.load.unwrap_or_default();
    let state = match pod.state() {
        wire::PodState::Unspecified => "unknown",
        wire::PodState::Serving => "serving",
        wire::PodState::Draining => "draining",
        wire::PodState::Drained => "drained",
    };
    json!({
        "id": pod.id,
        "peerAddress": pod.peer_address,
        "adminAddress": pod.admin_address,
        "serverReference": pod.server_reference,
        "zone": pod.zone,
        "version": pod.version,
        "startedMicros": pod.started_micros,
        "state": state,
        "isSelf": pod.is_self,
        "loadAgeMillis": pod.load_age_millis,
        "load": {
            "connections": load.connections,
            "subscriptions": load.subscriptions,
            "shards": load.shards,
            "connectRate": load.connect_rate,
            "publishRate": load.publish_rate,
            "deliverRate": load.deliver_rate,
            "appendRate": load.append_rate,
            "bytesInRate": load.bytes_in_rate,
            "bytesOutRate": load.bytes_out_rate,
            "shed": load.shed,
            "cpuMillis": load.cpu_millis,
        },
    })
}
