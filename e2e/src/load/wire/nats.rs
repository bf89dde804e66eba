//! JetStream: publishes with a confirmation; a stream that works as a queue, with explicit acknowledgements, or one that
//! ordered consumers read, without any but with flow control.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use super::{Connection, Event, PREFETCH, QUEUE, Role, Wire};

/// Where messages go, and where consumers get them from.
const SUBJECT: &str = "bench.message";
const DELIVER: &str = "bench-deliver";
/// Longest line that a server sends.
const LINE_MAX: usize = 64 << 10;

/// A client of NATS.
#[derive(Debug)]
pub(in super::super) struct Nats {
    /// What answers come back under.
    inbox: String,
    /// Publishes so far.
    published: u64,
    /// What is delivered has to be acknowledged.
    acknowledges: bool,
}

impl Nats {
    /// Connects as `id`; makes the stream and its consumer unless they are there.
    pub(in super::super) async fn connect(
        address: SocketAddr,
        role: Role,
        id: &str,
        consumers: u32,
    ) -> Result<(Connection, Self)> {
        let (mut connection, inbox) = open(address, id).await?;
        if role == Role::Consumer {
            create_stream(&mut connection, &inbox, "workqueue").await?;
            let pending = u32::from(PREFETCH) * consumers;
            let consumer = format!(
                "{{\"stream_name\":\"{QUEUE}\",\"config\":{{\"durable_name\":\"c\",\"ack_policy\":\"explicit\",\
                 \"deliver_subject\":\"{DELIVER}\",\"deliver_group\":\"g\",\"max_ack_pending\":{pending}}}}}"
            );
            request(&mut connection, &inbox, &format!("CONSUMER.DURABLE.CREATE.{QUEUE}.c"), &consumer)
                .await?;
            connection.output.extend(format!("SUB {DELIVER} g 2\r\n").as_bytes());
        }
        settled(&mut connection).await?;
        Ok((connection, Self { inbox, published: 0, acknowledges: true }))
    }

    /// Connects as `id`; makes the stream unless it is there. A consumer reads from its beginning or what comes.
    pub(in super::super) async fn connect_stream(
        address: SocketAddr,
        role: Role,
        id: &str,
        earliest: bool,
    ) -> Result<(Connection, Self)> {
        let (mut connection, inbox) = open(address, id).await?;
        create_stream(&mut connection, &inbox, "limits").await?;
        settled(&mut connection).await?;
        if role == Role::Consumer {
            let deliver = format!("{DELIVER}.{id}");
            connection.output.extend(format!("SUB {deliver} 2\r\n").as_bytes());
            let from = if earliest { "all" } else { "new" };
            let consumer = format!(
                "{{\"stream_name\":\"{QUEUE}\",\"config\":{{\"ack_policy\":\"none\",\"deliver_policy\":\"{from}\",\
                 \"deliver_subject\":\"{deliver}\",\"flow_control\":true,\"idle_heartbeat\":5000000000,\
                 \"max_deliver\":1,\"mem_storage\":true,\"num_replicas\":1}}}}"
            );
            let what = format!("CONSUMER.CREATE.{QUEUE}");
            if earliest {
                // Messages may come before the answer does.
                ask(&mut connection, &inbox, &what, &consumer);
            } else {
                request(&mut connection, &inbox, &what, &consumer).await?;
            }
        }
        Ok((connection, Self { inbox, published: 0, acknowledges: false }))
    }
}

/// A connection, and what answers come back under.
async fn open(address: SocketAddr, id: &str) -> Result<(Connection, String)> {
    let mut connection = Connection::open(address).await?;
    let inbox = format!("_INBOX.{id}");
    let connect =
        "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n";
    connection.output.extend(connect.as_bytes());
    connection.output.extend(format!("SUB {inbox}.* 1\r\n").as_bytes());
    Ok((connection, inbox))
}

/// Waits until the server has taken what was written.
async fn settled(connection: &mut Connection) -> Result<()> {
    connection.output.extend(b"PING\r\n");
    connection
        .ask(|input| {
            let Some((length, packet)) = packet(input)? else { return Ok(None) };
            Ok(Some((length, matches!(packet, Packet::Pong).then_some(()))))
        })
        .await
}

