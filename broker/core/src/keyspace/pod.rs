//! Pods of a cluster: who they are, and the counter that tells that they live.
//!
//! Keys: `m`, pod (16); `h`, pod (16). Value of `m`: format 1, flags u8 (1: draining, 2: asked to), started u64 (µs), then
//! the addresses for other pods, for the admin API and for clients, the zone and the version, bytes each, and of a pod
//! that was asked to drain the rate u32 (a second) and the grace u32 (ms). Value of `h`: format 1, counter u64, ttl u32
//! (ms), applied (10): the change feed's place up to which its caches are; its load (`load.rs`), which may be absent.
//!
//! A pod writes both when it joins, then only `h`, in transactions that read its `m`. Whoever finds it dead clears both
//! in a transaction that reads its `h`: the one excludes the other. Any pod may ask another to drain, in its `m`.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use weir_env::clock::Timestamp;
use weir_storage::{Versionstamp, prefix_end};

use super::load::PodLoad;
use super::owner::PodId;
use super::{DecodeError, Reader, Writer, tag};

const FORMAT: u8 = 1;
const DRAINING: u8 = 1;
const ORDERED: u8 = 2;

/// How a pod is to have its clients go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainOrder {
    /// So many in a second; 0: as it is configured.
    pub rate: u32,
    /// After this time all that are left at once; zero: as it is configured. Stored in whole milliseconds.
    pub grace: Duration,
}

/// What a pod says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodInfo {
    /// Where it listens for other pods: `HOST:PORT`.
    pub peer: ByteString,
    /// Where its admin API is; empty if nowhere.
    pub admin: ByteString,
    /// Where clients are sent that are to come to it; empty if they are not told.
    pub server_reference: ByteString,
    /// Where it runs, in words of whoever runs it.
    pub zone: ByteString,
    /// Of the program.
    pub version: ByteString,
    /// When it joined.
    pub started: Timestamp,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// What it says of itself.
    pub info: PodInfo,
    /// It is about to leave: it is given no shards.
    pub is_draining: bool,
    /// It was asked to have its clients go, and may be asked to stay after all.
    pub order: Option<DrainOrder>,
}

impl Pod {
    /// The key of `pod`.
    #[must_use]
    pub fn key(pod: PodId) -> Vec<u8> {
        Writer::new(tag::POD).raw(&pod.0).finish()
    }

    /// The keys of all pods.
    #[must_use]
    pub fn range() -> (Vec<u8>, Vec<u8>) {
        (vec![tag::POD], prefix_end(&[tag::POD]))
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// If it is none of a pod.
    pub fn of_key(key: &Bytes) -> Result<PodId, DecodeError> {
        pod_of(key, tag::POD)
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let PodInfo { peer, admin, server_reference, zone, version, started } = &self.info;
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(self.is_draining, DRAINING) | flag(self.order.is_some(), ORDERED);
        let out = Writer::new(FORMAT).u8(flags).u64(started.as_micros());
        let texts = [peer, admin, server_reference, zone, version];
        let out = texts.into_iter().fold(out, |out, text| out.bytes(text.as_bytes()));
        match self.order {
            Some(DrainOrder { rate, grace }) => {
                out.u32(rate).u32(u32::try_from(grace.as_millis()).unwrap_or(u32::MAX))
            }
            None => out,
        }
        .finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "pod", FORMAT)?;
        let flags = reader.u8("pod flags")?;
        let started = Timestamp::from_micros(reader.u64("start of a pod")?);
        let info = PodInfo {
            started,
            peer: reader.string("peer address")?,
            admin: reader.string("admin address")?,
            server_reference: reader.string("server reference")?,
            zone: reader.string("zone")?,
            version: reader.string("version of a pod")?,
        };
        let order = if flags & ORDERED != 0 {
            let rate = reader.u32("rate of a drain")?;
            let grace = Duration::from_millis(reader.u32("grace of a drain")?.into());
            Some(DrainOrder { rate, grace })
        } else {
            None
        };
        Ok(Self { info, is_draining: flags & DRAINING != 0, order })
    }
}

