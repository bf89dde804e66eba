//! Tables of single decisions, and Brokers that are followed for hours of odd load.

use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::trials;

use super::*;

const TARGETS: Targets = Targets {
    connections: Some(100),
    connect_rate: None,
    bytes_rate: None,
    append_rate: None,
    deliver_rate: None,
    shards: None,
    cpu_millis: None,
};
const LIMITS: Limits =
    Limits { min: 1, max: 10, up_after: Duration::ZERO, down_after: Duration::from_secs(300) };
const LOOK: Duration = Duration::from_secs(15);

fn now() -> Instant {
    Clock::simulated(Timestamp::from_micros(0)).now()
}

/// Pods with so many connections each.
fn pods(connections: &[u64]) -> Vec<Load> {
    let load = |(index, connections): (usize, &u64)| Load {
        pod: format!("p{index}"),
        connections: *connections,
        is_fresh: true,
        ..Load::default()
    };
    connections.iter().enumerate().map(load).collect()
}

/// `total` connections, spread over `count` pods.
fn spread(total: u64, count: u32) -> Vec<Load> {
    let of = |pod: u32| total / u64::from(count) + u64::from(u64::from(pod) < total % u64::from(count));
    pods(&(0..count).map(of).collect::<Vec<_>>())
}

/// The decision of somebody who has looked long enough and always saw the same.
fn settled(current: u32, loads: &[Load], limits: &Limits) -> Decision {
    let (mut history, start) = (History::default(), now());
    let mut at = start;
    loop {
        let decision = decide(current, loads, &TARGETS, limits, &mut history, at);
        if at.saturating_duration_since(start) > limits.down_after {
            return decision;
        }
        at += LOOK;
    }
}

#[test]
fn as_many_pods_as_the_load_asks_for() {
    for (connections, expected, victim) in [
        (vec![100, 100], 2, None),
        (vec![105, 110], 2, None),
        (vec![150, 150], 3, None),
        (vec![500], 5, None),
        // Not more than four come at once, or as many again.
        (vec![5000], 5, None),
        (vec![300; 6], 10, None),
        (vec![60, 20, 30], 2, Some("p1")),
        (vec![0], 1, None),
        (vec![10; 10], 9, Some("p0")),
        (vec![10; 12], 11, Some("p0")),
    ] {
        let current = u32::try_from(connections.len()).unwrap();
        let decision = settled(current, &pods(&connections), &LIMITS);
        assert_eq!(
            (decision.replicas, decision.victim.as_deref()),
            (expected, victim),
            "{connections:?}: {decision:?}"
        );
        assert!(!decision.why.is_empty());
    }
}

#[test]
fn the_figure_that_asks_for_most_decides() {
    let targets = Targets { append_rate: Some(1000), bytes_rate: Some(1_000_000), ..TARGETS };
    let mut loads = pods(&[50, 50]);
    loads[0].append_rate = 4500;
    let decision = decide(2, &loads, &targets, &LIMITS, &mut History::default(), now());
    assert_eq!(decision.replicas, 5);
    assert_eq!(decision.why, "4500 appended messages a second at 1000 a pod make 5");
    let targets = Targets { shards: Some(64), ..targets };
    loads.iter_mut().for_each(|load| load.shards = 256);
    let decision = decide(2, &loads, &targets, &LIMITS, &mut History::default(), now());
    assert_eq!(decision.why, "512 virtual shards at 64 a pod make 8");
    let none = decide(2, &loads, &Targets::default(), &LIMITS, &mut History::default(), now());
    assert_eq!((none.replicas, none.why.as_str()), (2, "there is no target to scale by"));
}

#[test]
fn nobody_goes_while_it_is_not_safe() {
    let mut draining = pods(&[10, 10, 10]);
    draining[2].is_draining = true;
    let mut silent = pods(&[10, 10, 10]);
    silent[1].is_fresh = false;
    for (loads, part) in [
        (draining, "p2 is drained already"),
        (silent, "2 of 3 pods say"),
        (pods(&[10, 10]), "2 of 3 pods say"),
        (Vec::new(), "0 of 3 pods say"),
    ] {
        let decision = settled(3, &loads, &LIMITS);
        assert!(decision.replicas == 3 && decision.victim.is_none(), "{decision:?}");
        assert!(decision.why.contains(part), "{decision:?}");
    }
    let early = decide(3, &pods(&[10, 10, 10]), &TARGETS, &LIMITS, &mut History::default(), now());
    assert!(early.replicas == 3 && early.why.contains("not for long enough yet"), "{early:?}");
}