async fn create_stream(connection: &mut Connection, inbox: &str, retention: &str) -> Result<()> {
    let stream = format!(
        "{{\"name\":\"{QUEUE}\",\"subjects\":[\"{SUBJECT}\"],\"retention\":\"{retention}\",\
         \"storage\":\"file\",\"num_replicas\":1}}"
    );
    request(connection, inbox, &format!("STREAM.CREATE.{QUEUE}"), &stream).await
}

/// Asks the server's API, whose answer comes on the inbox's `api`.
fn ask(connection: &mut Connection, inbox: &str, what: &str, json: &str) {
    let publish = format!("PUB $JS.API.{what} {inbox}.api {}\r\n{json}\r\n", json.len());
    connection.output.extend(publish.as_bytes());
}

/// Asks the server's API; what is there already is as good as made.
async fn request(connection: &mut Connection, inbox: &str, what: &str, json: &str) -> Result<()> {
    ask(connection, inbox, what, json);
    connection
        .ask(|input| {
            let Some((length, packet)) = packet(input)? else { return Ok(None) };
            let Packet::Message { payload, .. } = packet else { return Ok(Some((length, None))) };
            let answer = String::from_utf8_lossy(payload);
            let fine = !answer.contains("\"error\"") || answer.contains("already in use");
            ensure!(fine, "{what}: {answer}");
            Ok(Some((length, Some(()))))
        })
        .await
}

impl Wire for Nats {
    fn publish(&mut self, output: &mut Vec<u8>, payload: &[u8]) -> u64 {
        self.published += 1;
        let line = format!("PUB {SUBJECT} {}.{} {}\r\n", self.inbox, self.published, payload.len());
        output.extend_from_slice(line.as_bytes());
        output.extend_from_slice(payload);
        output.extend_from_slice(b"\r\n");
        self.published
    }

    fn take<'a>(&mut self, input: &'a [u8], output: &mut Vec<u8>) -> Result<Option<(usize, Event<'a>)>> {
        let Some((length, packet)) = packet(input)? else { return Ok(None) };
        let event = match packet {
            Packet::Ping => {
                output.extend_from_slice(b"PONG\r\n");
                Event::Other
            }
            // Flow control wants an answer; a sign of life has nobody to answer.
            Packet::Status { reply } => {
                if let Some(reply) = reply {
                    output.extend_from_slice(format!("PUB {reply} 0\r\n\r\n").as_bytes());
                }
                Event::Other
            }
            Packet::Message { reply: Some(reply), payload, .. } => {
                if self.acknowledges {
                    output.extend_from_slice(b"PUB ");
                    output.extend_from_slice(reply.as_bytes());
                    output.extend_from_slice(b" 4\r\n+ACK\r\n");
                }
                Event::Delivered(payload)
            }
            Packet::Message { subject, payload, .. } if subject.ends_with(".api") => {
                let answer = String::from_utf8_lossy(payload);
                ensure!(!answer.contains("\"error\""), "{answer}");
                Event::Other
            }
            Packet::Message { subject, payload, .. } => match subject.rsplit('.').next().map(str::parse) {
                Some(Ok(tag)) if payload.starts_with(b"{\"stream\"") => {
                    Event::Confirmed { tag, multiple: false }
                }
                _ => bail!("a publish was refused: {}", String::from_utf8_lossy(payload)),
            },
            Packet::Pong | Packet::Other => Event::Other,
        };
        Ok(Some((length, event)))
    }
}

enum Packet<'a> {
    Ping,
    Pong,
    Message {
        subject: &'a str,
        reply: Option<&'a str>,
        payload: &'a [u8],
    },
    /// Headers alone, which say something of the subscription.
    Status {
        reply: Option<&'a str>,
    },
    Other,
}

