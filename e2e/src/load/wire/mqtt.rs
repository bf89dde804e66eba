//! MQTT 5: publishes at QoS 1, subscriptions at QoS 0 or 1.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use super::{Connection, Event, PREFETCH, Role, Wire};

/// A client of MQTT 5.
#[derive(Debug)]
pub(in super::super) struct Mqtt {
    topic: String,
    last: u16,
}

/// What a consumer subscribes to.
#[derive(Debug)]
pub(in super::super) struct Subscribe {
    filter: String,
    qos: u8,
    /// Its session outlives its connection.
    persistent: bool,
    /// Where in a stream it begins.
    offset: Option<&'static str>,
}

impl Subscribe {
    /// Each message is acknowledged.
    pub(in super::super) fn queue(filter: &str, persistent: bool) -> Self {
        Self { filter: filter.to_owned(), qos: 1, persistent, offset: None }
    }

    /// At QoS 0, from the beginning or from what comes on.
    pub(in super::super) fn stream(filter: &str, earliest: bool) -> Self {
        let offset = if earliest { "earliest" } else { "latest" };
        Self { filter: filter.to_owned(), qos: 0, persistent: false, offset: Some(offset) }
    }
}

impl Mqtt {
    /// Connects as `id`. A publisher publishes to `topic`; a consumer subscribes.
    pub(in super::super) async fn connect(
        address: SocketAddr,
        role: Role,
        id: &str,
        topic: &str,
        subscribe: &Subscribe,
    ) -> Result<(Connection, Self)> {
        let mut connection = Connection::open(address).await?;
        let mut body = string("MQTT");
        // Without a keep-alive. A session expiry of an hour or none, and the receive maximum.
        let (flags, expiry) = if subscribe.persistent { (0, 3_600_u32) } else { (2, 0) };
        body.extend([5, flags, 0, 0, 8, 0x11]);
        body.extend(expiry.to_be_bytes());
        body.push(0x21);
        body.extend(PREFETCH.to_be_bytes());
        body.extend(string(id));
        write(&mut connection.output, 0x10, &[&body]);
        answer(&mut connection, 0x20, 1).await?;
        if role == Role::Consumer {
            // A packet id, and perhaps a user property.
            let property = subscribe.offset.map_or_else(Vec::new, |offset| {
                [&[0x26][..], &string("stream-offset"), &string(offset)].concat()
            });
            let properties = u8::try_from(property.len()).context("short properties")?;
            let filter = string(&subscribe.filter);
            let parts = [&[0, 1, properties][..], &property, &filter, &[subscribe.qos]];
            write(&mut connection.output, 0x82, &parts);
            answer(&mut connection, 0x90, 3).await?;
        }
        Ok((connection, Self { topic: topic.to_owned(), last: 0 }))
    }
}

/// Waits for the packet that begins with `first`, whose byte at `at` says whether all went well.
async fn answer(connection: &mut Connection, first: u8, at: usize) -> Result<()> {
    let mut early = Vec::new();
    let answered = connection
        .ask(|input| {
            let Some((length, body)) = packet(input)? else { return Ok(None) };
            if input[0] >> 4 == 3 {
                // Left over by a run before; of no interest to this one.
                early.extend(publish_parts(input[0], body)?.0);
                return Ok(Some((length, None)));
            }
            ensure!(input[0] == first, "packet 0x{:02x} in the place of 0x{first:02x}", input[0]);
            match body.get(at) {
                Some(0..0x80) => Ok(Some((length, Some(())))),
                code => bail!("packet 0x{first:02x} says {code:02x?}"),
            }
        })
        .await;
    for id in early {
        write(&mut connection.output, 0x40, &[&id]);
    }
    answered
}

impl Wire for Mqtt {
    fn publish(&mut self, output: &mut Vec<u8>, payload: &[u8]) -> u64 {
        self.last = self.last.checked_add(1).unwrap_or(1);
        // No properties.
        let id = self.last.to_be_bytes();
        write(output, 0x32, &[&string(&self.topic), &id, &[0], payload]);
        self.last.into()
    }

