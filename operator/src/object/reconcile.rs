//! Carries out what [`super::plan`] decides: asks the Broker, writes status, finalizer and events. Owns the count of failures of
//! each object and the marks of those under way.
//!
//! Objects that are being deleted have workers of their own, so that failing ones never keep them waiting. An object is
//! worked on by one worker at a time all the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams};
use kube::core::object::NotUsed;
use kube::core::{ApiResource, DeserializeGuard, Object, PartialObjectMeta};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::Instrument as _;
use weir_env::seed::HashSet;
use weir_operator_api::{ObjectStatus, Problem, StatusBroker};

use super::plan::{self, Again, Settled, Step, Subject};
use super::{Declares, FINALIZER, FORCE_RELEASE, Note, PAUSE};
use crate::backoff::{Backoffs, jittered};
use crate::brokers::{
    AWAY_GRACE, AdminError, BrokerId, Declaration, Health, Link, Owner, Place, Policy, State, find,
};
use crate::conditions;
use crate::context::{Context, MANAGER};
use crate::error::Error;
use crate::leader::wall;

/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Pause if a Broker has no room for a call, or another worker has the object.
const SOON: Duration = Duration::from_millis(100);
/// Steps of one reconciliation: hold, apply, say.
const STEPS_MAX: usize = 4;
/// Objects that were let go, of which the watch may show an older state.
const LET_GO_MAX: usize = 256;

/// Which objects a set of workers takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Those that are to be.
    Living,
    /// Those that are being deleted.
    Dying,
}

/// What workers of one kind share.
pub(crate) struct Objects<K: Declares> {
    pub(crate) context: Arc<Context>,
    backoffs: Backoffs<ObjectRef<K>>,
    /// Of those that were set back, so that who changes them again and again is not answered as often.
    repairs: Backoffs<ObjectRef<K>>,
    under_way: Mutex<HashSet<ObjectRef<K>>>,
    /// Uids, oldest first.
    let_go: Mutex<VecDeque<String>>,
}

/// Takes its object's mark away.
struct Mark<'o, K: Declares>(&'o Objects<K>, ObjectRef<K>);

impl<K: Declares> Drop for Mark<'_, K> {
    fn drop(&mut self) {
        self.0.under_way.lock().remove(&self.1);
    }
}

impl<K: Declares> Objects<K> {
    /// Nothing under way.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let pauses = |what| Backoffs::new(PAUSES.0, PAUSES.1, context.clock, context.seed.fork(what));
        let (backoffs, repairs) = (pauses(K::KIND.object()), pauses("repairs"));
        Self { context, backoffs, repairs, under_way: Mutex::default(), let_go: Mutex::default() }
    }

    fn mark(&self, object: ObjectRef<K>) -> Option<Mark<'_, K>> {
        self.under_way.lock().insert(object.clone()).then_some(Mark(self, object))
    }

    /// Whether the finalizer of the object with this uid was taken away, and the watch is only behind.
    fn was_let_go(&self, uid: Option<&String>) -> bool {
        uid.is_some_and(|uid| self.let_go.lock().contains(uid))
    }

    fn remember_let_go(&self, uid: Option<String>) {
        let mut let_go = self.let_go.lock();
        if let_go.len() >= LET_GO_MAX {
            let_go.pop_front();
        }
        let_go.extend(uid);
    }
}

/// The pause before an object is tried again whose reconciliation failed.
pub(crate) fn again_after<K: Declares>(
    object: &DeserializeGuard<K>,
    error: &Error,
    objects: &Objects<K>,
) -> Action {
    match error {
        Error::Conflict | Error::Kube { .. } | Error::OldDefinitions { .. } | Error::NoRandomness => {
            Action::requeue(objects.backoffs.fail(reference(object)))
        }
    }
}

fn reference<K: Declares>(object: &DeserializeGuard<K>) -> ObjectRef<K> {
    ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default())
}

