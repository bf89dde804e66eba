//! Scripts: what goes into a session and what must come out of it, one thing a line.
//!
//! The first line is `connect`, with options of the client and of the limits. Then `>` is a packet of the client,
//! `=` a call of the broker, `+` time that passes; below each stands all that comes out of it: `:` the result of
//! the call, `!` an event, `<` a packet.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use weir_codec::*;
use weir_session::*;
use weir_topic::TopicName;

/// Runs `script` and compares everything that came out with what it says.
#[track_caller]
pub(crate) fn check(script: &str) {
    let lines: Vec<&str> = script.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut runner = Runner::new(lines.first().expect("a script begins with connect"));
    for line in &lines {
        if line.starts_with(['c', '>', '=', '+']) {
            runner.step(line);
        }
    }
    assert_eq!(runner.transcript, lines.join("\n") + "\n", "left: what happened, right: what should");
}

pub(crate) fn message(topic: &str, payload: &str) -> Message {
    Message {
        topic: TopicName::parse(topic.to_owned()).unwrap(),
        payload: Bytes::from(payload.to_owned()),
        properties: MessageProperties::default(),
    }
}

/// The epoch of all simulated time.
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin; tests only add to it")]
pub(crate) fn origin() -> Instant {
    Instant::now()
}

/// Words of a line: `name=value` options, the rest by position.
struct Words<'a> {
    plain: Vec<&'a str>,
    options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Self {
        let (options, plain): (Vec<&str>, Vec<&str>) =
            line.split_whitespace().partition(|word| word.len() > 1 && word.contains('='));
        let options = options.into_iter().filter_map(|word| word.split_once('=')).collect();
        Self { plain, options }
    }

    fn at(&self, index: usize) -> &'a str {
        self.plain.get(index).copied().unwrap_or_default()
    }

    fn id(&self, index: usize) -> PacketId {
        PacketId::new(self.at(index).parse().unwrap()).unwrap()
    }

    fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }

    fn number<N: std::str::FromStr>(&self, name: &str) -> Option<N> {
        self.options.get(name).and_then(|value| value.parse().ok())
    }

    /// The words that are reason codes.
    fn reasons(&self) -> Vec<ReasonCode> {
        self.plain.iter().filter_map(|word| word.strip_prefix("0x")).map(reason).collect()
    }

    fn reason(&self) -> ReasonCode {
        self.reasons().first().copied().unwrap_or_default()
    }

    fn text(&self, name: &str) -> Option<ByteString> {
        self.options.get(name).map(|text| ByteString::from(*text))
    }

    fn qos(&self) -> QoS {
        (0..3).find(|n| self.has(&format!("q{n}"))).and_then(QoS::from_u8).unwrap_or_default()
    }
}

fn reason(hex: &str) -> ReasonCode {
    use ReasonCode::*;
    let all = [
        Success,
        GrantedQoS1,
        GrantedQoS2,
        DisconnectWithWill,
        NoMatchingSubscribers,
        UnspecifiedError,
        MalformedPacket,
        ProtocolError,
        ImplementationSpecificError,
        ServerShuttingDown,
        SessionTakenOver,
        PacketIdentifierNotFound,
        QuotaExceeded,
    ];
    all.into_iter().find(|&code| code as u8 == u8::from_str_radix(hex, 16).unwrap()).unwrap()
}

struct Runner {
    session: Option<Session<String>>,
    connect: Connect,
    limits: Limits,
    now: Instant,
    tokens: Vec<PublishToken>,
    /// Packets are not taken out while set.
    hold: bool,
    transcript: String,
}

impl Runner {
    fn new(first: &str) -> Self {
        let words = Words::new(first);
        let connect = Connect {
            version: if words.has("v3") { ProtocolVersion::V311 } else { ProtocolVersion::V5 },
            clean_start: words.has("clean"),
            keep_alive: words.number("keep-alive").unwrap_or(0),
            will: words.has("will").then(|| Will {
                message: message("will", "gone"),
                qos: QoS::AtMostOnce,
                retain: false,
                delay_interval: 0,
                message_expiry_interval: None,
            }),
            session_expiry_interval: words.number("expiry"),
            receive_maximum: words.number("receive-max"),
            maximum_packet_size: words.number("packet-max"),
            topic_alias_maximum: words.number("alias-max").unwrap_or(0),
            request_problem_information: words.number::<u8>("problem-info").map(|n| n != 0),
            ..Connect::default()
        };
        let limits = Limits {
            receive_maximum: words.number("our-receive-max").unwrap_or(NonZeroU16::MAX),
            inflight_maximum: words.number("our-inflight-max").unwrap_or(NonZeroU16::MAX),
            maximum_packet_size: NonZeroU32::new(1000).unwrap(),
            topic_alias_maximum: words.number("our-alias-max").unwrap_or(0),
            outbound_topic_alias_maximum: 10,
            keep_alive_maximum: words.number("our-keep-alive-max"),
            session_expiry_maximum: words.number("our-expiry-max").unwrap_or(u32::MAX),
        };
        Self {
            session: None,
            connect,
            limits,
            now: origin(),
            tokens: Vec::new(),
            hold: false,
            transcript: String::new(),
        }
    }

