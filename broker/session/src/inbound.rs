//! Publishes of the client until they are answered, and its QoS 2 packet ids until they are released. Knows
//! nothing of deliveries; owned by the session.

use std::collections::{BTreeMap, VecDeque};

use bytestring::ByteString;
use weir_codec::{PacketId, QoS, ReasonCode};

use crate::alias::InboundAliases;
use crate::{Limits, ProtocolError, PublishToken};

#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) aliases: InboundAliases,
    receive_maximum: u16,
    /// Token of the first entry of `pending`.
    first_token: u64,
    /// Publishes whose answer has not gone out, in the order received: the order of the answers
    /// [MQTT-4.6.0-2, MQTT-4.6.0-3]. At most `receive_maximum` new publishes, because 5.0 clients are closed and
    /// 3.1.1 clients not read beyond, plus one repeat for each id in `qos2`.
    pending: VecDeque<Pending>,
    /// Entries of `pending` that are repeats: they count against `receive_maximum` as `unreleased`.
    repeats: usize,
    /// QoS 2 ids that are not free. At most one entry for each of the 65,535 ids; a 5.0 client adds at most
    /// `receive_maximum` in one connection.
    qos2: BTreeMap<PacketId, Qos2>,
    /// Entries of `qos2` that count against `receive_maximum` and whose first answer has gone out.
    unreleased: u16,
}

#[derive(Debug)]
struct Pending {
    packet_id: PacketId,
    kind: Kind,
    answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Qos1,
    Qos2,
    /// A QoS 2 publish received before, whose PUBREC waits for its turn.
    Repeat,
}

#[derive(Clone, Copy, Debug)]
struct Qos2 {
    stage: Stage,
    /// Published on this connection, so counted against our Receive Maximum. What an earlier connection left is
    /// not [MQTT 5, 4.9].
    counted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In `pending`.
    Unanswered,
    /// PUBREC has gone out.
    Received,
    /// PUBREC has gone out, and another one waits in `pending`.
    Repeating,
    /// PUBREL has come; the broker is forgetting the id.
    Releasing,
}

/// The outcome of a publish.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reason: ReasonCode,
    pub(crate) reason_string: Option<ByteString>,
}

/// What to do with a publish of QoS 1 or 2.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    New(PublishToken),
    /// Received before: not to be forwarded.
    Repeated(PublishToken),
}

/// What to do with a PUBREL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// Tell the broker.
    Ask,
    /// The broker is at it.
    Underway,
    /// PUBCOMP with 0x92.
    Unknown,
}

/// An answer whose turn has come.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) packet_id: PacketId,
    pub(crate) qos2: bool,
    pub(crate) answer: Answer,
}

/// Names no publish: what QoS 0 and repeated publishes carry.
pub(crate) const NO_TOKEN: PublishToken = PublishToken(u64::MAX);

impl Inbound {
    pub(crate) fn new(limits: &Limits, alias_maximum: u16, incoming_qos2: &[PacketId]) -> Self {
        let restored = Qos2 { stage: Stage::Received, counted: false };
        Self {
            aliases: InboundAliases::new(alias_maximum),
            receive_maximum: limits.receive_maximum.get(),
            first_token: 0,
            pending: VecDeque::new(),
            repeats: 0,
            qos2: incoming_qos2.iter().map(|&id| (id, restored)).collect(),
            unreleased: 0,
        }
    }

    /// New publishes of QoS 1 or 2 that the client may send now.
    pub(crate) fn permits(&self) -> usize {
        let taken = self.pending.len() - self.repeats + usize::from(self.unreleased);
        usize::from(self.receive_maximum).saturating_sub(taken)
    }

    /// Publishes that wait for the broker or for their turn.
    pub(crate) fn unanswered(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.pending.len() >= usize::from(self.receive_maximum)
    }

    /// A publish of QoS 1 or 2 has come. With `strict` the client must have kept to our Receive Maximum.
    pub(crate) fn publish(
        &mut self,
        qos: QoS,
        packet_id: PacketId,
        strict: bool,
    ) -> Result<Arrival, ProtocolError> {
        if qos == QoS::ExactlyOnce
            && let Some(&known) = self.qos2.get(&packet_id)
        {
            return self.repeat(packet_id, known, strict);
        }
        self.check_quota(strict)?;
        let token = PublishToken(self.first_token + self.pending.len() as u64);
        let kind = match qos {
            QoS::ExactlyOnce => {
                self.qos2.insert(packet_id, Qos2 { stage: Stage::Unanswered, counted: true });
                Kind::Qos2
            }
            QoS::AtLeastOnce | QoS::AtMostOnce => Kind::Qos1,
        };
        self.pending.push_back(Pending { packet_id, kind, answer: None });
        Ok(Arrival::New(token))
    }