/// The sign of life of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Grows with each.
    pub counter: u64,
    /// Milliseconds without one after which others declare the pod dead.
    pub ttl_ms: u32,
    /// The change feed's place up to which its caches are.
    pub applied: Versionstamp,
    /// What it has to do.
    pub load: PodLoad,
}

impl Heartbeat {
    /// The key of `pod`.
    #[must_use]
    pub fn key(pod: PodId) -> Vec<u8> {
        Writer::new(tag::HEARTBEAT).raw(&pod.0).finish()
    }

    /// The keys of all pods.
    #[must_use]
    pub fn range() -> (Vec<u8>, Vec<u8>) {
        (vec![tag::HEARTBEAT], prefix_end(&[tag::HEARTBEAT]))
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// If it is none of a heartbeat.
    pub fn of_key(key: &Bytes) -> Result<PodId, DecodeError> {
        pod_of(key, tag::HEARTBEAT)
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::new(FORMAT).u64(self.counter).u32(self.ttl_ms).raw(&self.applied.0);
        self.load.write(out).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "heartbeat", FORMAT)?;
        let counter = reader.u64("heartbeat counter")?;
        let ttl_ms = reader.u32("heartbeat ttl")?;
        let applied = Versionstamp(reader.array("changes applied")?);
        Ok(Self { counter, ttl_ms, applied, load: PodLoad::read(&mut reader)? })
    }
}

fn pod_of(key: &Bytes, tag: u8) -> Result<PodId, DecodeError> {
    let mut reader = Reader::new(key.clone());
    if reader.u8("table")? != tag {
        return Err(DecodeError::Invalid("table"));
    }
    Ok(PodId(reader.id("pod")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let id = PodId([9; 16]);
        let info = PodInfo {
            peer: "h:1".into(),
            admin: "a".into(),
            server_reference: ByteString::new(),
            zone: "z".into(),
            version: "1.2".into(),
            started: Timestamp::from_micros(258),
        };
        let pod = Pod { info, is_draining: true, order: None };
        assert_eq!(Pod::key(id), [b"m".as_slice(), &[9; 16]].concat());
        assert_eq!(Pod::of_key(&Pod::key(id).into()), Ok(id));
        let bytes = b"\x01\x01\0\0\0\0\0\0\x01\x02\x03h:1\x01a\0\x01z\x031.2";
        assert_eq!(pod.encode(), bytes);
        assert_eq!(Pod::decode(Bytes::from_static(bytes)), Ok(pod.clone()));
        let order = Some(DrainOrder { rate: 500, grace: Duration::from_millis(258) });
        let pod = Pod { order, ..pod };
        let bytes = b"\x01\x03\0\0\0\0\0\0\x01\x02\x03h:1\x01a\0\x01z\x031.2\0\0\x01\xf4\0\0\x01\x02";
        assert_eq!(pod.encode(), bytes);
        assert_eq!(Pod::decode(Bytes::from_static(bytes)), Ok(pod));
        let load = PodLoad { connections: 300, ..PodLoad::default() };
        let beat = Heartbeat { counter: 258, ttl_ms: 5000, applied: Versionstamp([7; 10]), load };
        assert_eq!(Heartbeat::key(id), [b"h".as_slice(), &[9; 16]].concat());
        assert_eq!(Heartbeat::of_key(&Heartbeat::key(id).into()), Ok(id));
        assert!(Heartbeat::of_key(&Pod::key(id).into()).is_err());
        let bytes = [b"\x01\0\0\0\0\0\0\x01\x02\0\0\x13\x88".as_slice(), &[7; 10]].concat();
        let with_load = [bytes.as_slice(), b"\x0c\xac\x02\0\0\0\0\0\0\0\0\0\0\0"].concat();
        assert_eq!(beat.encode(), with_load);
        assert_eq!(Heartbeat::decode(with_load.into()), Ok(beat));
        assert_eq!(Heartbeat::decode(bytes.into()), Ok(Heartbeat { load: PodLoad::default(), ..beat }));
    }
}