/// The length of the first packet, and what it is; `None` if it is not whole.
fn packet(input: &[u8]) -> Result<Option<(usize, Packet<'_>)>> {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else {
        ensure!(input.len() < LINE_MAX, "a line without an end");
        return Ok(None);
    };
    let line = std::str::from_utf8(&input[..end])?.trim_end();
    let mut words = line.split(' ');
    let verb = words.next().unwrap_or_default();
    let packet = match verb {
        "PING" => Packet::Ping,
        "PONG" => Packet::Pong,
        "-ERR" => bail!("the broker said: {line}"),
        "MSG" | "HMSG" => {
            // No more than subject, subscription, reply and two sizes; nothing is allocated for a message.
            let mut found = [""; 5];
            let count = found.iter_mut().zip(words).map(|(place, word)| *place = word).count();
            let words = &found[..count];
            let numbers = if verb == "MSG" { 1 } else { 2 };
            ensure!(words.len() >= 2 + numbers, "the line `{line}`");
            let size: usize = words[words.len() - 1].parse().context("a size")?;
            let Some(body) = input.get(end + 1..end + 1 + size + 2) else { return Ok(None) };
            let headers: usize = if verb == "HMSG" { words[words.len() - 2].parse()? } else { 0 };
            let payload = body.get(headers..size).context("headers that are longer than the message")?;
            let reply = (words.len() > 2 + numbers).then(|| words[2]);
            let is_status = payload.is_empty() && body.starts_with(b"NATS/1.0 100");
            let message = if is_status {
                Packet::Status { reply }
            } else {
                Packet::Message { subject: words[0], reply, payload }
            };
            return Ok(Some((end + 1 + size + 2, message)));
        }
        _ => Packet::Other,
    };
    Ok(Some((end + 1, packet)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_messages_are_taken_one_after_the_other() {
        let mut client = Nats { inbox: "_INBOX.a".to_owned(), published: 0, acknowledges: true };
        let confirm = "MSG _INBOX.a.3 1 26\r\n{\"stream\":\"bench\",\"seq\":3}\r\n";
        let bytes = [
            "INFO {}\r\nPING\r\nMSG bench.message 2 $JS.ACK.1 5\r\nhello\r\n",
            "HMSG bench.message 2 $JS.ACK.2 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
            confirm,
        ]
        .concat();
        let bytes = bytes.as_bytes();
        let (mut at, mut answers, mut events) = (0, Vec::new(), Vec::new());
        while let Some((length, event)) = client.take(&bytes[at..], &mut answers).unwrap() {
            assert!(client.take(&bytes[at..at + length - 1], &mut Vec::new()).unwrap().is_none());
            events.push(event);
            at += length;
        }
        assert_eq!(at, bytes.len());
        let arrived = |payload| Event::Delivered(payload);
        let confirmed = Event::Confirmed { tag: 3, multiple: false };
        assert_eq!(events, [Event::Other, Event::Other, arrived(b"hello"), arrived(b"hi"), confirmed]);
        assert_eq!(answers, b"PONG\r\nPUB $JS.ACK.1 4\r\n+ACK\r\nPUB $JS.ACK.2 4\r\n+ACK\r\n");
        answers.clear();
        let control =
            b"HMSG bench-deliver.a 2 $JS.FC.1 36 36\r\nNATS/1.0 100 FlowControl Request\r\n\r\n\r\n";
        let (length, event) = client.take(control, &mut answers).unwrap().unwrap();
        assert_eq!((length, event), (control.len(), Event::Other));
        assert_eq!(answers, b"PUB $JS.FC.1 0\r\n\r\n");
        client.acknowledges = false;
        answers.clear();
        let message = b"MSG bench.message 2 $JS.ACK.3 2\r\nhi\r\n";
        assert_eq!(client.take(message, &mut answers).unwrap().unwrap().1, Event::Delivered(b"hi"));
        assert!(answers.is_empty());
        let refused = b"MSG _INBOX.a.4 1 25\r\n{\"error\":{\"code\":503}}    \r\n";
        assert!(client.take(refused, &mut answers).is_err());
        assert!(client.take(b"-ERR 'no'\r\n", &mut answers).is_err());
    }
}
