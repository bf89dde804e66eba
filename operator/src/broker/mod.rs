//! Brokers: the objects that each stands for are made and kept as they should be, and its status says how its pods are.
//! Owns nothing between two reconciliations; what there should be is decided in [`desired`], what it comes to in [`status`].

mod claim;
pub(crate) mod desired;
mod status;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::{ByteString, NamespaceResourceScope};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::object::NotUsed;
use kube::core::{DeserializeGuard, Object, ObjectMeta, ResourceExt as _};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::{Event, EventType};
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde_json::{Value, json};
use weir_operator_api::{Broker, BrokerStatus};

use crate::backoff::{Backoffs, jittered};
use crate::conditions::Verdict;
use crate::context::{Context, MANAGER};
use crate::error::Error;
use crate::leader::wall;
use crate::tasks::Tasks;

use desired::{Owned, Runs, TOKEN_KEY};
use status::Observed;

/// First and longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often what no watch tells of is looked at while it is missing.
const MISSING: Duration = Duration::from_secs(10);
/// On each object of a Broker: a hash of all that is declared of it.
const DECLARED: &str = "weir.dev/declared";
/// Bytes of the secret that pods and operator share.
const TOKEN_BYTES: usize = 32;

/// What the reconciliations of Brokers share.
struct Brokers {
    context: Arc<Context>,
    image: String,
    backoffs: Backoffs<(String, String)>,
}

/// Starts the controller in each of the `scopes`; pods of Brokers that name no image run `image`.
pub(crate) fn start(
    context: &Arc<Context>,
    scopes: &[Option<String>],
    concurrency: u16,
    image: &str,
    tasks: &Tasks,
) {
    for scope in scopes {
        let client = context.client.clone();
        let ours = watcher::Config::default().labels("app.kubernetes.io/managed-by=weir-operator");
        let brokers = Arc::new(Brokers {
            context: context.clone(),
            image: image.to_owned(),
            backoffs: Backoffs::new(RETRY.0, RETRY.1, context.clock, context.seed.fork("brokers")),
        });
        let controller =
            Controller::new(api::<DeserializeGuard<Broker>>(&client, scope), watcher::Config::default())
                .owns(api::<Deployment>(&client, scope), ours.clone())
                .owns(api::<Service>(&client, scope), ours.clone())
                .owns(api::<ConfigMap>(&client, scope), ours.clone())
                .owns(api::<ServiceAccount>(&client, scope), ours.clone())
                .owns(api::<Secret>(&client, scope), ours.clone())
                .owns(api::<NetworkPolicy>(&client, scope), ours.clone())
                .owns(api::<PodDisruptionBudget>(&client, scope), ours)
                .with_config(Config::default().concurrency(concurrency))
                .graceful_shutdown_on(tasks.cancel().clone().cancelled_owned())
                .run(reconcile, again, brokers)
                .for_each(|ended| {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "reconciliation of a Broker ended early");
                    }
                    std::future::ready(())
                });
        tasks.spawn(controller);
    }
}

