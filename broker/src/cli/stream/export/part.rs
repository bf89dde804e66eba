//! One file of an export while it is written.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use weir_proto::admin::v1::ReadStreamResponse;

use super::FileFormat;
use super::parquet::Rows;
use crate::cli::stream::tail::message_json;

/// A part.
pub(super) struct Part {
    path: PathBuf,
    shard: u32,
    base: u64,
    messages: u64,
    payload_bytes: u64,
    body: Body,
}

enum Body {
    Jsonl(BufWriter<File>),
    Parquet(Box<Rows>),
}

impl Part {
    /// A part at `path` that begins at offset `base` of `shard`.
    pub(super) fn create(path: PathBuf, format: FileFormat, shard: u32, base: u64) -> anyhow::Result<Self> {
        let file = File::create(&path)?;
        let body = match format {
            FileFormat::Jsonl => Body::Jsonl(BufWriter::new(file)),
            FileFormat::Parquet => Body::Parquet(Box::new(Rows::begin(file)?)),
        };
        Ok(Self { path, shard, base, messages: 0, payload_bytes: 0, body })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn shard(&self) -> u32 {
        self.shard
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    pub(super) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    pub(super) fn write(&mut self, message: ReadStreamResponse) -> anyhow::Result<()> {
        self.messages += 1;
        self.payload_bytes += message.payload.len() as u64;
        match &mut self.body {
            Body::Jsonl(file) => {
                serde_json::to_writer(&mut *file, &message_json(&message))?;
                file.write_all(b"\n")?;
            }
            Body::Parquet(rows) => rows.push(message)?,
        }
        Ok(())
    }

    /// Writes what is left, to the disk; the size of the file.
    pub(super) fn finish(self) -> anyhow::Result<u64> {
        let file = match self.body {
            Body::Jsonl(file) => file.into_inner()?,
            Body::Parquet(rows) => rows.finish()?,
        };
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }
}