    fn step(&mut self, line: &str) {
        self.say(line);
        let words = Words::new(line);
        match line.as_bytes()[0] {
            b'c' => {
                let id = words.text("assigned");
                let restored = words.has("present").then(Restored::default);
                self.session = Some(Session::accept(&self.connect, id, &self.limits, restored, self.now));
            }
            b'>' => {
                let (packet, now) = (client_packet(&words), self.now);
                if let Err(error) = self.session().handle_packet(packet, now) {
                    self.say(&format!(": {error}"));
                }
            }
            b'=' => self.call(&words),
            _ => {
                let ms = words.at(1).trim_end_matches("ms").parse().unwrap();
                self.now += Duration::from_millis(ms);
                let now = self.now;
                self.session().handle_timeout(now);
            }
        }
        self.drain();
    }

    fn call(&mut self, words: &Words<'_>) {
        let now = self.now;
        let result = match words.at(1) {
            "published" => {
                let token = self.tokens[words.at(2).parse::<usize>().unwrap()];
                self.session().handle_published(token, words.reason(), words.text("text"));
                None
            }
            "released" => {
                self.session().handle_released(words.id(2));
                None
            }
            "stored" => {
                self.session().handle_stored(words.id(2));
                None
            }
            call @ ("subscribed" | "unsubscribed") => {
                let mut properties =
                    AckProperties { reason_string: words.text("text"), user_properties: Vec::new() };
                properties.user_properties.extend(words.text("user").map(|value| ("k".into(), value)));
                let (id, reasons) = (words.id(2), words.reasons());
                match call {
                    "subscribed" => self.session().handle_subscribed(id, reasons, properties),
                    _ => self.session().handle_unsubscribed(id, reasons, properties),
                }
                None
            }
            "deliver" => {
                let delivery = delivery(words, now);
                Some(match self.session().deliver(delivery, now) {
                    Ok(Some(id)) => format!("id {}", id.get()),
                    Ok(None) => "sent".to_owned(),
                    Err(refused) => format!("refused {:?} {}", refused.why, refused.delivery.tag),
                })
            }
            "deliver-reserved" => {
                let delivery = delivery(words, now);
                let outcome = self.session().deliver_reserved(words.id(2), delivery, now);
                outcome.err().map(|refused| format!("refused {:?}", refused.why))
            }
            "reserve" => Some(format!("id {:?}", self.session().reserve_packet_id().map(PacketId::get))),
            "forget" => Some(self.session().forget(words.id(2)).to_string()),
            "quota" => Some(self.session().send_quota().to_string()),
            "permits" => Some(self.session().publish_permits().to_string()),
            "wants-read" => Some(self.session().wants_read().to_string()),
            "unknown-acks" => Some(self.session().unknown_acks().to_string()),
            "read-paused" => {
                self.session().handle_read_paused(now);
                None
            }
            "compact" => {
                self.session().compact();
                None
            }
            "close" => {
                self.session().close(words.reason(), words.text("text"));
                None
            }
            "lost" => {
                self.session().handle_lost();
                None
            }
            "malformed" => {
                self.session().handle_malformed(words.reason(), "bad bytes");
                None
            }
            "hold" => {
                self.hold = true;
                None
            }
            "flush" => {
                self.hold = false;
                None
            }
            "reconnect" => Some(self.reconnect(words)),
            other => panic!("unknown call {other}"),
        };
        if let Some(result) = result {
            self.say(&format!(": {result}"));
        }
    }

    fn reconnect(&mut self, words: &Words<'_>) -> String {
        let state = self.session.take().unwrap().into_state();
        let outgoing: Vec<String> = state
            .outgoing
            .iter()
            .map(|left| match left {
                Outgoing::Published { packet_id, delivery } => {
                    format!("{} published {}", packet_id.get(), delivery.tag)
                }
                Outgoing::Released { packet_id, tag } => format!("{} released {tag}", packet_id.get()),
            })
            .collect();
        let returned: Vec<String> =
            state.returned.iter().map(|left| format!("{} {}", left.tag, left.written)).collect();
        let incoming: Vec<u16> = state.incoming_qos2.iter().map(|id| id.get()).collect();
        if let Some(maximum) = words.number("receive-max") {
            self.connect.receive_maximum = Some(maximum);
        }
        self.connect.maximum_packet_size = words.number("packet-max");
        let limits = self.limits.clone();
        self.session = Some(Session::accept(&self.connect, None, &limits, Some(state.into()), self.now));
        format!("outgoing [{}] returned [{}] incoming {incoming:?}", outgoing.join(", "), returned.join(", "))
    }

