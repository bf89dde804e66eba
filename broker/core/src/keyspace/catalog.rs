//! Catalog entries: the queues and streams there are.
//!
//! Entry: key `C`, kind (`q` or `s`), name. Value: format 1, catalog id u32, state u8, origin u8 (of an operator followed
//! by cluster and uid, each a string with its length u16, and generation of the object u64), paused u8, generation u64,
//! definition as JSON. Next id: key `C`, `n`. Value: format 1, u32.
//! Removal to be finished: key `C`, `d`, catalog id u32. Value: format 1, time u64, then an entry's value.
//! Newest writer: key `C`, `w`, id of a Kubernetes cluster. Value: format 1, u64.

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A set of manifests; it is retired when they no longer declare it.
    Manifest,
    /// A person, by the admin API.
    Admin,
    /// The first subscription to it.
    Automatic,
    /// An object of a Kubernetes cluster, by its operator.
    Operator(Claim),
}

/// Which object of a Kubernetes cluster declares a queue or stream, beyond the namespace and name in its definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Id of the cluster, which one that is built anew has again.
    pub cluster: String,
    /// Of the object; one that is made anew has another.
    pub uid: String,
    /// Of the object.
    pub generation: u64,
}

impl Origin {
    /// The word that people see.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Admin => "admin",
            Self::Automatic => "automatic",
            Self::Operator(_) => "operator",
        }
    }

    /// The object of a Kubernetes cluster, if one has declared it.
    #[must_use]
    pub const fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Operator(claim) => Some(claim),
            Self::Manifest | Self::Admin | Self::Automatic => None,
        }
    }

    fn write(&self, writer: Writer) -> Writer {
        match self {
            Self::Manifest => writer.u8(0),
            Self::Admin => writer.u8(1),
            Self::Automatic => writer.u8(2),
            Self::Operator(Claim { cluster, uid, generation }) => {
                writer.u8(3).key_bytes(cluster.as_bytes()).key_bytes(uid.as_bytes()).u64(*generation)
            }
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match reader.u8("catalog origin")? {
            0 => Self::Manifest,
            1 => Self::Admin,
            2 => Self::Automatic,
            3 => {
                let cluster = reader.key_string("cluster of a declaration")?.to_string();
                let uid = reader.key_string("uid of a declaration")?.to_string();
                let generation = reader.u64("generation of a declaration")?;
                Self::Operator(Claim { cluster, uid, generation })
            }
            _ => return Err(DecodeError::Invalid("catalog origin")),
        })
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
        let writer = self.origin.write(Writer::new(FORMAT).u32(self.id).u8(state));
        writer.u8(u8::from(self.paused)).u64(self.generation).raw(&definition).finish()
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
        let origin = Origin::read(&mut reader)?;
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

/// The newest writer of a Kubernetes cluster: changes that an older one asks for are refused.
#[derive(Clone, Copy, Debug)]
pub struct NewestWriter;

impl NewestWriter {
    /// The key of the one of `cluster`.
    #[must_use]
    pub fn key(cluster: &str) -> Vec<u8> {
        Writer::new(tag::CATALOG).u8(b'w').raw(cluster.as_bytes()).finish()
    }

    /// The keys of all.
    #[must_use]
    pub fn range() -> (Vec<u8>, Vec<u8>) {
        (Writer::new(tag::CATALOG).u8(b'w').finish(), Writer::new(tag::CATALOG).u8(b'x').finish())
    }

    /// The value.
    #[must_use]
    pub fn encode(writer: u64) -> Vec<u8> {
        Writer::new(FORMAT).u64(writer).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<u64, DecodeError> {
        Reader::value(value, "newest writer", FORMAT)?.0.u64("newest writer")
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
        let claim = Claim { cluster: "eu".into(), uid: "u-1".into(), generation: 5 };
        let claimed = CatalogEntry { origin: Origin::Operator(claim), paused: false, ..entry.clone() };
        let with_claim = claimed.encode();
        assert!(with_claim.starts_with(
            b"\x01\0\0\0\x07\x01\x03\0\x02eu\0\x03u-1\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\0\x02{\"kind\""
        ));
        assert_eq!(CatalogEntry::decode(with_claim.into()), Ok(claimed));
        let removal = Removal { at: Timestamp::from_micros(5), entry };
        assert_eq!(Removal::key(7), b"Cd\0\0\0\x07");
        let value = removal.encode();
        assert_eq!((&value[..9], &value[9..]), (&b"\x01\0\0\0\0\0\0\0\x05"[..], &bytes[..]));
        assert_eq!(Removal::decode(value.into()), Ok(removal));
        assert_eq!((next_id_key(), encode_next_id(9)), (b"Cn".to_vec(), b"\x01\0\0\0\x09".to_vec()));
        assert_eq!(decode_next_id(encode_next_id(9).into()), Ok(9));
        assert_eq!(NewestWriter::key("default"), b"Cwdefault");
        assert_eq!(NewestWriter::encode(9), b"\x01\0\0\0\0\0\0\0\x09");
        assert_eq!(NewestWriter::decode(NewestWriter::encode(9).into()), Ok(9));
    }
}
