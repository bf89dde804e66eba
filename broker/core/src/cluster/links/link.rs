//! One link while it is up: lines of messages to be sent, the task that frames them, and the tasks that handle what
//! comes, one for each lane.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use weir_env::clock::Clock;

use super::flow::Flow;
use super::{Inner, LinkOptions, PeerHandler, PeerState, TrySendError, Unreachable};
use crate::cluster::message::{Lane, PeerMessage};
use crate::cluster::network::{Broken, Frame, Parcel, Pipe};
use crate::keyspace::owner::PodId;
use crate::metrics::{LaneSeries, PeerMetrics, PeerSeries};

/// Bytes of one lane in a frame, and one message more.
const FRAME_LANE_BYTES: u64 = 64 * 1024;

/// How often it is looked whether what was in line has arrived.
const FLUSH_LOOK: Duration = Duration::from_millis(2);

/// The side of a link that sends.
#[derive(Debug)]
pub(super) struct Link {
    lanes: [Line; Lane::COUNT],
    flow: Arc<Flow>,
    series: Arc<PeerSeries>,
}

/// What is in line on one lane.
#[derive(Debug)]
struct Line {
    queued_tx: mpsc::Sender<Queued>,
    /// Bytes that may still come in line.
    room: Arc<Semaphore>,
    bytes: u32,
}

/// A message in line.
#[derive(Debug)]
struct Queued {
    parcel: Parcel,
    counted: Counted,
}

/// Bytes in line, as long as they are.
#[derive(Debug)]
struct Counted {
    series: Arc<PeerSeries>,
    lane: Lane,
    _permit: OwnedSemaphorePermit,
    cost: u32,
}

/// The ends of the lines.
#[derive(Debug)]
pub(super) struct Ends {
    queued: [mpsc::Receiver<Queued>; Lane::COUNT],
    flow: Arc<Flow>,
}

/// A link at work.
pub(super) struct Running<'a> {
    ends: Ends,
    workers: JoinSet<()>,
    handled_tx: [mpsc::Sender<Parcel>; Lane::COUNT],
    series: &'a PeerSeries,
    options: LinkOptions,
    clock: Clock,
}

impl Counted {
    fn new(series: &Arc<PeerSeries>, lane: Lane, permit: OwnedSemaphorePermit, cost: u32) -> Self {
        series.lanes[lane.index()].queued_bytes.inc_by(i64::from(cost));
        Self { series: Arc::clone(series), lane, _permit: permit, cost }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.series.lanes[self.lane.index()].queued_bytes.dec_by(i64::from(self.cost));
    }
}

impl Link {
    /// A link and the ends of its lines.
    pub(super) fn new(options: &LinkOptions, series: &Arc<PeerSeries>) -> (Arc<Self>, Ends) {
        let flow = Arc::new(Flow::new(Lane::ALL.map(|lane| u64::from(options.lane_bytes(lane)))));
        let made = Lane::ALL.map(|lane| {
            let bytes = options.lane_bytes(lane);
            // As many as there is room for, so that nobody waits here.
            let (queued_tx, queued_rx) = mpsc::channel(messages_max(bytes));
            let room = Arc::new(Semaphore::new(bytes as usize));
            (Line { queued_tx, room, bytes }, queued_rx)
        });
        let [(a, a_rx), (b, b_rx), (c, c_rx), (d, d_rx)] = made;
        let link = Self { lanes: [a, b, c, d], flow: Arc::clone(&flow), series: Arc::clone(series) };
        (Arc::new(link), Ends { queued: [a_rx, b_rx, c_rx, d_rx], flow })
    }

    pub(super) async fn send(&self, message: PeerMessage) -> Result<(), Unreachable> {
        let (lane, parcel) = (message.lane(), Parcel::new(message));
        let permit = self.room(lane, &parcel).await?;
        self.put(lane, parcel, permit).map_err(|_| Unreachable)
    }

    pub(super) fn try_send(&self, message: PeerMessage) -> Result<(), TrySendError> {
        let (lane, parcel) = (message.lane(), Parcel::new(message));
        let permit = self.try_room(lane, &parcel)?;
        self.put(lane, parcel, permit)
    }

    pub(super) fn has_room(&self, message: PeerMessage) -> bool {
        let (lane, parcel) = (message.lane(), Parcel::new(message));
        let line = &self.lanes[lane.index()];
        line.room.available_permits() >= line.permits(&parcel) as usize
    }

