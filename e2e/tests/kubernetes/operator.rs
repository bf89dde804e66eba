//! Queues and streams that are declared by `kubectl apply`: the operator and one broker as processes beside the cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use weir_e2e::clients::{Client, Connect, Kind, Publish, Subscribe, Version};
use weir_e2e::kubernetes::{Cluster, Daemon, Kubectl, Programs, until};
use weir_e2e::{http, process, within};
use weir_env::clock::Clock;

use crate::on_kubernetes;

const CLIENT: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };
/// Where the broker's clients connect, and the operator tells its figures.
const MQTT: ([u8; 4], u16) = ([127, 0, 0, 1], 1883);
const OPERATOR: ([u8; 4], u16) = ([127, 0, 0, 1], 9080);

/// Queues applied at once: by `weir-kubernetes test`, and by others.
const MANY: usize = 1000;
const FEWER: usize = 100;
/// Requests to the API server meanwhile that are of no object: the lease, watches that begin anew.
const CALLS_BESIDE: u64 = 200;

/// The object that the operator finds the broker by.
const BROKER: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: Broker
metadata: { name: main, namespace: default }
spec: { store: { embedded: { storage: 1Gi } } }
"#;

#[test]
fn what_is_applied_is_so() -> Result<()> {
    on_kubernetes("operator::what_is_applied_is_so", async |cluster: &mut Cluster| {
        let mut world = World::start(cluster).await?;
        applied_and_consumed(&world).await.context("apply, and consume")?;
        edited(&world).await.context("edit")?;
        conflict(&world).await.context("name conflict")?;
        deleted(&world).await.context("delete with Retain and Delete")?;
        adopted(&world).await.context("adopt what was kept")?;
        operator_restarts(&mut world).await.context("operator restart in the middle")?;
        broker_comes_back_empty(&mut world).await.context("broker down, then back without anything")?;
        namespace_goes(&world).await.context("namespace deletion")?;
        force_released(&mut world).await.context("force-release")?;
        Ok(())
    })
}

/// The broker says so at once: the operator compares everything long after this has ended.
#[test]
fn what_others_change_or_delete_at_the_broker_is_set_back() -> Result<()> {
    const TEST: &str = "operator::what_others_change_or_delete_at_the_broker_is_set_back";
    on_kubernetes(TEST, async |cluster: &mut Cluster| {
        let world = World::start_with(cluster, "1h").await?;
        world.declare("jobs", &json!({ "topicFilter": "work/#", "ackTimeout": "5s" })).await?;
        world.ready("jobs").await?;
        let timeout = async |expected: &str| {
            until(&format!("an acknowledgement timeout of {expected}"), || async {
                let queue = world.weir(&["queue", "describe", "jobs", "--output", "json"]).await?;
                let is_so =
                    queue.is_some_and(|queue| queue.contains(&format!("\"ackTimeout\": \"{expected}\"")));
                Ok(is_so.then_some(()))
            })
            .await
        };
        timeout("5s").await?;
        for others in
            [&["update", "jobs", "--ack-timeout", "1m", "--force"][..], &["delete", "jobs", "--force"]]
        {
            world
                .weir(&[&["queue"], others].concat())
                .await?
                .with_context(|| format!("weir queue {others:?}"))?;
            timeout("5s").await.with_context(|| format!("behind {others:?}"))?;
            world.ready("jobs").await?;
        }
        until("events that tell of both", || async {
            let events = world.kubectl.get("events.v1.events.k8s.io -n default").await?;
            let events = events["items"].as_array().context("a list")?;
            let told = events.iter().filter(|event| event["reason"] == "DriftRepaired");
            let times: u64 = told.map(|event| event["series"]["count"].as_u64().unwrap_or(1)).sum();
            Ok((times >= 2).then_some(()))
        })
        .await
    })
}

#[test]
fn an_api_server_that_restarts_is_found_again() -> Result<()> {
    on_kubernetes("operator::an_api_server_that_restarts_is_found_again", async |cluster: &mut Cluster| {
        let world = World::start(cluster).await?;
        world.declare("before", &json!({ "topicFilter": "before/#" })).await?;
        world.ready("before").await?;
        cluster.kill_api_server().await?;
        cluster.start_api_server().await?;
        world.declare("after", &json!({ "topicFilter": "after/#" })).await?;
        world.ready("after").await?;
        world.ready("before").await
    })
}

