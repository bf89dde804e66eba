//! A snapshot that the server holds for this client. It ends with the session.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use weir_proto::store::v1 as wire;
use weir_storage::{RangePage, RangeQuery, Result, Snapshot, Version};

use super::Shared;
use super::transaction::read_page;

pub(super) struct HeldSnapshot {
    shared: Arc<Shared>,
    held: wire::Held,
    version: Version,
}

impl HeldSnapshot {
    pub(super) async fn new(shared: &Arc<Shared>) -> Result<Self> {
        let _entered = shared.enter()?;
        let session = shared.session(shared.deadline()).await?;
        let name = &session.name;
        let asked = shared.ask(|mut client| async move {
            client.hold(wire::HoldRequest { session: Some(name.clone()) }).await
        });
        let answer = asked.await?;
        shared.checked(answer.failure)?;
        let held = wire::Held { session: Some(name.clone()), number: answer.number };
        Ok(Self { shared: Arc::clone(shared), held, version: Version(answer.version) })
    }
}

#[async_trait]
impl Snapshot for HeldSnapshot {
    fn version(&self) -> Version {
        self.version
    }

    async fn get_range(&mut self, query: RangeQuery) -> Result<RangePage> {
        let _entered = self.shared.enter()?;
        let unwritten = weir_storage::pending::WriteSet::default();
        let mut version = Some(self.version);
        read_page(&self.shared, &query, &unwritten, &mut version, Some(&self.held)).await
    }
}

impl Drop for HeldSnapshot {
    fn drop(&mut self) {
        let Ok(entered) = self.shared.enter() else { return };
        let (mut client, held) = (self.shared.client.clone(), self.held.clone());
        let timeout = self.shared.timeout;
        self.shared.tasks.spawn(async move {
            let _entered = entered;
            // If it is not heard the session's end lets go of it.
            let release = client.release(wire::ReleaseRequest { held: Some(held) });
            let _ = tokio::time::timeout(timeout, release).await;
        });
    }
}

impl fmt::Debug for HeldSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldSnapshot").field("version", &self.version).finish_non_exhaustive()
    }
}
