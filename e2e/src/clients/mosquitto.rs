//! `mosquitto_pub` and `mosquitto_sub`: one process a subscription or publication, read by its debug output.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Connect, Event, Message, Publish, Source, Subscribe, Version, check_properties};
use crate::process::Process;
use crate::tools;

pub(super) async fn subscribe(version: Version, connect: &Connect, subscribe: &Subscribe) -> Result<Source> {
    check_properties(version, &subscribe.properties)?;
    let mut command = programs(connect).await?.subscribe.clone().line_buffered().command();
    connection(&mut command, version, connect);
    // Debug output says when the subscription stands; messages come as JSON, one a line.
    command.args(["-d", "-F", "%j", "-q", &subscribe.qos.to_string()]);
    for filter in &subscribe.filters {
        command.args(["-t", filter]);
    }
    for (name, value) in &subscribe.properties {
        command.args(["-D", "subscribe", "user-property", name, value]);
    }
    if connect.persistent {
        command.arg("-c");
        if version == Version::V5 {
            command.args(["-x", "3600"]);
        }
    }
    Ok(Source::Program(Box::new(Process::spawn("mosquitto_sub", command)?), read_subscriber))
}

pub(super) async fn publish(version: Version, connect: &Connect, publish: &Publish) -> Result<Source> {
    check_properties(version, &publish.properties)?;
    let mut command = programs(connect).await?.publish.clone().line_buffered().command();
    connection(&mut command, version, connect);
    command.args(["-d", "-t", &publish.topic, "-q", &publish.qos.to_string()]);
    if publish.retain {
        command.arg("-r");
    }
    for (name, value) in &publish.properties {
        command.args(["-D", "publish", "user-property", name, value]);
    }
    let empty = publish.payloads.iter().any(String::is_empty);
    ensure!(!empty || publish.payloads.len() == 1, "mosquitto_pub sends an empty payload only alone");
    command.arg(if empty { "-n" } else { "-l" });
    let mut process = Process::spawn("mosquitto_pub", command)?;
    let mut stdin = process.take_stdin().context("its input")?;
    if !empty {
        let lines: String = publish.payloads.iter().map(|payload| format!("{payload}\n")).collect();
        stdin.write_all(lines.as_bytes()).await?;
    }
    Ok(Source::Program(Box::new(process), read_publisher))
}

/// Only newer clients speak WebSocket.
async fn programs(connect: &Connect) -> Result<&'static tools::Mosquitto> {
    if connect.broker.transport.is_websocket() {
        tools::mosquitto_current().await
    } else {
        tools::mosquitto().await
    }
}

fn connection(command: &mut Command, version: Version, connect: &Connect) {
    let version = match version {
        Version::V31 => "mqttv31",
        Version::V311 => "mqttv311",
        Version::V5 => "mqttv5",
    };
    let broker = &connect.broker;
    let (host, port) = (broker.address.ip().to_string(), broker.address.port().to_string());
    command.args(["-h", &host, "-p", &port, "-V", version, "-i", &connect.client_id]);
    if broker.transport.is_websocket() {
        command.arg("--ws");
    }
    if let Some(certificates) = broker.certificates.as_deref().filter(|_| broker.transport.is_tls()) {
        command.arg("--cafile").arg(&certificates.authority);
        if broker.client_certificate {
            command.arg("--cert").arg(&certificates.client.certificate);
            command.arg("--key").arg(&certificates.client.key);
        }
    }
    if let Some((user, password)) = &broker.login {
        command.args(["-u", user, "-P", password]);
    }
    if let Some(will) = &connect.will {
        command.args(["--will-topic", &will.topic, "--will-payload", &will.payload]);
        command.args(["--will-qos", &will.qos.to_string()]);
    }
}

fn read_subscriber(line: &str) -> Result<Option<Event>> {
    if let Some(codes) = line.strip_prefix("Subscribed (mid: ") {
        let (_, codes) = codes.split_once("): ").context("granted codes")?;
        let codes = codes.split(", ").map(str::parse).collect::<Result<_, _>>();
        return Ok(Some(Event::Granted { codes: codes.with_context(|| line.to_owned())? }));
    }
    if line.starts_with('{') {
        return read_message(line).with_context(|| line.to_owned()).map(Some);
    }
    Ok(None)
}

fn read_message(line: &str) -> Result<Event> {
    let json: Value = serde_json::from_str(line)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a string");
    let small = |value: &Value| value.as_u64().and_then(|n| u8::try_from(n).ok()).context("a small number");
    let mut properties = Vec::new();
    if let Some(Value::Object(pairs)) = json.pointer("/properties/user-properties") {
        for (name, value) in pairs {
            properties.push((name.clone(), text(value)?));
        }
    }
    Ok(Event::Message(Message {
        topic: text(&json["topic"])?,
        payload: text(&json["payload"])?,
        qos: small(&json["qos"])?,
        // A number before mosquitto 2.1.
        retain: json["retain"].as_bool().map_or_else(|| small(&json["retain"]).map(|n| n != 0), Ok)?,
        properties,
    }))
}

/// Reads `... received PUBACK (Mid: 1, RC:0)` and the like; packet ids count up from 1.
fn read_publisher(line: &str) -> Result<Option<Event>> {
    let Some((_, ack)) =
        line.split_once(" received PUBACK (Mid: ").or(line.split_once(" received PUBCOMP (Mid: "))
    else {
        return Ok(None);
    };
    let (id, reason) = ack.trim_end_matches(')').split_once(", RC:").context("a reason")?;
    let index = id.parse::<usize>()?.checked_sub(1).context("packet id 0")?;
    Ok(Some(Event::Acked { index, reason: Some(reason.parse()?) }))
}
