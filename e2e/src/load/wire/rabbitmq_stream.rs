//! The protocol of RabbitMQ's streams: publishes that are confirmed, chunks of messages against credit.
//!
//! A frame: its size, then a key, a version and what belongs to the key. A chunk is read message by message as it
//! comes; it need not be there as a whole.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Connection, Event, QUEUE, Role, Wire};

/// Keys of frames; answers have the highest bit set.
mod key {
    pub(super) const DECLARE_PUBLISHER: u16 = 1;
    pub(super) const PUBLISH: u16 = 2;
    pub(super) const PUBLISH_CONFIRM: u16 = 3;
    pub(super) const SUBSCRIBE: u16 = 7;
    pub(super) const DELIVER: u16 = 8;
    pub(super) const CREDIT: u16 = 9;
    pub(super) const CREATE: u16 = 13;
    pub(super) const METADATA_UPDATE: u16 = 16;
    pub(super) const PEER_PROPERTIES: u16 = 17;
    pub(super) const SASL_HANDSHAKE: u16 = 18;
    pub(super) const SASL_AUTHENTICATE: u16 = 19;
    pub(super) const TUNE: u16 = 20;
    pub(super) const OPEN: u16 = 21;
    pub(super) const HEARTBEAT: u16 = 23;
    pub(super) const ANSWER: u16 = 0x8000;
}

/// Codes of answers: all went well; the stream is there already.
const OK: u16 = 1;
const EXISTS: u16 = 5;
/// The stream was made a moment ago, and cannot be used yet.
const NOT_AVAILABLE: u16 = 6;
/// How often it is tried again, and the wait before that.
const TRIES: usize = 100;
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// Where a subscription begins: with the first message, or the next one.
const FIRST: u16 = 1;
const NEXT: u16 = 3;
/// Chunks that may be on their way to a reader.
const CREDIT: u16 = 50;
/// Bytes of a frame's size, key and version, and of a delivery up to its first message: subscription and header.
const HEAD: usize = 8;
const DELIVERY_HEAD: usize = HEAD + 1 + 48;
/// Bytes of a publish up to its first message: publisher, and number of messages.
const PUBLISH_HEAD: usize = HEAD + 1 + 4;
/// Messages of one frame at most: it stays far below the frames that a server takes.
const BATCH_MAX: u32 = 256;

/// A client.
#[derive(Debug, Default)]
pub(in super::super) struct RabbitmqStream {
    /// Publishes so far.
    published: u64,
    /// Where in the output the frame is that the next publish of this turn joins, and how many are in it.
    batch: Option<(usize, u32)>,
    /// Of the chunk that comes in: messages, and bytes of these and of what follows them.
    chunk: Option<Chunk>,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    entries: u16,
    bytes: usize,
}

