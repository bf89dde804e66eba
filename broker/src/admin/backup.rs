//! A backup for a client of the admin API: read as the client takes it, a few parts of it in memory.
//!
//! A backup holds its version of the store, so the disk keeps what is overwritten meanwhile. Therefore there is one at a
//! time, and a client that takes nothing for a while loses it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weir_core::Core;
use weir_env::clock::Clock;
use weir_proto::admin::v1 as wire;
use weir_storage::Error;
use weir_storage::backup::Backup;

use super::convert::shutting_down;

/// Backups made at the same time.
pub(super) const BACKUPS_MAX: usize = 1;
/// Parts read ahead of the client; the reader waits for it.
const PARTS_AHEAD: usize = 2;
/// Longest wait for the client to take a part.
pub(super) const PART_WAIT: Duration = Duration::from_mins(1);

type Part = Result<wire::BackUpStoreResponse, Status>;

/// Begins a backup of what `core` keeps.
///
/// # Errors
/// If the store does not answer.
pub(super) async fn begin(core: &Arc<Core>) -> Result<Backup, Status> {
    let program = concat!("weir ", env!("CARGO_PKG_VERSION"));
    let now = Clock::system().wall().as_micros();
    Backup::begin(core.store(), program, now).await.map_err(|error| status(&error))
}

/// The parts of `backup` and what reads them; an error is the last part. Whoever reads holds `permit`.
pub(super) fn parts(
    backup: Backup,
    permit: OwnedSemaphorePermit,
    shutdown: CancellationToken,
) -> (impl Stream<Item = Part>, impl Future<Output = ()>) {
    let (parts_tx, parts_rx) = mpsc::channel(PARTS_AHEAD + 1);
    let parts = stream::unfold(parts_rx, |mut parts_rx| async move {
        let part = parts_rx.recv().await?;
        Some((part, parts_rx))
    });
    (parts, read(backup, permit, shutdown, parts_tx))
}

async fn read(
    mut backup: Backup,
    permit: OwnedSemaphorePermit,
    shutdown: CancellationToken,
    parts_tx: mpsc::Sender<Part>,
) {
    // There is always room to say why it ends.
    let Ok(last_word) = parts_tx.clone().reserve_owned().await else { return };
    let why = tokio::select! {
        read = read_all(&mut backup, &parts_tx) => match read {
            Ok(()) => return,
            Err(why) => why,
        },
        () = shutdown.cancelled() => shutting_down(),
    };
    tracing::info!(why = why.message(), "a backup was given up");
    last_word.send(Err(why));
    drop(permit);
}

/// Reads to the end, or until the client is gone.
async fn read_all(backup: &mut Backup, parts_tx: &mpsc::Sender<Part>) -> Result<(), Status> {
    while let Some(data) = backup.next().await.map_err(|error| status(&error))? {
        match tokio::time::timeout(PART_WAIT, parts_tx.reserve()).await {
            Ok(Ok(place)) => place.send(Ok(wire::BackUpStoreResponse { data })),
            Ok(Err(_)) => return Ok(()),
            Err(_) => {
                let why = format!("nothing of the backup was taken for {} s", PART_WAIT.as_secs());
                return Err(Status::deadline_exceeded(why));
            }
        }
    }
    let extent = backup.extent();
    tracing::info!(records = extent.pairs, bytes = extent.bytes, "a backup was made");
    Ok(())
}

/// What an error of the store means to the client.
fn status(error: &Error) -> Status {
    let text = crate::store::explain_backup(error);
    match error {
        Error::Conflict => Status::failed_precondition(text),
        Error::Damaged(_) => Status::data_loss(text),
        _ => Status::unavailable(text),
    }
}
