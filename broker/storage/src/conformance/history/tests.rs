//! The checker finds what is wrong with histories that no serializable store produces.

use bytes::Bytes;

use super::check::{Order, Remains};
use super::model::{Table, Write};
use super::{Op, Outcome, Record};
use crate::{Committed, Error, Isolation, RangePage, RangeQuery, Version, Versionstamp};

/// A transaction that read at version `reads_at` and was committed as `version`, and their stamps.
fn record(name: &str, reads_at: u64, version: u64, ops: Vec<Op>) -> Record {
    let versionstamp = Some(Versionstamp::new(Version(version), 0));
    Record {
        name: name.into(),
        begun_after: Version(0),
        reads_at: Some(Version(reads_at)),
        is_chosen: false,
        ops,
        asked_after: Version(0),
        outcome: Outcome::Committed(Committed { version: Version(version), versionstamp }),
    }
}

fn get(key: &str, saw: Option<&'static str>) -> Op {
    let (key, saw) = (key.as_bytes().to_vec(), saw.map(|value| Bytes::from_static(value.as_bytes())));
    Op::Get { key, isolation: Isolation::Serializable, saw }
}

/// A range `a..z` that returned these keys, each with the value `1`.
fn scan(keys: &[&'static str]) -> Op {
    let pairs = keys.iter().map(|key| (Bytes::from_static(key.as_bytes()), Bytes::from_static(b"1")));
    let saw = RangePage { pairs: pairs.collect(), more: false };
    Op::Range { query: RangeQuery::new("a", "z"), isolation: Isolation::Serializable, saw }
}

fn set(key: &str, value: &str) -> Op {
    Op::Write(Write::Set { key: key.into(), value: value.into() })
}

fn as_snapshot(op: Op) -> Op {
    match op {
        Op::Get { key, saw, .. } => Op::Get { key, isolation: Isolation::Snapshot, saw },
        other => other,
    }
}

/// What the store holds when everything that committed has happened.
fn remains(records: &[Record]) -> Remains {
    let mut remains = Remains::default();
    for record in records {
        if let Outcome::Committed(Committed { versionstamp: Some(stamp), .. }) = record.outcome {
            record.writes().for_each(|write| write.apply(&mut remains.data, Some(stamp)));
            remains.markers.insert(record.name.clone(), stamp.0.to_vec());
        }
    }
    remains
}

/// What the checker says; the records are in the order of their commits.
fn verdict_on(records: &[Record], remains: &Remains) -> Result<(), String> {
    let order = Order::establish(records, remains)?;
    order.check(records, &remains.data).map(drop)
}

#[track_caller]
fn refused(records: &[Record], why: &str) {
    let told = verdict_on(records, &remains(records)).expect_err("refused");
    assert!(told.contains(why), "{told}");
}

fn first() -> Record {
    record("first", 1, 10, vec![set("x", "1"), set("y", "1")])
}

#[test]
fn a_history_in_order_is_accepted() {
    let mut reader = record("reader", 10, 10, vec![get("x", Some("1")), scan(&["x", "y"])]);
    reader.outcome = Outcome::Committed(Committed { version: Version(10), versionstamp: None });
    let records = [
        first(),
        reader,
        record("second", 10, 20, vec![get("x", Some("1")), set("x", "2"), get("x", Some("2"))]),
        record("blind", 5, 30, vec![set("x", "3")]),
        record("old snapshot", 10, 40, vec![as_snapshot(get("x", Some("1"))), set("z", "4")]),
    ];
    verdict_on(&records, &remains(&records)).unwrap();
}

#[test]
fn a_lost_update_is_found() {
    let update = |name, version, value| record(name, 10, version, vec![get("x", Some("1")), set("x", value)]);
    refused(&[first(), update("a", 20, "2"), update("b", 30, "3")], "at its place in the order");
}

#[test]
fn write_skew_is_found() {
    let a = record("a", 10, 20, vec![get("x", Some("1")), set("y", "2")]);
    let b = record("b", 10, 30, vec![get("y", Some("1")), set("x", "2")]);
    refused(&[first(), a, b], "at its place in the order");
}

#[test]
fn a_phantom_is_found() {
    let a = record("a", 10, 20, vec![set("w", "1")]);
    let b = record("b", 10, 30, vec![scan(&["x", "y"]), set("zz", "2")]);
    refused(&[first(), a, b], "at its place in the order");
}

#[test]
fn a_write_of_the_same_value_is_a_write() {
    let a = record("a", 10, 20, vec![set("x", "1")]);
    let b = record("b", 10, 30, vec![get("x", Some("1")), set("y", "2")]);
    refused(&[first(), a, b], "no conflict with");
}

#[test]
fn an_added_conflict_that_is_passed_over_is_found() {
    let fence = Op::ReadConflict { begin: b"owner".to_vec(), end: b"owner\0".to_vec() };
    let stale = record("stale", 10, 30, vec![fence.clone(), set("log", "1")]);
    refused(
        &[first(), record("takeover", 10, 20, vec![set("owner", "2")]), stale.clone()],
        "no conflict with",
    );
    let touch = Op::WriteConflict { begin: b"o".to_vec(), end: b"p".to_vec() };
    refused(&[first(), record("takeover", 10, 20, vec![touch]), stale], "no conflict with");
}

#[test]
fn reads_of_two_versions_are_found_also_in_what_never_committed() {
    let second = record("second", 10, 20, vec![set("x", "2"), set("y", "2")]);
    let mut torn = record("torn", 20, 0, vec![get("x", Some("2")), as_snapshot(get("y", Some("1")))]);
    torn.outcome = Outcome::Absent(None);
    refused(&[first(), second, torn], "at its read version");
}

#[test]
fn a_page_that_leaves_out_or_invents_is_found() {
    for wrong in [scan(&["x"]), scan(&["x", "y", "yy"]), scan(&["y", "x"])] {
        refused(&[first(), record("a", 10, 20, vec![wrong, set("q", "1")])], "at its read version");
    }
}

#[test]
fn a_page_that_was_cut_short_is_guarded_as_far_as_it_goes() {
    let page = |limit: usize| {
        let saw = RangePage { pairs: vec![(Bytes::from("x"), Bytes::from("1"))], more: true };
        let query = RangeQuery::new("a", "z").limit(limit);
        Op::Range { query, isolation: Isolation::Serializable, saw }
    };
    let cleared = record("cleared", 10, 20, vec![Op::Write(Write::Clear { key: b"y".to_vec() })]);
    let records = [first(), cleared.clone(), record("reader", 10, 30, vec![page(1), set("q", "1")])];
    verdict_on(&records, &remains(&records)).unwrap();
    refused(&[first(), cleared, record("reader", 10, 30, vec![page(2), set("q", "1")])], "without a reason");
}

#[test]
fn time_that_runs_backwards_is_found() {
    let mut late = record("late", 9, 20, vec![get("x", None)]);
    late.outcome = Outcome::Absent(None);
    late.begun_after = Version(10);
    refused(&[first(), late.clone()], "which was committed before it began");
    late.is_chosen = true;
    let records = [first(), late];
    verdict_on(&records, &remains(&records)).unwrap();

    let mut early = record("early", 10, 15, vec![set("q", "1")]);
    early.asked_after = Version(15);
    refused(&[first(), early], "which had returned");
    refused(&[record("self", 10, 10, vec![set("q", "1")])], "not after what it read");
}

#[test]
fn outcomes_that_markers_deny_are_found() {
    let records = [first()];
    let mut lost = remains(&records);
    lost.markers.clear();
    assert!(verdict_on(&records, &lost).unwrap_err().contains("its marker says None"));
    let mut refused_yet_there = first();
    refused_yet_there.outcome = Outcome::Absent(Some(Error::Conflict));
    assert!(
        verdict_on(&[refused_yet_there], &remains(&records)).unwrap_err().contains("its marker says Some")
    );
    let mut unknown = first();
    unknown.outcome = Outcome::Unknown;
    verdict_on(&[unknown.clone()], &remains(&records)).unwrap();
    verdict_on(&[unknown], &Remains::default()).unwrap();
    refused(&[first(), record("twin", 1, 10, vec![set("q", "1")])], "one versionstamp for two");
}

#[test]
fn what_is_left_must_be_what_was_committed() {
    let records = [first()];
    let mut torn = remains(&records);
    torn.data = Table::from([(b"x".to_vec(), b"1".to_vec())]);
    assert!(verdict_on(&records, &torn).unwrap_err().contains("at the end there is"));
}
