//! Reads a backup, and notices whatever is not as it was written. Nothing of what it reads is believed before its
//! checksum has been looked at.

use std::fmt;
use std::io::{self, ErrorKind, Read};

use bytes::{Buf, Bytes};
use xxhash_rust::xxh3::Xxh3;

use super::{About, BODY_BYTES_MAX, CHUNK, END, Extent, HEADER, MAGIC, MAGIC_PREFIX, checksum};
use crate::Version;
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// Why a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file or stream failed.
    #[error("read the backup")]
    Io(#[from] io::Error),
    /// It begins with something else.
    #[error("this is no backup of a weir store")]
    Foreign,
    /// It is of a format that this program does not know.
    #[error("the backup is of another format (`{0}`): use the program that made it, or a newer one")]
    Format(String),
    /// It ends before its end.
    #[error("the backup is cut off after {at} bytes: use another one")]
    CutOff {
        /// Bytes that were read.
        at: u64,
    },
    /// It is not what was written.
    #[error("the backup is damaged: {what}, in what begins at byte {at}: use another one")]
    Damaged {
        /// Where the frame begins.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Pairs of key and value, in the order of their keys.
pub type Pairs = Vec<(Bytes, Bytes)>;

/// A backup that is being read; holds one chunk in memory.
pub struct BackupReader<R> {
    input: R,
    about: About,
    extent: Extent,
    /// Bytes read so far.
    at: u64,
    frames: u64,
    total: Xxh3,
    last_key: Option<Bytes>,
    is_over: bool,
}

impl<R: Read> BackupReader<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// If it is no backup, of another format, or damaged.
    pub fn open(mut input: R) -> Result<Self, BackupError> {
        let mut magic = vec![0; MAGIC.len()];
        let read = read_up_to(&mut input, &mut magic)?;
        magic.truncate(read);
        if magic != MAGIC {
            return Err(if read > 0 && MAGIC.starts_with(&magic) {
                BackupError::CutOff { at: read as u64 }
            } else if magic.starts_with(MAGIC_PREFIX) {
                BackupError::Format(String::from_utf8_lossy(&magic).trim_end().to_owned())
            } else {
                BackupError::Foreign
            });
        }
        let mut total = Xxh3::new();
        total.update(MAGIC);
        let about = About {
            version: Version::default(),
            created_micros: 0,
            engine: String::new(),
            program: String::new(),
        };
        let mut reader = Self {
            input,
            about,
            extent: Extent::default(),
            at: MAGIC.len() as u64,
            frames: 0,
            total,
            last_key: None,
            is_over: false,
        };
        let at = reader.at;
        let (kind, body) = reader.frame()?;
        let about = (kind == HEADER).then(|| about_in(body)).flatten();
        reader.about = about.ok_or(BackupError::Damaged { at, what: "the header is not readable" })?;
        if reader.about.version > Version::MAX {
            return Err(BackupError::Damaged { at, what: "its version is greater than any of a store" });
        }
        Ok(reader)
    }

    /// What the backup says of itself.
    pub const fn about(&self) -> &About {
        &self.about
    }

    /// What was read of it so far; after the end, what it holds.
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// Bytes of it that were read so far.
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// The next pairs; `None` once everything has been read and found whole. May be empty.
    ///
    /// # Errors
    /// If it is not whole.
    pub fn next_chunk(&mut self) -> Result<Option<Pairs>, BackupError> {
        if self.is_over {
            return Ok(None);
        }
        let (at, total) = (self.at, self.total.digest());
        let damaged = |what| BackupError::Damaged { at, what };
        let (kind, body) = self.frame()?;
        match kind {
            CHUNK => {
                let pairs = self.pairs_in(body).map_err(damaged)?;
                Ok(Some(pairs))
            }
            END => {
                self.end_in(body, total).map_err(damaged)?;
                if read_up_to(&mut self.input, &mut [0])? > 0 {
                    return Err(damaged("something follows its end"));
                }
                self.is_over = true;
                Ok(None)
            }
            _ => Err(damaged("a frame is of no known kind")),
        }
    }

    /// Reads everything that is left, and says whether it is whole.
    ///
    /// # Errors
    /// If it is not.
    pub fn verify(mut self) -> Result<(About, Extent), BackupError> {
        while self.next_chunk()?.is_some() {}
        Ok((self.about, self.extent))
    }

    fn frame(&mut self) -> Result<(u8, Bytes), BackupError> {
        let begin = self.at;
        let mut head = [0; 5];
        self.read_exactly(&mut head)?;
        let [kind, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > BODY_BYTES_MAX {
            return Err(BackupError::Damaged { at: begin, what: "a frame is too long" });
        }
        let mut body = vec![0; length];
        self.read_exactly(&mut body)?;
        let mut sum = [0; 8];
        self.read_exactly(&mut sum)?;
        if u64::from_be_bytes(sum) != checksum(self.frames, kind, &body) {
            return Err(BackupError::Damaged { at: begin, what: "a checksum does not fit" });
        }
        self.frames += 1;
        self.total.update(&head);
        self.total.update(&body);
        self.total.update(&sum);
        Ok((kind, body.into()))
    }

    fn read_exactly(&mut self, buffer: &mut [u8]) -> Result<(), BackupError> {
        let read = read_up_to(&mut self.input, buffer)?;
        self.at += read as u64;
        if read < buffer.len() { Err(BackupError::CutOff { at: self.at }) } else { Ok(()) }
    }

    fn pairs_in(&mut self, mut body: Bytes) -> Result<Pairs, &'static str> {
        let mut pairs = Vec::new();
        while !body.is_empty() {
            let key = body.try_get_u16().ok().and_then(|len| take(&mut body, len.into()));
            let key = key.ok_or("a chunk ends within a key")?;
            let len = body.try_get_u32().ok().and_then(|len| usize::try_from(len).ok());
            let value = len.and_then(|len| take(&mut body, len)).ok_or("a chunk ends within a value")?;
            if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
                return Err("a key or value is over its limit");
            }
            if self.last_key.as_ref().is_some_and(|last| *last >= key) {
                return Err("its keys are not in order");
            }
            self.last_key = Some(key.clone());
            self.extent.pairs += 1;
            self.extent.bytes += (key.len() + value.len()) as u64;
            pairs.push((key, value));
        }
        Ok(pairs)
    }

    fn end_in(&self, mut body: Bytes, total: u64) -> Result<(), &'static str> {
        let mut next = || body.try_get_u64().map_err(|_| "its end is not readable");
        let (pairs, bytes, sum) = (next()?, next()?, next()?);
        if (Extent { pairs, bytes }) != self.extent {
            return Err("it does not hold as much as it says");
        }
        if sum != total {
            return Err("the checksum of the whole does not fit");
        }
        if body.is_empty() { Ok(()) } else { Err("its end is too long") }
    }
}

impl<R> fmt::Debug for BackupReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupReader")
            .field("about", &self.about)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

fn about_in(mut body: Bytes) -> Option<About> {
    let version = Version(body.try_get_u64().ok()?);
    let created_micros = body.try_get_u64().ok()?;
    let mut text = || {
        let len = body.try_get_u16().ok()?;
        take(&mut body, len.into()).map(|text| String::from_utf8_lossy(&text).into_owned())
    };
    let (engine, program) = (text()?, text()?);
    body.is_empty().then_some(About { version, created_micros, engine, program })
}

fn take(body: &mut Bytes, len: usize) -> Option<Bytes> {
    (len <= body.len()).then(|| body.split_to(len))
}

/// Fills `buffer` unless the input ends before; bytes read.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
