//! Clients in other languages: a script that takes its task as JSON and reports events as JSON lines.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Client, Connect, Kind, Publish, Source, Subscribe, Version, check_properties};
use crate::endpoint::Endpoint;
use crate::process::Process;
use crate::tools;

const PAHO: &str = include_str!("paho.py");
const NPM_MQTT: &str = include_str!("npm_mqtt.cjs");

pub(super) async fn subscribe(client: Client, connect: &Connect, subscribe: &Subscribe) -> Result<Source> {
    check_properties(client.version, &subscribe.properties)?;
    let mut task = connection(client.version, connect);
    task["subscribe"] = json!({
        "filters": subscribe.filters, "qos": subscribe.qos, "properties": subscribe.properties,
    });
    start(client.kind, &task).await
}

pub(super) async fn publish(client: Client, connect: &Connect, publish: &Publish) -> Result<Source> {
    check_properties(client.version, &publish.properties)?;
    let mut task = connection(client.version, connect);
    task["publish"] = json!({
        "topic": publish.topic, "payloads": publish.payloads, "qos": publish.qos,
        "retain": publish.retain, "properties": publish.properties,
    });
    start(client.kind, &task).await
}

fn connection(version: Version, connect: &Connect) -> Value {
    let will = connect.will.as_ref();
    let broker = &connect.broker;
    let certificates = broker.certificates.as_deref().filter(|_| broker.transport.is_tls());
    let own = certificates.filter(|_| broker.client_certificate).map(|certificates| &certificates.client);
    json!({
        "host": broker.address.ip(),
        "port": broker.address.port(),
        "scheme": broker.transport.scheme(),
        "path": Endpoint::PATH,
        "authority": certificates.map(|certificates| &certificates.authority),
        "certificate": own.map(|own| &own.certificate),
        "key": own.map(|own| &own.key),
        "login": broker.login,
        "v5": version == Version::V5,
        "level": match version {
            Version::V31 => 3,
            Version::V311 => 4,
            Version::V5 => 5,
        },
        "clientId": connect.client_id,
        "persistent": connect.persistent,
        "will": will.map(|will| json!({ "topic": will.topic, "payload": will.payload, "qos": will.qos })),
    })
}

async fn start(kind: Kind, task: &Value) -> Result<Source> {
    let (name, mut command) = if kind == Kind::Paho {
        let mut command = tools::python().await?.command();
        command.args(["-c", PAHO]);
        ("paho-mqtt", command)
    } else {
        let mut command = tools::node().await?.command();
        command.args(["-e", NPM_MQTT]);
        ("npm mqtt", command)
    };
    command.arg(task.to_string());
    let process = Process::spawn(name, command)?;
    Ok(Source::Program(Box::new(process), |line| {
        if !line.starts_with("{\"event\"") {
            return Ok(None);
        }
        serde_json::from_str(line).map(Some).with_context(|| line.to_owned())
    }))
}