/// Brings an object and its queue or stream together.
pub(crate) async fn reconcile<K: Declares>(
    guarded: Arc<DeserializeGuard<K>>,
    objects: Arc<Objects<K>>,
    urgency: Urgency,
) -> Result<Action, Error> {
    let is_dying = guarded.meta().deletion_timestamp.is_some();
    if is_dying != (urgency == Urgency::Dying) || objects.was_let_go(guarded.meta().uid.as_ref()) {
        return Ok(Action::await_change());
    }
    let reference = reference(&guarded);
    let Some(_mark) = objects.mark(reference.clone()) else { return Ok(Action::requeue(SOON)) };
    let span = tracing::info_span!(
        "reconcile",
        kind = K::KIND.object(),
        namespace = reference.namespace.as_deref(),
        name = %reference.name,
    );
    let begun = objects.context.clock.now();
    let ended = Work { objects: &objects, reference: &reference }.run(&guarded).instrument(span).await;
    let took = objects.context.clock.now().saturating_duration_since(begun);
    let label = ended.as_ref().map_or_else(Error::label, |again| again.label());
    objects.context.metrics.reconciled(K::KIND.object(), label, took);
    let again = ended.inspect_err(|error| match error {
        Error::Conflict => tracing::debug!(object = %reference, "changed meanwhile"),
        Error::Kube { source, .. } => tracing::warn!(object = %reference, %error, %source, "not reconciled"),
        Error::OldDefinitions { .. } | Error::NoRandomness => {
            tracing::warn!(object = %reference, %error, "not reconciled");
        }
    })?;
    if again != Again::Backoff {
        objects.backoffs.succeed(&reference);
    }
    Ok(match again {
        Again::Woken => Action::await_change(),
        Again::Resync => Action::requeue(jittered(objects.context.resync, &objects.context.seed)),
        Again::Backoff => Action::requeue(objects.backoffs.fail(reference)),
        Again::Repair => Action::requeue(objects.repairs.left(&reference)),
    })
}

impl Again {
    fn label(self) -> &'static str {
        match self {
            Self::Woken => "done",
            Self::Resync => "stalled",
            Self::Backoff | Self::Repair => "retry",
        }
    }
}

/// One reconciliation.
struct Work<'w, K: Declares> {
    objects: &'w Objects<K>,
    reference: &'w ObjectRef<K>,
}

