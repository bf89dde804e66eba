//! What is asked of the owner of a shard, to protobuf and back.

use std::sync::Arc;

use weir_core::cluster::message::shard::Question;
use weir_core::keyspace::group::GroupPosition;
use weir_core::queue::StateFilter;
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::ask::Question as Wire;

use super::Malformed;
use super::shard::{record_from_wire, record_to_wire};

pub(super) fn to_wire(question: Question) -> Wire {
    match question {
        Question::Describe => Wire::Describe(wire::Describe {}),
        Question::Watch => Wire::Watch(wire::Watch {}),
        Question::Settled => Wire::Settled(wire::Settled {}),
        Question::Classes => Wire::Classes(wire::Classes {}),
        Question::Delete => Wire::Delete(wire::Delete {}),
        Question::Trim(below) => Wire::Trim(below),
        Question::Positions(rows) => {
            let positions = rows.into_iter().map(|(group, position)| wire::Position {
                group: group.to_string(),
                position: position.map(|position| position.encode().into()),
            });
            Wire::Positions(wire::Positions { positions: positions.collect() })
        }
        Question::States(offsets) => Wire::States(wire::Offsets { offsets }),
        Question::PurgeBelow(end) => Wire::PurgeBelow(end),
        Question::Purge(costs, filter) => {
            let costs = costs.into_iter().map(|(offset, bytes)| wire::Cost { offset, bytes });
            let filter = match filter {
                StateFilter::Any => wire::StateFilter::Any,
                StateFilter::Ready => wire::StateFilter::Ready,
                StateFilter::InFlight => wire::StateFilter::InFlight,
                StateFilter::Waiting => wire::StateFilter::Waiting,
            };
            Wire::Purge(wire::Purge { costs: costs.collect(), filter: filter.into() })
        }
        Question::TakeOut(records) => {
            let records = records.iter().map(|(offset, record)| wire::TakenOut {
                offset: *offset,
                record: Some(record_to_wire(record)),
            });
            Wire::TakeOut(wire::TakeOut { records: records.collect() })
        }
        Question::Moved(results) => {
            let results = results.into_iter().map(|(offset, is_moved)| wire::MovedTo { offset, is_moved });
            Wire::Moved(wire::Moved { results: results.collect() })
        }
    }
}

pub(super) fn from_wire(question: Wire) -> Result<Question, Malformed> {
    Ok(match question {
        Wire::Describe(wire::Describe {}) => Question::Describe,
        Wire::Watch(wire::Watch {}) => Question::Watch,
        Wire::Settled(wire::Settled {}) => Question::Settled,
        Wire::Classes(wire::Classes {}) => Question::Classes,
        Wire::Delete(wire::Delete {}) => Question::Delete,
        Wire::Trim(below) => Question::Trim(below),
        Wire::Positions(wire::Positions { positions }) => {
            let rows = positions.into_iter().map(|row| {
                let position = row.position.map(GroupPosition::decode).transpose();
                Ok((row.group.into(), position.map_err(|_| Malformed("position of a group"))?))
            });
            Question::Positions(rows.collect::<Result<_, _>>()?)
        }
        Wire::States(wire::Offsets { offsets }) => Question::States(offsets),
        Wire::PurgeBelow(end) => Question::PurgeBelow(end),
        Wire::Purge(purge) => {
            let filter = match purge.filter() {
                wire::StateFilter::Any => StateFilter::Any,
                wire::StateFilter::Ready => StateFilter::Ready,
                wire::StateFilter::InFlight => StateFilter::InFlight,
                wire::StateFilter::Waiting => StateFilter::Waiting,
                wire::StateFilter::Unspecified => return Err(Malformed("state filter")),
            };
            Question::Purge(purge.costs.into_iter().map(|cost| (cost.offset, cost.bytes)).collect(), filter)
        }
        Wire::TakeOut(wire::TakeOut { records }) => {
            let records = records
                .into_iter()
                .map(|taken| Ok((taken.offset, Arc::new(record_from_wire(taken.record)?))));
            Question::TakeOut(records.collect::<Result<_, _>>()?)
        }
        Wire::Moved(wire::Moved { results }) => {
            Question::Moved(results.into_iter().map(|moved| (moved.offset, moved.is_moved)).collect())
        }
    })
}