fn api<K>(client: &Client, scope: &Option<String>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match scope {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn key(broker: &impl Resource) -> (String, String) {
    (broker.namespace().unwrap_or_default(), broker.name_any())
}

#[expect(clippy::needless_pass_by_value, reason = "as the controller calls it")]
fn again(broker: Arc<DeserializeGuard<Broker>>, error: &Error, brokers: Arc<Brokers>) -> Action {
    tracing::warn!(broker = %broker.name_any(), error = error as &dyn std::error::Error, "a Broker is tried again");
    Action::requeue(brokers.backoffs.fail(key(&*broker)))
}

async fn reconcile(guarded: Arc<DeserializeGuard<Broker>>, brokers: Arc<Brokers>) -> Result<Action, Error> {
    let context = &brokers.context;
    let began = context.clock.now();
    let reconciled = match &guarded.0 {
        // What it stands for goes with it; the volume of an embedded store stays.
        _ if guarded.meta().deletion_timestamp.is_some() => Ok(Action::await_change()),
        Ok(broker) => settle(broker, &brokers).await,
        Err(invalid) => unreadable(context, &guarded, &invalid.error).await,
    };
    let outcome = reconciled.as_ref().err().map_or("done", Error::label);
    context.metrics.reconciled("Broker", outcome, context.clock.now().saturating_duration_since(began));
    if reconciled.is_ok() {
        brokers.backoffs.succeed(&key(&*guarded));
    }
    reconciled
}

/// A Broker that these types cannot hold, though the API server has let it through: its pods stay as they are.
async fn unreadable(
    context: &Context,
    broker: &DeserializeGuard<Broker>,
    error: &str,
) -> Result<Action, Error> {
    let verdict = Verdict::stuck("Invalid", format!("edit the Broker: {error}"));
    let (namespace, name) = key(broker);
    let kind = ApiResource::erase::<Broker>(&());
    let api: Api<Object<NotUsed, BrokerStatus>> =
        Api::namespaced_with(context.client.clone(), &namespace, &kind);
    let there = api.get_opt(&name).await.map_err(Error::kube("read the status of a Broker"))?;
    let old = there.and_then(|there| there.status).unwrap_or_default();
    let generation = broker.meta().generation.unwrap_or(0);
    let status = BrokerStatus {
        observed_generation: Some(generation),
        conditions: verdict.conditions(&old.conditions, generation, wall(context.clock)),
        scaling: None,
        ..old.clone()
    };
    if status != (BrokerStatus { scaling: None, ..old }) {
        patch_status(context, broker, &status).await?;
    }
    Ok(Action::await_change())
}

async fn settle(broker: &Broker, brokers: &Brokers) -> Result<Action, Error> {
    let context = &brokers.context;
    let namespace = broker.namespace().unwrap_or_default();
    let problems: Vec<String> = broker.problems().iter().map(ToString::to_string).collect();
    let resource = ApiResource::erase::<Deployment>(&());
    let mut there = read(context, &namespace, &resource, &broker.name_any()).await?;
    let mut deployment = there.as_ref().map(typed).transpose()?;
    if !problems.is_empty() {
        // Its pods stay as they are, and so does what is said of them.
        let verdict = Verdict::stuck("Invalid", format!("edit the Broker: {}", problems.join("; ")));
        write_status(context, broker, &verdict, deployment.as_ref()).await?;
        return Ok(Action::await_change());
    }
    let runs = Runs { image: &brokers.image, replicas: replicas(broker, deployment.as_ref()) };
    let objects = match desired::desired(broker, runs) {
        Ok(objects) => objects,
        Err(problem) => {
            let verdict = Verdict::stuck("Invalid", format!("edit the Broker: {problem}"));
            write_status(context, broker, &verdict, deployment.as_ref()).await?;
            return Ok(Action::await_change());
        }
    };
    if let Err(taken) = ensure_secret(context, broker).await? {
        return refuse(context, broker, &taken, deployment.as_ref()).await;
    }
    for owned in objects {
        let is_deployment = owned.resource.kind == resource.kind;
        let there = match is_deployment {
            true => there.take(),
            false => read(context, &namespace, &owned.resource, &owned.object.name_any()).await?,
        };
        let what = format!("the {} {}", owned.resource.kind, owned.object.name_any());
        let applied = match apply(context, broker, owned, there).await {
            Err(error) => {
                if let Some(verdict) = status::refused(&what, &error) {
                    write_status(context, broker, &verdict, deployment.as_ref()).await?;
                }
                return Err(error);
            }
            Ok(applied) => applied,
        };
        match applied {
            Ok(is) if is_deployment => deployment = Some(typed(&is)?),
            Ok(_) => {}
            Err(taken) => return refuse(context, broker, &taken, deployment.as_ref()).await,
        }
    }
    let missing = missing(context, broker).await?;
    let observed = Observed { deployment: deployment.as_ref(), missing: missing.as_deref() };
    write_status(context, broker, &status::verdict(broker, &observed), deployment.as_ref()).await?;
    Ok(match missing {
        Some(_) => Action::requeue(MISSING),
        None => Action::requeue(jittered(context.resync, &context.seed)),
    })
}

/// Says that an object is another's. No watch tells when that changes.
async fn refuse(
    context: &Context,
    broker: &Broker,
    taken: &Verdict,
    deployment: Option<&Deployment>,
) -> Result<Action, Error> {
    write_status(context, broker, taken, deployment).await?;
    Ok(Action::requeue(MISSING))
}

async fn read(
    context: &Context,
    namespace: &str,
    resource: &ApiResource,
    name: &str,
) -> Result<Option<DynamicObject>, Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, resource);
    api.get_opt(name).await.map_err(Error::kube("read an object of a Broker"))
}

