//! The task of one virtual shard in this pod: an owner's, or, where another pod owns the shard, one that passes on what is
//! asked. It changes with the ownership; who holds the shard's handle does not notice.
//!
//! Knows when to be which. That only one pod writes is the affair of the fence.

use std::time::Duration;

use tokio::sync::mpsc;

use super::fence::{self, Tenure};
use super::handed::{Carried, Handed};
use super::owner::ShardOwner;
use super::remote::Forwarder;
use super::{Command, Context};
use crate::cluster::Cluster;
use crate::error::Error;
use crate::keyspace::VirtualShard;
use crate::keyspace::owner::{Epoch, Owner};
use crate::metrics::Takeover;

/// First wait after a takeover that failed; it doubles.
const RETRY_WAIT: Duration = Duration::from_millis(20);
/// Longest wait after a takeover that failed.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(1);

/// Runs until closed.
pub(super) async fn run(context: Context, vs: VirtualShard, commands: mpsc::Receiver<Command>) {
    let Some(cluster) = context.cluster.clone() else {
        let owner = ShardOwner::new(context, vs, commands, Carried::default(), None);
        finish(Box::pin(owner.run()).await);
        return;
    };
    // The last epoch in which this task was the owner.
    let mut mine = None;
    let mut handed = Handed { commands, carried: Carried::default(), closing: None, offer: None };
    loop {
        let Handed { commands, carried, .. } = handed;
        handed = if is_ours(&cluster, vs) {
            match Box::pin(take_over(&context, &cluster, vs, mine)).await {
                Some(tenure) => {
                    mine = Some(tenure.owner.epoch);
                    let owner = ShardOwner::new(context.clone(), vs, commands, carried, Some(tenure));
                    Box::pin(owner.run()).await
                }
                None => Handed { commands, carried, closing: None, offer: None },
            }
        } else {
            match context.remote.clone() {
                Some(remote) => {
                    let forwarder = Forwarder::new(context.clone(), remote, vs, commands, carried);
                    Box::pin(forwarder.run()).await
                }
                None => Box::pin(stand_by(&context, &cluster, vs, commands, carried)).await,
            }
        };
        if handed.closing.is_some() || handed.commands.is_closed() || context.closed.is_cancelled() {
            finish(handed);
            return;
        }
        if let Some(offer) = handed.offer.take() {
            offer.settled().await;
        }
    }
}

/// Nobody is asked any more: whoever waits is told by what is dropped here.
fn finish(handed: Handed) {
    let Handed { commands, carried, closing, offer } = handed;
    drop((commands, carried, offer));
    if let Some(reply) = closing {
        let _ = reply.send(());
    }
}

/// Whether this pod owns `vs`, or is to take it over.
pub(crate) fn is_ours(cluster: &Cluster, vs: VirtualShard) -> bool {
    match cluster.owner_of(vs) {
        Some(owner) => owner == cluster.me(),
        None => cluster.should_own(vs),
    }
}

/// Takes `vs` over; none if that is not for this pod to do any more, or it is closed.
async fn take_over(
    context: &Context,
    cluster: &Cluster,
    vs: VirtualShard,
    mine: Option<Epoch>,
) -> Option<Tenure> {
    let mut wait = RETRY_WAIT;
    while is_ours(cluster, vs) && !context.closed.is_cancelled() {
        let before = cluster.record_of(vs);
        match fence::take_over(context, vs, None).await {
            Ok(tenure) => {
                note(cluster, vs, before, mine, tenure.owner);
                return Some(tenure);
            }
            Err(Error::NotOwner(owner)) => {
                cluster.learn_owner(vs, owner);
                // Its end may not be known here yet, nor its beginning.
                cluster.feed().wake();
            }
            Err(error) => tracing::debug!(shard = vs.0, %error, "take virtual shard over"),
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_WAIT_MAX),
            () = context.closed.cancelled() => {}
        }
    }
    None
}

/// Tells of a takeover, before which the newest record known was `before`.
fn note(cluster: &Cluster, vs: VirtualShard, before: Option<Owner>, mine: Option<Epoch>, owner: Owner) {
    let reason = match before {
        None => "new",
        Some(before) if before.pod != cluster.me() => "dead",
        Some(before) if mine.is_some_and(|mine| before.epoch <= mine) => "own",
        Some(_) => "given",
    };
    cluster.learn_owner(vs, owner);
    cluster.feed().wake();
    cluster.metrics().takeovers.get_or_create(&Takeover { reason }).inc();
    tracing::debug!(shard = vs.0, epoch = owner.epoch.0, reason, "took virtual shard over");
}

/// Where another pod is the owner: waits until this one is to be.
async fn stand_by(
    context: &Context,
    cluster: &Cluster,
    vs: VirtualShard,
    mut commands: mpsc::Receiver<Command>,
    carried: Carried,
) -> Handed {
    let (mut members, mut owners) = (cluster.members(), cluster.owners_changed());
    loop {
        members.mark_unchanged();
        owners.mark_unchanged();
        if is_ours(cluster, vs) {
            break;
        }
        tokio::select! {
            _ = members.changed() => {}
            _ = owners.changed() => {}
            () = context.closed.cancelled() => break,
            command = commands.recv() => {
                let Some(command) = command else { break };
                if let Command::Close { reply } = command {
                    return Handed { commands, carried, closing: Some(reply), offer: None };
                }
                refuse(command);
            }
        }
    }
    Handed { commands, carried, closing: None, offer: None }
}

/// Whoever waits for an answer is told by the end of the channel; publishers are told more.
fn refuse(command: Command) {
    if let Command::Append(pending) = command {
        pending.answer(Err(Error::Fenced.into()));
    }
}
