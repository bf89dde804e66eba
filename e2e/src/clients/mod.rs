//! Foreign MQTT clients behind one small face: subscribe, receive, publish, see the acknowledgement.
//!
//! Each driver only translates; it must never repair what a client does or hide what it reports. A
//! [`Subscriber`] owns its client and ends it when dropped.

mod mosquitto;
pub(crate) mod rumqttc;
mod script;

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::endpoint::Endpoint;
use crate::process::Process;
use crate::within;

/// A client program or library that others wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `mosquitto_pub` and `mosquitto_sub`.
    Mosquitto,
    /// `paho-mqtt`, Python.
    Paho,
    /// `mqtt`, npm.
    NpmMqtt,
    /// `rumqttc`, Rust, in this process.
    Rumqttc,
}

/// The version of MQTT to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1. Not in [`Client::all`], because not every client speaks it.
    V31,
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.0.
    V5,
}

/// A client and the version it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Which client.
    pub kind: Kind,
    /// What it speaks.
    pub version: Version,
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Connect {
    /// The broker.
    pub broker: Endpoint,
    /// The client id.
    pub client_id: String,
    /// Keep the session for an hour after the connection ends.
    pub persistent: bool,
    /// What the broker publishes if the connection breaks.
    pub will: Option<Will>,
}

/// A will.
#[derive(Clone, Debug)]
pub struct Will {
    /// Where it is published.
    pub topic: String,
    /// What is published.
    pub payload: String,
    /// With which QoS.
    pub qos: u8,
}

impl Connect {
    /// A clean session of `client_id` at `broker`.
    pub fn clean(broker: impl Into<Endpoint>, client_id: impl Into<String>) -> Self {
        Self { broker: broker.into(), client_id: client_id.into(), persistent: false, will: None }
    }

    /// A session of `client_id` at `broker` that outlives its connections.
    pub fn persistent(broker: impl Into<Endpoint>, client_id: impl Into<String>) -> Self {
        Self { persistent: true, ..Self::clean(broker, client_id) }
    }

    /// The same with a will.
    #[must_use]
    pub fn with_will(self, topic: &str, payload: &str, qos: u8) -> Self {
        Self { will: Some(Will { topic: topic.to_owned(), payload: payload.to_owned(), qos }), ..self }
    }
}

/// One SUBSCRIBE.
#[derive(Clone, Debug, Default)]
pub struct Subscribe {
    /// The topic filters.
    pub filters: Vec<String>,
    /// The QoS asked for, the same for each.
    pub qos: u8,
    /// User properties of the packet; MQTT 5 only.
    pub properties: Vec<(String, String)>,
}

impl Subscribe {
    /// Subscribes to one filter.
    pub fn to(filter: impl Into<String>, qos: u8) -> Self {
        Self { filters: vec![filter.into()], qos, properties: Vec::new() }
    }

    /// The same with a user property; MQTT 5 only.
    #[must_use]
    pub fn property(mut self, name: &str, value: impl Into<String>) -> Self {
        self.properties.push((name.to_owned(), value.into()));
        self
    }
}

/// Messages to publish to one topic.
#[derive(Clone, Debug, Default)]
pub struct Publish {
    /// The topic.
    pub topic: String,
    /// One PUBLISH each; no line breaks. A single empty payload is allowed, an empty one among others is not.
    pub payloads: Vec<String>,
    /// The QoS of each.
    pub qos: u8,
    /// The RETAIN flag of each.
    pub retain: bool,
    /// User properties of each; MQTT 5 only.
    pub properties: Vec<(String, String)>,
}

impl Publish {
    /// Publishes `payloads` to `topic`.
    pub fn to<P: Into<String>>(topic: &str, qos: u8, payloads: impl IntoIterator<Item = P>) -> Self {
        let payloads = payloads.into_iter().map(Into::into).collect();
        Self { topic: topic.to_owned(), payloads, qos, ..Self::default() }
    }

    /// The same with the RETAIN flag.
    #[must_use]
    pub fn retained(self) -> Self {
        Self { retain: true, ..self }
    }
}

/// A message as a client reported it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// The topic it was published to.
    pub topic: String,
    /// The payload.
    pub payload: String,
    /// The QoS of the delivery.
    pub qos: u8,
    /// The RETAIN flag of the delivery.
    pub retain: bool,
    /// The user properties; of two with one name some clients report only the last.
    #[serde(default)]
    pub properties: Vec<(String, String)>,
}

impl Message {
    /// The last user property called `name`.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The last user property called `name`, a number.
    pub fn number(&self, name: &str) -> Result<u64> {
        let value = self.property(name).with_context(|| format!("user property `{name}` of {self:?}"))?;
        value.parse().with_context(|| format!("user property `{name}`: `{value}`"))
    }
}

