//! The thread that commits, and the queue before it. Knows batches, not what is in them.

use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use weir_env::clock::Clock;

use super::batch;
use crate::local::{CommitRequest, Sequencer, Submit, Writer, closed};
use crate::{Committed, Error, Result};

/// Transactions that wait for the next batch; one more waits for a place. Each is at most 4 MB, and the
/// broker's own limits on bytes in flight come first.
const QUEUE_LEN: usize = 1_024;
/// Bytes in the journal up to which a batch takes further transactions, so that one batch does not delay all for long
/// and fits in a segment, as the largest transaction does alone.
const BATCH_BYTES_TARGET: usize = 8 << 20;
/// Transactions in a batch at most, well below what a versionstamp can number.
const BATCH_LEN_MAX: usize = 4_096;
/// How many transactions the last batch must have had for the next one to wait for more. With few, waiting costs more
/// than it saves, and those that compete for one key would all meet in one batch, where one of them can win.
const GATHER_FROM: usize = 16;
/// How long a batch that is smaller than the one before waits for the next transaction.
const GATHER_GAP: Duration = Duration::from_micros(50);
/// How long a batch waits for transactions at most, and never longer than the last batch took.
const GATHER_MAX: Duration = Duration::from_millis(2);

/// The front of the committing thread. Dropping it ends the thread once the queue is empty.
#[derive(Debug)]
pub(super) struct Committer {
    /// `None` once closed.
    queue_tx: Mutex<Option<mpsc::Sender<Job>>>,
    /// Closed when the thread has let go of the files.
    ended: watch::Receiver<()>,
}

#[derive(Debug)]
struct Job {
    request: CommitRequest,
    answer_tx: oneshot::Sender<Result<Committed>>,
}

impl Committer {
    /// Starts the thread.
    pub(super) fn start<W: Writer>(sequencer: Sequencer<W>, clock: Clock) -> std::io::Result<Self> {
        let (queue_tx, queue_rx) = mpsc::channel(QUEUE_LEN);
        let (ended_tx, ended) = watch::channel(());
        // Not joined but waited for: the thread ends by itself when the queue is closed, and says so.
        thread::Builder::new().name("weir-commit".into()).spawn(move || {
            run(sequencer, queue_rx, clock);
            drop(ended_tx);
        })?;
        Ok(Self { queue_tx: Mutex::new(Some(queue_tx)), ended })
    }

    /// Takes no more commits, finishes those in the queue, ends the reads with `end_reads` and waits until the
    /// files are let go.
    pub(super) async fn close(&self, end_reads: impl FnOnce()) {
        let queue_tx = self.queue_tx.lock().take();
        drop(queue_tx);
        let mut ended = self.ended.clone();
        // The only message is that the sender is gone.
        let _ = ended.changed().await;
        end_reads();
    }
}

#[async_trait]
impl Submit for Committer {
    async fn submit(&self, request: CommitRequest) -> Result<Committed> {
        let queue_tx = self.queue_tx.lock().clone().ok_or_else(closed)?;
        let (answer_tx, answer_rx) = oneshot::channel();
        queue_tx.send(Job { request, answer_tx }).await.map_err(|_| closed())?;
        drop(queue_tx);
        // Without an answer the thread died in the middle of a batch.
        answer_rx.await.unwrap_or(Err(Error::UnknownOpen))
    }
}

fn run<W: Writer>(mut sequencer: Sequencer<W>, mut queue_rx: mpsc::Receiver<Job>, clock: Clock) {
    let (mut last_len, mut last_took) = (0, Duration::ZERO);
    let mut next = None;
    while let Some(first) = next.take().or_else(|| queue_rx.blocking_recv()) {
        let wait_max = last_took.min(GATHER_MAX);
        let Gathered { requests, answers, left } = gather(first, &mut queue_rx, last_len, wait_max, clock);
        next = left;
        last_len = requests.len();
        let started = clock.now();
        let outcomes = sequencer.commit(requests);
        last_took = started.elapsed();
        for (answer_tx, answer) in answers.into_iter().zip(outcomes) {
            // A caller that went away does not undo its commit.
            let _ = answer_tx.send(answer);
        }
    }
}

/// The next batch.
struct Gathered {
    requests: Vec<CommitRequest>,
    answers: Vec<oneshot::Sender<Result<Committed>>>,
    /// What was taken from the queue and did not fit.
    left: Option<Job>,
}

/// What is in the queue. Those whose commit was just reported often come again at once, one after the other: they are
/// waited for a moment, as long as they keep coming, since each batch costs a sync.
fn gather(
    first: Job,
    queue_rx: &mut mpsc::Receiver<Job>,
    expected: usize,
    wait_max: Duration,
    clock: Clock,
) -> Gathered {
    let mut bytes = journal_bytes(&first.request);
    let (mut requests, mut answers, mut left) = (vec![first.request], vec![first.answer_tx], None);
    let started = clock.now();
    let mut came = started;
    while bytes < BATCH_BYTES_TARGET && requests.len() < BATCH_LEN_MAX {
        match queue_rx.try_recv() {
            Ok(job) => {
                bytes += journal_bytes(&job.request);
                if bytes > BATCH_BYTES_TARGET {
                    left = Some(job);
                    break;
                }
                requests.push(job.request);
                answers.push(job.answer_tx);
                came = clock.now();
            }
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                let is_late = came.elapsed() >= GATHER_GAP || started.elapsed() >= wait_max;
                if expected < GATHER_FROM || requests.len() >= expected || is_late {
                    break;
                }
                thread::yield_now();
            }
        }
    }
    Gathered { requests, answers, left }
}

/// What a transaction takes in the journal at most. Of small keys that is a multiple of their bytes.
fn journal_bytes(request: &CommitRequest) -> usize {
    request.bytes() + request.changes() * batch::CHANGE_BYTES
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::local::WriteSet;

    fn job(changes: usize) -> Job {
        let mut writes = WriteSet::default();
        for n in 0..changes {
            writes.set(Bytes::copy_from_slice(&n.to_be_bytes()[5..]), Bytes::new());
        }
        Job { request: CommitRequest::of(writes), answer_tx: oneshot::channel().0 }
    }

    /// By the bytes of their keys alone all of them would fit in one batch.
    #[test]
    fn a_batch_is_as_long_as_it_is_in_the_journal() {
        let (queue_tx, mut queue_rx) = mpsc::channel(8);
        for _ in 0..3 {
            queue_tx.try_send(job(300_000)).unwrap();
        }
        let mut gather = |first| gather(first, &mut queue_rx, 0, Duration::ZERO, Clock::system());
        let batch = gather(job(300_000));
        assert_eq!((batch.requests.len(), batch.answers.len()), (2, 2));
        let batch = gather(batch.left.unwrap());
        assert_eq!((batch.requests.len(), batch.left.is_some()), (2, false));
        // What is larger is a batch of its own.
        let largest = job(700_000);
        assert!(journal_bytes(&largest.request) > BATCH_BYTES_TARGET);
        queue_tx.try_send(job(1)).unwrap();
        let batch = gather(largest);
        assert_eq!((batch.requests.len(), batch.left.is_some()), (1, false));
    }
}