fn typed(object: &DynamicObject) -> Result<Deployment, Error> {
    let typed = serde_json::to_value(object).and_then(serde_json::from_value);
    typed.map_err(|error| Error::kube("read the Deployment")(kube::Error::SerdeError(error)))
}

/// Pods where the Broker does not say: as many as there are, and no fewer than its scaling wants. Those that are too many
/// go one by one, which is the scaling's to do: each is drained first.
fn replicas(broker: &Broker, deployment: Option<&Deployment>) -> i32 {
    let there = deployment.and_then(|deployment| deployment.spec.as_ref()?.replicas);
    match &broker.spec.scaling {
        // An autoscaler may have set it.
        None => there.unwrap_or(1),
        Some(scaling) => {
            let min = scaling.min_replicas.min(scaling.max_replicas);
            there.unwrap_or(min).max(min)
        }
    }
}

/// The secret that pods and operator share: made once, and left alone. The inner error is what to say if it is another's.
async fn ensure_secret(context: &Context, broker: &Broker) -> Result<Result<(), Verdict>, Error> {
    let namespace = broker.namespace().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let name = desired::internal_secret(broker);
    let there = secrets.get_opt(&name).await.map_err(Error::kube("read the Secret of the pods"))?;
    if let Some(there) = there {
        return Ok(claim::check(broker, "Secret", &there.metadata));
    }
    let mut token = [0; TOKEN_BYTES];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    if random.fill(&mut token).is_err() {
        return Err(Error::NoRandomness);
    }
    let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace),
            labels: Some(desired::labels(broker)),
            owner_references: broker.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some([(TOKEN_KEY.to_owned(), ByteString(token.into_bytes()))].into()),
        ..Secret::default()
    };
    match secrets
        .create(&PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }, &secret)
        .await
    {
        // Another reconciliation was faster.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Err(Error::Conflict),
        created => created.map(|_| Ok(())).map_err(Error::kube("make the Secret of the pods")),
    }
}

/// Makes an object as it should be, unless it is, and says how it is then. The inner error is what to say if it is another's.
async fn apply(
    context: &Context,
    broker: &Broker,
    owned: Owned,
    there: Option<DynamicObject>,
) -> Result<Result<DynamicObject, Verdict>, Error> {
    let Owned { resource, mut object } = owned;
    let name = object.name_any();
    let before = there.as_ref().map(|there| there.metadata.resource_version.clone());
    // What is there and not wanted any more shows by this alone.
    let declared = xxhash_rust::xxh3::xxh3_64(&serde_json::to_vec(&object).unwrap_or_default());
    object.annotations_mut().insert(DECLARED.to_owned(), format!("{declared:016x}"));
    if let Some(there) = there {
        if let Err(taken) = claim::check(broker, &resource.kind, &there.metadata) {
            return Ok(Err(taken));
        }
        let wanted = serde_json::to_value(&object).unwrap_or_default();
        if holds(&serde_json::to_value(&there).unwrap_or_default(), &wanted) {
            return Ok(Ok(there));
        }
        if resource.kind == "Deployment" {
            // The number of pods was reckoned from what it was then.
            object.metadata.resource_version = there.metadata.resource_version;
        }
    }
    let namespace = broker.namespace().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &resource);
    let how = PatchParams::apply(MANAGER).force();
    let is = api
        .patch(&name, &how, &Patch::Apply(&object))
        .await
        .map_err(Error::kube("apply an object of a Broker"))?;
    if before.as_ref() == Some(&is.metadata.resource_version) {
        // The API server writes it in another way, and it is the same.
        return Ok(Ok(is));
    }
    let event = Event {
        type_: EventType::Normal,
        reason: if before.is_none() { "Created" } else { "Updated" }.to_owned(),
        note: Some(format!("{} {name}", resource.kind)),
        action: "Apply".to_owned(),
        // Events of the same reason are one, but for this.
        secondary: Some(ObjectReference {
            api_version: Some(resource.api_version.clone()),
            kind: Some(resource.kind.clone()),
            namespace: Some(namespace),
            name: Some(name.clone()),
            ..ObjectReference::default()
        }),
    };
    if let Err(error) = context.recorder.publish(&event, &broker.object_ref(&())).await {
        tracing::debug!(%error, "an event was not recorded");
    }
    Ok(Ok(is))
}

