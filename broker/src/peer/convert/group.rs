//! Messages about consumer groups, to protobuf and back.

use bytestring::ByteString;
use weir_core::cluster::message::GroupMessage;
use weir_core::cluster::message::group::{FromCoordinator, GroupRefusal, Holding, ToCoordinator};
use weir_core::groups::{GroupEvent, GroupReport, GroupShard};
use weir_core::queue::ConsumerId;
use weir_env::clock::Timestamp;
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::group_message::Message;

use super::shard::{object_from_wire, object_to_wire};
use super::{Malformed, narrow};

pub(super) fn to_wire(message: GroupMessage) -> wire::GroupMessage {
    let message = match message {
        GroupMessage::ToCoordinator { stream, talk, seq, words } => {
            let (stream, words) = (Some(object_to_wire(stream)), Some(words_to_wire(words)));
            Message::ToCoordinator(wire::ToCoordinator { stream, talk, seq, words })
        }
        GroupMessage::FromCoordinator { stream, talk, seq, words } => {
            let words = Some(answer_to_wire(words));
            Message::FromCoordinator(wire::FromCoordinator { stream, talk, seq, words })
        }
        GroupMessage::RollCall { stream } => Message::RollCall(stream),
        GroupMessage::Absent { stream } => Message::Absent(stream),
    };
    wire::GroupMessage { message: Some(message) }
}

pub(super) fn from_wire(message: wire::GroupMessage) -> Result<GroupMessage, Malformed> {
    Ok(match message.message.ok_or(Malformed("group message"))? {
        Message::ToCoordinator(wire::ToCoordinator { stream, talk, seq, words }) => {
            let stream = object_from_wire(stream.ok_or(Malformed("stream"))?);
            let words = words_from_wire(words.ok_or(Malformed("words to a coordinator"))?)?;
            GroupMessage::ToCoordinator { stream, talk, seq, words }
        }
        Message::FromCoordinator(wire::FromCoordinator { stream, talk, seq, words }) => {
            let words = answer_from_wire(words.ok_or(Malformed("words from a coordinator"))?)?;
            GroupMessage::FromCoordinator { stream, talk, seq, words }
        }
        Message::RollCall(stream) => GroupMessage::RollCall { stream },
        Message::Absent(stream) => GroupMessage::Absent { stream },
    })
}

fn words_to_wire(words: ToCoordinator) -> wire::to_coordinator::Words {
    use wire::to_coordinator::Words;
    let holding = |group: ByteString, held| {
        let held = Some(held_to_wire(held));
        wire::GroupHolding { group: group.to_string(), held }
    };
    match words {
        ToCoordinator::Announce { group, member, client_id, held } => Words::Announce(wire::AnnounceMember {
            group: group.to_string(),
            member: member.0,
            client_id: client_id.to_string(),
            held: held.into_iter().map(held_to_wire).collect(),
        }),
        ToCoordinator::GaveBack { group, held } => Words::GaveBack(holding(group, held)),
        ToCoordinator::Present => Words::Present(wire::AllMembersPresent {}),
        ToCoordinator::Join { request, group, member, client_id, places } => Words::Join(wire::JoinGroup {
            request,
            group: group.to_string(),
            member: member.0,
            client_id: client_id.to_string(),
            places: places.map(|offsets| wire::Places { offsets }),
        }),
        ToCoordinator::Progress { group, held } => Words::Progress(holding(group, held)),
        ToCoordinator::Release { group, held } => Words::Release(holding(group, held)),
        ToCoordinator::Leave { group, member, for_good } => {
            Words::Leave(wire::LeaveGroup { group: group.to_string(), member: member.0, for_good })
        }
        ToCoordinator::List { request } => Words::List(wire::ListGroups { request }),
        ToCoordinator::Seek { request, group, places } => {
            let place = |(shard, offset): (u8, u64)| wire::Place { shard: shard.into(), offset };
            let places = places.into_iter().map(place).collect();
            Words::Seek(wire::SeekGroup { request, group: group.to_string(), places })
        }
        ToCoordinator::Delete { request, group, force } => {
            Words::Delete(wire::DeleteGroup { request, group: group.to_string(), force })
        }
    }
}

