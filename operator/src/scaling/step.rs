//! What is done next about the pods of a Broker, by what is decided and what is under way. Pure.

use super::decide::Decision;
use super::pods::Seen;

/// What is done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<'s> {
    /// Nothing, and why.
    Rest { reason: &'static str },
    /// More pods.
    Up { from: u32, to: u32, why: String, calls_off: Option<&'s Seen> },
    /// This pod is to go, and is drained first.
    Begin { pod: &'s Seen, to: u32, why: String },
    /// It is being drained.
    Wait { pod: &'s Seen },
    /// It is drained.
    Down { pod: &'s Seen, to: u32 },
    /// It is not to go any more.
    CallOff { pod: &'s Seen, why: &'static str },
}

impl Step<'_> {
    /// Pods that there should be, where there are `current`.
    pub(super) fn replicas(&self, current: u32) -> u32 {
        match self {
            Self::Rest { .. } | Self::CallOff { .. } => current,
            Self::Up { to, .. } | Self::Begin { to, .. } | Self::Down { to, .. } => *to,
            Self::Wait { .. } => current.saturating_sub(1),
        }
    }

    /// As a word of the status.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Rest { reason } => reason,
            Self::Up { .. } => "ScalingUp",
            Self::Begin { .. } | Self::Wait { .. } => "Draining",
            Self::Down { .. } => "ScalingDown",
            Self::CallOff { .. } => "DrainCalledOff",
        }
    }

    /// The pod that is being drained.
    pub(super) fn draining(&self) -> Option<&str> {
        match self {
            Self::Begin { pod, .. } | Self::Wait { pod } => Some(&pod.name),
            Self::Rest { .. } | Self::Up { .. } | Self::Down { .. } | Self::CallOff { .. } => None,
        }
    }
}

/// The next step where the Deployment wants `current` pods, all of which are what it wants if it is at `rest`, and these are
/// `seen` to stay.
pub(super) fn step<'s>(
    current: u32,
    rest: bool,
    seen: &'s [Seen],
    decision: &Decision,
    overdue: impl Fn(&str) -> bool,
) -> Step<'s> {
    let leaving = seen.iter().find_map(|pod| Some((pod, pod.leaving.as_deref()?)));
    if decision.replicas > current {
        let calls_off = leaving.map(|(pod, _)| pod);
        return Step::Up { from: current, to: decision.replicas, why: decision.why.clone(), calls_off };
    }
    let fresh = seen.iter().filter(|pod| pod.load.is_fresh).count();
    let count = |pods: usize| u32::try_from(pods).unwrap_or(u32::MAX);
    let all_known = count(fresh) >= current;
    // With more, one is on its way out already; with fewer, one is still to come. While pods are replaced, Kubernetes may
    // take others than the one that is marked.
    let is_settled = rest && count(seen.len()) == current;
    match leaving {
        Some((pod, _)) if is_going(pod, current, seen) => Step::Rest { reason: "ScalingDown" },
        Some((pod, since)) if overdue(since) => Step::CallOff { pod, why: "it has not been drained in time" },
        Some((pod, _)) if all_known && !decision.fewer => Step::CallOff { pod, why: "it is needed again" },
        Some((pod, _)) if pod.is_drained && all_known && is_settled => {
            Step::Down { pod, to: current.saturating_sub(1) }
        }
        Some((pod, _)) => Step::Wait { pod },
        None if !all_known => Step::Rest { reason: "FiguresMissing" },
        None => {
            let victim = decision.victim.as_ref().filter(|_| is_settled);
            match victim.and_then(|victim| seen.iter().find(|pod| pod.name == *victim)) {
                Some(pod) => Step::Begin { pod, to: decision.replicas, why: decision.why.clone() },
                None if decision.fewer => Step::Rest { reason: "Waiting" },
                None => Step::Rest { reason: "Steady" },
            }
        }
    }
}

/// Whether there is one pod fewer to be already, and Kubernetes has only not taken this one yet.
fn is_going(pod: &Seen, current: u32, seen: &[Seen]) -> bool {
    pod.is_drained && u32::try_from(seen.len()).unwrap_or(u32::MAX) > current
}

/// The next step where others say how many pods there are.
pub(super) fn left_alone(current: u32, seen: &[Seen]) -> Step<'_> {
    match seen.iter().find(|pod| pod.leaving.is_some()) {
        Some(pod) if is_going(pod, current, seen) => Step::Rest { reason: "LeftAlone" },
        Some(pod) => Step::CallOff { pod, why: "the load moves no pods any more" },
        None => Step::Rest { reason: "LeftAlone" },
    }
}