#[test]
fn a_pause_in_looking_begins_the_wait_anew() {
    let (mut history, start, loads) = (History::default(), now(), pods(&[10, 10]));
    decide(2, &loads, &TARGETS, &LIMITS, &mut history, start);
    let later = start + LIMITS.down_after * 3;
    assert_eq!(decide(2, &loads, &TARGETS, &LIMITS, &mut history, later).replicas, 2);
}

#[test]
fn more_pods_wait_if_they_are_to() {
    let limits = Limits { up_after: Duration::from_secs(60), ..LIMITS };
    let (mut history, start) = (History::default(), now());
    assert_eq!(decide(1, &pods(&[90]), &TARGETS, &limits, &mut history, start).replicas, 1);
    let busy = pods(&[400]);
    for (after, expected) in [(15, 1), (45, 1), (61, 4)] {
        let at = start + Duration::from_secs(after);
        assert_eq!(decide(1, &busy, &TARGETS, &limits, &mut history, at).replicas, expected, "{after}");
    }
}

#[test]
fn a_history_is_bounded_and_forgets_no_peak() {
    let limits = Limits { down_after: Duration::from_secs(3600), ..LIMITS };
    let (mut history, start) = (History::default(), now());
    decide(3, &pods(&[100, 100, 100]), &TARGETS, &limits, &mut history, start);
    for second in 1..3000 {
        let decision = decide(
            3,
            &pods(&[10, 10, 10]),
            &TARGETS,
            &limits,
            &mut history,
            start + Duration::from_secs(second),
        );
        assert_eq!(decision.replicas, 3, "{second}");
        assert!(history.looks.len() <= LOOKS_MAX);
    }
}

#[test]
fn it_stays_within_bounds_whatever_the_load() {
    for trial in trials(200) {
        let seed = trial.seed();
        let seed = weir_env::seed::Seed::fixed(seed);
        let below = |bound: u64| seed.below(bound);
        let narrow = |bound: u64| u32::try_from(below(bound)).unwrap();
        let limits = Limits {
            min: 1 + narrow(5),
            max: 6 + narrow(10),
            up_after: Duration::from_secs(below(100)),
            down_after: Duration::from_secs(below(400)),
        };
        let (mut history, mut at, mut current) = (History::default(), now(), 1 + narrow(30));
        for _ in 0..300 {
            at += Duration::from_secs(1 + below(60));
            let loads = spread(below(3000), current);
            let next = decide(current, &loads, &TARGETS, &limits, &mut history, at);
            assert!(next.replicas >= limits.min.min(current) && next.replicas <= limits.max.max(current));
            assert!(next.replicas + 1 >= current, "more than one pod goes: {next:?}");
            assert_eq!(next.victim.is_some(), next.replicas < current, "{next:?}");
            assert!(next.replicas >= limits.min, "{next:?}");
            current = next.replicas;
        }
        assert!(current <= limits.max.max(30));
    }
}

#[test]
fn noise_about_a_load_does_not_make_it_flap() {
    for trial in trials(100) {
        let seed = weir_env::seed::Seed::fixed(trial.seed());
        let base = 150 + seed.below(700);
        let (mut history, mut at, mut current) = (History::default(), now(), 1);
        let (mut ups, mut downs) = (0, 0);
        for look in 0..400 {
            at += LOOK;
            // A third up and down.
            let total = base - base / 3 + seed.below(base / 3 * 2);
            let next = decide(current, &spread(total, current), &TARGETS, &LIMITS, &mut history, at).replicas;
            if look > 100 {
                ups += u32::from(next > current);
                downs += u32::from(next < current);
            }
            current = next;
        }
        // Without the window every second look would change it.
        assert!(ups <= 20 && downs <= 20, "{ups} up and {downs} down");
    }
}

#[test]
fn it_comes_to_rest_where_the_load_fits() {
    for trial in trials(100) {
        let seed = weir_env::seed::Seed::fixed(trial.seed());
        let total = seed.below(1000);
        let start = 1 + u32::try_from(seed.below(10)).unwrap();
        let (mut history, mut at, mut current, mut rest) = (History::default(), now(), start, 0);
        for _ in 0..200 {
            at += LOOK;
            let next = decide(current, &spread(total, current), &TARGETS, &LIMITS, &mut history, at).replicas;
            rest = if next == current { rest + 1 } else { 0 };
            current = next;
        }
        assert!(rest > 50, "it still changes");
        let fits = u64::from(current) * 100;
        assert!(fits + fits / TOLERANCE >= total, "{current} pods have {total}");
        assert!(
            current == 1 || fits.saturating_sub(100) <= total + total / 5,
            "{current} pods have only {total}"
        );
    }
}