fn words_from_wire(words: wire::to_coordinator::Words) -> Result<ToCoordinator, Malformed> {
    use wire::to_coordinator::Words;
    Ok(match words {
        Words::Announce(announce) => ToCoordinator::Announce {
            group: announce.group.into(),
            member: ConsumerId(announce.member),
            client_id: announce.client_id.into(),
            held: announce.held.into_iter().map(held_from_wire).collect::<Result<_, _>>()?,
        },
        Words::GaveBack(wire::GroupHolding { group, held }) => {
            ToCoordinator::GaveBack { group: group.into(), held: some_held(held)? }
        }
        Words::Present(wire::AllMembersPresent {}) => ToCoordinator::Present,
        Words::Join(join) => ToCoordinator::Join {
            request: join.request,
            group: join.group.into(),
            member: ConsumerId(join.member),
            client_id: join.client_id.into(),
            places: join.places.map(|places| places.offsets),
        },
        Words::Progress(wire::GroupHolding { group, held }) => {
            ToCoordinator::Progress { group: group.into(), held: some_held(held)? }
        }
        Words::Release(wire::GroupHolding { group, held }) => {
            ToCoordinator::Release { group: group.into(), held: some_held(held)? }
        }
        Words::Leave(wire::LeaveGroup { group, member, for_good }) => {
            ToCoordinator::Leave { group: group.into(), member: ConsumerId(member), for_good }
        }
        Words::List(wire::ListGroups { request }) => ToCoordinator::List { request },
        Words::Seek(wire::SeekGroup { request, group, places }) => {
            let place = |place: wire::Place| Ok((narrow(place.shard, "shard")?, place.offset));
            let places = places.into_iter().map(place).collect::<Result<_, _>>()?;
            ToCoordinator::Seek { request, group: group.into(), places }
        }
        Words::Delete(wire::DeleteGroup { request, group, force }) => {
            ToCoordinator::Delete { request, group: group.into(), force }
        }
    })
}

fn held_to_wire(held: Holding) -> wire::Holding {
    wire::Holding { shard: held.shard.into(), generation: held.generation, position: held.position }
}

fn held_from_wire(held: wire::Holding) -> Result<Holding, Malformed> {
    let wire::Holding { shard, generation, position } = held;
    Ok(Holding { shard: narrow(shard, "shard")?, generation, position })
}

fn some_held(held: Option<wire::Holding>) -> Result<Holding, Malformed> {
    held_from_wire(held.ok_or(Malformed("shard of a member"))?)
}

fn answer_to_wire(words: FromCoordinator) -> wire::from_coordinator::Words {
    use wire::from_coordinator::Words;
    match words {
        FromCoordinator::Joined { request } => Words::Joined(request),
        FromCoordinator::NeedsPlaces { request } => Words::NeedsPlaces(request),
        FromCoordinator::Groups { request, reports } => {
            let reports = reports.into_iter().map(report_to_wire).collect();
            Words::Groups(wire::GroupReports { request, reports })
        }
        FromCoordinator::Done { request } => Words::Done(request),
        FromCoordinator::Refused { request, refusal } => {
            use wire::group_refused::Why;
            let why = match refusal {
                GroupRefusal::Missing => Why::Missing(wire::GroupMissing {}),
                GroupRefusal::InUse(members) => Why::InUse(members),
                GroupRefusal::Full(what) => Why::Full(what),
                GroupRefusal::Closed => Why::Closed(wire::GroupsClosed {}),
                GroupRefusal::Failed(why) => Why::Failed(why),
            };
            Words::Refused(wire::GroupRefused { request, why: Some(why) })
        }
        FromCoordinator::Event { member, event } => {
            use wire::member_event::Event;
            let event = match event {
                GroupEvent::Assigned { shard, generation, from } => {
                    Event::Assigned(wire::AssignedShard { shard: shard.into(), generation, from })
                }
                GroupEvent::Revoked { shard, generation } => {
                    Event::Revoked(wire::RevokedShard { shard: shard.into(), generation })
                }
                GroupEvent::Ended => Event::Ended(wire::MembershipEnded {}),
            };
            Words::Event(wire::MemberEvent { member: member.0, event: Some(event) })
        }
        FromCoordinator::NotCoordinator => Words::NotCoordinator(wire::NotCoordinator {}),
    }
}

fn answer_from_wire(words: wire::from_coordinator::Words) -> Result<FromCoordinator, Malformed> {
    use wire::from_coordinator::Words;
    Ok(match words {
        Words::Joined(request) => FromCoordinator::Joined { request },
        Words::NeedsPlaces(request) => FromCoordinator::NeedsPlaces { request },
        Words::Groups(wire::GroupReports { request, reports }) => {
            let reports = reports.into_iter().map(report_from_wire).collect::<Result<_, _>>()?;
            FromCoordinator::Groups { request, reports }
        }
        Words::Done(request) => FromCoordinator::Done { request },
        Words::Refused(wire::GroupRefused { request, why }) => {
            use wire::group_refused::Why;
            let refusal = match why.ok_or(Malformed("refusal"))? {
                Why::Missing(wire::GroupMissing {}) => GroupRefusal::Missing,
                Why::InUse(members) => GroupRefusal::InUse(members),
                Why::Full(what) => GroupRefusal::Full(what),
                Why::Closed(wire::GroupsClosed {}) => GroupRefusal::Closed,
                Why::Failed(why) => GroupRefusal::Failed(why),
            };
            FromCoordinator::Refused { request, refusal }
        }
        Words::Event(wire::MemberEvent { member, event }) => {
            use wire::member_event::Event;
            let event = match event.ok_or(Malformed("event of a group"))? {
                Event::Assigned(wire::AssignedShard { shard, generation, from }) => {
                    GroupEvent::Assigned { shard: narrow(shard, "shard")?, generation, from }
                }
                Event::Revoked(wire::RevokedShard { shard, generation }) => {
                    GroupEvent::Revoked { shard: narrow(shard, "shard")?, generation }
                }
                Event::Ended(wire::MembershipEnded {}) => GroupEvent::Ended,
            };
            FromCoordinator::Event { member: ConsumerId(member), event }
        }
        Words::NotCoordinator(wire::NotCoordinator {}) => FromCoordinator::NotCoordinator,
    })
}

