//! Clients that others wrote, in a cluster under faults: publishers, a consumer of the queue, a session that lasts and a
//! reader of the stream, by each library and in both versions of MQTT.
//!
//! Each client says line by line what it handed to its library and what the library told it. All of that goes into the
//! same [`Ledger`](super::ledger::Ledger) as what our own clients see; nothing is repaired here. Reconnecting and sending
//! again is the library's doing, by way of a door ([`front`]) that leads to another pod each time.

mod front;
mod rumqttc;

use std::collections::BTreeMap;
use std::fmt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::clients::Field;
use super::ledger::{Place, Published};
use crate::{tools, within};

const PAHO: &str = include_str!("paho.py");
const NPM_MQTT: &str = include_str!("npm_mqtt.cjs");
/// Topics of each publisher; a session has one of them, of all publishers.
pub(super) const TOPICS: u64 = 8;
/// Publishers of one client: at QoS 1 and at QoS 2.
pub(super) const PUBLISHERS: usize = 2;

/// A client library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// rumqttc.
    Rumqttc,
    /// Eclipse paho for Python.
    Paho,
    /// MQTT.js.
    NpmMqtt,
}

impl Library {
    /// Finds the program that runs it, or installs that.
    ///
    /// # Errors
    /// If that cannot be done.
    pub async fn prepare(self) -> Result<()> {
        match self {
            Self::Rumqttc => Ok(()),
            Self::Paho => tools::python().await.map(drop),
            Self::NpmMqtt => tools::node().await.map(drop),
        }
    }
}

/// A library in one version of MQTT.
#[derive(Clone, Copy, Debug)]
struct Kind {
    library: Library,
    is_v5: bool,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let library = match self.library {
            Library::Rumqttc => "rumqttc",
            Library::Paho => "paho",
            Library::NpmMqtt => "mqtt.js",
        };
        write!(f, "{library}-{}", if self.is_v5 { "5" } else { "3.1.1" })
    }
}

/// What a client tells. Payloads name their messages.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
enum Event {
    /// It handed a message to its library for the first time.
    Sent { payload: String },
    /// It was told that the message is safe.
    Acked { payload: String },
    /// It was told that the message was refused, and publishes it again.
    Refused { payload: String, reason: u8 },
    /// Its library gave the message up, and it publishes it again.
    GivenUp { payload: String },
    /// Its consumer of the queue has a message; where it is stored, MQTT 5 says. `kept` is not acknowledged.
    Queue { payload: String, place: Option<Place>, kept: bool },
    /// Its session, which has subscribed at this QoS, has a message.
    Session { payload: String, qos: u8 },
    /// Its reader of the stream has a message.
    Stream { payload: String, place: Option<Place> },
    /// This one of its clients has subscribed.
    Subscribed { role: Role },
    /// What contradicts the promises, or its work.
    Problem { text: String },
    /// One of its publishers was told to end, and all that it published is acknowledged.
    Idle,
}

/// Which of its clients.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
enum Role {
    Queue,
    Session,
    Stream,
}

/// A library at work: its clients in one version.
#[derive(Debug)]
struct Told {
    field: Arc<Field>,
    name: String,
    /// When what is not acknowledged was sent.
    open: Mutex<BTreeMap<String, Instant>>,
    subscribed: watch::Sender<Vec<Role>>,
    idle: watch::Sender<usize>,
}

impl Told {
    /// Writes down what `event` tells.
    fn tell(&self, event: Event) {
        let now = self.field.clock.now();
        let mut ledger = self.field.ledger.lock();
        match event {
            Event::Sent { payload } => {
                self.open.lock().insert(payload, now);
                self.field.open.fetch_add(1, Ordering::Relaxed);
            }
            Event::Acked { payload } => {
                let Some(sent) = self.open.lock().remove(&payload) else {
                    ledger.problem(format!("{}: `{payload}` was acknowledged and not open", self.name));
                    return;
                };
                let publisher = payload.split('/').nth(1).and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
                ledger.published.insert(payload, Published { publisher, sent, acknowledged: now });
                self.field.open.fetch_sub(1, Ordering::Relaxed);
            }
            Event::Refused { payload, reason } => ledger.refuse(payload, format!("{reason:#04x}")),
            Event::GivenUp { payload } => drop(ledger.given_up.insert(payload)),
            Event::Queue { payload, place, kept } => ledger.dequeue(place, &payload, kept),
            Event::Session { payload, qos: 2 } => ledger.receive(&self.name, &payload),
            Event::Session { payload, .. } => drop(ledger.receive_at_least_once(&self.name, &payload)),
            Event::Stream { payload, place } => ledger.read(&self.name, place, &payload),
            Event::Subscribed { role } => {
                self.subscribed.send_if_modified(|roles| {
                    let is_new = !roles.contains(&role);
                    if is_new {
                        roles.push(role);
                    }
                    is_new
                });
            }
            Event::Problem { text } => ledger.problem(format!("{}: {text}", self.name)),
            Event::Idle => self.idle.send_modify(|idle| *idle += 1),
        }
    }

    fn problem(&self, text: String) {
        self.tell(Event::Problem { text });
    }
}

