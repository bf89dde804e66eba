//! What the admin API shows of consumer groups, and lets people do to them: move and forget them.
//!
//! Turns wire messages into requests to the core and back. Owns nothing.

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::Kind;
use weir_core::groups::{GroupError, GroupReport, GroupShard};
use weir_core::stream::Start;
use weir_env::clock::Timestamp;
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::stream_place::Place;

use super::Service;
use super::convert::status;
use super::stream_ops::start_at;

impl Service {
    pub(super) async fn groups(
        &self,
        request: wire::ListGroupsRequest,
    ) -> Result<wire::ListGroupsResponse, Status> {
        let stream = self.find(Kind::Stream, &request.stream)?;
        let groups = self.core.groups().list(&stream).await.map_err(|error| status(&error, &stream))?;
        let now = self.core.clock().wall();
        Ok(wire::ListGroupsResponse {
            groups: groups.into_iter().map(|group| wire_group(group, now)).collect(),
        })
    }

    pub(super) async fn seek(
        &self,
        request: wire::SeekGroupRequest,
    ) -> Result<wire::SeekGroupResponse, Status> {
        let stream = self.find(Kind::Stream, &request.stream)?;
        let start = start(request.to, &stream)?;
        let (object, group, dry_run) = (Arc::clone(&stream), request.group.clone(), request.dry_run);
        let seek =
            |core: Arc<Core>| async move { core.groups().seek(&object, &group, &start, dry_run).await };
        let places = self.to_the_end(seek).await?;
        let places = places.map_err(|error| refused(&error, &stream, &request.group))?;
        if !dry_run {
            tracing::info!(
                stream = request.stream,
                group = request.group,
                ?places,
                "consumer group was moved"
            );
        }
        let positions = places.into_iter().map(|(shard, offset)| (shard.into(), offset)).collect();
        Ok(wire::SeekGroupResponse { positions })
    }

    pub(super) async fn forget(
        &self,
        request: wire::DeleteGroupRequest,
    ) -> Result<wire::DeleteGroupResponse, Status> {
        let stream = self.find(Kind::Stream, &request.stream)?;
        let (object, group, force) = (Arc::clone(&stream), request.group.clone(), request.force);
        let delete = |core: Arc<Core>| async move { core.groups().delete(&object, &group, force).await };
        let deleted = self.to_the_end(delete).await?;
        deleted.map_err(|error| refused(&error, &stream, &request.group))?;
        tracing::info!(stream = request.stream, group = request.group, "consumer group was deleted");
        Ok(wire::DeleteGroupResponse {})
    }
}

/// Where a group is to go on.
fn start(to: Option<wire::StreamPlace>, stream: &Object) -> Result<Start, Status> {
    match to.and_then(|to| to.place) {
        None => Err(Status::invalid_argument(
            "where to go on is missing; allowed for `to`: a place in the stream",
        )),
        Some(Place::Offsets(offsets)) if offsets.shards.is_empty() => {
            Err(Status::invalid_argument("`to` names no shard; allowed: an offset for each of one or more"))
        }
        Some(place) => start_at(stream, None, place),
    }
}

fn refused(error: &GroupError, stream: &Object, group: &str) -> Status {
    let name = &stream.definition.name;
    match error {
        GroupError::Missing => {
            let hint = format!("`weir stream groups {name}` shows what there is");
            Status::not_found(format!("stream `{name}` has no group `{group}`; {hint}"))
        }
        GroupError::InUse(members) => Status::failed_precondition(format!(
            "group `{group}` has members ({members}): disconnect them, or force its deletion"
        )),
        GroupError::Failed(error) => status(error, stream),
    }
}

fn wire_group(group: GroupReport, now: Timestamp) -> wire::Group {
    let oldest = group.shards.iter().filter_map(|shard| shard.oldest).min();
    wire::Group {
        name: group.name.into(),
        members: group.members.into_iter().map(Into::into).collect(),
        lag: group.shards.iter().map(|shard| shard.lag).sum(),
        lag_millis: age(oldest, now),
        shards: group.shards.into_iter().map(|shard| wire_shard(shard, now)).collect(),
    }
}

fn wire_shard(shard: GroupShard, now: Timestamp) -> wire::GroupShard {
    wire::GroupShard {
        shard: shard.shard.into(),
        position: shard.position,
        end: shard.end,
        lag: shard.lag,
        lag_millis: age(shard.oldest, now),
        member: shard.member.unwrap_or_default().into(),
        generation: shard.generation,
        committed_micros: shard.committed_at.as_micros(),
    }
}

/// How long ago that was, in milliseconds; 0 for never.
fn age(at: Option<Timestamp>, now: Timestamp) -> u64 {
    let age = at.map_or(Duration::ZERO, |at| now.saturating_since(at));
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