    fn drain(&mut self) {
        while let Some(event) = self.session().poll_event() {
            let line = self.event(event);
            self.say(&format!("! {line}"));
        }
        while !self.hold
            && let Some(transmit) = self.session().poll_transmit()
        {
            self.say(&format!("< {}", transmit_text(&transmit)));
        }
    }

    fn event(&mut self, event: Event<String>) -> String {
        match event {
            Event::Publish { token, packet_id, qos, retain, dup, message, expiry, repeated } => {
                if qos != QoS::AtMostOnce && !repeated {
                    self.tokens.push(token);
                }
                let header = PublishHeader {
                    dup,
                    qos,
                    retain,
                    packet_id,
                    message_expiry_interval: expiry,
                    ..PublishHeader::default()
                };
                publish_text(&header, message.topic.as_str(), &message.payload)
                    + if repeated { " repeated" } else { "" }
            }
            Event::Release { packet_id } => format!("release {}", packet_id.get()),
            Event::Auth { begins, .. } => format!("auth {}", if begins { "begins" } else { "goes on" }),
            Event::Subscribe(packet) => format!("subscribe {}", packet.packet_id.get()),
            Event::Unsubscribe(packet) => format!("unsubscribe {}", packet.packet_id.get()),
            Event::Acked { packet_id, tag, reason } => {
                format!("acked {} {tag}{}", packet_id.get(), reason_text(reason))
            }
            Event::Received { packet_id, tag } => format!("received {} {tag}", packet_id.get()),
            Event::Closed(closed) => format!(
                "closed {:?} will={} expiry={}",
                closed.cause, closed.publish_will, closed.session_expiry
            ),
        }
    }

    fn say(&mut self, line: &str) {
        self.transcript.push_str(line);
        self.transcript.push('\n');
    }

    fn session(&mut self) -> &mut Session<String> {
        self.session.as_mut().expect("connected")
    }
}

fn delivery(words: &Words<'_>, now: Instant) -> Delivery<String> {
    Delivery {
        message: Arc::new(message(
            words.options.get("topic").copied().unwrap_or("t"),
            words.options.get("payload").copied().unwrap_or("x"),
        )),
        qos: words.qos(),
        retain: words.has("retain"),
        subscription_identifiers: words.number("sub-id").into_iter().collect(),
        extra: words.text("user").map(|value| ("k".into(), value)).into_iter().collect(),
        expires_at: words.number("expires-ms").map(|ms| now + Duration::from_millis(ms)),
        resumable: !words.has("once"),
        store_release: words.has("store"),
        tag: words.options.get("tag").copied().unwrap_or("A").to_owned(),
    }
}

fn client_packet(words: &Words<'_>) -> Packet {
    let ack = || Ack { packet_id: words.id(2), reason: words.reason(), properties: None };
    match words.at(1) {
        "connect" => Packet::Connect(Box::default()),
        "publish" => client_publish(words),
        "puback" => Packet::PubAck(ack()),
        "pubrec" => Packet::PubRec(ack()),
        "pubrel" => Packet::PubRel(ack()),
        "pubcomp" => Packet::PubComp(ack()),
        "subscribe" => Packet::Subscribe(Box::new(Subscribe {
            packet_id: words.id(2),
            subscription_identifier: None,
            user_properties: Vec::new(),
            filters: vec![SubscribeFilter { filter: "t".into(), options: SubscriptionOptions::default() }],
        })),
        "unsubscribe" => Packet::Unsubscribe(Box::new(Unsubscribe {
            packet_id: words.id(2),
            filters: vec!["t".into()],
            user_properties: Vec::new(),
        })),
        "pingreq" => Packet::PingReq,
        "disconnect" => Packet::Disconnect(Box::new(Disconnect {
            reason: words.reason(),
            session_expiry_interval: words.number("expiry"),
            ..Disconnect::default()
        })),
        "auth" => Packet::Auth(Box::default()),
        "connack" => Packet::ConnAck(Box::default()),
        "suback" => Packet::SubAck(Box::new(SubAck {
            packet_id: PacketId::new(1).unwrap(),
            reasons: Vec::new(),
            properties: AckProperties::default(),
        })),
        "unsuback" => Packet::UnsubAck(Box::new(UnsubAck {
            packet_id: PacketId::new(1).unwrap(),
            reasons: Vec::new(),
            properties: AckProperties::default(),
        })),
        "pingresp" => Packet::PingResp,
        other => panic!("unknown packet {other}"),
    }
}