    async fn room(&self, lane: Lane, parcel: &Parcel) -> Result<OwnedSemaphorePermit, Unreachable> {
        let line = &self.lanes[lane.index()];
        let permits = line.permits(parcel);
        match Arc::clone(&line.room).try_acquire_many_owned(permits) {
            Ok(permit) => Ok(permit),
            Err(_) => {
                self.series.lanes[lane.index()].waits.inc();
                Arc::clone(&line.room).acquire_many_owned(permits).await.map_err(|_| Unreachable)
            }
        }
    }

    fn try_room(&self, lane: Lane, parcel: &Parcel) -> Result<OwnedSemaphorePermit, TrySendError> {
        let line = &self.lanes[lane.index()];
        Arc::clone(&line.room).try_acquire_many_owned(line.permits(parcel)).map_err(|error| match error {
            tokio::sync::TryAcquireError::Closed => TrySendError::Unreachable,
            tokio::sync::TryAcquireError::NoPermits => {
                self.series.lanes[lane.index()].refusals.inc();
                TrySendError::Full
            }
        })
    }

    fn put(&self, lane: Lane, parcel: Parcel, permit: OwnedSemaphorePermit) -> Result<(), TrySendError> {
        let counted = Counted::new(&self.series, lane, permit, parcel.cost);
        let queued = Queued { parcel, counted };
        self.lanes[lane.index()].queued_tx.try_send(queued).map_err(|_| TrySendError::Unreachable)?;
        self.flow.wake();
        Ok(())
    }

    /// Waits until what is in line has arrived, or the link is down.
    pub(super) async fn flush(&self) {
        let is_closed = || self.lanes.iter().any(|line| line.room.is_closed());
        let is_in_line = |line: &Line| line.room.available_permits() < line.bytes as usize;
        while self.lanes.iter().any(is_in_line) && !is_closed() {
            tokio::time::sleep(FLUSH_LOOK).await;
        }
        let ping = self.flow.ask();
        while !self.flow.is_answered(ping) && !is_closed() {
            tokio::time::sleep(FLUSH_LOOK).await;
        }
    }

    /// Refuses whoever waits for room.
    pub(super) fn close(&self) {
        for line in &self.lanes {
            line.room.close();
        }
    }
}

impl Line {
    /// What a message takes of the room. The largest has all of it.
    fn permits(&self, parcel: &Parcel) -> u32 {
        parcel.cost.min(self.bytes)
    }
}

/// How many messages there can be in so many bytes, and one that is larger.
fn messages_max(bytes: u32) -> usize {
    bytes as usize / Parcel::COST_MIN + 1
}

impl<'a> Running<'a> {
    /// Starts what handles messages of `peer`.
    pub(super) fn start(links: &Inner, peer: &'a PeerState, ends: Ends) -> Self {
        let mut workers = JoinSet::new();
        let handled_tx = Lane::ALL.map(|lane| {
            let bytes = links.options.lane_bytes(lane);
            let (handled_tx, handled_rx) = mpsc::channel(messages_max(bytes));
            let worker = Worker {
                pod: peer.pod,
                lane,
                handler: links.handlers[lane.index()].get().cloned(),
                flow: Arc::clone(&ends.flow),
                metrics: links.metrics.clone(),
            };
            workers.spawn(links.panics.watch(worker.run(handled_rx)));
            handled_tx
        });
        Self { ends, workers, handled_tx, series: &peer.series, options: links.options, clock: links.clock }
    }

    /// Carries messages both ways until the pipe breaks. To be called once; not cancel-safe, but it may be dropped.
    pub(super) async fn carry(&mut self, pipe: Pipe) -> Broken {
        let Pipe { frames_tx, mut frames_rx } = pipe;
        let Self { ends, handled_tx, series, options, clock, .. } = self;
        let flow = Arc::clone(&ends.flow);
        let writer = Writer { ends, series, options: *options, clock: *clock, sent: [0; Lane::COUNT] };
        let reading = async {
            while let Some(frame) = frames_rx.recv().await {
                match frame {
                    Ok(frame) => hear(frame, &flow, handled_tx, series, *clock)?,
                    Err(broken) => return Err(broken),
                }
            }
            Err(Broken("the connection is closed".to_owned()))
        };
        let broken: Result<std::convert::Infallible, Broken> = tokio::select! {
            biased;
            broken = reading => broken,
            broken = writer.run(frames_tx) => Err(broken),
        };
        match broken {
            Ok(never) => match never {},
            Err(broken) => broken,
        }
    }

