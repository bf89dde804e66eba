//! WebSocket frames [RFC 6455], as a stream of bytes: what comes is handed on as it comes, whatever frames and
//! messages it is cut into, so that no length in a header makes this side hold anything.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use weir_env::seed::Seed;

use super::{Below, CHUNK};

/// Longest payload of a control frame [RFC 6455, 5.5].
const CONTROL_BYTES_MAX: u64 = 125;
/// Longest payload of a data frame that is sent: what is below takes a frame in one piece.
const PAYLOAD_MAX: usize = CHUNK - 14;
/// Room for what is read from below.
const READ_ROOM: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct WebSocket {
    /// Where a client takes its masks from; `None` for a server.
    masks: Option<Seed>,
    /// Read and not understood yet: at most a header, and a control frame.
    received: BytesMut,
    /// The data frame that is being received.
    frame: Option<Frame>,
    /// More frames belong to the message that is being received.
    unfinished: bool,
    /// Whole frames that what is below has not taken yet.
    output: BytesMut,
    /// The answer to the last ping that came.
    pong: Option<Bytes>,
    /// A close frame was sent: nothing follows.
    closed: bool,
    /// A close frame came, or the other end broke the protocol.
    ended: bool,
}

#[derive(Debug)]
struct Frame {
    left: u64,
    mask: Option<[u8; 4]>,
}