fn client_publish(words: &Words<'_>) -> Packet {
    let Message { topic, payload, properties } = message(
        words.options.get("topic").copied().unwrap_or("t"),
        words.options.get("payload").copied().unwrap_or("x"),
    );
    Packet::Publish(Box::new(Publish {
        header: PublishHeader {
            dup: words.has("dup"),
            qos: words.qos(),
            retain: words.has("retain"),
            packet_id: words
                .plain
                .iter()
                .find_map(|w| w.strip_prefix('#'))
                .and_then(|id| PacketId::new(id.parse().unwrap())),
            topic_alias: words.number("alias"),
            message_expiry_interval: words.number("expiry"),
            subscription_identifiers: words.number("sub-id").into_iter().collect(),
        },
        topic: (!words.has("no-topic")).then_some(topic),
        payload,
        properties,
    }))
}

fn reason_text(reason: ReasonCode) -> String {
    if reason == ReasonCode::Success { String::new() } else { format!(" {:#04x}", reason as u8) }
}

fn publish_text(header: &PublishHeader, topic: &str, payload: &[u8]) -> String {
    let mut text = format!("publish q{}", header.qos.as_u8());
    if let Some(id) = header.packet_id {
        write!(text, " #{}", id.get()).unwrap();
    }
    write!(text, " topic={topic} payload={}", String::from_utf8_lossy(payload)).unwrap();
    text += if header.dup { " dup" } else { "" };
    text += if header.retain { " retain" } else { "" };
    if let Some(expiry) = header.message_expiry_interval {
        write!(text, " expiry={expiry}").unwrap();
    }
    if let Some(alias) = header.topic_alias {
        write!(text, " alias={alias}").unwrap();
    }
    for id in &header.subscription_identifiers {
        write!(text, " sub-id={id}").unwrap();
    }
    text
}

fn properties_text(properties: &AckProperties) -> String {
    let mut text = String::new();
    if let Some(reason) = &properties.reason_string {
        write!(text, " text={reason}").unwrap();
    }
    for (_, value) in &properties.user_properties {
        write!(text, " user={value}").unwrap();
    }
    text
}

fn transmit_text(transmit: &Transmit) -> String {
    match transmit {
        Transmit::Packet(packet) => packet_text(packet),
        Transmit::Publish { header, topic_on_wire, message, extra } => {
            let topic = if *topic_on_wire { message.topic.as_str() } else { "" };
            let extra: String = extra.iter().map(|(_, value)| format!(" user={value}")).collect();
            publish_text(header, topic, &message.payload) + &extra
        }
    }
}

fn packet_text(packet: &Packet) -> String {
    let ack = |name: &str, ack: &Ack| {
        let properties = ack.properties.as_deref().map(properties_text).unwrap_or_default();
        format!("{name} {}{}{properties}", ack.packet_id.get(), reason_text(ack.reason))
    };
    let list = |name: &str, id: PacketId, reasons: &[ReasonCode], properties: &AckProperties| {
        let reasons: String = reasons.iter().map(|&code| format!(" {:#04x}", code as u8)).collect();
        format!("{name} {}{reasons}{}", id.get(), properties_text(properties))
    };
    match packet {
        Packet::ConnAck(packet) => connack_text(packet),
        Packet::PubAck(packet) => ack("puback", packet),
        Packet::PubRec(packet) => ack("pubrec", packet),
        Packet::PubRel(packet) => ack("pubrel", packet),
        Packet::PubComp(packet) => ack("pubcomp", packet),
        Packet::SubAck(packet) => list("suback", packet.packet_id, &packet.reasons, &packet.properties),
        Packet::UnsubAck(packet) => list("unsuback", packet.packet_id, &packet.reasons, &packet.properties),
        Packet::PingResp => "pingresp".to_owned(),
        Packet::Disconnect(packet) => {
            let text = packet.reason_string.as_ref().map(|text| format!(" {text:?}")).unwrap_or_default();
            format!("disconnect{}{text}", reason_text(packet.reason))
        }
        other => panic!("a server never sends {other:?}"),
    }
}

fn connack_text(packet: &ConnAck) -> String {
    let mut text = "connack".to_owned();
    text += if packet.session_present { " present" } else { "" };
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            write!(text, " {name}={value}").unwrap();
        }
    };
    option("expiry", packet.session_expiry_interval.map(|n| n.to_string()));
    option("receive-max", packet.receive_maximum.map(|n| n.to_string()));
    option("packet-max", packet.maximum_packet_size.map(|n| n.to_string()).filter(|n| n != "1000"));
    option("assigned", packet.assigned_client_identifier.as_ref().map(ToString::to_string));
    option("alias-max", (packet.topic_alias_maximum > 0).then(|| packet.topic_alias_maximum.to_string()));
    option("keep-alive", packet.server_keep_alive.map(|n| n.to_string()));
    text
}
