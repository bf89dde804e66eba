//! What goes wrong with pods and between them for a while. Several may go wrong at a time, also with one pod; who hears
//! whom follows from all of them together.
//!
//! Decides nothing: a run says what, and when it ends. Owns what is under way.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_core::cluster::testing::MemoryNetwork;
use weir_core::keyspace::owner::PodId;

use super::history::{Event, History};
use super::pod::Pod;

/// Longest time that frames take on a slow way: less than what counts as silence.
const SLOW: Range<Duration> = Duration::from_millis(20)..Duration::from_millis(200);

/// Something that goes wrong for a while. Pods are named by their number in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It stands still: neither other pods nor the store nor clients hear of it.
    Paused(usize),
    /// Neither hears the other.
    Apart(usize, usize),
    /// What `from` says does not get to `to`.
    Deaf { from: usize, to: usize },
    /// It takes long, both ways.
    Slow(usize, usize),
}

/// All that is wrong at the moment.
#[derive(Debug)]
pub(super) struct Troubles {
    network: Option<MemoryNetwork>,
    /// How long frames take otherwise.
    delay: Range<Duration>,
    under_way: Vec<(Instant, Trouble)>,
    history: History,
}

impl Troubles {
    pub(super) const fn new(
        network: Option<MemoryNetwork>,
        delay: Range<Duration>,
        history: History,
    ) -> Self {
        Self { network, delay, under_way: Vec::new(), history }
    }

    /// When the first of them ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.under_way.iter().map(|(end, _)| *end).min()
    }

    pub(super) fn begin(&mut self, trouble: Trouble, until: Instant, pods: &[Arc<Pod>]) {
        self.history.note(Event::Link(trouble, true));
        self.under_way.push((until, trouble));
        self.apply(pods);
    }

    /// Ends those whose time has come.
    pub(super) fn end_until(&mut self, now: Instant, pods: &[Arc<Pod>]) {
        self.end_where(pods, |end| end <= now);
    }

    pub(super) fn end_all(&mut self, pods: &[Arc<Pod>]) {
        self.end_where(pods, |_| true);
    }

    fn end_where(&mut self, pods: &[Arc<Pod>], is_over: impl Fn(Instant) -> bool) {
        let ended: Vec<_> = self.under_way.extract_if(.., |(end, _)| is_over(*end)).collect();
        if !ended.is_empty() {
            self.apply(pods);
        }
        for (_, trouble) in ended {
            self.history.note(Event::Link(trouble, false));
        }
    }

    fn is_paused(&self, pod: &Pod) -> bool {
        self.under_way.iter().any(|(_, trouble)| *trouble == Trouble::Paused(pod.number))
    }

    fn apply(&self, pods: &[Arc<Pod>]) {
        for pod in pods.iter().filter(|pod| pod.is_held() != self.is_paused(pod)) {
            pod.hold_up(!pod.is_held());
        }
        let Some(network) = &self.network else { return };
        network.heal();
        for pod in pods {
            for other in pods.iter().filter(|other| other.number != pod.number) {
                self.apply_one_way(network, pod, other);
            }
        }
    }

    /// To what is said by `from` to `to`.
    fn apply_one_way(&self, network: &MemoryNetwork, from: &Pod, to: &Pod) {
        let ends: [PodId; 2] = [from.id(), to.id()];
        let numbers = [from.number, to.number];
        let mut delay = self.delay.clone();
        for (_, trouble) in &self.under_way {
            let is_blocked = match *trouble {
                Trouble::Paused(pod) => numbers.contains(&pod),
                Trouble::Apart(one, other) => numbers == [one, other] || numbers == [other, one],
                Trouble::Deaf { from, to } => numbers == [from, to],
                Trouble::Slow(one, other) => {
                    if numbers == [one, other] || numbers == [other, one] {
                        delay = SLOW;
                    }
                    false
                }
            };
            if is_blocked {
                network.block(ends[0], ends[1]);
            }
        }
        network.set_delay_between(ends[0], ends[1], delay);
    }
}
