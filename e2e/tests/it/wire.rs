//! MQTT packets written by hand, for input that no client library would send.

use weir_env::seed::Seed;

const TOPICS: &[&str] = &[
    "target/queue",
    "target/stream",
    "hostile/a",
    "hostile/b/c",
    "$queue/target",
    "$SYS/x",
    "/",
    "hostile/ä",
];
const FILTERS: &[&str] = &[
    "#",
    "hostile/+/c",
    "$queue/target",
    "$queue/target/target/queue",
    "$q/target/queue",
    "$stream/target",
    "$s/earliest/target/stream",
    "$s/2020-01-01T00:00:00Z/target/stream",
    "$share/group/hostile/#",
    "$share/group/$stream/target",
    "$queue/absent",
    "hostile/#/a",
    "",
];

/// Lower than the broker's limit of 1 MiB, above every other packet here.
const LARGE_BYTES: u64 = 20_000;

/// Random numbers below what a test needs.
pub(crate) fn below(seed: &Seed, bound: usize) -> usize {
    usize::try_from(seed.below(bound as u64)).expect("below a usize")
}

/// Random bytes.
pub(crate) fn noise(seed: &Seed, length: usize) -> Vec<u8> {
    std::iter::repeat_with(|| seed.next_u64().to_le_bytes()).flatten().take(length).collect()
}

/// A valid CONNECT and some valid packets after it, each by itself.
pub(crate) fn conversation(seed: &Seed) -> Vec<Vec<u8>> {
    let v5 = seed.below(2) == 1;
    let mut packets = vec![connect(seed, v5)];
    for _ in 0..=seed.below(5) {
        packets.push(match seed.below(10) {
            0..4 => publish(seed, v5),
            4..6 => subscribe(seed, v5),
            6 => unsubscribe(seed, v5),
            7 => packet(0xc0, &[]),
            8 => {
                let kind = [0x40, 0x50, 0x62, 0x70][below(seed, 4)];
                packet(kind, &[0, small(seed, 4)])
            }
            _ if v5 => packet(0xf0, &[0x18, 0]),
            _ => packet(0xc0, &[]),
        });
    }
    if seed.below(2) == 0 {
        packets.push(packet(0xe0, &[]));
    }
    packets
}

/// A fixed header that announces more than the broker accepts.
pub(crate) fn oversized_header(seed: &Seed) -> Vec<u8> {
    let kind = [0x10, 0x30, 0x32, 0x82, 0xa2][below(seed, 5)];
    let mut header = vec![kind];
    header.extend(variable_length((2 << 20) + below(seed, 100 << 20)));
    header
}

/// A valid CONNECT.
pub(crate) fn connect(seed: &Seed, v5: bool) -> Vec<u8> {
    let (clean, will) = (seed.below(4) > 0, seed.below(4) == 0);
    let mut body = string("MQTT");
    body.extend([if v5 { 5 } else { 4 }, if clean { 2 } else { 0 } | if will { 0x0c } else { 0 }, 0, 60]);
    if v5 {
        let mut properties = vec![0x21, 0, 1 + small(seed, 20)];
        if !clean {
            properties.extend([0x11, 0, 0, 0, 60]);
        }
        body.extend(sized(properties));
    }
    body.extend(string(&format!("hostile {}", seed.below(200))));
    if will {
        if v5 {
            body.extend(sized(vec![0x18, 0, 0, 0, 1]));
        }
        body.extend(string(TOPICS[below(seed, TOPICS.len())]));
        body.extend(string("last words"));
    }
    packet(0x10, &body)
}

/// An MQTT 3.1.1 PUBLISH with QoS 1, the `n`th of a connection.
pub(crate) fn publish_to(topic: &str, n: usize) -> Vec<u8> {
    let mut body = string(topic);
    body.extend(u16::try_from(n % 60_000 + 1).expect("a packet id").to_be_bytes());
    body.extend(n.to_string().bytes());
    packet(0x32, &body)
}

fn publish(seed: &Seed, v5: bool) -> Vec<u8> {
    let (qos, retain) = (small(seed, 3), small(seed, 8) / 7);
    let mut body = string(TOPICS[below(seed, TOPICS.len())]);
    if qos > 0 {
        body.extend([0, 1 + small(seed, 3)]);
    }
    if v5 {
        let mut properties = Vec::new();
        if seed.below(3) == 0 {
            properties.push(0x26);
            properties
                .extend(string(["queue-delay", "queue-priority", "queue-dedup-id", "k"][below(seed, 4)]));
            properties.extend(string(["1", "10s", "", "many words"][below(seed, 4)]));
        }
        if seed.below(5) == 0 {
            properties.extend([0x23, 0, 1 + small(seed, 5)]);
        }
        body.extend(sized(properties));
    }
    let length = if seed.below(50) == 0 { LARGE_BYTES } else { 40 };
    body.extend(noise(seed, below(seed, usize::try_from(length).expect("small"))));
    packet(0x30 | qos << 1 | retain, &body)
}

fn subscribe(seed: &Seed, v5: bool) -> Vec<u8> {
    let mut body = vec![0, 1 + small(seed, 3)];
    if v5 {
        let mut properties = Vec::new();
        if seed.below(3) == 0 {
            properties.push(0x26);
            properties.extend(string(["stream-offset", "stream-until", "stream-rate"][below(seed, 3)]));
            properties
                .extend(string(["earliest", "latest", "offset:0", "0:0", "never", "1"][below(seed, 6)]));
        }
        body.extend(sized(properties));
    }
    for _ in 0..=seed.below(2) {
        body.extend(string(FILTERS[below(seed, FILTERS.len())]));
        body.push(small(seed, 3));
    }
    packet(0x82, &body)
}

fn unsubscribe(seed: &Seed, v5: bool) -> Vec<u8> {
    let mut body = vec![0, 1 + small(seed, 3)];
    if v5 {
        body.push(0);
    }
    body.extend(string(FILTERS[below(seed, FILTERS.len())]));
    packet(0xa2, &body)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    packet.extend(variable_length(body.len()));
    packet.extend(body);
    packet
}

fn sized(properties: Vec<u8>) -> Vec<u8> {
    let mut sized = variable_length(properties.len());
    sized.extend(properties);
    sized
}

fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a short text");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn variable_length(mut length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(length % 128).expect("below 128");
        length /= 128;
        bytes.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return bytes;
        }
    }
}

fn small(seed: &Seed, bound: u8) -> u8 {
    u8::try_from(seed.below(bound.into())).expect("below a u8")
}