/// What a client reports.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event {
    /// SUBACK, a code for each filter.
    Granted { codes: Vec<u8> },
    /// A PUBLISH came in.
    Message(Message),
    /// The `index`th message is acknowledged; clients report no reason in MQTT 3.1.1 and at QoS 0.
    Acked { index: usize, reason: Option<u8> },
}

impl Client {
    /// All clients in all versions.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let kinds = [Kind::Mosquitto, Kind::Paho, Kind::NpmMqtt, Kind::Rumqttc];
        let both = |kind| [Version::V311, Version::V5].map(|version| Self { kind, version });
        kinds.into_iter().flat_map(both).collect()
    }

    /// Connects and subscribes; returns when the broker has answered the SUBSCRIBE.
    pub async fn subscribe(&self, connect: Connect, subscribe: Subscribe) -> Result<Subscriber> {
        let what = format!("{self}, client `{}`, to subscribe to {:?}", connect.client_id, subscribe.filters);
        let source = match self.kind {
            Kind::Mosquitto => mosquitto::subscribe(self.version, &connect, &subscribe).await?,
            Kind::Paho | Kind::NpmMqtt => script::subscribe(*self, &connect, &subscribe).await?,
            Kind::Rumqttc => Source::Task(rumqttc::subscribe(self.version, &connect, subscribe)?),
        };
        let mut subscriber = Subscriber {
            name: format!("{self}, client `{}`", connect.client_id),
            source,
            granted: Vec::new(),
            early: Vec::new(),
        };
        // A resumed session's backlog may come before the SUBACK.
        subscriber.granted = loop {
            match subscriber.event(&what).await? {
                Event::Granted { codes } => break codes,
                Event::Message(message) => subscriber.early.push(message),
                Event::Acked { .. } => {}
            }
        };
        subscriber.early.reverse();
        Ok(subscriber)
    }

    /// Connects, publishes, waits for every acknowledgement and disconnects. The reasons, one a message, are
    /// 0 where the client or the version reports none.
    pub async fn publish(&self, connect: Connect, publish: Publish) -> Result<Vec<u8>> {
        let mut reasons = vec![None; publish.payloads.len()];
        let mut publication = self.start_publishing(connect, publish).await?;
        while let Some((index, reason)) = publication.acknowledged().await? {
            *reasons.get_mut(index).context("an acknowledgement of what was published")? = Some(reason);
        }
        publication.ended().await?;
        let reasons: Option<_> = reasons.into_iter().collect();
        reasons.with_context(|| format!("an acknowledgement of each message: {}", publication.source))
    }

    /// Connects and begins to publish.
    pub async fn start_publishing(&self, connect: Connect, publish: Publish) -> Result<Publication> {
        let name = format!("{self}, client `{}`, to publish to `{}`", connect.client_id, publish.topic);
        // mosquitto_pub reports nothing at QoS 0; its exit code says that all was sent.
        let silent = publish.qos == 0 && self.kind == Kind::Mosquitto;
        let unreported = if silent { 0..publish.payloads.len() } else { 0..0 };
        let source = match self.kind {
            Kind::Mosquitto => mosquitto::publish(self.version, &connect, &publish).await?,
            Kind::Paho | Kind::NpmMqtt => script::publish(*self, &connect, &publish).await?,
            Kind::Rumqttc => Source::Task(rumqttc::publish(self.version, &connect, publish)?),
        };
        Ok(Publication { name, source, unreported })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Mosquitto => "mosquitto's client",
            Kind::Paho => "paho-mqtt",
            Kind::NpmMqtt => "npm mqtt",
            Kind::Rumqttc => "rumqttc",
        };
        let version = match self.version {
            Version::V31 => "3.1",
            Version::V311 => "3.1.1",
            Version::V5 => "5",
        };
        write!(f, "{kind} ({version})")
    }
}

/// A client that publishes.
#[derive(Debug)]
pub struct Publication {
    name: String,
    source: Source,
    /// Messages whose acknowledgement the client does not report.
    unreported: std::ops::Range<usize>,
}

impl Publication {
    /// The index and reason of the next message that is acknowledged; `None` after the last. An error means
    /// that the connection or the client failed.
    pub async fn acknowledged(&mut self) -> Result<Option<(usize, u8)>> {
        let name = &self.name;
        loop {
            let next = within(name, self.source.next()).await;
            match next.with_context(|| self.source.to_string())? {
                Some(Event::Acked { index, reason }) => return Ok(Some((index, reason.unwrap_or(0)))),
                Some(Event::Granted { .. } | Event::Message(_)) => {}
                None => return Ok(self.unreported.next().map(|index| (index, 0))),
            }
        }
    }

