//! The bytes of a backup, made as they are taken. Knows no file: whoever takes the bytes decides where they go.

use std::fmt;

use bytes::{BufMut, Bytes};
use xxhash_rust::xxh3::Xxh3;

use super::{About, CHUNK, CHUNK_BYTES_TARGET, END, Extent, HEADER, MAGIC, checksum};
use crate::{KEYS_END, RangePage, RangeQuery, Result, SharedStore, Snapshot, snapshot};

/// A backup that is being made. Holds one chunk in memory, and the store's version for as long as it lives.
pub struct Backup {
    snapshot: Box<dyn Snapshot>,
    about: About,
    extent: Extent,
    next: Next,
    frames: u64,
    total: Xxh3,
}

/// What comes next.
#[derive(Clone, Debug)]
enum Next {
    Header,
    Chunk(RangeQuery),
    End,
    Nothing,
}

impl Backup {
    /// Begins a backup of `store` as it is now. `program` is noted in it.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn begin(store: &SharedStore, program: &str, created_micros: u64) -> Result<Self> {
        let snapshot = snapshot(store).await?;
        let about = About {
            version: snapshot.version(),
            created_micros,
            engine: store.engine().to_owned(),
            program: program.to_owned(),
        };
        let (extent, total) = (Extent::default(), Xxh3::new());
        Ok(Self { snapshot, about, extent, next: Next::Header, frames: 0, total })
    }

    /// What it says of itself.
    #[must_use]
    pub const fn about(&self) -> &About {
        &self.about
    }

    /// What it holds so far.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// The next bytes, a few hundred KiB at most; `None` after the last. After an error the backup is of no use.
    ///
    /// # Errors
    /// [`Error::Conflict`](crate::Error::Conflict) if others have written to a store that cannot keep a version as
    /// long as this took, or another error of the store.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match self.next.clone() {
            Next::Header => {
                self.next = Next::Chunk(RangeQuery::new(b"", KEYS_END).target_bytes(CHUNK_BYTES_TARGET));
                let mut out = MAGIC.to_vec();
                self.total.update(&out);
                let header = self.header();
                self.frame(HEADER, &header, &mut out);
                Ok(Some(out.into()))
            }
            Next::Chunk(query) => {
                let page = self.snapshot.get_range(query.clone()).await?;
                self.next = query.after(&page).map_or(Next::End, Next::Chunk);
                let chunk = self.chunk(&page);
                let mut out = Vec::with_capacity(chunk.len() + 16);
                self.frame(CHUNK, &chunk, &mut out);
                Ok(Some(out.into()))
            }
            Next::End => {
                self.next = Next::Nothing;
                let mut body = Vec::with_capacity(24);
                body.put_u64(self.extent.pairs);
                body.put_u64(self.extent.bytes);
                body.put_u64(self.total.digest());
                let mut out = Vec::with_capacity(body.len() + 16);
                self.frame(END, &body, &mut out);
                Ok(Some(out.into()))
            }
            Next::Nothing => Ok(None),
        }
    }

    fn header(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u64(self.about.version.0);
        body.put_u64(self.about.created_micros);
        for text in [&self.about.engine, &self.about.program] {
            // Cut rather than wrong: nothing depends on these.
            let text = text.as_bytes().get(..usize::from(u16::MAX)).unwrap_or(text.as_bytes());
            body.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
            body.put_slice(text);
        }
        body
    }

    fn chunk(&mut self, page: &RangePage) -> Vec<u8> {
        let mut body = Vec::with_capacity(CHUNK_BYTES_TARGET);
        for (key, value) in &page.pairs {
            body.put_u16(u16::try_from(key.len()).expect("limits of the store: keys are short"));
            body.put_slice(key);
            body.put_u32(u32::try_from(value.len()).expect("limits of the store: values are short"));
            body.put_slice(value);
            self.extent.pairs += 1;
            self.extent.bytes += (key.len() + value.len()) as u64;
        }
        body
    }

    fn frame(&mut self, kind: u8, body: &[u8], out: &mut Vec<u8>) {
        let from = out.len();
        out.put_u8(kind);
        out.put_u32(u32::try_from(body.len()).expect("a chunk is short"));
        out.put_slice(body);
        out.put_u64(checksum(self.frames, kind, body));
        self.total.update(&out[from..]);
        self.frames += 1;
    }
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup")
            .field("about", &self.about)
            .field("extent", &self.extent)
            .finish_non_exhaustive()
    }
}