    /// Waits until all that has come is handled.
    pub(super) async fn finish(self) {
        let Self { handled_tx, mut workers, .. } = self;
        drop(handled_tx);
        // A panic is noticed by whoever watches all of them.
        while workers.join_next().await.is_some() {}
    }
}

/// Gives the messages of a frame to the tasks of their lanes, which have room for all that was allowed.
fn hear(
    frame: Frame,
    flow: &Flow,
    handled_tx: &[mpsc::Sender<Parcel>; Lane::COUNT],
    series: &PeerSeries,
    clock: Clock,
) -> Result<(), Broken> {
    if let Some(took) = flow.hear(&frame, clock.now()) {
        series.round_trip.set(took.as_secs_f64());
    }
    for parcel in frame.messages {
        let lane = parcel.message.lane();
        flow.receive(lane, parcel.cost)?;
        let counters = &series.lanes[lane.index()];
        counters.received_messages.inc();
        counters.received_bytes.inc_by(u64::from(parcel.cost));
        let put = handled_tx[lane.index()].try_send(parcel);
        put.map_err(|_| Broken(format!("lane {} takes no more messages", lane.name())))?;
    }
    Ok(())
}

/// Puts what is in line into frames.
struct Writer<'a> {
    ends: &'a mut Ends,
    series: &'a PeerSeries,
    options: LinkOptions,
    clock: Clock,
    /// By lane, bytes that were sent in all.
    sent: [u64; Lane::COUNT],
}

impl Writer<'_> {
    async fn run(mut self, frames_tx: mpsc::Sender<Frame>) -> Broken {
        let mut ping_at = self.clock.now();
        loop {
            let now = self.clock.now();
            let ping = (now >= ping_at).then_some(now);
            let ping = ping.or_else(|| self.ends.flow.take_asked().then_some(now));
            let (mut frame, counted) = self.gather();
            let worth = self.ends.flow.announce(&mut frame, ping);
            if ping.is_some() {
                ping_at = now + self.options.ping;
            }
            if worth || !frame.messages.is_empty() {
                if frames_tx.send(frame).await.is_err() {
                    return Broken("the connection is closed".to_owned());
                }
                // In line until here: what is in the pipe besides is a few frames.
                drop(counted);
                continue;
            }
            tokio::select! {
                () = self.ends.flow.news() => {}
                () = tokio::time::sleep_until(ping_at) => {}
                () = frames_tx.closed() => return Broken("the connection is closed".to_owned()),
            }
        }
    }

    /// What may be sent now, some of each lane.
    fn gather(&mut self) -> (Frame, Vec<Counted>) {
        let allowed = self.ends.flow.allowed();
        let (mut frame, mut counted) = (Frame::default(), Vec::new());
        for (index, queued_rx) in self.ends.queued.iter_mut().enumerate() {
            let counters: &LaneSeries = &self.series.lanes[index];
            let mut bytes = 0;
            // The last one may be larger than what is left: the other side knows.
            while self.sent[index] < allowed[index] && bytes < FRAME_LANE_BYTES {
                let Ok(Queued { parcel, counted: held }) = queued_rx.try_recv() else { break };
                let cost = u64::from(parcel.cost);
                bytes += cost;
                self.sent[index] = self.sent[index].saturating_add(cost);
                counters.sent_messages.inc();
                counters.sent_bytes.inc_by(cost);
                frame.messages.push(parcel);
                counted.push(held);
            }
        }
        (frame, counted)
    }
}

/// Handles the messages of one lane, one after the other.
struct Worker {
    pod: PodId,
    lane: Lane,
    handler: Option<Arc<dyn PeerHandler>>,
    flow: Arc<Flow>,
    metrics: PeerMetrics,
}

impl Worker {
    async fn run(self, mut handled_rx: mpsc::Receiver<Parcel>) {
        if let Some(handler) = &self.handler {
            handler.link_up(self.pod);
        }
        while let Some(Parcel { cost, message }) = handled_rx.recv().await {
            match &self.handler {
                Some(handler) => handler.handle(self.pod, message).await,
                None => {
                    self.metrics.unhandled.inc();
                }
            }
            self.flow.handled(self.lane, cost);
        }
        if let Some(handler) = &self.handler {
            handler.link_down(self.pod);
        }
    }
}
