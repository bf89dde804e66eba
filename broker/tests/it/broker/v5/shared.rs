//! Shared subscriptions (4.8.2).

use std::time::Duration;

use weir_codec::{Connect, Packet, ReasonCode};
use weir_core::keyspace::tag;
use weir_storage::CommitFault;

use super::super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, clean, persistent, publish, receive_maximum, text,
};
use super::super::{TestBroker, config, faulty, memory, queue};

// Conformance v5: 4.8.2-1, 4.8.2-2
#[tokio::test]
async fn a_share_has_a_name_and_a_filter() {
    let broker = TestBroker::start().await;
    let mut client = broker.clean("c").await;
    for bad in ["$share/", "$share//t", "$share/g", "$share/g/", "$share/+/t", "$share/g#/t", "$share/g/a#"] {
        assert_eq!(client.subscribed(bad, AtLeastOnce).await, ReasonCode::TopicFilterInvalid, "{bad}");
    }
    for good in ["$share/g/t", "$share/a b/#", "$share/g//", "$share/g/+/t"] {
        assert_eq!(client.subscribed(good, AtLeastOnce).await, ReasonCode::GrantedQoS1, "{good}");
    }
}

// Conformance v5: 4.8.2-3
#[tokio::test]
async fn each_member_gets_the_qos_it_was_granted() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.clean("p").await;
    let granted = [("a", AtMostOnce), ("b", AtLeastOnce), ("c", ExactlyOnce)];
    let mut members = Vec::new();
    for (name, qos) in granted {
        members.push(broker.subscriber(name, "$share/g/t", qos).await);
    }
    for n in 1..=9 {
        publisher.publish_twice_acknowledged(n, "t", "x").await;
    }
    for (member, (_, qos)) in members.iter_mut().zip(granted) {
        for _ in 0..3 {
            let message = member.message().await;
            assert_eq!(message.header.qos, qos);
        }
        member.synced().await;
    }
}

/// A persistent member holds a QoS 2 message, or has received it: so far has its delivery begun. Another member
/// is there from then on.
async fn begun(broker: &TestBroker, received: bool) -> (Client, Client, weir_codec::PacketId) {
    let mut holder = broker.connect(persistent("holder", V5)).await;
    holder.subscribe("$share/g/t", ExactlyOnce).await;
    let mut publisher = broker.clean("p").await;
    publisher.publish_twice_acknowledged(1, "t", "x").await;
    let packet_id = holder.message().await.header.packet_id.unwrap();
    if received {
        holder.pubrec(packet_id).await;
        assert!(matches!(holder.recv().await, Packet::PubRel(_)));
    }
    let other = broker.subscriber("other", "$share/g/t", ExactlyOnce).await;
    (holder, other, packet_id)
}

// Conformance v5: 4.8.2-4
#[tokio::test]
async fn a_shared_qos_2_message_is_completed_with_the_member_it_began_with() {
    for received in [false, true] {
        let broker = TestBroker::start().await;
        let (holder, mut other, packet_id) = begun(&broker, received).await;
        holder.vanish();
        other.quiet().await;
        let mut holder = broker.resume(persistent("holder", V5)).await;
        if received {
            assert!(matches!(holder.recv().await, Packet::PubRel(ack) if ack.packet_id == packet_id));
            holder.pubcomp(packet_id).await;
        } else {
            let message = holder.message().await;
            assert_eq!((message.header.packet_id, message.header.dup), (Some(packet_id), true));
            holder.receive_twice_acknowledged(&message).await;
        }
        holder.synced().await;
        other.synced().await;
    }
}

// Conformance v5: 4.8.2-5
#[tokio::test]
async fn a_shared_qos_2_message_ends_with_the_session_it_began_in() {
    for received in [false, true] {
        let broker = TestBroker::start().await;
        let (holder, mut other, _) = begun(&broker, received).await;
        holder.vanish();
        let anew = Connect { clean_start: true, ..persistent("holder", V5) };
        let mut holder = broker.connect(anew).await;
        holder.synced().await;
        other.quiet().await;
        holder.disconnect_with(ReasonCode::Success, Some(0)).await;
        other.quiet().await;
    }
}