impl<K: Declares> Work<'_, K> {
    async fn run(&self, guarded: &DeserializeGuard<K>) -> Result<Again, Error> {
        let mut object = match &guarded.0 {
            Ok(object) => object.clone(),
            Err(invalid) => return self.unreadable(guarded, &invalid.error).await,
        };
        for _ in 0..STEPS_MAX {
            let (subject, place) = self.look(&object);
            let link = self.link(&place);
            let broker = match &link {
                Some(link) => {
                    plan::Broker::At { health: link.health(), in_sync: self.in_sync(link, &object, &subject) }
                }
                // The Broker has only just come or gone: its follower wakes the object.
                None if matches!(place, Place::At(_)) => {
                    plan::Broker::At { health: Health::New, in_sync: None }
                }
                None => plan::Broker::None(place),
            };
            let mut step = plan::next(&subject, &broker);
            if let (Step::Release, Some(link)) = (&step, &link) {
                let answer = link.release(&self.declaration(&object), subject.policy).await;
                let is_ending =
                    answer.is_err() && self.has_waited(&object) && self.is_namespace_ending().await;
                step = plan::released(&subject, answer, is_ending);
            } else if let (Some(why), Step::Say(_), true) = (broker.unreachable(), &step, subject.is_deleted)
                && self.has_waited(&object)
                && self.is_namespace_ending().await
            {
                let answer = Err(AdminError::Unavailable(why.to_owned()));
                step = plan::released(&subject, answer, true);
            }
            match step {
                Step::Nothing => return Ok(Again::Woken),
                Step::Hold => object = self.hold(&object).await?,
                Step::LetGo(note) => {
                    self.note(&object, &note).await;
                    self.let_go(&object).await?;
                    return Ok(Again::Woken);
                }
                Step::Say(settled) => return self.say(&object, &subject.status, settled, None).await,
                Step::Apply => {
                    let Some(link) = link else { return Ok(Again::Backoff) };
                    let is_drift = self.is_drift(&link, &object, &subject);
                    if is_drift && !self.objects.repairs.left(self.reference).is_zero() {
                        return self.say(&object, &subject.status, plan::fought_over(&subject), None).await;
                    }
                    // First touch: nobody may take it for ready that it says nothing.
                    if conditions::status_of(&subject.status.conditions, conditions::READY).is_none() {
                        let pending = Settled {
                            verdict: Some(conditions::Verdict::pending()),
                            notes: Vec::new(),
                            again: Again::Woken,
                        };
                        self.say(&object, &subject.status, pending, None).await?;
                    }
                    let settled = plan::applied(&subject, link.apply(&self.declaration(&object)).await);
                    if plan::is_repair(&settled) {
                        self.objects.context.metrics.repaired(K::KIND.object());
                        self.objects.repairs.fail(self.reference.clone());
                    }
                    return self.say(&object, &subject.status, settled, Some(&link.id)).await;
                }
                Step::Release => return Ok(Again::Backoff),
            }
        }
        Ok(Again::Backoff)
    }

    fn look(&self, object: &K) -> (Subject, Place) {
        let metadata = object.meta();
        let annotation = |name: &str| {
            metadata.annotations.as_ref().and_then(|all| all.get(name)).is_some_and(|value| value != "false")
        };
        let status = object.status().cloned().unwrap_or_default();
        let declared = status
            .broker_ref
            .as_ref()
            .map(|at| BrokerId { namespace: at.namespace.clone(), name: at.name.clone() });
        let is_deleted = metadata.deletion_timestamp.is_some();
        let place = find(
            &self.objects.context.known(),
            metadata.namespace.as_deref().unwrap_or_default(),
            object.broker_ref(),
            declared.as_ref(),
            is_deleted,
        );
        let subject = Subject {
            kind: K::KIND,
            backend: object.backend().to_owned(),
            generation: metadata.generation.unwrap_or(0),
            is_deleted,
            is_held: object.finalizers().iter().any(|finalizer| finalizer == FINALIZER),
            is_paused: annotation(PAUSE),
            is_forced: annotation(FORCE_RELEASE),
            policy: object.policy(),
            problems: object.problems(),
            status,
        };
        (subject, place)
    }

    fn link(&self, place: &Place) -> Option<Arc<Link>> {
        match place {
            Place::At(broker) => self.objects.context.links.get(&BrokerId::of(broker)),
            _ => None,
        }
    }

    fn in_sync(&self, link: &Link, object: &K, subject: &Subject) -> Option<State> {
        let uid = object.uid().unwrap_or_default();
        link.ledger.lock().in_sync(K::KIND, &subject.backend, &uid, subject.generation).cloned()
    }

    /// Whether the Broker had this generation, and has it no more.
    fn is_drift(&self, link: &Link, object: &K, subject: &Subject) -> bool {
        let uid = object.uid().unwrap_or_default();
        link.ledger.lock().has_drifted(K::KIND, &subject.backend, &uid, subject.generation)
    }

    fn declaration(&self, object: &K) -> Declaration {
        Declaration {
            owner: Owner {
                cluster: self.objects.context.cluster.clone(),
                namespace: object.namespace().unwrap_or_default(),
                object: object.name_any(),
                uid: object.uid().unwrap_or_default(),
                generation: object.meta().generation.unwrap_or(0),
            },
            kind: K::KIND,
            name: object.backend().to_owned(),
            spec: object.spec_json(),
        }
    }

    /// An object that these types cannot hold, though the API server has let it through.
    async fn unreadable(&self, guarded: &DeserializeGuard<K>, error: &str) -> Result<Again, Error> {
        let metadata = guarded.meta();
        let subject = Subject {
            kind: K::KIND,
            backend: self.reference.name.clone(),
            generation: metadata.generation.unwrap_or(0),
            is_deleted: metadata.deletion_timestamp.is_some(),
            is_held: guarded.finalizers().iter().any(|finalizer| finalizer == FINALIZER),
            is_paused: false,
            is_forced: true,
            policy: Policy::Retain,
            problems: vec![Problem::new("spec", error)],
            status: self.read_status().await?,
        };
        let nowhere = plan::Broker::None(Place::Missing("the object cannot be read".to_owned()));
        match plan::next(&subject, &nowhere) {
            Step::Say(settled) => self.say(guarded, &subject.status, settled, None).await,
            Step::LetGo(note) => {
                self.note(guarded, &note).await;
                self.let_go(guarded).await?;
                Ok(Again::Woken)
            }
            Step::Nothing | Step::Hold | Step::Apply | Step::Release => Ok(Again::Woken),
        }
    }

    /// The status of an object of which no more can be read.
    async fn read_status(&self) -> Result<ObjectStatus, Error> {
        let namespace = self.reference.namespace.as_deref().unwrap_or_default();
        let kind = ApiResource::erase::<K>(&());
        let api: Api<Object<NotUsed, ObjectStatus>> =
            Api::namespaced_with(self.objects.context.client.clone(), namespace, &kind);
        let object = api.get_opt(&self.reference.name).await.map_err(Error::kube("read the status"))?;
        Ok(object.and_then(|object| object.status).unwrap_or_default())
    }

    fn api(&self) -> Api<DeserializeGuard<K>> {
        let namespace = self.reference.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.objects.context.client.clone(), namespace)
    }

    async fn hold(&self, object: &K) -> Result<K, Error> {
        let mut finalizers = object.finalizers().to_vec();
        finalizers.push(FINALIZER.to_owned());
        let patch = finalizers_patch(object.meta().resource_version.as_deref(), &finalizers);
        let held = self
            .api()
            .patch(&self.reference.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(Error::kube("add the finalizer"))?;
        // It could be read a moment ago: whoever has changed it since is looked at next.
        held.0.map_err(|_| Error::Conflict)
    }

    async fn let_go(&self, object: &impl Resource) -> Result<(), Error> {
        let all = object.meta().finalizers.iter().flatten();
        let finalizers: Vec<String> = all.filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
        let patch = finalizers_patch(object.meta().resource_version.as_deref(), &finalizers);
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(
            self.objects.context.client.clone(),
            self.reference.namespace.as_deref().unwrap_or_default(),
        );
        match api.patch_metadata(&self.reference.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            patched => patched.map(drop).map_err(Error::kube("remove the finalizer"))?,
        }
        self.objects.remember_let_go(object.uid());
        Ok(())
    }

    /// Whether its deletion has waited for the Broker for long.
    fn has_waited(&self, object: &K) -> bool {
        let now = wall(self.objects.context.clock);
        object.meta().deletion_timestamp.as_ref().is_some_and(|deleted| {
            let waited = Duration::try_from(now.duration_since(deleted.0));
            waited.is_ok_and(|waited| waited >= AWAY_GRACE)
        })
    }

    /// Whether the object's namespace is being deleted; not, if that cannot be found out.
    async fn is_namespace_ending(&self) -> bool {
        let namespaces: Api<Namespace> = Api::all(self.objects.context.client.clone());
        let name = self.reference.namespace.as_deref().unwrap_or_default();
        match namespaces.get_opt(name).await {
            Ok(namespace) => {
                namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some())
            }
            Err(error) => {
                tracing::debug!(namespace = name, %error, "the namespace cannot be read");
                false
            }
        }
    }

    /// Writes the status if it says anything new, and the events.
    async fn say(
        &self,
        object: &impl Resource<DynamicType = ()>,
        old: &ObjectStatus,
        settled: Settled,
        declared: Option<&BrokerId>,
    ) -> Result<Again, Error> {
        let Settled { verdict, notes, again } = settled;
        if let Some(verdict) = verdict {
            let generation = object.meta().generation.unwrap_or(0);
            let now = wall(self.objects.context.clock);
            let at = declared
                .map(|id| StatusBroker { namespace: id.namespace.clone(), name: id.name.clone() })
                .or_else(|| old.broker_ref.clone());
            let status = ObjectStatus {
                observed_generation: Some(generation),
                conditions: verdict.conditions(&old.conditions, generation, now),
                broker_ref: at,
            };
            if *old != status
                && let Err(error) = self.write_status(object.meta().uid.as_ref(), &status).await
            {
                if matches!(error, Error::OldDefinitions { .. }) {
                    // People look at the object, whose status tells nothing now.
                    self.note(object, &Note::warning("OldDefinitions", error.to_string())).await;
                }
                return Err(error);
            }
        }
        for note in &notes {
            self.note(object, note).await;
        }
        Ok(again)
    }

    async fn write_status(&self, uid: Option<&String>, status: &ObjectStatus) -> Result<(), Error> {
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            // Not for an object that has been made anew under its name meanwhile.
            "metadata": { "uid": uid },
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        match self.api().patch_status(&self.reference.name, &params, &Patch::Apply(patch)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(kube::Error::Api(status)) if is_old_definition(&status.message) => {
                Err(Error::OldDefinitions { kind: K::KIND.object(), said: status.message.clone() })
            }
            written => written.map(drop).map_err(Error::kube("write the status")),
        }
    }

    /// An event that cannot be written is not worth a failure: a namespace that ends takes none.
    async fn note(&self, object: &impl Resource<DynamicType = ()>, note: &Note) {
        tracing::info!(object = %self.reference, reason = note.reason, "{}", note.text);
        let published = self.objects.context.recorder.publish(&note.event(), &object.object_ref(&())).await;
        if let Err(error) = published {
            tracing::debug!(object = %self.reference, %error, "event not written");
        }
    }
}

/// Whether the API server knows fewer fields than this operator writes.
fn is_old_definition(said: &str) -> bool {
    said.contains("field not declared in schema")
}

fn finalizers_patch(version: Option<&str>, finalizers: &[String]) -> Value {
    json!({ "metadata": { "resourceVersion": version, "finalizers": finalizers } })
}