/// How the other end broke the protocol.
struct Broken(CloseCode, &'static str);

impl WebSocket {
    pub(super) fn server(received: BytesMut) -> Self {
        Self {
            masks: None,
            received,
            frame: None,
            unfinished: false,
            output: BytesMut::new(),
            pong: None,
            closed: false,
            ended: false,
        }
    }

    pub(super) fn client(received: BytesMut, masks: Seed) -> Self {
        Self { masks: Some(masks), ..Self::server(received) }
    }

    /// Reads once from below: whoever sends frames without data, however many, holds nobody up.
    pub(super) fn read(&mut self, below: &mut Below<'_>, into: &mut BytesMut) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        let before = into.len();
        self.received.reserve(READ_ROOM);
        let read = below.read(&mut self.received);
        let parsed = self.parse(into);
        // Answers to pings and close frames, and why it ends.
        let flushed = self.flush(below);
        let came = into.len() - before;
        if came > 0 {
            // What came before an end comes first; the end is the next that is read.
            return Ok(came);
        }
        if read? == 0 {
            return Ok(0);
        }
        parsed.and(flushed)?;
        if self.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// Whether there is something to read that nothing below shows.
    pub(super) fn is_readable(&self) -> bool {
        self.ended
    }

    /// Adds the data of what has been received to `into`.
    ///
    /// # Errors
    /// If it breaks the protocol; the frame that says so is ready to be written.
    pub(super) fn parse(&mut self, into: &mut BytesMut) -> io::Result<()> {
        loop {
            let more = match &mut self.frame {
                Some(frame) => {
                    frame.take(&mut self.received, into);
                    if frame.left > 0 {
                        return Ok(());
                    }
                    self.frame = None;
                    true
                }
                None => self.parse_header().or_else(|broken| self.fail(&broken))?,
            };
            if !more || self.ended {
                return Ok(());
            }
        }
    }

    /// Takes a header and, if it is of a control frame, its payload. False if there is not enough.
    fn parse_header(&mut self) -> Result<bool, Broken> {
        let mut cursor = io::Cursor::new(&self.received[..]);
        let parsed = FrameHeader::parse(&mut cursor);
        let header_length = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let (header, length) = match parsed {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Ok(false),
            Err(_) => return Err(Broken(CloseCode::Protocol, "reserved opcode")),
        };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Broken(CloseCode::Protocol, "extension that was not agreed"));
        }
        if header.mask.is_some() == self.masks.is_some() {
            return Err(Broken(CloseCode::Protocol, "clients mask, servers do not"));
        }
        if length > u64::MAX / 2 {
            return Err(Broken(CloseCode::Protocol, "length beyond 63 bits"));
        }
        match header.opcode {
            OpCode::Control(control) => {
                if length > CONTROL_BYTES_MAX || !header.is_final {
                    return Err(Broken(CloseCode::Protocol, "control frame too long or in pieces"));
                }
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if self.received.len() - header_length < length {
                    return Ok(false);
                }
                self.received.advance(header_length);
                let mut payload = self.received.split_to(length);
                if let Some(mask) = header.mask {
                    apply_mask(&mut payload, mask);
                }
                self.handle_control(control, payload.freeze());
            }
            OpCode::Data(data) => {
                let begins = match data {
                    Data::Binary => true,
                    Data::Continue => false,
                    Data::Text => return Err(Broken(CloseCode::Unsupported, "MQTT is in binary frames")),
                    Data::Reserved(_) => return Err(Broken(CloseCode::Protocol, "reserved opcode")),
                };
                if begins == self.unfinished {
                    return Err(Broken(CloseCode::Protocol, "continuation of nothing, or none of a message"));
                }
                self.unfinished = !header.is_final;
                self.received.advance(header_length);
                self.frame = Some(Frame { left: length, mask: header.mask });
            }
        }
        Ok(true)
    }

    fn handle_control(&mut self, control: Control, payload: Bytes) {
        match control {
            // An answer to the last one is enough, so that pings are not kept [RFC 6455, 5.5.3].
            Control::Ping => self.pong = Some(Bytes::copy_from_slice(&payload)),
            Control::Pong | Control::Reserved(_) => {}
            Control::Close => {
                let code = payload.get(..2).map(|code| [code[0], code[1]]).map(u16::from_be_bytes);
                let code = code.map(CloseCode::from).filter(|code| code.is_allowed());
                self.put_close(code.unwrap_or(CloseCode::Normal), "");
                self.ended = true;
            }
        }
    }

    fn fail(&mut self, Broken(code, why): &Broken) -> io::Result<bool> {
        self.put_close(*code, why);
        self.ended = true;
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {why}")))
    }

    pub(super) fn write(&mut self, below: &mut Below<'_>, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.flush(below)?;
        if self.pending() > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = bytes.len().min(PAYLOAD_MAX);
        self.put_frame(OpCode::Data(Data::Binary), &bytes[..taken]);
        self.flush(below)?;
        Ok(taken)
    }

    pub(super) fn flush(&mut self, below: &mut Below<'_>) -> io::Result<()> {
        loop {
            if self.output.is_empty()
                && !self.closed
                && let Some(pong) = self.pong.take()
            {
                self.put_frame(OpCode::Control(Control::Pong), &pong);
            }
            if self.output.is_empty() {
                return Ok(());
            }
            match below.write(&self.output) {
                Ok(written) => self.output.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Bytes that wait to be written, a pong that waits for its turn included.
    pub(super) fn pending(&self) -> usize {
        let pong = self.pong.as_ref().filter(|_| !self.closed);
        self.output.len() + pong.map_or(0, |pong| pong.len() + 2)
    }

    /// Says that nothing follows.
    pub(super) fn close(&mut self) {
        self.put_close(CloseCode::Normal, "");
    }

    pub(super) fn compact(&mut self) {
        for buffer in [&mut self.received, &mut self.output] {
            // Also one that has no capacity left: it still holds what it was part of.
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            }
        }
    }

    fn put_close(&mut self, code: CloseCode, why: &'static str) {
        if !self.closed {
            let mut payload = BytesMut::new();
            payload.put_u16(code.into());
            payload.put_slice(why.as_bytes());
            self.put_frame(OpCode::Control(Control::Close), &payload);
            self.closed = true;
        }
    }

    fn put_frame(&mut self, opcode: OpCode, payload: &[u8]) {
        let mask = self.masks.as_ref().map(|seed| {
            let [a, b, c, d, ..] = seed.next_u64().to_be_bytes();
            [a, b, c, d]
        });
        let header = FrameHeader { is_final: true, opcode, mask, ..FrameHeader::default() };
        let length = payload.len() as u64;
        self.output.reserve(header.len(length) + payload.len());
        header.format(length, &mut (&mut self.output).writer()).expect("a buffer in memory takes everything");
        let at = self.output.len();
        self.output.extend_from_slice(payload);
        if let Some(mask) = mask {
            apply_mask(&mut self.output[at..], mask);
        }
    }
}

impl Frame {
    /// Moves what there is of its payload.
    fn take(&mut self, from: &mut BytesMut, into: &mut BytesMut) {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(from.len());
        let payload = &mut from[..length];
        if let Some(mask) = &mut self.mask {
            apply_mask(payload, *mask);
            mask.rotate_left(length % 4);
        }
        into.extend_from_slice(payload);
        from.advance(length);
        self.left -= length as u64;
    }
}

/// Masks or unmasks [RFC 6455, 5.3].
fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for eight in words {
        *eight = (u64::from_ne_bytes(*eight) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> WebSocket {
        WebSocket::server(BytesMut::new())
    }

    fn client() -> WebSocket {
        WebSocket::client(BytesMut::new(), Seed::fixed(7))
    }

    /// What the other end makes of frames that arrive one byte at a time.
    fn receive(to: &mut WebSocket, bytes: &[u8]) -> io::Result<BytesMut> {
        let mut data = BytesMut::new();
        for byte in bytes {
            to.received.put_u8(*byte);
            to.parse(&mut data)?;
            assert!(to.received.len() < 14 + 125, "no more than a control frame is kept");
        }
        Ok(data)
    }

    fn frame(from: &mut WebSocket, opcode: OpCode, payload: &[u8]) -> BytesMut {
        from.put_frame(opcode, payload);
        std::mem::take(&mut from.output)
    }

    #[test]
    fn bytes_arrive_whatever_they_are_cut_into() {
        for length in [0, 1, 7, 8, 9, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..=255).cycle().take(length).collect();
            let frames = frame(&mut client(), OpCode::Data(Data::Binary), &payload);
            assert_eq!(receive(&mut server(), &frames).unwrap(), payload, "{length} to the server");
            let frames = frame(&mut server(), OpCode::Data(Data::Binary), &payload);
            assert_eq!(receive(&mut client(), &frames).unwrap(), payload, "{length} to the client");
        }
    }

    #[test]
    fn any_bytes_come_to_the_same_whatever_they_are_cut_into() {
        let seed = Seed::fixed(3);
        let below = |bound: usize| usize::try_from(seed.below(bound as u64)).unwrap();
        let opcodes = [
            OpCode::Data(Data::Binary),
            OpCode::Data(Data::Continue),
            OpCode::Data(Data::Text),
            OpCode::Control(Control::Ping),
            OpCode::Control(Control::Pong),
            OpCode::Control(Control::Close),
        ];
        let (mut broken, mut whole) = (0, 0);
        for _ in 0..5_000 {
            let (mut client, mut bytes) = (client(), BytesMut::new());
            for n in 0..below(6) {
                // Mostly what may come.
                let opcode = if below(4) == 0 { opcodes[below(6)] } else { opcodes[usize::from(n > 0)] };
                let mut one = frame(&mut client, opcode, &vec![7; below(140)]);
                one[0] ^= if below(4) == 0 || n == 0 { 0x80 } else { 0 };
                bytes.extend(one);
            }
            if !bytes.is_empty() && below(3) == 0 {
                let at = below(bytes.len());
                bytes[at] = seed.next_u64().to_le_bytes()[0];
            }
            let come_to = |piece: usize| {
                let (mut server, mut data, mut failed) = (server(), BytesMut::new(), false);
                for piece in bytes.chunks(piece) {
                    server.received.extend_from_slice(piece);
                    failed = server.parse(&mut data).is_err();
                    if server.ended {
                        break;
                    }
                }
                (data, failed, server.ended, server.pong, server.output)
            };
            let at_once = come_to(bytes.len().max(1));
            assert_eq!(at_once, come_to(1));
            assert_eq!(at_once, come_to(1 + below(20)));
            broken += usize::from(at_once.1);
            whole += usize::from(!at_once.1 && !at_once.0.is_empty());
        }
        assert!(broken > 500 && whole > 500, "{broken} broken, {whole} whole");
    }

    #[test]
    fn a_message_of_several_frames_with_a_ping_between_them() {
        let (mut client, mut server) = (client(), server());
        let mut bytes = frame(&mut client, OpCode::Data(Data::Binary), b"ab");
        bytes[0] &= 0x7f;
        bytes.extend(frame(&mut client, OpCode::Control(Control::Ping), b"?"));
        bytes.extend(frame(&mut client, OpCode::Control(Control::Ping), b"??"));
        bytes.extend(frame(&mut client, OpCode::Data(Data::Continue), b"cd"));
        assert_eq!(receive(&mut server, &bytes).unwrap(), "abcd");
        assert_eq!(server.pong.as_deref(), Some(&b"??"[..]), "the last one is answered");
    }

    #[test]
    fn broken_frames_end_the_connection_with_a_code() {
        #[track_caller]
        fn check(frames: &[u8], code: u16) {
            let mut server = server();
            assert!(receive(&mut server, frames).is_err());
            assert_eq!(server.output[2..4], code.to_be_bytes());
            assert!(server.ended);
        }
        let good = frame(&mut client(), OpCode::Data(Data::Binary), b"x");
        let changed = |first: u8| {
            let mut frame = good.clone();
            frame[0] = first;
            frame
        };
        check(&frame(&mut client(), OpCode::Data(Data::Text), b"x"), 1003);
        check(&changed(0xc2), 1002);
        check(&changed(0x83), 1002);
        check(&changed(0x8b), 1002);
        check(&changed(0x80), 1002);
        check(&changed(0x09), 1002);
        check(&frame(&mut server(), OpCode::Data(Data::Binary), b"unmasked"), 1002);
        check(&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], 1002);
        check(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002);
        let mut twice = changed(0x02);
        twice.extend_from_slice(&good);
        check(&twice, 1002);
    }

    #[test]
    fn a_close_is_answered_with_its_code() {
        let (mut client, mut server) = (client(), server());
        client.put_close(CloseCode::Away, "bye");
        receive(&mut server, &std::mem::take(&mut client.output)).unwrap();
        assert!(server.ended);
        assert_eq!(server.output[..], [0x88, 2, 0x03, 0xe9]);
    }
}