#[test]
fn many_queues_applied_at_once_become_ready() -> Result<()> {
    on_kubernetes("operator::many_queues_applied_at_once_become_ready", async |cluster: &mut Cluster| {
        let world = World::start(cluster).await?;
        let many = if std::env::var_os("WEIR_E2E_LONG").is_some() { MANY } else { FEWER };
        let manifests: Vec<String> = (0..many)
            .map(|n| queue("default", &format!("many-{n}"), &json!({ "topicFilter": format!("many/{n}") })))
            .collect();
        let (cpu, calls) = (world.operator_time()?, world.api_calls().await?);
        let began = Clock::system().now();
        let taken = world.kubectl.call("apply --server-side -f -", &manifests.join("\n---\n")).await?;
        taken.map_err(Error::msg)?;
        let applied = Clock::system().now().duration_since(began);
        let mut ready = 0;
        while ready < many {
            ready = until(&format!("more than {ready} to be ready"), || async {
                let list = world.kubectl.get("mq -n default").await?;
                let items = list["items"].as_array().context("a list")?;
                Ok(Some(items.iter().filter(|item| is_ready(item)).count()).filter(|&now| now > ready))
            })
            .await?;
        }
        let took = Clock::system().now().duration_since(began);
        let cpu = world.operator_time()?.saturating_sub(cpu);
        let calls = world.api_calls().await?.saturating_sub(calls);
        // The finalizer, the status and the event of each; the rest is its own lease.
        ensure!(calls <= 4 * many as u64 + CALLS_BESIDE, "{calls} API requests for {many} objects");
        eprintln!(
            "{many} MessageQueues: applied by kubectl in {:.1} s, all Ready after {:.1} s; of the operator {:.1} API \
             requests and {:.2} ms of processor time for each",
            applied.as_secs_f64(),
            took.as_secs_f64(),
            calls as f64 / many as f64,
            cpu.as_secs_f64() * 1000.0 / many as f64,
        );
        Ok(())
    })
}

struct World {
    kubectl: Kubectl,
    programs: Programs,
    logs: PathBuf,
    broker: Option<Daemon>,
    operator: Option<Daemon>,
    resync: &'static str,
    folder: TempDir,
}

impl World {
    async fn start(cluster: &Cluster) -> Result<Self> {
        Self::start_with(cluster, "10s").await
    }

    /// With an operator that compares everything so often.
    async fn start_with(cluster: &Cluster, resync: &'static str) -> Result<Self> {
        let mut world = Self {
            kubectl: cluster.kubectl().clone(),
            programs: cluster.programs().clone(),
            logs: cluster.logs().clone(),
            broker: None,
            operator: None,
            resync,
            folder: tempfile::tempdir()?,
        };
        world.kubectl.apply(BROKER).await?;
        world.start_broker().await?;
        world.start_operator()?;
        Ok(world)
    }

    async fn start_broker(&mut self) -> Result<()> {
        let mut command = Command::new(&self.programs.weir);
        command.args(["serve", "--store", "memory:"]).current_dir(self.folder.path());
        let broker = Daemon::start(command, self.logs.join("pods").join("broker.log"))?;
        let broker = self.broker.insert(broker);
        let ready = until("the broker to be ready", || async {
            let answer = http::get(([127, 0, 0, 1], 8080).into(), "/readyz").await;
            Ok(answer.ok().filter(|(status, _)| *status == 200))
        });
        ready.await.map(drop).with_context(|| broker.tail())
    }

    fn start_operator(&mut self) -> Result<()> {
        let mut command = Command::new(&self.programs.operator);
        command.args([
            "run",
            "--broker-address",
            "default/main=http://127.0.0.1:8081",
            "--http",
            "127.0.0.1:9080",
        ]);
        command.args([
            "--resync",
            self.resync,
            "--lease-namespace",
            "default",
            "--log-filter",
            "info,weir_operator=debug",
        ]);
        command.env("KUBECONFIG", self.kubectl.kubeconfig());
        self.operator = Some(Daemon::start(command, self.logs.join("pods").join("operator.log"))?);
        Ok(())
    }

