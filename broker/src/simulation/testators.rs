//! Clients whose connections end without a farewell, so that their wills are published: at once, or, of those whose
//! sessions go on for a while, after a delay, unless they come back before.

use std::time::Duration;

use weir_codec::{Connect, Message, MessageProperties, Packet, QoS, ReasonCode, Will};
use weir_env::clock::Timestamp;
use weir_topic::TopicName;

use super::client::Client;
use super::history::{self, End, Event, Visit};
use super::live::Troubles;
use super::wire::Wire;

/// Longest time between two connections, in milliseconds.
const PAUSE_MAX: u64 = 1500;
/// As that, of a client that is back before its will is published.
const HASTE_MAX: u64 = 30;
/// Seconds from the end of a visitor's connection to its will, if that is to wait.
pub(super) const DELAY: u32 = 2;
/// Seconds from the end of a visitor's connection to the end of its session.
const EXPIRY: u32 = 7;
/// How much later things happen than they should while nothing is wrong with the pod.
const SLACK: Duration = Duration::from_secs(4);

/// Connects so many times, with another will each time, and cuts the connection. What is on its way to the broker with
/// a CONNECT that nobody answers may be a will or not.
pub(super) async fn run(client: Client, connections: u16) {
    for n in 0..connections {
        client.idle(if client.chance(2) { HASTE_MAX } else { PAUSE_MAX }).await;
        let payload = format!("{}-{n}", client.id);
        let connect = Connect { clean_start: true, ..with_will(&client, &payload, 0) };
        if let Some((wire, _)) = client.open(connect).await {
            stay(&client, wire, false).await;
            client.history.note(Event::Answered(client.id.clone(), payload, ReasonCode::Success));
        }
    }
}

/// As [`run`], in a session that goes on for a while, with wills that wait for `delay` seconds. Some come back before the
/// will is due or while it is published, some before the session ends, some later.
pub(super) async fn visit(client: Client, visits: u16, delay: u32) {
    // The last will, with when its connection began and ended, the pod, and whether it was cut here.
    let mut last: Option<(String, [Timestamp; 2], usize, bool)> = None;
    for n in 0..visits {
        let away = [HASTE_MAX, 500, u64::from(DELAY) * 2000, u64::from(EXPIRY) * 2200];
        let choice = client.seed.below(if delay == 0 { 2 } else { 4 });
        client.idle(away[usize::try_from(choice).unwrap()]).await;
        let payload = format!("{}-{n}", client.id);
        let expiry = Some(EXPIRY);
        let connect = Connect {
            session_expiry_interval: expiry,
            clean_start: false,
            ..with_will(&client, &payload, delay)
        };
        let asked = client.history.now();
        let Some((wire, present)) = client.open(connect).await else {
            // It may be connected by that at any time, which takes up the session of whatever connection there is then.
            return;
        };
        let came = client.history.now();
        if let Some((will, times, pod, is_own_end)) = last {
            let [connected, left] = times;
            let visit = Visit { will, delay, pod, connected, left, is_own_end, asked, came, present };
            client.history.note(Event::Back(client.id.clone(), visit));
        }
        let pod = wire.pod;
        let is_own_end = stay(&client, wire, present).await;
        last = Some((payload, [came, client.history.now()], pod, is_own_end));
    }
    if let Some((will, ..)) = last {
        client.history.note(Event::Answered(client.id.clone(), will, ReasonCode::Success));
    }
}

fn with_will(client: &Client, payload: &str, delay_interval: u32) -> Connect {
    let topic = "in/0".to_owned();
    let sent = history::Message { payload: payload.to_owned(), topic: topic.clone(), qos: QoS::ExactlyOnce };
    client.history.note(Event::Sent(client.id.clone(), sent));
    Connect {
        client_id: client.id.clone().into(),
        will: Some(Will {
            message: Message {
                topic: TopicName::parse(topic).unwrap(),
                payload: payload.to_owned().into(),
                properties: MessageProperties::default(),
            },
            qos: QoS::ExactlyOnce,
            retain: false,
            delay_interval,
            message_expiry_interval: None,
        }),
        ..Connect::default()
    }
}

/// For a while, or until the connection is over; then it is cut. Whether it was not over before.
async fn stay(client: &Client, mut wire: Wire, present: bool) -> bool {
    client.history.note(Event::Connected(client.id.clone(), wire.pod, present));
    let stay = Duration::from_micros(client.seed.below(PAUSE_MAX * 1000));
    // Who is told to go is gone for the pod.
    let over = async { while !matches!(wire.next().await, None | Some(Packet::Disconnect(_))) {} };
    let is_own_end = tokio::time::timeout(stay, over).await.is_err();
    drop(wire);
    client.lost();
    is_own_end
}

/// Wills of sessions that ended are published, those of who came back in time are not, and sessions last as long as
/// they should: the last two unless something was wrong with the pod. That no will comes twice is looked at with all
/// messages.
pub(super) fn violations(events: &[(Timestamp, Event)], end: &End) -> Vec<String> {
    let troubles = Troubles::of(events);
    let mut found = Vec::new();
    for (_, event) in events {
        let Event::Back(client, visit) = event else { continue };
        let Visit { will, delay, pod, connected, left, is_own_end, asked, came, present } = visit;
        let is_published = end.stream.values().any(|payload| payload == will);
        let behind = |since: u32, slack: Duration| {
            left.saturating_add(Duration::from_secs(since.into())).saturating_add(slack)
        };
        let (due, expiry) = (behind(*delay, Duration::ZERO), behind(EXPIRY, Duration::ZERO));
        if !present && !is_published {
            found.push(format!("{will} is not published, and the session of {client} has ended"));
        }
        if troubles.touch(&[*pod], *connected, *came) {
            continue;
        }
        if *present && *came < due && *is_own_end && is_published {
            found.push(format!("{will} is published, and {client} was back in time"));
        }
        if *present && *asked > behind(*delay, SLACK) && !is_published {
            found.push(format!("{will} is not published, and {client} was away for too long"));
        }
        if !*present && *came < expiry {
            found.push(format!("the session of {client} has ended before its time ({will})"));
        }
        if *present && *asked > behind(EXPIRY, SLACK) {
            found.push(format!("the session of {client} has not ended in time ({will})"));
        }
    }
    found
}
