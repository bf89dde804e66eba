//! Removing the oldest messages of a stream because somebody says so.
//!
//! Works out where each shard is to begin; the owners of the shards cut. Owns nothing.

use std::sync::Arc;

use futures_util::future::try_join_all;

use super::{Start, place, rows};
use crate::catalog::Object;
use crate::core::Core;
use crate::error::Result;
use crate::keyspace::LogId;
use crate::shard::{Command, Extent};

/// What a trim does to a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// Number of the shard.
    pub shard: u8,
    /// What is kept.
    pub extent: Extent,
    /// Messages that went; of a compacted stream those that were there when it began.
    pub removed: u64,
}

impl Core {
    /// Removes what comes before `before`, of `shard` alone or of all; never what is published meanwhile. With `dry_run`
    /// nothing is changed. When this is done half, calling it again does the rest.
    ///
    /// # Errors
    /// If a shard cannot be taken over, read or written, the first of them.
    pub async fn trim(
        &self,
        stream: &Arc<Object>,
        before: &Start,
        shard: Option<u8>,
        dry_run: bool,
    ) -> Result<Vec<Trimmed>> {
        let logs = stream.logs.iter().filter(|log| shard.is_none_or(|shard| log.shard == shard));
        try_join_all(logs.map(|log| self.trim_shard(stream, *log, before, dry_run))).await
    }

    async fn trim_shard(
        &self,
        stream: &Arc<Object>,
        log: LogId,
        before: &Start,
        dry_run: bool,
    ) -> Result<Trimmed> {
        let owner = self.shard(log.vs)?;
        let object = Arc::clone(stream);
        let Extent { start, next } =
            owner.ask(|reply| Command::Describe { object, log, reply }).await??.extent;
        let last_value = stream.definition.last_value;
        let below = place::begin(self.store(), &log, last_value, before, Extent { start, next }).await?;
        let shard = log.shard;
        let counted =
            if last_value { Some(rows::count(self.store(), &log, (start, below)).await?) } else { None };
        if dry_run || below <= start {
            let extent = Extent { start: below.max(start), next };
            return Ok(Trimmed { shard, extent, removed: counted.unwrap_or(extent.start - start) });
        }
        let object = Arc::clone(stream);
        let extent = owner.ask(|reply| Command::Trim { object, log, below, reply }).await??;
        Ok(Trimmed { shard, extent, removed: counted.unwrap_or(extent.start.saturating_sub(start)) })
    }
}