// Conformance v5: 4.8.2-6
#[tokio::test]
async fn a_message_that_one_member_refuses_goes_to_nobody_else() {
    let broker = TestBroker::start().await;
    for connect in [clean("a", V5), persistent("a", V5)] {
        let mut refusing = broker.connect(connect).await;
        refusing.subscribe("$share/g/t", ExactlyOnce).await;
        broker.publish("t", &["1"]).await;
        let mut publisher = broker.clean("p").await;
        publisher.publish_twice_acknowledged(1, "t", "2").await;
        let (one, two) = (refusing.message().await, refusing.message().await);
        assert_eq!((text(&one), text(&two)), ("1", "2"));
        let mut other = broker.subscriber("b", "$share/g/t", ExactlyOnce).await;
        refusing.puback(&one, ReasonCode::UnspecifiedError).await;
        let packet_id = two.header.packet_id.unwrap();
        let refusal = weir_codec::Ack { packet_id, reason: ReasonCode::UnspecifiedError, properties: None };
        refusing.send(Packet::PubRec(refusal)).await;
        refusing.synced().await;
        refusing.disconnect_with(ReasonCode::Success, Some(0)).await;
        other.quiet().await;
        other.disconnect().await;
    }
}

/// 4.8.2: a server should give what a member did not acknowledge to another one when its session ends.
#[tokio::test]
async fn what_a_member_leaves_behind_goes_to_another() {
    for heir in [clean("heir", V5), persistent("heir", V5)] {
        let broker = TestBroker::start().await;
        let mut member = broker.connect(receive_maximum(clean("member", V5), 3)).await;
        member.subscribe("$share/g/t", ExactlyOnce).await;
        let mut publisher = broker.clean("p").await;
        publisher.publish("t", "acknowledged").await;
        publisher.publish("t", "seen").await;
        publisher.publish_twice_acknowledged(1, "t", "begun").await;
        publisher.publish_twice_acknowledged(2, "t", "waiting 2").await;
        publisher.publish("t", "waiting 1").await;
        publisher.post(publish(AtMostOnce, 0, "t", "waiting 0")).await;
        publisher.synced().await;
        let held = [member.message().await, member.message().await, member.message().await];
        assert_eq!(held.each_ref().map(text), ["acknowledged", "seen", "begun"]);
        // Its place is taken by what waits.
        member.puback(&held[0], ReasonCode::Success).await;
        assert_eq!(text(&member.message().await), "waiting 2");
        let mut heir = broker.connect(heir).await;
        heir.subscribe("$share/g/t", ExactlyOnce).await;
        member.vanish();
        let mut inherited = Vec::new();
        for _ in 0..3 {
            let message = heir.message().await;
            assert!(!message.header.dup);
            inherited.push(text(&message).to_owned());
            if message.header.qos == AtLeastOnce {
                heir.puback(&message, ReasonCode::Success).await;
            }
        }
        inherited.sort();
        assert_eq!(inherited, ["seen", "waiting 0", "waiting 1"]);
        heir.synced().await;
        heir.quiet().await;
    }
}

