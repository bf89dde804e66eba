//! From received bytes to packets.
//!
//! [`Decoder`] finds the frames and refuses what may not come now; the modules below read the bodies, one
//! module per group of packets. Must never wait or read by itself: its user owns the buffer.

mod ack;
mod close;
mod connect;
mod frame;
mod publish;
mod subscribe;

use bytes::{Buf, Bytes, BytesMut};
use connect::{Protocol, Unsupported};

use crate::error::{DecodeError, Fault, Parsed, Problem};
use crate::packet::{Packet, ProtocolVersion};
use crate::packet_type::PacketType;
use crate::read::{Reader, VariableByteInteger};

/// Bytes from which a PUBLISH is a slice of the buffer that it came in, not a copy. With the 64 KiB that a socket is
/// commonly read at once, it then keeps alive about four times its size at most.
pub const OWN_FRAME_BELOW: usize = 16 * 1024;

/// Which side of the connection decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A server: the first packet is a CONNECT, and names the version.
    Server,
    /// A client, which knows the version because it sent the CONNECT.
    Client {
        /// The version of the connection.
        version: ProtocolVersion,
    },
}

/// What a [`Decoder`] accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderConfig {
    /// Largest packet in bytes, fixed header included. A larger one is refused when its length is known.
    pub max_packet_size: u32,
    /// Which side decodes.
    pub role: Role,
}

/// Decodes one direction of one connection.
///
/// **Memory.** The decoder holds no bytes; what is not decoded stays in the caller's buffer, which never needs
/// more than one packet within the limit. Strings and payloads of a packet are slices of one allocation, which they keep
/// alive. It is the packet's own, and as large, for CONNECT and SUBSCRIBE, whose strings live as long as the connection,
/// and for each PUBLISH below [`OWN_FRAME_BELOW`], which may wait long for its subscribers. A larger one is a slice of
/// the buffer, so who fills that should not let much more into it than such a packet has bytes. A decoded packet takes at
/// most about 32 times its length on the wire; empty topic filters in an UNSUBSCRIBE are the worst case, short user
/// properties come next.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    version: Option<ProtocolVersion>,
    missing: usize,
    failed: Option<Box<DecodeError>>,
}

/// What the bodies of packets depend on.
#[derive(Clone, Copy, Debug)]
struct Context {
    version: ProtocolVersion,
    /// The lower half of the first byte.
    flags: u8,
    sender: Sender,
}

/// Who sent the packet that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Client,
    Server,
}

/// A whole fixed header.
struct FixedHeader {
    packet: PacketType,
    flags: u8,
    /// Of the fixed header itself.
    length: usize,
    /// Of the packet with its fixed header.
    frame_length: usize,
    /// Its length was written in the shortest form.
    shortest: bool,
}

impl Decoder {
    /// A decoder for a new connection.
    #[must_use]
    pub const fn new(config: DecoderConfig) -> Self {
        let version = match config.role {
            Role::Server => None,
            Role::Client { version } => Some(version),
        };
        Self { config, version, missing: 2, failed: None }
    }

    /// The version of the connection; a server knows it from the CONNECT on.
    #[must_use]
    pub const fn version(&self) -> Option<ProtocolVersion> {
        self.version
    }

    /// Changes the largest packet that is accepted, from the next packet on.
    pub const fn set_max_packet_size(&mut self, max_packet_size: u32) {
        self.config.max_packet_size = max_packet_size;
    }

    /// How many bytes must at least arrive before [`decode`](Self::decode) can return the next packet, as of
    /// its last call. A hint of how much to reserve for the next read; the peer may have
    /// announced up to the maximum packet size without sending it, so a reader that serves many should reserve
    /// in steps.
    #[must_use]
    pub const fn frame_bytes_needed(&self) -> usize {
        self.missing
    }

