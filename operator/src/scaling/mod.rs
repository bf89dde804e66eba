//! Pods of Brokers that follow their load: looks at an interval at what the pods of each Broker have to do, and has the
//! Deployment have more at once, or one fewer when the pod whose going disturbs least is drained.
//!
//! What is under way is noted on the pod that is to go, so that an operator that starts anew goes on with it. Owns the
//! [`History`] of each Broker, which may be lost: then fewer pods come later.

mod decide;
mod pods;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Resource as _;
use kube::api::{Api, Patch, PatchParams};
use kube::core::ResourceExt as _;
use kube::runtime::events::{Event, EventType};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::MissedTickBehavior;
use weir_env::seed::HashMap;
use weir_operator_api::{Broker, BrokerScaling, ScalingStatus};

use crate::brokers::BrokerId;
use crate::context::Context;
use crate::error::Error;
use crate::leader::wall;
use crate::tasks::Tasks;

use decide::{History, Limits, Targets, decide};
use pods::{Cluster, Seen, millis, seen};
use step::{Step, step};

pub(crate) use decide::Load;
pub(crate) use pods::{Figures, PodAdmin, whole};

/// Brokers that are looked at at once.
const AT_ONCE: usize = 8;
/// After so long a drain that does not end is called off; a pod sends all of its clients away long before.
const DRAIN_MAX: Duration = Duration::from_secs(600);
/// As whom the status is written: the rest of it is another writer's.
const STATUS_MANAGER: &str = "weir-operator-scaling";

/// Follows the load of Brokers.
struct Scaler {
    context: Arc<Context>,
    admin: Arc<dyn PodAdmin>,
    kept: Mutex<HashMap<BrokerId, Kept>>,
}

/// What is kept of a Broker from look to look.
#[derive(Default)]
struct Kept {
    history: History,
    told: Option<ScalingStatus>,
}

/// What is to be said of a Broker.
struct Word {
    desired: Option<u32>,
    reason: &'static str,
    message: String,
    draining: Option<String>,
}

/// Starts to look at all Brokers every `interval`.
pub(crate) fn start(context: &Arc<Context>, admin: Arc<dyn PodAdmin>, interval: Duration, tasks: &Tasks) {
    let scaler = Scaler { context: context.clone(), admin, kept: Mutex::default() };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let cancel = tasks.cancel().clone();
    tasks.spawn(async move {
        // What is under way when the operator stops ends: it is bounded.
        while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
            scaler.look_at_all().await;
        }
    });
}

impl Scaler {
    async fn look_at_all(&self) {
        let brokers = self.context.brokers();
        let ids: Vec<BrokerId> = brokers.iter().map(|broker| BrokerId::of(broker)).collect();
        self.kept.lock().retain(|id, _| ids.contains(id));
        futures_util::stream::iter(brokers.iter())
            .for_each_concurrent(AT_ONCE, |broker| async move {
                let id = BrokerId::of(broker);
                let mut kept = self.kept.lock().remove(&id).unwrap_or_default();
                let outcome = self.look(broker, &mut kept).await;
                if let Err(error) = outcome.as_ref() {
                    tracing::warn!(broker = %id, error = error as &dyn std::error::Error, "pods do not follow the load");
                }
                self.kept.lock().insert(id, kept);
            })
            .await;
    }

    /// Looks at a Broker, does one step, and says so.
    async fn look(&self, broker: &Broker, kept: &mut Kept) -> Result<(), Error> {
        if broker.metadata.deletion_timestamp.is_some() || !broker.problems().is_empty() {
            return Ok(());
        }
        let Some(scaling) = &broker.spec.scaling else {
            return self.forget(broker, kept).await;
        };
        let namespace = broker.namespace().unwrap_or_default();
        let name = broker.name_any();
        let cluster = Cluster { client: &self.context.client, namespace: &namespace, broker: &name };
        match self.follow(broker, scaling, &cluster, &mut kept.history).await {
            Ok(Some(word)) => self.tell(broker, kept, word).await,
            // The next look sees what is there then.
            Ok(None) | Err(Error::Conflict) => Ok(()),
            Err(error) => {
                let message =
                    format!("what is there cannot be seen or changed: {error}; no pod comes or goes");
                self.tell(broker, kept, Word { desired: None, reason: "Failed", message, draining: None })
                    .await?;
                Err(error)
            }
        }
    }

