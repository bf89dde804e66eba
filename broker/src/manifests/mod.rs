//! Queues and streams out of a folder of manifests: read at the start, and followed from then on.
//!
//! A folder counts as a whole. What it declares is applied together or, if one manifest is bad, not at all:
//! at the start that ends the process, later the queues and streams stay as they were. The truth is the
//! core's catalog; what a Broker says of subscriptions goes to the policy of automatic creation. This module owns only
//! what still waits to be applied. It must never know connections.

mod definitions;
mod single;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::{Context, anyhow};
use tokio_util::sync::CancellationToken;
use weir_core::Core;
use weir_core::catalog::{Applied, ApplyError, Object};
use weir_core::definition::Kind;
use weir_manifest::{ManifestError, ManifestSet, Watcher};

use crate::auto_create::{AutoCreate, Policy};
use crate::config::Config;
use definitions::{definitions, policy, template};
pub(crate) use single::{changed_fields, definition_of, definition_of_object, merge, spec_of};

/// Names of queues and streams that one log line tells; more are counted.
const NAMES_MAX: usize = 20;

/// What a look at the folder found: a change, good or bad, if there is one.
type Look = Option<Result<ManifestSet, Vec<ManifestError>>>;

/// Why a set of manifests was not applied.
#[derive(Debug)]
enum Failure {
    /// They have to be changed; one line for each problem.
    Manifests(Vec<String>),
    /// The store did not take them: another attempt may succeed.
    Store(weir_core::Error),
}

/// Applies what the folder declares now.
///
/// # Errors
/// If a manifest is bad, with every problem in the text, or the store fails. Nothing is applied then.
pub(crate) async fn load_and_apply(
    core: &Arc<Core>,
    auto_create: &AutoCreate,
    watcher: &mut Watcher,
) -> anyhow::Result<()> {
    let Some(loaded) = poll(watcher).await? else { return Ok(()) };
    let set = loaded.map_err(|errors| refused(watcher, &lines(&errors)))?;
    match apply(core, auto_create, &set).await {
        Ok(applied) => {
            tell_applied(&set, &applied);
            Ok(())
        }
        Err(Failure::Manifests(problems)) => Err(refused(watcher, &problems)),
        Err(Failure::Store(error)) => Err(error).context("store what the manifests declare"),
    }
}

/// Applies each change of the folder, until `shutdown`.
pub(crate) async fn follow(
    core: Arc<Core>,
    auto_create: Arc<AutoCreate>,
    watcher: Watcher,
    shutdown: CancellationToken,
) {
    let interval = watcher.interval();
    let mut follower = Follower { core, auto_create, watcher, waiting: None };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        follower.step().await.tell();
    }
}

/// Follows a folder, step by step.
struct Follower {
    core: Arc<Core>,
    auto_create: Arc<AutoCreate>,
    watcher: Watcher,
    /// Good, but not stored yet.
    waiting: Option<ManifestSet>,
}

/// What a step of a [`Follower`] did.
#[derive(Debug)]
enum Step {
    /// The folder is as it was.
    Unchanged,
    Applied(ManifestSet, Applied),
    /// The change is bad, and everything stays as it was; one line for each problem.
    Refused(Vec<String>),
    /// The change waits for the store.
    Waiting {
        error: weir_core::Error,
        is_new: bool,
    },
    /// The folder could not be looked at.
    Failed(anyhow::Error),
}

impl Follower {
    async fn step(&mut self) -> Step {
        let mut is_new = false;
        match poll(&mut self.watcher).await {
            Ok(None) => {}
            Ok(Some(Ok(set))) => {
                is_new = true;
                self.waiting = Some(set);
            }
            Ok(Some(Err(errors))) => return Step::Refused(lines(&errors)),
            Err(error) => return Step::Failed(error),
        }
        let Some(set) = self.waiting.take() else { return Step::Unchanged };
        match apply(&self.core, &self.auto_create, &set).await {
            Ok(applied) => Step::Applied(set, applied),
            Err(Failure::Manifests(problems)) => Step::Refused(problems),
            Err(Failure::Store(error)) => {
                self.waiting = Some(set);
                Step::Waiting { error, is_new }
            }
        }
    }
}

