//! Catalog entries: the queues and streams there are.
//!
//! Entry: key `C`, kind (`q` or `s`), name. Value: format 1, catalog id u32, state u8, generation u64,
//! definition as JSON. Next id: key `C`, `n`. Value: format 1, u32.

use bytes::Bytes;

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

/// A queue or stream as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Names it in the keys of its logs; never given again.
    pub id: u32,
    /// Whether it takes messages.
    pub state: EntryState,
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
        Writer::new(FORMAT).u32(self.id).u8(state).u64(self.generation).raw(&definition).finish()
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
        let generation = reader.u64("catalog generation")?;
        let definition =
            serde_json::from_slice(&reader.rest()).map_err(|_| DecodeError::Invalid("catalog definition"))?;
        Ok(Self { id, state, generation, definition })
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
                delete_data: false,
            },
        };
        assert_eq!(CatalogEntry::key(Kind::Queue, "q"), b"Cqq");
        let bytes = entry.encode();
        assert!(bytes.starts_with(b"\x01\0\0\0\x07\x01\0\0\0\0\0\0\0\x02{\"kind\":\"queue\",\"name\":\"q\""));
        assert_eq!(CatalogEntry::decode(bytes.into()), Ok(entry));
        assert_eq!((next_id_key(), encode_next_id(9)), (b"Cn".to_vec(), b"\x01\0\0\0\x09".to_vec()));
        assert_eq!(decode_next_id(encode_next_id(9).into()), Ok(9));
    }
}
