//! How much may be sent through a link: what the other side allows, and what this side has to say. No waiting here but
//! for news.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use weir_env::clock::Instant;

use crate::cluster::message::Lane;
use crate::cluster::network::{Broken, Frame};

/// What reader, writer and handlers of a link tell each other.
#[derive(Debug)]
pub(super) struct Flow {
    /// Bytes by lane that may be under way to this side.
    windows: [u64; Lane::COUNT],
    state: Mutex<State>,
    /// Something to write may have come up.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By lane, bytes that may be sent in all.
    allowed: [u64; Lane::COUNT],
    /// By lane, bytes that were received in all.
    received: [u64; Lane::COUNT],
    /// By lane, bytes that were handled in all.
    handled: [u64; Lane::COUNT],
    /// By lane, what the other side has been told that it may send.
    announced: [u64; Lane::COUNT],
    /// The ping to be answered.
    pong_due: Option<u64>,
    pings: u64,
    /// The ping that is not answered yet.
    pinged: Option<(u64, Instant)>,
    /// The last ping that was answered.
    answered: u64,
    /// Somebody waits for a ping to be answered.
    is_asked: bool,
}

impl Flow {
    pub(super) fn new(windows: [u64; Lane::COUNT]) -> Self {
        Self { windows, state: Mutex::default(), news: Notify::new() }
    }

    /// Has the writer look again.
    pub(super) fn wake(&self) {
        self.news.notify_one();
    }

    /// Waits until the writer should look again. Cancel-safe.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// By lane, bytes that may be sent in all.
    pub(super) fn allowed(&self) -> [u64; Lane::COUNT] {
        self.state.lock().allowed
    }

    /// Takes what `frame` says beside its messages. Returns how long the answer to a ping took.
    pub(super) fn hear(&self, frame: &Frame, now: Instant) -> Option<Duration> {
        let mut state = self.state.lock();
        for (allowed, heard) in state.allowed.iter_mut().zip(frame.allowed) {
            *allowed = (*allowed).max(heard);
        }
        state.pong_due = frame.ping.or(state.pong_due);
        let pings = state.pings;
        state.answered = state.answered.max(frame.pong.unwrap_or(0).min(pings));
        let answered = state.pinged.filter(|(number, _)| frame.pong == Some(*number));
        if answered.is_some() {
            state.pinged = None;
        }
        drop(state);
        self.wake();
        answered.map(|(_, at)| now.saturating_duration_since(at))
    }

    /// Has a ping be sent behind what is sent by now; its number.
    pub(super) fn ask(&self) -> u64 {
        let mut state = self.state.lock();
        state.is_asked = true;
        let number = state.pings + 1;
        drop(state);
        self.wake();
        number
    }

    /// Whether a ping was asked for and is to be sent now.
    pub(super) fn take_asked(&self) -> bool {
        std::mem::take(&mut self.state.lock().is_asked)
    }

    /// Whether this ping, or a later one, was answered.
    pub(super) fn is_answered(&self, ping: u64) -> bool {
        self.state.lock().answered >= ping
    }

    /// Counts a message of `cost` that has come on `lane`.
    pub(super) fn receive(&self, lane: Lane, cost: u32) -> Result<(), Broken> {
        let mut state = self.state.lock();
        let lane_index = lane.index();
        // The last one may be larger than what was left.
        if state.received[lane_index] >= state.announced[lane_index] {
            return Err(Broken(format!("the pod sends more on lane {} than it may", lane.name())));
        }
        state.received[lane_index] = state.received[lane_index].saturating_add(u64::from(cost));
        Ok(())
    }

    /// Counts a message of `cost` that has been handled.
    pub(super) fn handled(&self, lane: Lane, cost: u32) {
        let mut state = self.state.lock();
        let index = lane.index();
        state.handled[index] = state.handled[index].saturating_add(u64::from(cost));
        let due = self.is_due(&state, index);
        drop(state);
        if due {
            self.wake();
        }
    }

    /// Puts what the other side has to know into `frame`, and a ping if it is time for one. Returns whether this alone
    /// is worth a frame.
    pub(super) fn announce(&self, frame: &mut Frame, ping: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        let due = (0..Lane::COUNT).any(|index| self.is_due(&state, index));
        if due || !frame.messages.is_empty() {
            for (index, window) in self.windows.iter().enumerate() {
                state.announced[index] = state.handled[index].saturating_add(*window);
            }
        }
        frame.allowed = state.announced;
        frame.pong = state.pong_due.take();
        if let Some(now) = ping {
            state.pings += 1;
            frame.ping = Some(state.pings);
            state.pinged = Some((state.pings, now));
        }
        due || frame.pong.is_some() || frame.ping.is_some()
    }

    /// Whether so much was handled that the other side should be told.
    fn is_due(&self, state: &State, index: usize) -> bool {
        let allowed = state.handled[index].saturating_add(self.windows[index]);
        allowed.saturating_sub(state.announced[index]) >= self.windows[index] / 4
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    #[test]
    fn who_sends_more_than_allowed_is_found_out() {
        let flow = Flow::new([100; Lane::COUNT]);
        assert!(flow.receive(Lane::Live, 1).is_err(), "nothing is allowed yet");
        assert!(flow.announce(&mut Frame::default(), None));
        assert_eq!(flow.receive(Lane::Live, 99), Ok(()));
        assert_eq!(flow.receive(Lane::Live, 500), Ok(()), "the last one may be large");
        assert!(flow.receive(Lane::Live, 1).is_err());
        assert_eq!(flow.receive(Lane::Shard, 1), Ok(()), "lanes are apart");
        flow.handled(Lane::Live, 599);
        let mut frame = Frame::default();
        assert!(flow.announce(&mut frame, None));
        assert_eq!(frame.allowed, [100, 699, 100, 100]);
        assert_eq!(flow.receive(Lane::Live, 1), Ok(()));
    }

    #[test]
    fn small_news_wait_for_a_frame() {
        let flow = Flow::new([100; Lane::COUNT]);
        assert!(flow.announce(&mut Frame::default(), None));
        assert_eq!(flow.receive(Lane::Live, 24), Ok(()));
        flow.handled(Lane::Live, 24);
        assert!(!flow.announce(&mut Frame::default(), None));
        flow.handled(Lane::Live, 1);
        assert!(flow.announce(&mut Frame::default(), None));
    }

    #[tokio::test(start_paused = true)]
    async fn pings_are_answered_and_measured() {
        let (clock, a, b) = (Clock::system(), Flow::new([1; 4]), Flow::new([1; 4]));
        let (mut to_b, mut to_a) = (Frame::default(), Frame::default());
        a.announce(&mut to_b, Some(clock.now()));
        assert_eq!(b.hear(&to_b, clock.now()), None);
        tokio::time::advance(Duration::from_millis(7)).await;
        b.announce(&mut to_a, None);
        assert_eq!(a.hear(&to_a, clock.now()), Some(Duration::from_millis(7)));
        assert_eq!(a.hear(&to_a, clock.now()), None, "it counts once");
    }
}