    async fn follow(
        &self,
        broker: &Broker,
        scaling: &BrokerScaling,
        cluster: &Cluster<'_>,
        history: &mut History,
    ) -> Result<Option<Word>, Error> {
        let autoscalers = cluster.autoscalers().await?;
        let Some(deployment) = cluster.deployment().await? else { return Ok(None) };
        let current = wanted(&deployment);
        let (mut targets, limits) = (targets(scaling), limits(scaling));
        let mut missing = None;
        if let Some(percent) = scaling.cpu_percent {
            let request = broker.spec.resources.requests.get("cpu").and_then(|amount| millis(&amount.0));
            missing = request.is_none().then_some("cpuPercent needs spec.resources.requests.cpu");
            let percent = u64::try_from(percent).unwrap_or(100);
            targets.cpu_millis = request.map(|request| (request.saturating_mul(percent) / 100).max(1));
        }
        let pods = cluster.pods().await?;
        let described = self.admin.describe(broker).await;
        let figures = described.as_deref().unwrap_or_default();
        // While a target cannot be kept, what pods say is not enough for one of them to go.
        let seen = seen(&pods, figures, missing.is_none());
        let loads: Vec<Load> = seen.iter().map(|seen| seen.load.clone()).collect();
        let decision = decide(current, &loads, &targets, &limits, history, self.context.clock.now());
        let left_alone = autoscalers
            .deployment
            .map(|name| ("LeftToAutoscaler", format!("the HorizontalPodAutoscaler {name} moves the pods")))
            .or_else(|| {
                let none = targets == Targets::default() && scaling.cpu_percent.is_none();
                (none && current <= limits.max)
                    .then(|| ("NoTargets", "spec.scaling has no target: it is a bound only".to_owned()))
            });
        let now = wall(self.context.clock);
        let next = match left_alone {
            Some(_) => step::left_alone(current, &seen),
            None => step(current, at_rest(&deployment), &seen, &decision, |since| overdue(since, now)),
        };
        self.carry_out(broker, cluster, &deployment, &next, history).await?;
        if let Some((reason, message)) = left_alone {
            return Ok(Some(Word { desired: None, reason, message, draining: None }));
        }
        let mut message = decision.why;
        if let Some(missing) = missing {
            message = format!("{message}; {missing}");
        }
        if let Some(name) = autoscalers.broker {
            message = format!(
                "{message}; the HorizontalPodAutoscaler {name} of the Broker does nothing beside spec.scaling: remove one"
            );
        }
        if let Err(error) = described {
            message = format!("{message}; {error}");
        }
        Ok(Some(Word {
            desired: Some(next.replicas(current)),
            reason: next.reason(),
            message,
            draining: next.draining().map(str::to_owned),
        }))
    }

    async fn carry_out(
        &self,
        broker: &Broker,
        cluster: &Cluster<'_>,
        deployment: &Deployment,
        step: &Step<'_>,
        history: &mut History,
    ) -> Result<(), Error> {
        let metrics = &self.context.metrics;
        let (namespace, name) = (cluster.namespace, cluster.broker);
        match step {
            Step::Rest { .. } => {}
            Step::Up { from, to, why, calls_off } => {
                if let Some(leaving) = calls_off {
                    self.call_off(broker, cluster, leaving, "more pods are needed").await?;
                }
                cluster.scale(deployment, *to).await?;
                metrics.scaled(namespace, name, "up");
                self.event(broker, "ScaledUp", format!("{from} to {to} pods: {why}")).await;
            }
            Step::Begin { pod, to, why } => {
                cluster.mark(&pod.name, Some(&wall(self.context.clock).to_string())).await?;
                metrics.scaled(namespace, name, "drain");
                self.event(broker, "ScalingDown", format!("{} is drained, {to} pods stay: {why}", pod.name))
                    .await;
                self.drain(broker, pod).await;
            }
            Step::Wait { pod } => {
                if !pod.load.is_draining {
                    self.drain(broker, pod).await;
                }
            }
            Step::Down { pod, to } => {
                cluster.scale(deployment, *to).await?;
                metrics.scaled(namespace, name, "down");
                self.event(broker, "ScaledDown", format!("{} is drained and goes: {to} pods stay", pod.name))
                    .await;
            }
            Step::CallOff { pod, why, .. } => {
                self.call_off(broker, cluster, pod, why).await?;
                // Fewer pods have to make sense for as long again.
                *history = History::default();
            }
        }
        Ok(())
    }

    /// Has a pod drained. If that fails, the next look tries again.
    async fn drain(&self, broker: &Broker, pod: &Seen) {
        let Some(id) = &pod.id else { return };
        if let Err(error) = self.admin.drain(broker, id).await {
            tracing::warn!(broker = %BrokerId::of(broker), pod = pod.name, %error, "a pod is not drained yet");
        }
    }

    async fn call_off(
        &self,
        broker: &Broker,
        cluster: &Cluster<'_>,
        pod: &Seen,
        why: &str,
    ) -> Result<(), Error> {
        if let Some(id) = &pod.id
            && let Err(error) = self.admin.resume(broker, id).await
        {
            // The mark stays, so that the next look tries again.
            tracing::warn!(broker = %BrokerId::of(broker), pod = pod.name, %error, "a drain is not called off yet");
            return Err(Error::Conflict);
        }
        cluster.mark(&pod.name, None).await?;
        self.context.metrics.scaled(cluster.namespace, cluster.broker, "called_off");
        self.event(broker, "DrainCalledOff", format!("{} stays: {why}", pod.name)).await;
        Ok(())
    }

    async fn event(&self, broker: &Broker, reason: &str, note: String) {
        let event = Event {
            type_: EventType::Normal,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Scale".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.context.recorder.publish(&event, &broker.object_ref(&())).await {
            tracing::debug!(%error, "an event was not recorded");
        }
    }

