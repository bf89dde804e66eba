//! Catalog entries: the queues and streams there are.
//!
//! Entry: key `C`, kind (`q` or `s`), name. Value: format 1, catalog id u32, state u8, origin u8, paused u8,
//! generation u64, definition as JSON. Next id: key `C`, `n`. Value: format 1, u32.
//! Removal to be finished: key `C`, `d`, catalog id u32. Value: format 1, time u64, then an entry's value.

use bytes::Bytes;
use weir_env::clock::Timestamp;

use super::{DecodeError, Reader, Writer, tag};
use crate::definition::{Definition, Kind};

const FORMAT: u8 = 1;

/// Whether an entry takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// It does.
    Active,
    /// Its declaration is gone; what is stored stays.
    Orphaned,
}

/// Who declared a queue or stream, and so who may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A set of manifests; it is retired when they no longer declare it.
    Manifest,
    /// A person, by the admin API.
    Admin,
    /// The first subscription to it.
    Automatic,
}

impl Origin {
    /// The word that people see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Admin => "admin",
            Self::Automatic => "automatic",
        }
    }
}

/// A queue or stream as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Names it in the keys of its logs; never given again.
    pub id: u32,
    /// Whether it takes messages.
    pub state: EntryState,
    /// Who declared it last.
    pub origin: Origin,
    /// Nothing is delivered until somebody resumes it; new declarations leave that as it is.
    pub paused: bool,
    /// Grows with each change.
    pub generation: u64,
    /// What it is declared to be.
    pub definition: Definition,
}

impl CatalogEntry {
    /// The key of the `kind` called `name`.
    #[must_use]
    pub fn key(kind: Kind, name: &str) -> Vec<u8> {
        let kind = match kind {
            Kind::Queue => b'q',
            Kind::Stream => b's',
        };
        Writer::new(tag::CATALOG).u8(kind).raw(name.as_bytes()).finish()
    }

    /// The keys of all entries.
    #[must_use]
    pub fn range() -> (Vec<u8>, Vec<u8>) {
        (Writer::new(tag::CATALOG).u8(b'q').finish(), Writer::new(tag::CATALOG).u8(b't').finish())
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let state = match self.state {
            EntryState::Active => 0,
            EntryState::Orphaned => 1,
        };
        let definition = serde_json::to_vec(&self.definition).expect("a definition has only string keys");
        let origin = match self.origin {
            Origin::Manifest => 0,
            Origin::Admin => 1,
            Origin::Automatic => 2,
        };
        let writer = Writer::new(FORMAT).u32(self.id).u8(state).u8(origin).u8(u8::from(self.paused));
        writer.u64(self.generation).raw(&definition).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "catalog entry", FORMAT)?;
        let id = reader.u32("catalog id")?;
        let state = match reader.u8("catalog state")? {
            0 => EntryState::Active,
            1 => EntryState::Orphaned,
            _ => return Err(DecodeError::Invalid("catalog state")),
        };
        let origin = match reader.u8("catalog origin")? {
            0 => Origin::Manifest,
            1 => Origin::Admin,
            2 => Origin::Automatic,
            _ => return Err(DecodeError::Invalid("catalog origin")),
        };
        let paused = reader.u8("catalog pause")? != 0;
        let generation = reader.u64("catalog generation")?;
        let definition =
            serde_json::from_slice(&reader.rest()).map_err(|_| DecodeError::Invalid("catalog definition"))?;
        Ok(Self { id, state, origin, paused, generation, definition })
    }
}

/// A queue or stream that was deleted and whose records are being removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// When it was deleted.
    pub at: Timestamp,
    /// What it was.
    pub entry: CatalogEntry,
}

impl Removal {
    /// Its key.
    #[must_use]
    pub fn key(id: u32) -> Vec<u8> {
        Writer::new(tag::CATALOG).u8(b'd').u32(id).finish()
    }

    /// The keys of all removals.
    #[must_use]
    pub fn range() -> (Vec<u8>, Vec<u8>) {
        (Writer::new(tag::CATALOG).u8(b'd').finish(), Writer::new(tag::CATALOG).u8(b'e').finish())
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT).u64(self.at.as_micros()).raw(&self.entry.encode()).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "catalog removal", FORMAT)?;
        let at = Timestamp::from_micros(reader.u64("time of removal")?);
        Ok(Self { at, entry: CatalogEntry::decode(reader.rest())? })
    }
}

/// The key of the next catalog id.
#[must_use]
pub fn next_id_key() -> Vec<u8> {
    Writer::new(tag::CATALOG).u8(b'n').finish()
}

/// The value of the next catalog id.
#[must_use]
pub fn encode_next_id(id: u32) -> Vec<u8> {
    Writer::new(FORMAT).u32(id).finish()
}

/// Reads the next catalog id.
///
/// # Errors
/// If the value is none.
pub fn decode_next_id(value: Bytes) -> Result<u32, DecodeError> {
    Reader::value(value, "next catalog id", FORMAT)?.0.u32("next catalog id")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::{DispatchSettings, Retention};

    #[test]
    fn golden() {
        let entry = CatalogEntry {
            id: 7,
            state: EntryState::Orphaned,
            origin: Origin::Automatic,
            paused: true,
            generation: 2,
            definition: Definition {
                kind: Kind::Queue,
                name: "q".into(),
                namespace: "default".into(),
                object: "q".into(),
                topic_filter: Some("a/+".into()),
                shards: 4,
                key: None,
                retention: Retention::default(),
                dispatch: DispatchSettings::default(),
                last_value: false,
                queue: crate::definition::QueueSettings::default(),
                group_expiry_ms: 0,
                delete_data: false,
            },
        };
        assert_eq!(CatalogEntry::key(Kind::Queue, "q"), b"Cqq");
        let bytes = entry.encode();
        assert!(
            bytes.starts_with(
                b"\x01\0\0\0\x07\x01\x02\x01\0\0\0\0\0\0\0\x02{\"kind\":\"queue\",\"name\":\"q\""
            )
        );
        assert_eq!(CatalogEntry::decode(bytes.clone().into()), Ok(entry.clone()));
        let removal = Removal { at: Timestamp::from_micros(5), entry };
        assert_eq!(Removal::key(7), b"Cd\0\0\0\x07");
        let value = removal.encode();
        assert_eq!((&value[..9], &value[9..]), (&b"\x01\0\0\0\0\0\0\0\x05"[..], &bytes[..]));
        assert_eq!(Removal::decode(value.into()), Ok(removal));
        assert_eq!((next_id_key(), encode_next_id(9)), (b"Cn".to_vec(), b"\x01\0\0\0\x09".to_vec()));
        assert_eq!(decode_next_id(encode_next_id(9).into()), Ok(9));
    }
}