impl Step {
    fn tell(&self) {
        match self {
            Self::Unchanged => {}
            Self::Applied(set, applied) => tell_applied(set, applied),
            Self::Refused(problems) => {
                for problem in problems {
                    tracing::error!(%problem, "manifest refused; queues and streams stay as they were");
                }
            }
            Self::Waiting { error, is_new: true } => {
                tracing::error!(%error, "manifests not stored; tried again until they are");
            }
            Self::Waiting { error, is_new: false } => tracing::debug!(%error, "manifests not stored"),
            Self::Failed(error) => tracing::error!(%error, "manifests not read"),
        }
    }
}

/// Looks at the folder on a blocking thread. A watcher lost with its thread starts anew.
async fn poll(watcher: &mut Watcher) -> anyhow::Result<Look> {
    let fresh = Watcher::new(watcher.dir(), watcher.interval());
    let mut looking = std::mem::replace(watcher, fresh);
    let look = tokio::task::spawn_blocking(move || {
        let look = looking.poll();
        (looking, look)
    });
    let (back, look) = look.await.context("read manifests")?;
    *watcher = back;
    Ok(look)
}

async fn apply(core: &Core, auto_create: &AutoCreate, set: &ManifestSet) -> Result<Applied, Failure> {
    let definitions = definitions(set).map_err(Failure::Manifests)?;
    let policy = match &set.brokers[..] {
        [broker] => Some(policy(broker).map_err(Failure::Manifests)?),
        _ => None,
    };
    let applied = core.apply(&definitions).await.map_err(|error| match error {
        ApplyError::Invalid { kind, name, field, problem, refusal: _ } => {
            let place = place(set, kind, &name);
            Failure::Manifests(vec![format!("{place}: {field}: {problem}")])
        }
        ApplyError::Failed(error) => Failure::Store(error),
    })?;
    auto_create.declare(policy);
    Ok(applied)
}

/// What the configuration says of queues and streams that do not exist: templates have the defaults of a manifest.
pub(crate) fn configured(config: &Config) -> Policy {
    let queues = config.auto_create_queues.iter().map(|pattern| (Kind::Queue, pattern));
    let streams = config.auto_create_streams.iter().map(|pattern| (Kind::Stream, pattern));
    let templates = queues.chain(streams).map(|(kind, pattern)| template(kind, pattern.clone()));
    Policy { wait: config.wait_for_queue, templates: templates.collect() }
}

/// Where the object of `kind` that clients know as `name` is declared.
fn place(set: &ManifestSet, kind: &str, name: &str) -> String {
    let queue = set.queues.iter().find(|queue| kind == "MessageQueue" && queue.object.queue_name() == name);
    let stream = set.streams.iter().find(|stream| kind == "Stream" && stream.object.stream_name() == name);
    let source = queue.map(|queue| &queue.source).or(stream.map(|stream| &stream.source));
    source.map_or_else(|| format!("{kind} `{name}`"), ToString::to_string)
}

fn lines(errors: &[ManifestError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn refused(watcher: &Watcher, problems: &[String]) -> anyhow::Error {
    anyhow!("manifests in {} are refused:\n  {}", watcher.dir().display(), problems.join("\n  "))
}

fn tell_applied(set: &ManifestSet, applied: &Applied) {
    for warning in &set.warnings {
        tracing::warn!(%warning, "manifest ignored");
    }
    for broker in &set.brokers {
        if set.brokers.len() == 1 {
            tracing::info!(
                manifest = %broker.source,
                "of the Broker, waitForQueue and autoCreate are applied: all else comes from flags and configuration"
            );
        } else {
            tracing::warn!(
                manifest = %broker.source,
                "Broker is not applied: there is more than one, and this process cannot tell which it is"
            );
        }
    }
    if !applied.yielded.is_empty() {
        tracing::warn!(
            names = %names(applied.yielded.iter().cloned()),
            "manifests without effect: objects of a Kubernetes cluster declare the same; remove one of the two"
        );
    }
    if set.queues.is_empty() && set.streams.is_empty() {
        tracing::warn!("manifests declare no queue and no stream");
    }
    tracing::info!(
        queues = set.queues.len(),
        streams = set.streams.len(),
        created = %names(applied.created.iter().map(|object| label(object))),
        updated = %names(applied.updated.iter().map(|object| label(object))),
        orphaned = %names(applied.orphaned.iter().cloned()),
        deleted = %names(applied.deleted.iter().map(|object| label(object))),
        "manifests applied"
    );
}

fn label(object: &Object) -> String {
    let kind = match object.definition.kind {
        Kind::Queue => "queue",
        Kind::Stream => "stream",
    };
    format!("${kind}/{}", object.definition.name)
}

fn names(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let mut text = names.take(NAMES_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
