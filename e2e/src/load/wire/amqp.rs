//! AMQP 0-9-1, as RabbitMQ speaks it: publisher confirms, explicit acknowledgements, a quorum queue.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use super::{Connection, Event, PREFETCH, QUEUE, Role, Wire};

/// The end of every frame.
const END: u8 = 0xce;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
/// Bytes of a frame at most: every message fits in one.
const FRAME_MAX: u32 = 131_072;

/// A client with one channel.
#[derive(Debug)]
pub(in super::super) struct Amqp {
    /// Publishes so far.
    published: u64,
    /// The tag of the delivery whose body comes next.
    delivery: u64,
}

impl Amqp {
    /// Connects and declares the queue.
    pub(in super::super) async fn connect(address: SocketAddr, role: Role) -> Result<(Connection, Self)> {
        let mut connection = Connection::open(address).await?;
        connection.output.extend(b"AMQP\0\0\x09\x01");
        expect(&mut connection, 10, 10).await.context("start")?;
        // No client properties.
        let login = [&long(0)[..], &short("PLAIN"), &long_string("\0guest\0guest"), &short("en_US")].concat();
        method(&mut connection.output, 0, 10, 11, &login);
        expect(&mut connection, 10, 30).await.context("tune")?;
        // One channel, and no heartbeats.
        method(&mut connection.output, 0, 10, 31, &[&[0, 1][..], &long(FRAME_MAX), &[0, 0]].concat());
        method(&mut connection.output, 0, 10, 40, &[&short("/")[..], &[0, 0]].concat());
        expect(&mut connection, 10, 41).await.context("open a connection")?;
        method(&mut connection.output, 1, 20, 10, &[0]);
        expect(&mut connection, 20, 11).await.context("open a channel")?;
        // Durable, and no more.
        let kind = [&short("x-queue-type")[..], b"S", &long_string("quorum")].concat();
        let size = u32::try_from(kind.len())?;
        let declare = [&[0, 0][..], &short(QUEUE), &[0b10], &long(size), &kind].concat();
        method(&mut connection.output, 1, 50, 10, &declare);
        expect(&mut connection, 50, 11).await.context("declare the queue")?;
        match role {
            Role::Publisher => {
                method(&mut connection.output, 1, 85, 10, &[0]);
                expect(&mut connection, 85, 11).await.context("ask for confirms")?;
            }
            Role::Consumer => {
                let window = [&long(0)[..], &PREFETCH.to_be_bytes(), &[0]].concat();
                method(&mut connection.output, 1, 60, 10, &window);
                expect(&mut connection, 60, 11).await.context("set the window")?;
                let consume = [&[0, 0][..], &short(QUEUE), &short("c"), &[0], &long(0)].concat();
                method(&mut connection.output, 1, 60, 20, &consume);
                expect(&mut connection, 60, 21).await.context("consume")?;
            }
        }
        Ok((connection, Self { published: 0, delivery: 0 }))
    }
}

/// Waits for the method; another is an error.
async fn expect(connection: &mut Connection, class: u16, id: u16) -> Result<()> {
    connection
        .ask(|input| {
            let Some(frame) = Frame::first(input)? else { return Ok(None) };
            let found = frame.method().context("a method")?;
            ensure!(found == (class, id), "method {found:?}: {}", String::from_utf8_lossy(frame.payload));
            Ok(Some((frame.length, Some(()))))
        })
        .await
}

impl Wire for Amqp {
    fn publish(&mut self, output: &mut Vec<u8>, payload: &[u8]) -> u64 {
        // To the default exchange, by the queue's name.
        method(output, 1, 60, 40, &[&[0, 0][..], &short(""), &short(QUEUE), &[0]].concat());
        let size = payload.len() as u64;
        // The only property: persistent.
        let header = [&[0, 60, 0, 0][..], &size.to_be_bytes(), &0x1000_u16.to_be_bytes(), &[2]].concat();
        frame(output, HEADER, 1, &header);
        frame(output, BODY, 1, payload);
        self.published += 1;
        self.published
    }

