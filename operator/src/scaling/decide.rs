//! How many pods a Broker should have, by what its pods have to do. Pure: knows no cluster and no clock; who asks keeps the
//! [`History`] of each Broker and carries the [`Decision`] out.
//!
//! More pods come at once, at most as many again as there are, or [`STEP_UP`]. One pod at a time goes, and only when for all of
//! [`Limits::down_after`] fewer would have done: the one whose going disturbs least.

use std::collections::VecDeque;
use std::time::Duration;

use weir_env::clock::Instant;

#[cfg(test)]
mod tests;

/// Pods that may come at once, even where there are fewer.
const STEP_UP: u32 = 4;
/// Load that is off its target by no more than one part in so many changes nothing.
const TOLERANCE: u64 = 10;
/// Looks that a history holds; with more, the oldest are merged, which delays a scale-down and never hastens it.
const LOOKS_MAX: usize = 256;
/// Looks that are no further apart than this are one history.
const GAP: Duration = Duration::from_secs(60);

/// What a pod has to do. Rates are of a second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Name of the pod.
    pub(crate) pod: String,
    pub(crate) connections: u64,
    pub(crate) connect_rate: u64,
    /// To and from clients.
    pub(crate) bytes_rate: u64,
    /// Messages appended to the shards that it owns.
    pub(crate) append_rate: u64,
    /// Messages sent to clients.
    pub(crate) deliver_rate: u64,
    pub(crate) shards: u64,
    /// Thousandths of a processor.
    pub(crate) cpu_millis: u64,
    /// Its clients are on their way to others.
    pub(crate) is_draining: bool,
    /// It has said so a moment ago.
    pub(crate) is_fresh: bool,
}

/// What a pod should have to do; what is absent does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    pub(crate) connections: Option<u64>,
    pub(crate) connect_rate: Option<u64>,
    pub(crate) bytes_rate: Option<u64>,
    pub(crate) append_rate: Option<u64>,
    pub(crate) deliver_rate: Option<u64>,
    pub(crate) shards: Option<u64>,
    pub(crate) cpu_millis: Option<u64>,
}

/// Between what the number of pods stays, and how long it has to make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) min: u32,
    pub(crate) max: u32,
    /// How long more pods have to make sense before they come. 0: they come at once.
    pub(crate) up_after: Duration,
    /// How long fewer pods have to make sense before one goes.
    pub(crate) down_after: Duration,
}

/// How many pods made sense, and when.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    looks: VecDeque<(Instant, u32)>,
    /// Since when there has been a look in each [`Limits::down_after`].
    since: Option<Instant>,
}

/// How many pods there should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) replicas: u32,
    /// In words for people.
    pub(crate) why: String,
    /// The pod that goes, if one does.
    pub(crate) victim: Option<String>,
    /// Whether fewer pods would do, also where none goes now.
    pub(crate) fewer: bool,
}

/// Decides, of `current` pods with these `loads`, how many there should be.
pub(crate) fn decide(
    current: u32,
    loads: &[Load],
    targets: &Targets,
    limits: &Limits,
    history: &mut History,
    now: Instant,
) -> Decision {
    let (min, max) = (limits.min.min(limits.max), limits.max);
    let (wanted, why) = wanted(current, loads, targets);
    let known = loads.iter().filter(|load| load.is_fresh).count();
    let all_known = u32::try_from(known).unwrap_or(u32::MAX) >= current;
    // What is not known may be as much as ever.
    let wanted = if all_known { wanted } else { wanted.max(current) };
    history.note(now, wanted, limits.down_after);
    let stay = |why: String, fewer| Decision { replicas: current, why, victim: None, fewer };
    if current < min {
        let why = format!("{current} pods are fewer than minReplicas, {min}");
        return Decision { replicas: min, why, victim: None, fewer: false };
    }
    let raised = history.lowest(now, limits.up_after, wanted).min(max);
    if raised > current {
        let step = current.max(STEP_UP);
        let replicas = raised.min(current.saturating_add(step));
        return Decision { replicas, why, victim: None, fewer: false };
    }
    let lowered = match current > max {
        true => max,
        false => history.highest(wanted).max(min),
    };
    if !all_known {
        return stay(format!("{known} of {current} pods say what they have to do: none goes"), false);
    }
    if lowered >= current {
        return stay(why, false);
    }
    if let Some(draining) = loads.iter().find(|load| load.is_draining) {
        return stay(format!("{} is drained already", draining.pod), true);
    }
    if current <= max && !history.covers(now, limits.down_after) {
        return stay(format!("{why}; not for long enough yet"), true);
    }
    let Some(victim) = loads.iter().min_by_key(|load| disturbance(load)) else {
        return stay("there is no pod that could go".to_owned(), true);
    };
    let why = match current > max {
        true => format!("{current} pods are more than maxReplicas, {max}"),
        false => why,
    };
    Decision { replicas: current.saturating_sub(1), why, victim: Some(victim.pod.clone()), fewer: true }
}