    async fn kill(daemon: &mut Option<Daemon>) -> Result<()> {
        let mut daemon = daemon.take().context("it runs")?;
        daemon.signal(Signal::KILL)?;
        daemon.wait().await.map(drop)
    }

    async fn declare(&self, name: &str, spec: &Value) -> Result<()> {
        self.kubectl.apply(&queue("default", name, spec)).await.map(drop)
    }

    async fn ready(&self, name: &str) -> Result<()> {
        self.state(name, "True", "Ready").await.map(drop)
    }

    /// Waits until `Ready` of the queue's newest generation has this status and reason; its object.
    async fn state(&self, name: &str, status: &str, reason: &str) -> Result<Value> {
        let last = Mutex::new(Value::Null);
        let what = format!("{name} to be Ready={status} for {reason}");
        let found = until(&what, || async {
            let object = self.kubectl.get(&format!("mq {name} -n default")).await?;
            let ready = condition(&object, "Ready");
            let newest = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            let is_so = newest && ready["status"] == status && ready["reason"] == reason;
            last.lock().clone_from(&object["status"]);
            Ok(is_so.then_some(object))
        });
        found.await.with_context(|| format!("the status was {}", last.lock()))
    }

    /// Whether the broker has the queue.
    async fn has(&self, name: &str) -> Result<bool> {
        Ok(self.weir(&["queue", "describe", name]).await?.is_some())
    }

