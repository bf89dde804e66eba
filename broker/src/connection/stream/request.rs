//! What a stream subscription asks for: its `stream-*` properties, and the place in `$s/<place>/<filter>`.
//!
//! Reads text and refuses what it does not understand; knows no connection and keeps no state.

use weir_codec::{ReasonCode, UserProperties};
use weir_core::stream::Start;
use weir_env::clock::Timestamp;
use weir_topic::Subscription;

use crate::connection::external::Refusal;

/// Where a stream subscription begins, from its topic or its `stream-*` properties.
pub(in crate::connection) fn start_of(
    to: &Subscription,
    properties: &UserProperties,
    shards: Option<usize>,
) -> Result<Start, Refusal> {
    let refuse = |text: String| Refusal { reason: ReasonCode::ImplementationSpecificError, text };
    if let Subscription::StreamByFilter { group: Some(_), .. } | Subscription::Stream { group: Some(_), .. } =
        to
    {
        return Err(refuse("consumer groups of streams are not supported by this version".to_owned()));
    }
    let mut text = match to {
        Subscription::StreamByFilter { start, .. } => Some(start.clone()),
        _ => None,
    };
    for (name, value) in properties.iter().filter(|(name, _)| name.starts_with("stream-")) {
        if **name != *"stream-offset" {
            return Err(refuse(format!("{name} is not supported by this version; supported: stream-offset")));
        }
        text = Some(value.clone());
    }
    let Some(text) = text else { return Ok(Start::Latest) };
    let start = parse_start(&text).ok_or_else(|| {
        refuse(format!(
            "stream-offset `{text}` is none of: earliest, latest, microseconds since 1970, an RFC 3339 time, \
             offset:<n>"
        ))
    })?;
    if matches!(start, Start::Offset(_)) && shards.is_some_and(|count| count != 1) {
        return Err(refuse("offset:<n> needs a stream with one shard".to_owned()));
    }
    Ok(start)
}

/// Reads `earliest`, `latest`, `<µs>`, an RFC 3339 time or `offset:<n>`.
pub(crate) fn parse_start(text: &str) -> Option<Start> {
    match text {
        "earliest" => return Some(Start::Earliest),
        "latest" => return Some(Start::Latest),
        _ => {}
    }
    if let Some(offset) = text.strip_prefix("offset:") {
        return offset.parse().ok().map(Start::Offset);
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(|micros| Start::Time(Timestamp::from_micros(micros)));
    }
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_microsecond()).ok().map(|micros| Start::Time(Timestamp::from_micros(micros)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts() {
        let time = |micros| Some(Start::Time(Timestamp::from_micros(micros)));
        for (text, expected) in [
            ("earliest", Some(Start::Earliest)),
            ("latest", Some(Start::Latest)),
            ("offset:17", Some(Start::Offset(17))),
            ("1700000000000000", time(1_700_000_000_000_000)),
            ("2023-11-14T22:13:20Z", time(1_700_000_000_000_000)),
            ("", None),
            ("yesterday", None),
            ("offset:-1", None),
            ("offset:", None),
            ("99999999999999999999999", None),
            ("1900-01-01T00:00:00Z", None),
        ] {
            assert_eq!(parse_start(text), expected, "{text}");
        }
    }
}