    fn take<'a>(&mut self, input: &'a [u8], output: &mut Vec<u8>) -> Result<Option<(usize, Event<'a>)>> {
        let Some(frame) = Frame::first(input)? else { return Ok(None) };
        let event = match (frame.kind, frame.method()) {
            (METHOD, Some((60, 80))) => {
                let (tag, rest) = number(&frame.payload[4..])?;
                Event::Confirmed { tag, multiple: rest.first().is_some_and(|flags| flags & 1 > 0) }
            }
            (METHOD, Some((60, 60))) => {
                let tag_length = usize::from(*frame.payload.get(4).context("a consumer tag")?);
                self.delivery = number(frame.payload.get(5 + tag_length..).context("a delivery tag")?)?.0;
                Event::Other
            }
            (METHOD, Some((60, 120))) => bail!("a publish was refused"),
            (METHOD, Some((10 | 20, _))) => {
                bail!("the broker said: {}", String::from_utf8_lossy(frame.payload))
            }
            (BODY, _) => {
                method(output, 1, 60, 80, &[&self.delivery.to_be_bytes()[..], &[0]].concat());
                Event::Delivered(frame.payload)
            }
            _ => Event::Other,
        };
        Ok(Some((frame.length, event)))
    }
}

struct Frame<'a> {
    kind: u8,
    payload: &'a [u8],
    /// Of the whole frame.
    length: usize,
}

impl<'a> Frame<'a> {
    fn first(input: &'a [u8]) -> Result<Option<Self>> {
        let [kind, _, _, a, b, c, d, rest @ ..] = input else { return Ok(None) };
        let size = u32::from_be_bytes([*a, *b, *c, *d]);
        ensure!(size <= FRAME_MAX, "a frame of {size} bytes: {}", String::from_utf8_lossy(input));
        let size = usize::try_from(size)?;
        let (Some(payload), Some(end)) = (rest.get(..size), rest.get(size)) else { return Ok(None) };
        ensure!(*end == END, "a frame without an end");
        Ok(Some(Self { kind: *kind, payload, length: size + 8 }))
    }

    /// Class and number of the method.
    fn method(&self) -> Option<(u16, u16)> {
        let ([a, b, c, d, ..], METHOD) = (self.payload, self.kind) else { return None };
        Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
    }
}

fn number(bytes: &[u8]) -> Result<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk().context("a number")?;
    Ok((u64::from_be_bytes(*number), rest))
}

fn method(output: &mut Vec<u8>, channel: u16, class: u16, id: u16, arguments: &[u8]) {
    frame(output, METHOD, channel, &[&class.to_be_bytes(), &id.to_be_bytes(), arguments].concat());
}

fn frame(output: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    output.push(kind);
    output.extend(channel.to_be_bytes());
    output.extend(u32::try_from(payload.len()).unwrap_or(FRAME_MAX).to_be_bytes());
    output.extend_from_slice(payload);
    output.push(END);
}

const fn long(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap_or(u8::MAX)], text.as_bytes()].concat()
}

fn long_string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_one_after_the_other() {
        let mut client = Amqp { published: 0, delivery: 0 };
        let mut bytes = Vec::new();
        let delivery = [&short("c")[..], &7_u64.to_be_bytes(), &[0], &short(""), &short("q")].concat();
        method(&mut bytes, 1, 60, 60, &delivery);
        frame(&mut bytes, HEADER, 1, &[0; 15]);
        frame(&mut bytes, BODY, 1, b"hello");
        method(&mut bytes, 1, 60, 80, &[&9_u64.to_be_bytes()[..], &[1]].concat());
        let (mut at, mut answers, mut events) = (0, Vec::new(), Vec::new());
        while let Some((length, event)) = client.take(&bytes[at..], &mut answers).unwrap() {
            assert!(client.take(&bytes[at..at + length - 1], &mut Vec::new()).unwrap().is_none());
            events.push(event);
            at += length;
        }
        assert_eq!(at, bytes.len());
        let confirmed = Event::Confirmed { tag: 9, multiple: true };
        assert_eq!(events, [Event::Other, Event::Other, Event::Delivered(b"hello"), confirmed]);
        let answer = Frame::first(&answers).unwrap().unwrap();
        assert_eq!((answer.method(), number(&answer.payload[4..]).unwrap().0), (Some((60, 80)), 7));
        assert!(client.take(b"AMQP\0\x09\x09\x01\0", &mut answers).is_err());
    }
}