impl RabbitmqStream {
    /// Connects and makes the stream unless it is there. A consumer reads from its beginning or what comes.
    pub(in super::super) async fn connect(
        address: SocketAddr,
        role: Role,
        earliest: bool,
    ) -> Result<(Connection, Self)> {
        let mut connection = Connection::open(address).await?;
        request(&mut connection, key::PEER_PROPERTIES, &[&0_u32.to_be_bytes()]).await?;
        request(&mut connection, key::SASL_HANDSHAKE, &[]).await?;
        let login = b"\0guest\0guest";
        let size = u32::try_from(login.len())?.to_be_bytes();
        request(&mut connection, key::SASL_AUTHENTICATE, &[&string("PLAIN"), &size, login]).await?;
        // What the server suggests for frames, and no heartbeats.
        let frame_max = connection
            .ask(|input| {
                let Some((length, frame)) = whole(input)? else { return Ok(None) };
                ensure!(u16_at(frame, 4)? == key::TUNE, "something else than tune: {frame:02x?}");
                Ok(Some((length, Some(u32_at(frame, HEAD)?))))
            })
            .await
            .context("tune")?;
        let tune = [frame_max.to_be_bytes(), 0_u32.to_be_bytes()].concat();
        write(&mut connection.output, key::TUNE, &[&tune]);
        request(&mut connection, key::OPEN, &[&string("/")]).await?;
        request(&mut connection, key::CREATE, &[&string(QUEUE), &0_u32.to_be_bytes()]).await?;
        let from = if earliest { FIRST } else { NEXT }.to_be_bytes();
        let (what, parts) = match role {
            Role::Publisher => {
                (key::DECLARE_PUBLISHER, [vec![0], string(""), string(QUEUE), Vec::new()].concat())
            }
            Role::Consumer => {
                let credit = CREDIT.to_be_bytes();
                (key::SUBSCRIBE, [vec![0], string(QUEUE), from.to_vec(), credit.to_vec()].concat())
            }
        };
        for _ in 0..TRIES {
            if request(&mut connection, what, &[&parts]).await? != NOT_AVAILABLE {
                break;
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        Ok((connection, Self::default()))
    }

    /// The next message of the chunk, or its end, as far as it is there.
    fn take_entry<'a>(
        &mut self,
        chunk: Chunk,
        input: &'a [u8],
        output: &mut Vec<u8>,
    ) -> Result<Option<(usize, Event<'a>)>> {
        if chunk.entries == 0 {
            if input.len() < chunk.bytes {
                return Ok(None);
            }
            self.chunk = None;
            write(output, key::CREDIT, &[&[0], &1_u16.to_be_bytes()]);
            return Ok(Some((chunk.bytes, Event::Other)));
        }
        if input.len() < 4 {
            return Ok(None);
        }
        let size = u32_at(input, 0)?;
        ensure!(size >> 31 == 0, "a batch within a chunk, which nobody published");
        let length = 4 + usize::try_from(size)?;
        let Some(entry) = input.get(4..length) else { return Ok(None) };
        let bytes = chunk.bytes.checked_sub(length).context("a chunk that is too short")?;
        self.chunk = Some(Chunk { entries: chunk.entries - 1, bytes });
        Ok(Some((length, Event::Delivered(entry))))
    }

    /// Goes into a chunk whose head is there.
    fn begin_chunk(&mut self, input: &[u8]) -> Result<Option<(usize, Event<'static>)>> {
        if input.len() < DELIVERY_HEAD {
            return Ok(None);
        }
        // Magic and kind of the chunk.
        ensure!(input[HEAD + 1..HEAD + 3] == [0x50, 0], "a chunk of messages: {:02x?}", &input[..HEAD + 3]);
        let entries = u16_at(input, HEAD + 3)?;
        let size = 4 + usize::try_from(u32_at(input, 0)?)?;
        let bytes = size.checked_sub(DELIVERY_HEAD).context("a chunk that is too short")?;
        self.chunk = Some(Chunk { entries, bytes });
        Ok(Some((DELIVERY_HEAD, Event::Other)))
    }
}

/// Sends a request and waits for the answer. That something is there already is fine, or that it is not there yet.
async fn request(connection: &mut Connection, what: u16, parts: &[&[u8]]) -> Result<u16> {
    let correlation = 0_u32.to_be_bytes();
    write(&mut connection.output, what, &[&[&correlation[..]], parts].concat());
    connection
        .ask(|input| {
            let Some((length, frame)) = whole(input)? else { return Ok(None) };
            let found = u16_at(frame, 4)?;
            if found != what | key::ANSWER {
                ensure!(found == key::METADATA_UPDATE || found == key::HEARTBEAT, "frame {found}");
                return Ok(Some((length, None)));
            }
            let code = u16_at(frame, HEAD + 4)?;
            ensure!([OK, EXISTS, NOT_AVAILABLE].contains(&code), "request {what} was refused with {code}");
            Ok(Some((length, Some(code))))
        })
        .await
}

impl Wire for RabbitmqStream {
    fn begin_turn(&mut self) {
        self.batch = None;
    }

    fn publish(&mut self, output: &mut Vec<u8>, payload: &[u8]) -> u64 {
        self.published += 1;
        let (at, count) = self.batch.filter(|(_, count)| *count < BATCH_MAX).unwrap_or_else(|| {
            let at = output.len();
            write(output, key::PUBLISH, &[&[0], &0_u32.to_be_bytes()]);
            (at, 0)
        });
        output.extend_from_slice(&self.published.to_be_bytes());
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        output.extend_from_slice(&length.to_be_bytes());
        output.extend_from_slice(payload);
        let size = u32::try_from(output.len() - at - 4).unwrap_or(u32::MAX);
        output[at..at + 4].copy_from_slice(&size.to_be_bytes());
        output[at + PUBLISH_HEAD - 4..at + PUBLISH_HEAD].copy_from_slice(&(count + 1).to_be_bytes());
        self.batch = Some((at, count + 1));
        self.published
    }