    /// Says in the status what is so, if that is something else than was said last.
    async fn tell(&self, broker: &Broker, kept: &mut Kept, word: Word) -> Result<(), Error> {
        let id = BrokerId::of(broker);
        let desired = word.desired.and_then(|desired| i32::try_from(desired).ok());
        if let Some(desired) = desired {
            self.context.metrics.scaling_desired(&id.namespace, &id.name, desired);
        }
        let told = kept.told.clone().or_else(|| broker.status.as_ref()?.scaling.clone());
        let is_told = told.as_ref().is_some_and(|told| {
            (told.desired, told.reason.as_str(), &told.draining) == (desired, word.reason, &word.draining)
        });
        if is_told {
            kept.told = told;
            return Ok(());
        }
        let status = ScalingStatus {
            desired,
            reason: word.reason.to_owned(),
            message: word.message.chars().take(1024).collect(),
            since: Time(wall(self.context.clock)),
            draining: word.draining,
        };
        self.write(broker, Some(&status)).await?;
        kept.told = Some(status);
        Ok(())
    }

    /// The Broker has no `spec.scaling`: a pod that was to go stays, before nothing more is said.
    async fn forget(&self, broker: &Broker, kept: &mut Kept) -> Result<(), Error> {
        let is_in_status = broker.status.as_ref().is_some_and(|status| status.scaling.is_some());
        if !is_in_status && kept.told.is_none() {
            *kept = Kept::default();
            return Ok(());
        }
        let (namespace, name) = (broker.namespace().unwrap_or_default(), broker.name_any());
        let cluster = Cluster { client: &self.context.client, namespace: &namespace, broker: &name };
        if let Some(deployment) = cluster.deployment().await? {
            let pods = cluster.pods().await?;
            let described = self.admin.describe(broker).await;
            let seen = seen(&pods, described.as_deref().unwrap_or_default(), false);
            let next = step::left_alone(wanted(&deployment), &seen);
            // One that cannot be told to stay is told at the next look.
            if let (Step::CallOff { .. }, Err(error)) = (&next, &described) {
                tracing::warn!(broker = %BrokerId::of(broker), %error, "a drain is not called off yet");
                return Ok(());
            }
            match self.carry_out(broker, &cluster, &deployment, &next, &mut kept.history).await {
                Ok(()) if !matches!(next, Step::CallOff { .. }) => {}
                // There may be another one.
                Ok(()) | Err(Error::Conflict) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        *kept = Kept::default();
        self.write(broker, None).await
    }

    async fn write(&self, broker: &Broker, status: Option<&ScalingStatus>) -> Result<(), Error> {
        let api: Api<Broker> =
            Api::namespaced(self.context.client.clone(), &broker.namespace().unwrap_or_default());
        let mut patch = json!({
            "apiVersion": Broker::api_version(&()),
            "kind": Broker::kind(&()),
            "metadata": { "name": broker.name_any(), "uid": broker.metadata.uid },
            "status": {},
        });
        if let Some(status) = status {
            patch["status"]["scaling"] = json!(status);
        }
        let how = PatchParams::apply(STATUS_MANAGER).force();
        let written = api.patch_status(&broker.name_any(), &how, &Patch::Apply(&patch)).await;
        written.map(drop).map_err(Error::kube("write the status of a Broker"))
    }
}

/// Pods that the Deployment wants.
fn wanted(deployment: &Deployment) -> u32 {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    u32::try_from(replicas).unwrap_or(0)
}

/// Whether all pods are what the Deployment wants, and as many.
fn at_rest(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation >= deployment.metadata.generation
            && status.replicas.unwrap_or(0) == wanted
            && status.updated_replicas.unwrap_or(0) == wanted
    })
}

/// Whether a drain that began then takes too long; what cannot be read does.
fn overdue(since: &str, now: Timestamp) -> bool {
    since.parse::<Timestamp>().map_or(true, |since| now.duration_since(since).unsigned_abs() >= DRAIN_MAX)
}

fn targets(scaling: &BrokerScaling) -> Targets {
    let of = |target: Option<i32>| target.and_then(|target| u64::try_from(target).ok());
    Targets {
        connections: of(scaling.connections_per_pod),
        connect_rate: of(scaling.connect_rate_per_pod),
        bytes_rate: scaling.bytes_rate_per_pod.and_then(|target| u64::try_from(target).ok()),
        append_rate: of(scaling.append_rate_per_pod),
        deliver_rate: of(scaling.deliver_rate_per_pod),
        shards: of(scaling.shards_per_pod),
        cpu_millis: None,
    }
}

fn limits(scaling: &BrokerScaling) -> Limits {
    let bound = |bound: i32| u32::try_from(bound).unwrap_or(1);
    Limits {
        min: bound(scaling.min_replicas),
        max: bound(scaling.max_replicas),
        up_after: scaling.scale_up_after.as_duration(),
        down_after: scaling.scale_down_after.as_duration(),
    }
}