    /// Takes the first packet out of `buf`; `None` if it is not there as a whole. How the input was split
    /// between the calls makes no difference.
    ///
    /// # Errors
    /// What the peer did wrong. The stream is lost then: every later call returns the same error.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.as_ref().clone());
        }
        self.try_decode(buf).inspect_err(|error| self.failed = Some(Box::new(error.clone())))
    }

    fn try_decode(&mut self, buf: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some(header) = self.fixed_header(buf)? else {
            self.missing = 2_usize.saturating_sub(buf.len()).max(1);
            return Ok(None);
        };
        self.missing = header.frame_length.saturating_sub(buf.len());
        if self.missing > 0 {
            return Ok(None);
        }
        self.missing = 2;
        let frame = buf.split_to(header.frame_length);
        let mut frame = match header.packet {
            // They outlive the read buffer, which they would keep alive as a whole.
            PacketType::Connect | PacketType::Subscribe => Bytes::copy_from_slice(&frame),
            PacketType::Publish if frame.len() < OWN_FRAME_BELOW => frame::copied(&frame),
            _ => frame.freeze(),
        };
        frame.advance(header.length);
        let mut body = Reader::new(frame);
        let packet = Some(header.packet);
        let Protocol { version, bridge } =
            match self.version {
                Some(version) => Protocol { version, bridge: false },
                None => connect::protocol(&mut body).map_err(|Unsupported { fault, answer_in }| {
                    DecodeError { packet, field: fault.field, problem: fault.problem, version: answer_in }
                })?,
            };
        self.version = Some(version);
        if !header.shortest && version.is_v5() {
            return Err(self.error(packet, Problem::VariableByteInteger.at("remaining length")));
        }
        let context = Context { version, flags: header.flags, sender: self.sender() };
        packet_body(header.packet, body, context, bridge).map(Some).map_err(|fault| self.error(packet, fault))
    }

    /// Reads and checks as much of the fixed header as is there; `None` if that is not all.
    fn fixed_header(&self, buf: &[u8]) -> Result<Option<FixedHeader>, DecodeError> {
        let Some((&first, rest)) = buf.split_first() else {
            return Ok(None);
        };
        let (kind, flags) = (first >> 4, first & 0x0f);
        let packet = PacketType::from_u8(kind)
            .ok_or_else(|| self.error(None, Problem::ReservedPacketType(kind).at("packet type")))?;
        self.check_packet_type(packet, flags).map_err(|fault| self.error(Some(packet), fault))?;
        let remaining = VariableByteInteger::read(rest, "remaining length")
            .map_err(|fault| self.error(Some(packet), fault))?;
        let Some(remaining) = remaining else {
            return Ok(None);
        };
        let length = remaining.bytes.saturating_add(1);
        let max = self.config.max_packet_size;
        let size = u64::from(remaining.value).saturating_add(length as u64);
        let too_large = Problem::PacketTooLarge { size, max }.at("remaining length");
        match usize::try_from(size) {
            Ok(frame_length) if size <= u64::from(max) => {
                Ok(Some(FixedHeader { packet, flags, length, frame_length, shortest: remaining.shortest }))
            }
            _ => Err(self.error(Some(packet), too_large)),
        }
    }

    /// Whether such a packet may come now, from this peer, with these flags.
    fn check_packet_type(&self, packet: PacketType, flags: u8) -> Parsed<()> {
        let field = "packet type";
        match (self.config.role, self.version) {
            (Role::Server, None) if packet != PacketType::Connect => {
                return Err(Problem::NotConnect.at(field));
            }
            (Role::Server, Some(_)) if packet == PacketType::Connect => {
                return Err(Problem::SecondConnect.at(field));
            }
            (_, Some(ProtocolVersion::V31 | ProtocolVersion::V311)) if packet == PacketType::Auth => {
                return Err(Problem::ReservedPacketType(packet.as_u8()).at(field));
            }
            (Role::Server, _) if !packet.sent_by_client() => return Err(Problem::WrongSender.at(field)),
            (Role::Client { version }, _) if !packet.sent_by_server(version) => {
                return Err(Problem::WrongSender.at(field));
            }
            _ => {}
        }
        match packet.fixed_flags() {
            // 3.1 gives these flags no meaning outside of PUBLISH, except for DUP on what is sent again.
            Some(_) if self.version == Some(ProtocolVersion::V31) => Ok(()),
            Some(expected) if flags != expected => Err(Problem::Flags(flags).at("fixed header")),
            Some(_) => Ok(()),
            None => publish::check_flags(flags),
        }
    }

    const fn sender(&self) -> Sender {
        match self.config.role {
            Role::Server => Sender::Client,
            Role::Client { .. } => Sender::Server,
        }
    }

    const fn error(&self, packet: Option<PacketType>, fault: Fault) -> DecodeError {
        DecodeError { packet, field: fault.field, problem: fault.problem, version: self.version }
    }
}

fn packet_body(packet: PacketType, mut body: Reader, context: Context, bridge: bool) -> Parsed<Packet> {
    let body = &mut body;
    let decoded = match packet {
        PacketType::Connect => Packet::Connect(Box::new(connect::connect(body, context, bridge)?)),
        PacketType::ConnAck => Packet::ConnAck(Box::new(connect::connack(body, context)?)),
        PacketType::Publish => Packet::Publish(Box::new(publish::publish(body, context)?)),
        PacketType::PubAck => Packet::PubAck(ack::ack(packet, body, context)?),
        PacketType::PubRec => Packet::PubRec(ack::ack(packet, body, context)?),
        PacketType::PubRel => Packet::PubRel(ack::ack(packet, body, context)?),
        PacketType::PubComp => Packet::PubComp(ack::ack(packet, body, context)?),
        PacketType::Subscribe => Packet::Subscribe(Box::new(subscribe::subscribe(body, context)?)),
        PacketType::SubAck => Packet::SubAck(Box::new(subscribe::suback(body, context)?)),
        PacketType::Unsubscribe => Packet::Unsubscribe(Box::new(subscribe::unsubscribe(body, context)?)),
        PacketType::UnsubAck => Packet::UnsubAck(Box::new(subscribe::unsuback(body, context)?)),
        PacketType::PingReq => Packet::PingReq,
        PacketType::PingResp => Packet::PingResp,
        PacketType::Disconnect => Packet::Disconnect(Box::new(close::disconnect(body, context)?)),
        PacketType::Auth => Packet::Auth(Box::new(close::auth(body, context)?)),
    };
    body.finish()?;
    Ok(decoded)
}
