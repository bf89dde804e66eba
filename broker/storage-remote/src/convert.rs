//! Wire types of `weir.store.v1` from and to those of the storage contract: the one place that knows both. What a peer
//! sends is checked here.

use std::sync::Arc;

use bytes::Bytes;
use tonic::Status;
use weir_proto::store::v1 as wire;
use weir_proto::store::v1::failure::Reason;
use weir_proto::store::v1::mutation::Kind;
use weir_storage::pending::{KeyRange, Mutation, STAMP_BYTES};
use weir_storage::{
    Committed, ConflictKind, Error, RangePage, RangeQuery, Transaction, Version, Versionstamp,
};

/// Most bytes of keys and values in a page, one pair more apart.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// Why something was not done, for the wire.
pub(crate) fn failure(error: &Error) -> wire::Failure {
    let of = |reason: Reason, text: String| wire::Failure {
        reason: reason.into(),
        text,
        ..wire::Failure::default()
    };
    match error {
        Error::Conflict => of(Reason::Conflict, String::new()),
        Error::TooOld => of(Reason::TooOld, String::new()),
        Error::TooLarge { what, size, limit } => wire::Failure {
            reason: Reason::TooLarge.into(),
            text: String::new(),
            what: (*what).to_owned(),
            size: *size as u64,
            limit: *limit as u64,
        },
        Error::UnknownSettled => of(Reason::UnknownSettled, String::new()),
        Error::UnknownOpen => of(Reason::UnknownOpen, String::new()),
        Error::Busy(why) => of(Reason::Busy, why.to_string()),
        Error::Unavailable(why) => of(Reason::Unavailable, why.to_string()),
        Error::Damaged(why) => of(Reason::Damaged, why.to_string()),
    }
}

/// The session of a call has ended, and nothing was done.
pub(crate) fn detached() -> wire::Failure {
    wire::Failure { reason: Reason::Detached.into(), ..wire::Failure::default() }
}

/// Whether it says that the session has ended.
pub(crate) fn is_detached(failure: &wire::Failure) -> bool {
    failure.reason() == Reason::Detached
}

/// Why something was not done.
pub(crate) fn error(failure: wire::Failure) -> Error {
    let reason = failure.reason();
    let text: Arc<str> = failure.text.into();
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    match reason {
        Reason::Conflict => Error::Conflict,
        Reason::TooOld => Error::TooOld,
        Reason::TooLarge => Error::TooLarge {
            what: match &*failure.what {
                "key" => "key",
                "value" => "value",
                _ => "transaction",
            },
            size: number(failure.size),
            limit: number(failure.limit),
        },
        Reason::UnknownSettled => Error::UnknownSettled,
        Reason::UnknownOpen => Error::UnknownOpen,
        Reason::Busy => Error::Busy(text),
        Reason::Detached => Error::Busy("the session with the store server has ended".into()),
        Reason::Damaged => Error::Damaged(text),
        Reason::Unavailable => Error::Unavailable(text),
        Reason::Unspecified => {
            Error::Unavailable(format!("the store server is of another release: {text}").into())
        }
    }
}

/// How a commit ended, for the wire.
pub(crate) fn outcome(outcome: &Result<Committed, Error>) -> wire::CommitResponse {
    use wire::commit_response::Outcome;
    let outcome = match outcome {
        Ok(Committed { version, versionstamp }) => Outcome::Committed(wire::Committed {
            version: version.0,
            versionstamp: versionstamp.map(|stamp| Bytes::copy_from_slice(&stamp.0)),
        }),
        Err(error) => Outcome::Failure(failure(error)),
    };
    wire::CommitResponse { outcome: Some(outcome) }
}

