//! What publishers ask of a queue in user properties: `queue-delay`, `queue-priority` and `queue-dedup-id`.
//!
//! What a client wrote becomes [`Wishes`] here, for each queue by what it allows; a queue that does not allow a
//! property leaves it alone. Of two properties with one name the last counts. Knows neither shards nor the store, and
//! keeps nothing.

use std::time::Duration;

use crate::definition::{Definition, Kind, Ordering, Overflow};
use crate::keyspace::dedup::DedupId;
use crate::message::Message;

/// User property: how long a message is kept from consumers.
pub const DELAY: &str = "queue-delay";
/// User property: which messages go first.
pub const PRIORITY: &str = "queue-priority";
/// User property: names a message, so that it is stored once however often it is published.
pub const DEDUP_ID: &str = "queue-dedup-id";

/// Longest delay: 30 days.
pub const DELAY_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Highest priority; the lowest, and the default, is 0.
pub const PRIORITY_MAX: u8 = 9;
/// Bytes of a `queue-dedup-id`.
pub const DEDUP_ID_BYTES_MAX: usize = 256;
/// Characters of a value that an error repeats.
const SHOWN_MAX: usize = 32;

/// A property whose value cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// `queue-delay`
    #[error(
        "queue-delay {0:?} is not a delay; allowed: milliseconds, or whole numbers with h, m, s or ms such as 10s or \
         1h30m, up to 720h"
    )]
    Delay(String),
    /// `queue-priority`
    #[error("queue-priority {0:?} is not a priority; allowed: 0 to 9")]
    Priority(String),
    /// `queue-dedup-id`
    #[error("queue-dedup-id has {0} bytes; allowed: 1 to {DEDUP_ID_BYTES_MAX}")]
    DedupId(usize),
}

/// What a message asks for, as its publisher wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked<'a> {
    delay: Option<&'a str>,
    priority: Option<&'a str>,
    dedup: Option<&'a str>,
}

/// What a queue does with a message beyond storing it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// How long it is kept from consumers.
    pub delay: Duration,
    /// Messages of a higher priority go first; also names the log that the message goes into.
    pub priority: u8,
    /// It asks for a priority, which has no effect in this queue.
    pub priority_ignored: bool,
    /// Messages of one id are one message.
    pub dedup: Option<DedupId>,
}

impl<'a> Asked<'a> {
    /// What `message` asks for.
    #[must_use]
    pub fn of(message: &'a Message) -> Self {
        let mut asked = Self::default();
        for (name, value) in &message.properties.user {
            match &**name {
                DELAY => asked.delay = Some(value),
                PRIORITY => asked.priority = Some(value),
                DEDUP_ID => asked.dedup = Some(value),
                _ => {}
            }
        }
        asked
    }

    /// What of it the queue or stream that `definition` declares follows: a stream nothing.
    ///
    /// # Errors
    /// If it allows a property whose value it cannot follow.
    pub fn of_queue(&self, definition: &Definition) -> Result<Wishes, ControlError> {
        let mut wishes = Wishes::default();
        if *self == Self::default() || definition.kind == Kind::Stream {
            return Ok(wishes);
        }
        let settings = &definition.queue;
        if let Some(text) = self.delay.filter(|_| settings.controls.delay) {
            wishes.delay = parse_delay(text).ok_or_else(|| ControlError::Delay(shown(text)))?;
        }
        if let Some(text) = self.priority.filter(|_| settings.controls.priority) {
            let priority = parse_priority(text).ok_or_else(|| ControlError::Priority(shown(text)))?;
            wishes.priority_ignored = is_in_line(definition);
            wishes.priority = if wishes.priority_ignored { 0 } else { priority };
        }
        let remembers = settings.controls.dedup && settings.dedup_window_ms != 0;
        if let Some(text) = self.dedup.filter(|_| remembers) {
            if !(1..=DEDUP_ID_BYTES_MAX).contains(&text.len()) {
                return Err(ControlError::DedupId(text.len()));
            }
            wishes.dedup = Some(DedupId::of(text));
        }
        Ok(wishes)
    }
}

/// Whether messages of one key depend on each other: nothing may take them apart.
pub(crate) fn is_ordered(definition: &Definition) -> bool {
    definition.last_value || definition.queue.ordering == Ordering::Key
}

/// Whether what came first goes first, whatever its priority: for the sake of keys, or as the oldest make room.
fn is_in_line(definition: &Definition) -> bool {
    is_ordered(definition) || definition.queue.overflow == Overflow::DropOldest
}

/// Milliseconds, or the grammar of durations in manifests.
fn parse_delay(text: &str) -> Option<Duration> {
    let millis = match text.parse::<u64>() {
        Ok(millis) if !text.starts_with('+') => millis,
        _ => parse_units(text)?,
    };
    Some(Duration::from_millis(millis)).filter(|delay| *delay <= DELAY_MAX)
}