/// Whether all that is wanted is there; what else is there belongs to others.
fn holds(is: &Value, wanted: &Value) -> bool {
    match (is, wanted) {
        (Value::Object(is), Value::Object(wanted)) => wanted
            .iter()
            .all(|(field, wanted)| is.get(field).map_or_else(|| wanted.is_null(), |is| holds(is, wanted))),
        (Value::Array(is), Value::Array(wanted)) => {
            is.len() == wanted.len() && is.iter().zip(wanted).all(|(is, wanted)| holds(is, wanted))
        }
        (is, wanted) => is == wanted,
    }
}

/// What the pods refer to and is not there, in words for people.
async fn missing(context: &Context, broker: &Broker) -> Result<Option<String>, Error> {
    let namespace = broker.namespace().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    for (name, key) in status::secrets(broker) {
        let there = secrets.get_opt(&name).await.map_err(Error::kube("read a Secret of a Broker"))?;
        let Some(there) = there else {
            return Ok(Some(format!("the Secret {namespace}/{name} with the key {key} is missing: make it")));
        };
        if !there.data.is_some_and(|data| data.contains_key(key)) {
            return Ok(Some(format!("the Secret {namespace}/{name} has no key {key}: add it")));
        }
    }
    let config_maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    for (name, key) in status::config_maps(broker) {
        let there = config_maps.get_opt(&name).await.map_err(Error::kube("read a ConfigMap of a Broker"))?;
        let Some(there) = there else {
            return Ok(Some(format!(
                "the ConfigMap {namespace}/{name} with the key {key} is missing: make it"
            )));
        };
        if !there.data.is_some_and(|data| data.contains_key(key)) {
            return Ok(Some(format!("the ConfigMap {namespace}/{name} has no key {key}: add it")));
        }
    }
    Ok(None)
}

/// Says in the status how a Broker is, if that is not what it says.
async fn write_status(
    context: &Context,
    broker: &Broker,
    verdict: &Verdict,
    deployment: Option<&Deployment>,
) -> Result<(), Error> {
    let old = BrokerStatus { scaling: None, ..broker.status.clone().unwrap_or_default() };
    let status = status::status(broker, verdict, deployment, wall(context.clock));
    if status == old {
        return Ok(());
    }
    patch_status(context, broker, &status).await
}

async fn patch_status(context: &Context, broker: &impl Resource, status: &BrokerStatus) -> Result<(), Error> {
    let (namespace, name) = key(broker);
    let api: Api<DeserializeGuard<Broker>> = Api::namespaced(context.client.clone(), &namespace);
    let patch = json!({
        "apiVersion": Broker::api_version(&()),
        "kind": Broker::kind(&()),
        // Not for a Broker that has been made anew under its name meanwhile.
        "metadata": { "name": name, "uid": broker.meta().uid },
        "status": status,
    });
    let how = PatchParams::apply(MANAGER).force();
    let written = api.patch_status(&name, &how, &Patch::Apply(&patch)).await;
    written.map(drop).map_err(Error::kube("write the status of a Broker"))
}

#[cfg(test)]
mod tests;