    fn take<'a>(&mut self, input: &'a [u8], output: &mut Vec<u8>) -> Result<Option<(usize, Event<'a>)>> {
        let Some((length, body)) = packet(input)? else { return Ok(None) };
        let event = match input[0] >> 4 {
            4 => {
                ensure!(body.len() >= 2, "a packet that is too short");
                let code = body.get(2).copied().unwrap_or(0);
                ensure!(code < 0x80, "a publish was refused with 0x{code:02x}");
                Event::Confirmed { tag: u16::from_be_bytes([body[0], body[1]]).into(), multiple: false }
            }
            3 => {
                let (id, payload) = publish_parts(input[0], body)?;
                if let Some(id) = id {
                    write(output, 0x40, &[&id]);
                }
                Event::Delivered(payload)
            }
            14 => bail!("the broker disconnected with {:02x?}", body.first()),
            _ => Event::Other,
        };
        Ok(Some((length, event)))
    }
}

/// Packet id, which QoS 0 has none of, and payload of a PUBLISH.
fn publish_parts(first: u8, body: &[u8]) -> Result<(Option<[u8; 2]>, &[u8])> {
    let parts = || {
        let (length, rest) = body.split_first_chunk()?;
        let (_, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        let (id, rest) = if first & 0x06 == 0 {
            (None, rest)
        } else {
            rest.split_first_chunk().map(|(id, rest)| (Some(*id), rest))?
        };
        let (properties, size) = length_of(rest).ok()??;
        Some((id, rest.get(size + properties..)?))
    };
    parts().context("a packet that is too short")
}

/// The length and the body of the first packet, if it is whole.
fn packet(input: &[u8]) -> Result<Option<(usize, &[u8])>> {
    let Some(rest) = input.get(1..) else { return Ok(None) };
    let Some((length, size)) = length_of(rest)? else { return Ok(None) };
    Ok(rest.get(size..size + length).map(|body| (1 + size + length, body)))
}

/// A length, and how many bytes it takes.
fn length_of(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let mut length = 0;
    for (n, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Ok(Some((length, n + 1)));
        }
    }
    ensure!(bytes.len() < 4, "a malformed length");
    Ok(None)
}

fn write(output: &mut Vec<u8>, first: u8, parts: &[&[u8]]) {
    output.push(first);
    let mut length: usize = parts.iter().map(|part| part.len()).sum();
    loop {
        let more = length > 0x7f;
        output.push(u8::try_from(length & 0x7f).unwrap_or(0x7f) | if more { 0x80 } else { 0 });
        length >>= 7;
        if !more {
            break;
        }
    }
    for part in parts {
        output.extend_from_slice(part);
    }
}

fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_can_be_delivered_and_is_acknowledged() {
        let mut client = Mqtt { topic: "bench/1".to_owned(), last: 0xfffe };
        let (mut bytes, mut answers) = (Vec::new(), Vec::new());
        let payload = vec![b'x'; 300];
        assert_eq!([client.publish(&mut bytes, &payload), client.publish(&mut bytes, b"y")], [0xffff, 1]);
        for cut in 0..300 {
            assert_eq!(client.take(&bytes[..cut], &mut answers).unwrap(), None);
        }
        let (length, event) = client.take(&bytes, &mut answers).unwrap().unwrap();
        assert_eq!(event, Event::Delivered(&payload));
        let (_, event) = client.take(&bytes[length..], &mut answers).unwrap().unwrap();
        assert_eq!(event, Event::Delivered(b"y"));
        assert_eq!(answers, [0x40, 2, 0xff, 0xff, 0x40, 2, 0, 1]);
        let (_, event) = client.take(&answers, &mut Vec::new()).unwrap().unwrap();
        assert_eq!(event, Event::Confirmed { tag: 0xffff, multiple: false });
        assert!(client.take(&[0x40, 3, 0, 1, 0x97], &mut answers).is_err());
        // At QoS 0 there is no packet id, and no answer.
        answers.clear();
        let (_, event) = client.take(b"\x30\x06\0\x01a\0hi", &mut answers).unwrap().unwrap();
        assert_eq!((event, answers.len()), (Event::Delivered(b"hi"), 0));
    }
}