    /// What `weir` prints, if it succeeds.
    async fn weir(&self, arguments: &[&str]) -> Result<Option<String>> {
        let mut command = Command::new(&self.programs.weir);
        let command = command.args(arguments).kill_on_drop(true);
        let output = within(&format!("weir {arguments:?}"), async { Ok(command.output().await?) }).await?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// What the operator has taken of processors.
    fn operator_time(&self) -> Result<Duration> {
        let pid = self.operator.as_ref().and_then(Daemon::pid).context("the operator runs")?;
        process::processor_time(pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Requests of the operator to the API server.
    async fn api_calls(&self) -> Result<u64> {
        let (_, metrics) = until("the operator's figures", || async {
            Ok(http::get(OPERATOR.into(), "/metrics").await.ok())
        })
        .await?;
        let counters = metrics.lines().filter(|line| line.starts_with("weir_operator_kube_requests_total{"));
        Ok(counters.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }
}

fn queue(namespace: &str, name: &str, spec: &Value) -> String {
    json!({
        "apiVersion": "weir.dev/v1alpha1",
        "kind": "MessageQueue",
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
    .to_string()
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    found.cloned().unwrap_or_default()
}

fn is_ready(object: &Value) -> bool {
    condition(object, "Ready")["status"] == "True"
}

async fn applied_and_consumed(world: &World) -> Result<()> {
    world.declare("jobs", &json!({ "topicFilter": "work/#" })).await?;
    world.ready("jobs").await?;
    let published = CLIENT
        .publish(Connect::clean(SocketAddr::from(MQTT), "publisher"), Publish::to("work/1", 1, ["one"]))
        .await?;
    ensure!(published == [0], "{published:?}");
    let consumer = CLIENT
        .subscribe(Connect::clean(SocketAddr::from(MQTT), "consumer"), Subscribe::to("$queue/jobs", 1))
        .await;
    let messages = consumer?.collect(1).await?;
    ensure!(messages[0].payload == "one", "{messages:?}");
    Ok(())
}

async fn edited(world: &World) -> Result<()> {
    world.declare("jobs", &json!({ "topicFilter": "work/#", "ackTimeout": "5s" })).await?;
    world.ready("jobs").await?;
    let refusal =
        world.kubectl.refused(&queue("default", "jobs", &json!({ "topicFilter": "other/#" }))).await?;
    ensure!(refusal.contains("topicFilter is immutable"), "{refusal}");
    let refusal = world.kubectl.refused(&queue("default", "bad", &json!({ "topicFilter": "a/#/b" }))).await?;
    ensure!(refusal.contains("topicFilter"), "{refusal}");
    Ok(())
}

async fn conflict(world: &World) -> Result<()> {
    world.declare("second", &json!({ "topicFilter": "second/#", "queueName": "jobs" })).await?;
    let object = world.state("second", "False", "NameConflict").await?;
    ensure!(condition(&object, "Stalled")["status"] == "True", "{object}");
    world.ready("jobs").await?;
    world.kubectl.run("delete mq second -n default --timeout=30s").await?;
    ensure!(world.has("jobs").await?, "the queue went with an object that did not own it");
    Ok(())
}

async fn deleted(world: &World) -> Result<()> {
    world.declare("kept", &json!({ "topicFilter": "kept/#" })).await?;
    world.declare("gone", &json!({ "topicFilter": "gone/#", "deletionPolicy": "Delete" })).await?;
    world.ready("kept").await?;
    world.ready("gone").await?;
    CLIENT
        .publish(Connect::clean(SocketAddr::from(MQTT), "publisher"), Publish::to("kept/1", 1, ["kept"]))
        .await?;
    world.kubectl.run("delete mq kept gone -n default --timeout=30s").await?;
    ensure!(!world.has("gone").await?, "a queue with `Delete` is still there");
    Ok(())
}

/// What was kept with `Retain` is there again, with its messages, under a new object of that name.
async fn adopted(world: &World) -> Result<()> {
    world.declare("kept", &json!({ "topicFilter": "kept/#" })).await?;
    world.ready("kept").await?;
    let consumer = CLIENT
        .subscribe(Connect::clean(SocketAddr::from(MQTT), "adopter"), Subscribe::to("$queue/kept", 1))
        .await;
    let messages = consumer?.collect(1).await?;
    ensure!(messages[0].payload == "kept", "{messages:?}");
    Ok(())
}

async fn operator_restarts(world: &mut World) -> Result<()> {
    world.declare("middle-1", &json!({ "topicFilter": "middle/1" })).await?;
    World::kill(&mut world.operator).await?;
    world.declare("middle-2", &json!({ "topicFilter": "middle/2" })).await?;
    let waiting = world.kubectl.get("mq middle-2 -n default").await?;
    ensure!(!is_ready(&waiting), "ready without an operator: {waiting}");
    world.start_operator()?;
    world.ready("middle-1").await?;
    world.ready("middle-2").await
}

/// The broker's store is memory: when it comes back, everything that was declared is gone.
async fn broker_comes_back_empty(world: &mut World) -> Result<()> {
    World::kill(&mut world.broker).await?;
    world.declare("later", &json!({ "topicFilter": "later/#" })).await?;
    world.start_broker().await?;
    world.ready("later").await?;
    until("what was lost to be declared again", || async { Ok(world.has("jobs").await?.then_some(())) })
        .await?;
    world.ready("jobs").await?;
    let repaired = until("an event that tells of it", || async {
        let events = world.kubectl.get("events.v1.events.k8s.io -n default").await?;
        let events = events["items"].as_array().context("a list")?;
        Ok(events.iter().any(|event| event["reason"] == "DriftRepaired").then_some(()))
    });
    repaired.await
}

async fn namespace_goes(world: &World) -> Result<()> {
    world.kubectl.run("create namespace brief").await?;
    world.kubectl.apply(&queue("brief", "brief", &json!({ "topicFilter": "brief/#" }))).await?;
    world.kubectl.run("wait mq/brief -n brief --for=condition=Ready --timeout=30s").await?;
    world.kubectl.run("delete namespace brief --timeout=50s").await.map(drop)
}

/// Without its broker, an object with a finalizer waits; the annotation lets it go.
async fn force_released(world: &mut World) -> Result<()> {
    World::kill(&mut world.broker).await?;
    world.kubectl.run("delete mq later -n default --wait=false").await?;
    world.kubectl.get("mq later -n default").await.context("it waits for its broker")?;
    world.kubectl.run("annotate mq later -n default weir.dev/force-release=true").await?;
    world.kubectl.run("wait mq/later -n default --for=delete --timeout=30s").await.map(drop)
}