/// How much it disturbs when a pod goes: clients first, they have to connect anew.
fn disturbance(load: &Load) -> (u64, u64, u64, &str) {
    (load.connections, load.shards, load.append_rate.saturating_add(load.deliver_rate), &load.pod)
}

/// Pods that the load asks for, and which load that is.
fn wanted(current: u32, loads: &[Load], targets: &Targets) -> (u32, String) {
    type Figure = (&'static str, fn(&Load) -> u64, Option<u64>);
    let figures: [Figure; 7] = [
        ("connections", |load| load.connections, targets.connections),
        ("new connections a second", |load| load.connect_rate, targets.connect_rate),
        ("bytes a second", |load| load.bytes_rate, targets.bytes_rate),
        ("appended messages a second", |load| load.append_rate, targets.append_rate),
        ("delivered messages a second", |load| load.deliver_rate, targets.deliver_rate),
        ("virtual shards", |load| load.shards, targets.shards),
        ("thousandths of a processor", |load| load.cpu_millis, targets.cpu_millis),
    ];
    let asked = figures.into_iter().filter_map(|(name, figure, target)| {
        let target = target.filter(|target| *target > 0)?;
        let total = loads.iter().map(figure).fold(0, u64::saturating_add);
        let pods = pods(total, target, current);
        Some((pods, format!("{total} {name} at {target} a pod make {pods}")))
    });
    let most = asked.max_by_key(|(pods, _)| *pods);
    most.unwrap_or_else(|| (current, "there is no target to scale by".to_owned()))
}

/// Pods for a load, or as many as there are if that is about right.
fn pods(total: u64, target: u64, current: u32) -> u32 {
    let held = target.saturating_mul(current.into());
    if current > 0 && total.abs_diff(held) <= held / TOLERANCE {
        return current;
    }
    u32::try_from(total.div_ceil(target)).unwrap_or(u32::MAX)
}

impl History {
    fn note(&mut self, now: Instant, wanted: u32, window: Duration) {
        // One look that is older than the window stays: it says what held when the window began.
        while self.looks.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= window) {
            self.looks.pop_front();
        }
        let silent =
            self.looks.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) > window.max(GAP));
        if silent {
            self.looks.clear();
            self.since = Some(now);
        }
        if self.looks.len() >= LOOKS_MAX
            && let (Some((_, first)), Some((_, second))) = (self.looks.pop_front(), self.looks.front_mut())
        {
            *second = first.max(*second);
        }
        self.looks.push_back((now, wanted));
    }

    /// Whether looks have been had for so long.
    fn covers(&self, now: Instant, window: Duration) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= window)
    }

    /// Fewest pods that made sense within `window`, `wanted` included.
    fn lowest(&self, now: Instant, window: Duration, wanted: u32) -> u32 {
        let within = self.looks.iter().filter(|(at, _)| now.saturating_duration_since(*at) <= window);
        within.map(|(_, wanted)| *wanted).fold(wanted, u32::min)
    }

    /// Most pods that made sense within the window for fewer.
    fn highest(&self, wanted: u32) -> u32 {
        self.looks.iter().map(|(_, wanted)| *wanted).fold(wanted, u32::max)
    }
}