    /// Ends the client as a crash would; returns the acknowledgements that it had reported and nobody had
    /// seen.
    pub async fn kill(mut self) -> Result<Vec<(usize, u8)>> {
        within(&format!("{} to be killed", self.name), self.source.kill()).await?;
        let mut rest = Vec::new();
        // An error is what the client ended with before it was killed.
        while let Ok(Some(event)) = self.source.next().await {
            if let Event::Acked { index, reason } = event {
                rest.push((index, reason.unwrap_or(0)));
            }
        }
        Ok(rest)
    }

    /// Waits for the client to end, and demands that it ends well.
    pub async fn ended(&mut self) -> Result<()> {
        self.source.ended().await
    }
}

/// A connected client that has subscribed.
#[derive(Debug)]
pub struct Subscriber {
    name: String,
    source: Source,
    granted: Vec<u8>,
    /// Messages that came before the SUBACK, last first.
    early: Vec<Message>,
}

impl Subscriber {
    /// The SUBACK's code for each filter.
    #[must_use]
    pub fn granted(&self) -> &[u8] {
        &self.granted
    }

    /// The next message.
    pub async fn next(&mut self) -> Result<Message> {
        if let Some(message) = self.early.pop() {
            return Ok(message);
        }
        let what = format!("{} to receive a message", self.name);
        loop {
            if let Event::Message(message) = self.event(&what).await? {
                return Ok(message);
            }
        }
    }

    /// The next `count` messages.
    pub async fn collect(&mut self, count: usize) -> Result<Vec<Message>> {
        let mut messages = Vec::with_capacity(count);
        while messages.len() < count {
            let next = self.next().await;
            messages.push(next.with_context(|| format!("{count} messages, {} so far", messages.len()))?);
        }
        Ok(messages)
    }

    /// Every message up to and without the one whose payload is `end`.
    pub async fn until(&mut self, end: &str) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            let next = self.next().await;
            let next = next.with_context(|| format!("`{end}` after {} messages", messages.len()))?;
            if next.payload == end {
                return Ok(messages);
            }
            messages.push(next);
        }
    }

    /// Ends the connection with a DISCONNECT.
    pub async fn disconnect(mut self) -> Result<()> {
        within(&format!("{} to disconnect", self.name), self.source.disconnect()).await
    }

    /// Ends the client and so the connection, without a DISCONNECT.
    pub async fn kill(mut self) -> Result<()> {
        within(&format!("{} to be killed", self.name), self.source.kill()).await
    }

    async fn event(&mut self, what: &str) -> Result<Event> {
        let next = within(what, self.source.next()).await;
        next.with_context(|| self.source.to_string())?
            .with_context(|| format!("the client ended while waiting for: {what}\n{}", self.source))
    }
}

/// Where events come from.
#[derive(Debug)]
enum Source {
    /// A program; the function reads an event from a line of its output.
    Program(Box<Process>, fn(&str) -> Result<Option<Event>>),
    /// A task in this process.
    Task(rumqttc::Task),
}

impl Source {
    /// The next event; `None` when the client has ended.
    async fn next(&mut self) -> Result<Option<Event>> {
        match self {
            Self::Task(task) => task.next().await,
            Self::Program(process, parse) => {
                while let Some(line) = process.next_line().await {
                    if let Some(event) = parse(&line)? {
                        return Ok(Some(event));
                    }
                }
                Ok(None)
            }
        }
    }

    async fn ended(&mut self) -> Result<()> {
        match self {
            Self::Program(process, _) => process.wait_success().await,
            Self::Task(_) => Ok(()),
        }
    }

    async fn disconnect(&mut self) -> Result<()> {
        match self {
            Self::Program(process, _) => {
                process.signal(rustix::process::Signal::TERM)?;
                process.wait_success().await
            }
            Self::Task(task) => task.disconnect().await,
        }
    }

    async fn kill(&mut self) -> Result<()> {
        match self {
            Self::Program(process, _) => process.kill9().await,
            Self::Task(task) => {
                task.kill().await;
                Ok(())
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(process, _) => process.fmt(f),
            Self::Task(_) => f.write_str("rumqttc"),
        }
    }
}

/// Fails unless `version` is MQTT 5 or there are no `properties`.
fn check_properties(version: Version, properties: &[(String, String)]) -> Result<()> {
    ensure!(version == Version::V5 || properties.is_empty(), "only MQTT 5 has user properties");
    if properties.iter().any(|(name, _)| name.is_empty()) {
        bail!("a user property without a name");
    }
    Ok(())
}