/// How a commit ended: as the store said, or that the session had ended before.
pub(crate) fn committed(response: wire::CommitResponse) -> Result<Committed, wire::Failure> {
    use wire::commit_response::Outcome;
    match response.outcome {
        Some(Outcome::Committed(wire::Committed { version, versionstamp })) => {
            let versionstamp = match versionstamp.map(|stamp| <[u8; STAMP_BYTES]>::try_from(&stamp[..])) {
                None => None,
                Some(Ok(stamp)) => Some(Versionstamp(stamp)),
                // It is committed, but nobody knows as what.
                Some(Err(_)) => return Err(failure(&Error::UnknownSettled)),
            };
            Ok(Committed { version: Version(version), versionstamp })
        }
        Some(Outcome::Failure(failure)) => Err(failure),
        None => Err(failure(&Error::UnknownSettled)),
    }
}

pub(crate) fn range(range: KeyRange) -> wire::Range {
    wire::Range { begin: range.begin, end: range.end }
}

pub(crate) fn mutation(mutation: Mutation) -> wire::Mutation {
    let place = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
    let kind = match mutation {
        Mutation::Set(key, value) => Kind::Set(wire::Pair { key, value }),
        Mutation::Clear(key) => Kind::Clear(key),
        Mutation::ClearRange(cleared) => Kind::ClearRange(range(cleared)),
        Mutation::StampedKey { key, offset, value } => {
            Kind::StampedKey(wire::Stamped { key: key.into(), value, offset: place(offset) })
        }
        Mutation::StampedValue { key, value, offset } => {
            Kind::StampedValue(wire::Stamped { key, value: value.into(), offset: place(offset) })
        }
    };
    wire::Mutation { kind: Some(kind) }
}

/// Puts everything that is to be committed into `tx`.
pub(crate) fn apply(request: &wire::CommitRequest, tx: &mut dyn Transaction) -> Result<(), Status> {
    if let Some(version) = request.read_version {
        tx.set_read_version(Version(version));
    }
    for wire::Range { begin, end } in &request.reads {
        tx.add_conflict_range(begin, end, ConflictKind::Read);
    }
    for wire::Range { begin, end } in &request.write_conflicts {
        tx.add_conflict_range(begin, end, ConflictKind::Write);
    }
    for mutation in &request.mutations {
        match &mutation.kind {
            Some(Kind::Set(wire::Pair { key, value })) => tx.set(key, value),
            Some(Kind::Clear(key)) => tx.clear(key),
            Some(Kind::ClearRange(wire::Range { begin, end })) => tx.clear_range(begin, end),
            Some(Kind::StampedKey(wire::Stamped { key, value, offset })) => {
                tx.set_versionstamped_key(key, stamp_place(key, *offset)?, value);
            }
            Some(Kind::StampedValue(wire::Stamped { key, value, offset })) => {
                tx.set_versionstamped_value(key, value, stamp_place(value, *offset)?);
            }
            None => return Err(Status::invalid_argument("a mutation says nothing this server knows")),
        }
    }
    Ok(())
}

/// Where the versionstamp goes, if there is room for it.
fn stamp_place(bytes: &Bytes, offset: u32) -> Result<usize, Status> {
    let offset = offset as usize;
    match offset.checked_add(STAMP_BYTES) {
        Some(end) if end <= bytes.len() => Ok(offset),
        _ => {
            let length = bytes.len();
            let why = format!("a versionstamp at {offset} lies beyond the {length} bytes it is to stand in");
            Err(Status::invalid_argument(why))
        }
    }
}

/// What a page is asked for, with a bound on its size.
pub(crate) fn query(request: &wire::GetRangeRequest) -> RangeQuery {
    let target = usize::try_from(request.target_bytes).unwrap_or(usize::MAX);
    RangeQuery {
        begin: request.begin.clone(),
        end: request.end.clone(),
        limit: usize::try_from(request.limit).unwrap_or(usize::MAX),
        target_bytes: if target == 0 { PAGE_BYTES_MAX } else { target.min(PAGE_BYTES_MAX) },
        reverse: request.reverse,
    }
}

pub(crate) fn page(version: Version, page: RangePage) -> wire::GetRangeResponse {
    let pairs = page.pairs.into_iter().map(|(key, value)| wire::Pair { key, value });
    wire::GetRangeResponse { version: version.0, pairs: pairs.collect(), more: page.more, failure: None }
}