fn report_to_wire(report: GroupReport) -> wire::GroupReport {
    let shard = |shard: GroupShard| wire::GroupShard {
        shard: shard.shard.into(),
        position: shard.position,
        member: shard.member.map(|member| member.to_string()),
        generation: shard.generation,
        committed_at_us: shard.committed_at.as_micros(),
    };
    wire::GroupReport {
        name: report.name.to_string(),
        members: report.members.iter().map(ToString::to_string).collect(),
        shards: report.shards.into_iter().map(shard).collect(),
    }
}

fn report_from_wire(report: wire::GroupReport) -> Result<GroupReport, Malformed> {
    let shard = |shard: wire::GroupShard| {
        Ok(GroupShard {
            shard: narrow(shard.shard, "shard")?,
            position: shard.position,
            // How far it is behind is measured by whoever asks.
            end: shard.position,
            lag: 0,
            oldest: None,
            member: shard.member.map(Into::into),
            generation: shard.generation,
            committed_at: Timestamp::from_micros(shard.committed_at_us),
        })
    };
    Ok(GroupReport {
        name: report.name.into(),
        members: report.members.into_iter().map(Into::into).collect(),
        shards: report.shards.into_iter().map(shard).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use weir_core::cluster::message::PeerMessage;
    use weir_core::cluster::message::shard::ObjectRef;

    use super::super::tests::through;
    use super::*;

    fn held(shard: u8) -> Holding {
        Holding { shard, generation: u64::MAX, position: 3 }
    }

    fn said() -> Vec<ToCoordinator> {
        let group = || ByteString::from("ä");
        let member = ConsumerId(u64::MAX);
        let join = |places| ToCoordinator::Join {
            request: 1,
            group: group(),
            member,
            client_id: "c".into(),
            places,
        };
        vec![
            ToCoordinator::Announce {
                group: group(),
                member,
                client_id: "c".into(),
                held: vec![held(0), held(u8::MAX)],
            },
            ToCoordinator::GaveBack { group: group(), held: held(1) },
            ToCoordinator::Present,
            join(None),
            join(Some(Vec::new())),
            join(Some(vec![0, u64::MAX])),
            ToCoordinator::Progress { group: group(), held: held(2) },
            ToCoordinator::Release { group: group(), held: held(3) },
            ToCoordinator::Leave { group: group(), member, for_good: true },
            ToCoordinator::List { request: 2 },
            ToCoordinator::Seek { request: 3, group: group(), places: vec![(0, 1), (255, u64::MAX)] },
            ToCoordinator::Delete { request: 4, group: group(), force: true },
        ]
    }

    fn answered() -> Vec<FromCoordinator> {
        let shard = |member| GroupShard {
            shard: 7,
            position: 9,
            end: 9,
            lag: 0,
            oldest: None,
            member,
            generation: 2,
            committed_at: Timestamp::from_micros(5),
        };
        let report = GroupReport {
            name: "g".into(),
            members: vec!["a".into(), "b".into()],
            shards: vec![shard(None), shard(Some("a".into()))],
        };
        let refusals = [
            GroupRefusal::Missing,
            GroupRefusal::InUse(3),
            GroupRefusal::Full("limits.streamGroups".into()),
            GroupRefusal::Closed,
            GroupRefusal::Failed("why".into()),
        ];
        let events = [
            GroupEvent::Assigned { shard: 1, generation: 2, from: 3 },
            GroupEvent::Revoked { shard: 255, generation: u64::MAX },
            GroupEvent::Ended,
        ];
        let mut all = vec![
            FromCoordinator::Joined { request: 1 },
            FromCoordinator::NeedsPlaces { request: 2 },
            FromCoordinator::Groups { request: 3, reports: vec![report] },
            FromCoordinator::Done { request: 4 },
            FromCoordinator::NotCoordinator,
        ];
        all.extend(refusals.map(|refusal| FromCoordinator::Refused { request: 5, refusal }));
        all.extend(events.map(|event| FromCoordinator::Event { member: ConsumerId(1), event }));
        all
    }

    #[test]
    fn comes_out_as_it_went_in() {
        let stream = ObjectRef { id: 1, generation: 2 };
        let to = |words| GroupMessage::ToCoordinator { stream, talk: 3, seq: u64::MAX, words };
        let from = |words| GroupMessage::FromCoordinator { stream: u32::MAX, talk: 4, seq: 5, words };
        let calls = [GroupMessage::RollCall { stream: 1 }, GroupMessage::Absent { stream: 2 }];
        for sent in said().into_iter().map(to).chain(answered().into_iter().map(from)).chain(calls) {
            assert!(matches!(through(sent.clone()), PeerMessage::Group(came) if came == sent), "{sent:?}");
        }
    }
}
