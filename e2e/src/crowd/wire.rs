//! The few packets that odd clients send, and just enough reading to see what comes back. MQTT 3.1.1.

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Packets longer than this are not for us.
const PACKET_BYTES_MAX: usize = 1 << 20;

/// CONNECT with a clean session and no keep-alive.
pub(super) fn connect(client_id: &str, will: Option<&str>) -> Vec<u8> {
    let mut body = string("MQTT");
    // A clean session; a will at QoS 1.
    body.extend([4, if will.is_some() { 0x0e } else { 0x02 }, 0, 0]);
    body.extend(string(client_id));
    if let Some(topic) = will {
        body.extend(string(topic));
        body.extend(string("gone"));
    }
    packet(0x10, &body)
}

/// SUBSCRIBE at QoS 0.
pub(super) fn subscribe(filter: &str) -> Vec<u8> {
    let mut body = vec![0, 1];
    body.extend(string(filter));
    body.push(0);
    packet(0x82, &body)
}

/// PUBLISH at QoS 0.
pub(super) fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = string(topic);
    body.extend(payload);
    packet(0x30, &body)
}

/// Openings that no broker may accept. Each is a whole packet, so that there is nothing to wait for.
pub(super) fn malformed(n: u32) -> Vec<u8> {
    let connected = |after: &[u8]| [connect(&format!("odd-{n}"), None), after.to_vec()].concat();
    match n % 10 {
        0 => packet(0x00, &[]),
        1 => vec![0x10, 0xff, 0xff, 0xff, 0xff, 0xff],
        2 => packet(0x10, &string("HTTP")),
        3 => publish("before/connect", b"x"),
        4 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        5 => connected(&connect("again", None)),
        6 => connected(&publish("wild/#", b"x")),
        // QoS 3.
        7 => connected(&packet(0x36, &[0, 1, b'a', 0, 1])),
        // SUBSCRIBE without a filter, and with the wrong flags.
        8 => connected(&packet(0x82, &[0, 1])),
        _ => connected(&packet(0x80, &[0, 1, 0, 1, b'a', 0])),
    }
}

/// The first byte of the next packet, whose rest is skipped; `None` at the end. Not cancel-safe.
pub(super) async fn next_packet(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<u8>> {
    let Ok(first) = stream.read_u8().await else { return Ok(None) };
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let byte = stream.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
        ensure!(shift < 28, "a malformed length from the broker");
    }
    ensure!(length <= PACKET_BYTES_MAX, "a packet of {length} bytes from the broker");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(first))
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let more = length > 0x7f;
        packet.push(u8::try_from(length & 0x7f).unwrap_or(0x7f) | if more { 0x80 } else { 0 });
        length >>= 7;
        if !more {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_are_found_one_after_the_other() {
        let bytes = [publish("a", &[b'x'; 300]), subscribe("b"), vec![0xc0, 0]].concat();
        let mut bytes = &bytes[..];
        for expected in [Some(0x30), Some(0x82), Some(0xc0), None] {
            assert_eq!(next_packet(&mut bytes).await.unwrap(), expected);
        }
        assert!(next_packet(&mut &[0x30, 0xff, 0xff, 0xff, 0xff, 1][..]).await.is_err());
    }
}