    fn repeat(&mut self, packet_id: PacketId, known: Qos2, strict: bool) -> Result<Arrival, ProtocolError> {
        match known.stage {
            // One PUBREC answers both, so there is at most one repeat in `pending` for each id.
            Stage::Unanswered | Stage::Repeating => Ok(Arrival::Repeated(NO_TOKEN)),
            Stage::Releasing => Err(ProtocolError {
                reason: ReasonCode::ProtocolError,
                what: "PUBLISH with a packet id that waits for PUBCOMP",
            }),
            Stage::Received => {
                if !known.counted {
                    self.check_quota(strict)?;
                    self.unreleased += 1;
                }
                self.qos2.insert(packet_id, Qos2 { stage: Stage::Repeating, counted: true });
                let answer = Some(Answer { reason: ReasonCode::Success, reason_string: None });
                self.pending.push_back(Pending { packet_id, kind: Kind::Repeat, answer });
                self.repeats += 1;
                Ok(Arrival::Repeated(NO_TOKEN))
            }
        }
    }

    fn check_quota(&self, strict: bool) -> Result<(), ProtocolError> {
        if strict && self.permits() == 0 {
            return Err(ProtocolError {
                reason: ReasonCode::ReceiveMaximumExceeded,
                what: "more unacknowledged publishes than Receive Maximum",
            });
        }
        Ok(())
    }

    /// The broker's answer; what is due then comes out of [`Self::next_due`].
    pub(crate) fn answer(&mut self, token: PublishToken, answer: Answer) {
        let pending = token
            .0
            .checked_sub(self.first_token)
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| self.pending.get_mut(index));
        if let Some(pending) = pending
            && pending.answer.is_none()
        {
            pending.answer = Some(answer);
        }
    }

    /// The next answer to send, unless an earlier publish still waits for its own.
    pub(crate) fn next_due(&mut self) -> Option<Due> {
        loop {
            self.pending.front()?.answer.as_ref()?;
            let Pending { packet_id, kind, answer } = self.pending.pop_front()?;
            self.first_token += 1;
            let answer = answer?;
            match kind {
                Kind::Qos1 => return Some(Due { packet_id, qos2: false, answer }),
                Kind::Qos2 if (answer.reason as u8) < 0x80 => {
                    self.set_stage(packet_id, Stage::Received);
                    self.unreleased += 1;
                    return Some(Due { packet_id, qos2: true, answer });
                }
                Kind::Qos2 => {
                    self.qos2.remove(&packet_id);
                    return Some(Due { packet_id, qos2: true, answer });
                }
                Kind::Repeat => {
                    self.repeats -= 1;
                    // A PUBREL that came in between has made this PUBREC pointless.
                    if self.qos2.get(&packet_id).is_some_and(|known| known.stage == Stage::Repeating) {
                        self.set_stage(packet_id, Stage::Received);
                        return Some(Due { packet_id, qos2: true, answer });
                    }
                }
            }
        }
    }

    pub(crate) fn release(&mut self, packet_id: PacketId) -> Result<Release, ProtocolError> {
        match self.qos2.get(&packet_id).map(|known| known.stage) {
            None => Ok(Release::Unknown),
            Some(Stage::Releasing) => Ok(Release::Underway),
            Some(Stage::Received | Stage::Repeating) => {
                self.set_stage(packet_id, Stage::Releasing);
                Ok(Release::Ask)
            }
            Some(Stage::Unanswered) => {
                Err(ProtocolError { reason: ReasonCode::ProtocolError, what: "PUBREL before PUBREC" })
            }
        }
    }

    /// The broker has forgotten the id; true if PUBCOMP is due.
    pub(crate) fn released(&mut self, packet_id: PacketId) -> bool {
        let Some(&Qos2 { stage: Stage::Releasing, counted }) = self.qos2.get(&packet_id) else {
            return false;
        };
        self.qos2.remove(&packet_id);
        self.unreleased -= u16::from(counted);
        true
    }

    /// The ids answered with success and not released, for the session state: those whose PUBREC still waits
    /// for its turn are among them, because the broker has forwarded them.
    pub(crate) fn into_unreleased(mut self) -> Vec<PacketId> {
        for pending in &self.pending {
            if let Some(answer) = &pending.answer
                && (answer.reason as u8) < 0x80
                && let Some(known) = self.qos2.get_mut(&pending.packet_id)
                && pending.kind == Kind::Qos2
            {
                known.stage = Stage::Received;
            }
        }
        self.qos2.retain(|_, known| known.stage != Stage::Unanswered);
        self.qos2.into_keys().collect()
    }

    pub(crate) fn compact(&mut self) {
        if self.pending.is_empty() {
            self.pending = VecDeque::new();
        }
        if self.qos2.is_empty() {
            self.qos2 = BTreeMap::new();
        }
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.pending.capacity()
    }

    fn set_stage(&mut self, packet_id: PacketId, stage: Stage) {
        if let Some(known) = self.qos2.get_mut(&packet_id) {
            known.stage = stage;
        }
    }
}