/// All clients of other people's libraries.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// Doors, consumers, sessions and readers, for ever.
    tasks: JoinSet<()>,
    programs: Vec<Program>,
    /// Publishers that have not begun.
    publishers: Vec<(Arc<Told>, rumqttc::Publisher)>,
}

/// A process; it ends when its input does.
#[derive(Clone, Debug)]
struct Program {
    told: Arc<Told>,
    stdin: Arc<AsyncMutex<ChildStdin>>,
}

impl Program {
    async fn tell(&self, word: &str) -> Result<()> {
        let written = self.stdin.lock().await.write_all(format!("{word}\n").as_bytes()).await;
        written.with_context(|| format!("tell it to {word}"))
    }
}

impl Foreign {
    /// Starts all but the publishers, which are the `first` and following, and waits until everyone has subscribed.
    pub(super) async fn start(field: &Arc<Field>, libraries: &[Library], first: usize) -> Result<Self> {
        let mut all = Self::default();
        let kinds = libraries.iter().flat_map(|&library| [true, false].map(|is_v5| Kind { library, is_v5 }));
        let mut told = Vec::new();
        for (n, kind) in kinds.enumerate() {
            let name = kind.to_string();
            let topic = n as u64 % TOPICS;
            field.ledger.lock().enroll(&name, topic);
            let one = Arc::new(Told {
                field: Arc::clone(field),
                name,
                open: Mutex::default(),
                subscribed: watch::Sender::default(),
                idle: watch::Sender::default(),
            });
            told.push(Arc::clone(&one));
            all.begin(kind, one, first + n * PUBLISHERS, topic).await?;
        }
        for one in told {
            let mut subscribed = one.subscribed.subscribe();
            let everyone = subscribed.wait_for(|roles| roles.len() == 3);
            let what = format!("the subscriptions of {}", one.name);
            within(&what, async { Ok(everyone.await.map(drop)?) }).await?;
        }
        Ok(all)
    }

    async fn begin(&mut self, kind: Kind, told: Arc<Told>, first: usize, topic: u64) -> Result<()> {
        let mut ports = BTreeMap::new();
        let roles = ["publisher1", "publisher2", "queue", "session", "stream"];
        for (n, role) in roles.into_iter().enumerate() {
            ports.insert(role, front::open(&told.field, first + n, &mut self.tasks).await?.port());
        }
        if kind.library == Library::Rumqttc {
            let clients = rumqttc::clients(&told, kind.is_v5, &ports, first, topic)?;
            self.publishers.extend(clients.publishers.map(|publisher| (Arc::clone(&told), publisher)));
            clients.others.into_iter().for_each(|other| drop(self.tasks.spawn(other)));
            return Ok(());
        }
        let task = json!({
            "name": told.name, "v5": kind.is_v5, "ports": ports, "publisher": first, "topic": topic,
            "topics": TOPICS, "paceMillis": u64::try_from(told.field.pace.as_millis())?,
        });
        let mut command = match kind.library {
            Library::NpmMqtt => tools::node().await?.command(),
            Library::Rumqttc | Library::Paho => tools::python().await?.command(),
        };
        match kind.library {
            Library::NpmMqtt => command.args(["-e", NPM_MQTT]),
            Library::Rumqttc | Library::Paho => command.args(["-c", PAHO]),
        };
        command.arg(task.to_string()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| format!("start {}", told.name))?;
        let stdin = child.stdin.take().context("its input")?;
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        self.programs.push(Program { told: Arc::clone(&told), stdin: Arc::new(AsyncMutex::new(stdin)) });
        self.tasks.spawn(hear(told, child, lines));
        Ok(())
    }

    /// Starts the publishers. They are in `publishing` until there is enough and all is acknowledged.
    pub(super) async fn publish(&mut self, publishing: &mut JoinSet<()>) -> Result<()> {
        for (told, publisher) in self.publishers.drain(..) {
            publishing.spawn(publisher.run(told));
        }
        for program in &self.programs {
            program.tell("publish").await?;
            let program = program.clone();
            publishing.spawn(async move {
                program.told.field.enough.cancelled().await;
                if let Err(error) = program.tell("stop").await {
                    program.told.problem(format!("{error:#}"));
                    return;
                }
                // It is as long as `told` lives.
                let _ = program.told.idle.subscribe().wait_for(|idle| *idle == PUBLISHERS).await;
            });
        }
        Ok(())
    }

    /// Ends all.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Writes down what a program tells, until it ends, which it must not.
async fn hear(told: Arc<Told>, child: Child, mut lines: Lines<BufReader<ChildStdout>>) {
    let _ends_with_this = child;
    loop {
        let heard = match lines.next_line().await {
            Ok(Some(line)) => serde_json::from_str(&line).with_context(|| line),
            Ok(None) => return told.problem("it ended".to_owned()),
            Err(error) => return told.problem(format!("it cannot be heard: {error}")),
        };
        match heard {
            Ok(event) => told.tell(event),
            Err(error) => told.problem(format!("{error:#}")),
        }
    }
}

/// The libraries that `names` name, each once.
pub(super) fn check(libraries: &[Library]) -> Result<()> {
    let is_again = |(n, library): (usize, &Library)| libraries[..n].contains(library);
    ensure!(!libraries.iter().enumerate().any(is_again), "each library once");
    Ok(())
}