#[tokio::test]
async fn a_member_without_room_is_passed_over() {
    let mut config = config();
    config.limits.outbox_bytes_per_client = weir::config::ByteCount::kib(64);
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut slow = broker.connect(receive_maximum(clean("slow", V5), 1)).await;
    slow.subscribe("$share/g/t", AtLeastOnce).await;
    // What it is given waits in its inbox, which has room.
    let mut other = broker.connect(persistent("other", V5)).await;
    other.subscribe("$share/g/t", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    let payload = "x".repeat(1000);
    for _ in 0..400 {
        assert_eq!(publisher.publish("t", &payload).await, ReasonCode::Success);
    }
    // As large as the others, so that it has no room with the slow one either.
    let last = "l".repeat(1000);
    publisher.publish("t", &last).await;
    let mut taken = 0;
    while text(&other.take().await) != last {
        taken += 1;
    }
    // One at the client and as many as its mailbox takes.
    let kept = 400 - taken;
    assert!((30..=65).contains(&kept), "{kept}");
    assert_eq!(slow.take_texts(kept).await.len(), kept);
    slow.synced().await;
}

/// Dropped for want of room.
const FULL: &str = "weir_messages_dropped_total{reason=\"outbox_full\"}";
/// Clients that were shed.
const TOO_SLOW: &str = "weir_connections_closed_total{reason=\"too_slow\"}";

#[tokio::test]
async fn what_a_member_leaves_behind_sheds_no_heir() {
    let mut config = config();
    config.limits.outbox_bytes_per_client = weir::config::ByteCount::kib(64);
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut members = Vec::new();
    for name in ["leaver", "a", "b"] {
        let mut member = broker.connect(receive_maximum(clean(name, V5), 1)).await;
        member.subscribe("$share/g/t", AtLeastOnce).await;
        members.push(member);
    }
    // More than half of what each of them has room for.
    let mut publisher = broker.clean("p").await;
    for _ in 0..120 {
        assert_eq!(publisher.publish("t", &"x".repeat(1000)).await, ReasonCode::Success);
    }
    members.remove(0).vanish();
    broker.metric_reaches(FULL, 1.0).await;
    for member in &mut members {
        // Forty of its own, and what it had room for.
        member.take_texts(55).await;
    }
    assert_eq!(broker.metric(TOO_SLOW).await, 0.0);
    assert!(broker.metric(FULL).await <= 10.0);
}

#[tokio::test]
async fn what_waited_for_a_member_that_is_shed_goes_to_another() {
    let mut config = config();
    config.limits.outbox_bytes_per_client = weir::config::ByteCount::kib(64);
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut slow = broker.connect(receive_maximum(clean("slow", V5), 1)).await;
    slow.subscribe("$share/g/t", AtLeastOnce).await;
    slow.subscribe("own", AtLeastOnce).await;
    let work: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    broker.publish("t", &work.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut heir = broker.subscriber("heir", "$share/g/t", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    while broker.metric(TOO_SLOW).await == 0.0 {
        publisher.publish("own", &"x".repeat(10_000)).await;
    }
    let mut inherited = heir.take_texts(10).await;
    inherited.sort();
    assert_eq!(inherited, work);
}

#[tokio::test]
async fn a_member_that_leaves_while_a_message_becomes_durable_loses_nothing() {
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("kept", "t")]).await;
    let member = broker.subscriber("member", "$share/g/t", ExactlyOnce).await;
    let mut publisher = broker.clean("p").await;
    faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(Duration::from_secs(2)));
    publisher.post(publish(ExactlyOnce, 1, "t", "x")).await;
    publisher.synced().await;
    // The member has been chosen.
    let mut heir = broker.subscriber("heir", "$share/g/t", ExactlyOnce).await;
    member.vanish();
    assert_eq!(publisher.pubreced(1).await, ReasonCode::Success);
    assert_eq!(text(&heir.message().await), "x");
}

#[tokio::test]
async fn a_member_whose_inbox_is_full_is_passed_over() {
    let mut config = config();
    config.limits.inbox_messages_per_client = 3;
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut full = broker.connect(persistent("full", V5)).await;
    full.subscribe("$share/g/t", AtLeastOnce).await;
    let mut idle = broker.subscriber("idle", "$share/g/t", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    for n in 0..20 {
        assert_eq!(publisher.publish("t", &n.to_string()).await, ReasonCode::Success);
    }
    idle.take_texts(17).await;
    full.take_texts(3).await;
    assert_eq!(broker.metric("weir_inbox_dropped_full_total").await, 0.0);
}