    fn take<'a>(&mut self, input: &'a [u8], output: &mut Vec<u8>) -> Result<Option<(usize, Event<'a>)>> {
        if let Some(chunk) = self.chunk {
            return self.take_entry(chunk, input, output);
        }
        if input.len() < HEAD {
            return Ok(None);
        }
        if u16_at(input, 4)? == key::DELIVER {
            return self.begin_chunk(input);
        }
        let Some((length, frame)) = whole(input)? else { return Ok(None) };
        let event = match u16_at(frame, 4)? {
            key::PUBLISH_CONFIRM => {
                // One publisher's confirms come in order, several in a frame.
                let ids = frame.get(HEAD + 5..).context("a confirm that is too short")?;
                let last =
                    ids.chunks_exact(8).map(|id| id.iter().fold(0, |n, &byte| n << 8 | u64::from(byte)));
                let tag = last.max().context("a confirm of nothing")?;
                Event::Confirmed { tag, multiple: true }
            }
            key::METADATA_UPDATE | key::HEARTBEAT | key::TUNE => Event::Other,
            other => bail!("frame {other:#x}: {frame:02x?}"),
        };
        Ok(Some((length, event)))
    }
}

/// The length of the first frame, and all of it, if it is whole.
fn whole(input: &[u8]) -> Result<Option<(usize, &[u8])>> {
    if input.len() < HEAD {
        return Ok(None);
    }
    let length = 4 + usize::try_from(u32_at(input, 0)?)?;
    ensure!(length >= HEAD, "a frame of {length} bytes");
    Ok(input.get(..length).map(|frame| (length, frame)))
}

fn write(output: &mut Vec<u8>, key: u16, parts: &[&[u8]]) {
    let size = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    output.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    output.extend_from_slice(&key.to_be_bytes());
    output.extend_from_slice(&1_u16.to_be_bytes());
    for part in parts {
        output.extend_from_slice(part);
    }
}

fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk).context("a frame that is too short")?;
    Ok(u16::from_be_bytes(*found))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk).context("a frame that is too short")?;
    Ok(u32::from_be_bytes(*found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishes_of_a_turn_share_a_frame() {
        let mut client = RabbitmqStream::default();
        let mut bytes = Vec::new();
        client.begin_turn();
        assert_eq!([client.publish(&mut bytes, b"a"), client.publish(&mut bytes, b"bc")], [1, 2]);
        client.begin_turn();
        client.publish(&mut bytes, b"d");
        let (length, first) = whole(&bytes).unwrap().unwrap();
        let body = b"\0\x02\0\x01\0\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\x01a\0\0\0\0\0\0\0\x02\0\0\0\x02bc";
        assert_eq!(first[4..], body[..]);
        let (rest, second) = whole(&bytes[length..]).unwrap().unwrap();
        assert_eq!((u32_at(second, PUBLISH_HEAD - 4).unwrap(), length + rest), (1, bytes.len()));
    }

    #[test]
    fn messages_of_a_chunk_are_taken_as_they_come() {
        let mut frame = vec![0; DELIVERY_HEAD];
        frame[5] = 8;
        frame[HEAD + 1] = 0x50;
        frame[HEAD + 4] = 2;
        frame.extend(b"\0\0\0\x02hi\0\0\0\x01!trailer");
        let size = u32::try_from(frame.len() - 4).unwrap();
        frame[..4].copy_from_slice(&size.to_be_bytes());
        let mut confirm = Vec::new();
        let ids = [9_u64.to_be_bytes(), 8_u64.to_be_bytes()].concat();
        write(&mut confirm, key::PUBLISH_CONFIRM, &[&[0, 0, 0, 0, 2], &ids]);
        let bytes = [frame, confirm].concat();
        let (mut client, mut answers, mut events) = (RabbitmqStream::default(), Vec::new(), Vec::new());
        // Byte by byte, as slowly as it can come.
        let (mut at, mut end) = (0, 0);
        while at < bytes.len() {
            match client.take(&bytes[at..end], &mut answers).unwrap() {
                Some((length, event)) => {
                    at += length;
                    events.push(event);
                }
                None => end += 1,
            }
        }
        let confirmed = Event::Confirmed { tag: 9, multiple: true };
        let delivered = [Event::Delivered(b"hi"), Event::Delivered(b"!")];
        let [first, second] = delivered;
        assert_eq!(events, [Event::Other, first, second, Event::Other, confirmed]);
        assert_eq!(answers, b"\0\0\0\x07\0\x09\0\x01\0\0\x01");
        assert!(client.take(b"\0\0\0\x04\0\x04\0\x01", &mut answers).is_err());
    }
}
