//! What was read of streams and waits for the connection: what is acknowledged apart from what is not.
//!
//! A client that acknowledges nothing stops all that is to be acknowledged, and only that. Knows neither the client nor what
//! is in a batch. The connection owns it, its readers have the other ends.

use std::task::Context;

use tokio::sync::mpsc;
use weir_codec::QoS;

use super::StreamBatch;
use crate::connection::inlet::Inlet;

/// Batches of stream messages, 256 KiB each about, that wait in a lane; then its readers wait.
const STREAM_CHANNEL: usize = 2;

/// Both lanes.
#[derive(Debug)]
pub(in crate::connection) struct Lanes {
    unacknowledged: Lane,
    acknowledged: Lane,
}

/// Batches of several readers, in the order in which they came.
#[derive(Debug)]
pub(super) struct Lane {
    inlet: Inlet<StreamBatch>,
    /// Taken out, and not gone in whole.
    begun: Option<Box<StreamBatch>>,
}

impl Lanes {
    pub(in crate::connection) fn new() -> Self {
        let lane = || Lane { inlet: Inlet::new(STREAM_CHANNEL), begun: None };
        Self { unacknowledged: lane(), acknowledged: lane() }
    }

    /// Where a subscription of `qos` sends what was read.
    pub(super) fn sender(&mut self, qos: QoS) -> mpsc::Sender<StreamBatch> {
        let lane = if qos == QoS::AtMostOnce { &mut self.unacknowledged } else { &mut self.acknowledged };
        lane.inlet.sender()
    }

    /// The lanes, each to be served whatever becomes of the other.
    pub(super) fn lane(&mut self, acknowledged: bool) -> &mut Lane {
        if acknowledged { &mut self.acknowledged } else { &mut self.unacknowledged }
    }

    /// Takes a batch out of each lane that has none begun. Whether there was any; else `context` is woken when there is.
    pub(in crate::connection) fn poll_begin(&mut self, context: &mut Context<'_>) -> bool {
        let acknowledged = self.acknowledged.poll_begin(context);
        self.unacknowledged.poll_begin(context) || acknowledged
    }
}

impl Lane {
    /// The batch that is begun, or the next.
    pub(super) fn take(&mut self) -> Option<Box<StreamBatch>> {
        self.begun.take().or_else(|| self.inlet.try_recv().map(Box::new))
    }

    /// Something is left of a batch.
    pub(super) fn put_back(&mut self, batch: Box<StreamBatch>) {
        self.begun = Some(batch);
    }

    fn poll_begin(&mut self, context: &mut Context<'_>) -> bool {
        if self.begun.is_some() {
            return false;
        }
        self.begun = self.inlet.poll_recv(context).map(Box::new);
        self.begun.is_some()
    }
}