fn parse_units(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count());
        let (unit, tail) = tail.split_at(tail.bytes().take_while(u8::is_ascii_lowercase).count());
        let unit_millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit_millis)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

fn parse_priority(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        _ => None,
    }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::tests::queue;

    fn wishes(definition: &Definition, properties: &[(&str, &str)]) -> Result<Wishes, ControlError> {
        let mut message = crate::message::tests::full_message();
        message.properties.user =
            properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Asked::of(&message).of_queue(definition)
    }

    #[test]
    fn delays() {
        for (text, millis) in [
            ("0", Some(0)),
            ("1500", Some(1500)),
            ("10s", Some(10_000)),
            ("1h30m", Some(5_400_000)),
            ("1s500ms", Some(1500)),
            ("720h", Some(2_592_000_000)),
            ("2592000000", Some(2_592_000_000)),
            ("2592000001", None),
            ("721h", None),
            ("", None),
            ("x", None),
            ("-1", None),
            ("+1", None),
            ("1.5s", None),
            ("10 s", None),
            ("1d", None),
            ("s", None),
            ("18446744073709551616", None),
            ("18446744073709551615h", None),
        ] {
            let result = wishes(&queue("q"), &[(DELAY, text)]);
            match millis {
                Some(millis) => assert_eq!(result.unwrap().delay, Duration::from_millis(millis), "{text}"),
                None => assert_eq!(result, Err(ControlError::Delay(text.into())), "{text}"),
            }
        }
    }

    #[test]
    fn priorities() {
        for n in 0..=PRIORITY_MAX {
            assert_eq!(wishes(&queue("q"), &[(PRIORITY, &n.to_string())]).unwrap().priority, n);
        }
        for text in ["", "10", "12", "-1", "+1", "01", "1 ", "high", "５"] {
            let result = wishes(&queue("q"), &[(PRIORITY, text)]);
            assert_eq!(result, Err(ControlError::Priority(text.into())));
        }
        let mut ordered = queue("q");
        ordered.queue.ordering = Ordering::Key;
        let ignored = Wishes { priority_ignored: true, ..Wishes::default() };
        assert_eq!(wishes(&ordered, &[(PRIORITY, "5")]), Ok(ignored));
        let mut dropping = queue("q");
        dropping.queue.overflow = Overflow::DropOldest;
        assert_eq!(wishes(&dropping, &[(PRIORITY, "5")]), Ok(ignored));
        assert!(wishes(&ordered, &[(PRIORITY, "x")]).is_err());
        assert_eq!(
            wishes(&Definition { last_value: true, ..queue("q") }, &[(PRIORITY, "5")]).unwrap().priority,
            0
        );
    }

    #[test]
    fn dedup_ids() {
        let id = |text: &str| wishes(&queue("q"), &[(DEDUP_ID, text)]).map(|wishes| wishes.dedup);
        assert_eq!(id("a"), Ok(Some(DedupId::of("a"))));
        assert_ne!(id("a"), id("b"));
        assert!(id(&"x".repeat(DEDUP_ID_BYTES_MAX)).unwrap().is_some());
        assert_eq!(id(&"x".repeat(DEDUP_ID_BYTES_MAX + 1)), Err(ControlError::DedupId(257)));
        assert_eq!(id(""), Err(ControlError::DedupId(0)));
        let mut forgetful = queue("q");
        forgetful.queue.dedup_window_ms = 0;
        assert_eq!(wishes(&forgetful, &[(DEDUP_ID, "")]), Ok(Wishes::default()));
    }

    #[test]
    fn the_last_of_a_name_counts_and_others_do_not_matter() {
        let properties = [(PRIORITY, "x"), ("queue-prio", "x"), (PRIORITY, "7"), ("Queue-Delay", "x")];
        assert_eq!(wishes(&queue("q"), &properties), Ok(Wishes { priority: 7, ..Wishes::default() }));
    }

    #[test]
    fn what_is_not_allowed_is_left_alone() {
        let properties = [(PRIORITY, "12"), (DELAY, "x"), (DEDUP_ID, "")];
        let mut definition = queue("q");
        assert!(wishes(&definition, &properties).is_err());
        for (forbid, error) in [
            (|c| c.delay = false, Some(ControlError::Priority("12".into()))),
            (|c| c.priority = false, Some(ControlError::DedupId(0))),
            (|c| c.dedup = false, None),
        ] as [(fn(&mut crate::definition::Controls), _); 3]
        {
            forbid(&mut definition.queue.controls);
            assert_eq!(wishes(&definition, &properties).err(), error);
        }
        let stream = Definition { kind: Kind::Stream, ..queue("s") };
        assert_eq!(wishes(&stream, &properties), Ok(Wishes::default()));
    }
}
