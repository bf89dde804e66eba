//! What a stream is to be, as flags or as a manifest in a file. The broker judges it; the file is judged here too, so
//! that mistakes have their line.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value};

use crate::cli::spec::{Declared, declared_as, fixed, manifests, put};

/// Flags for the fields of a Stream that can change. Names and values are those of its manifest.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "What it is like")]
pub(super) struct SettingArgs {
    /// Expression for a message's key, as in message.topic
    #[arg(long, value_name = "EXPRESSION")]
    message_key: Option<String>,
    /// Age from which a message is dropped, as in 168h; 0s: no limit
    #[arg(long, value_name = "DURATION")]
    max_age: Option<String>,
    /// Bytes of messages, as in 10Gi; 0: no limit
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<String>,
    /// Number of messages; 0: no limit
    #[arg(long, value_name = "COUNT")]
    max_messages: Option<u64>,
    /// Time without members after which the position of a group is forgotten; 0s: never
    #[arg(long, value_name = "DURATION")]
    groups_expire_after: Option<String>,
    /// What becomes of the messages when it is deleted: Retain or Delete
    #[arg(long, value_name = "POLICY")]
    deletion_policy: Option<String>,
}

/// Flags for the fields that never change.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "What never changes")]
pub(super) struct FixedArgs {
    /// Topic filter
    #[arg(long, value_name = "FILTER")]
    filter: Option<String>,
    /// Parts that work in parallel, 1 to 64
    #[arg(long, value_name = "COUNT")]
    shards: Option<u32>,
    /// Keep only the newest message of each key
    #[arg(long)]
    last_value: bool,
}

impl SettingArgs {
    /// The part of a `spec` that the flags speak of.
    pub(super) fn spec(&self) -> Map<String, Value> {
        let text = |value: &Option<String>| value.clone().map(Value::from);
        let mut spec = Map::new();
        let deletion = text(&self.deletion_policy);
        put(&mut spec, "", [("key", text(&self.message_key)), ("deletionPolicy", deletion)]);
        put(
            &mut spec,
            "retention",
            [
                ("maxAge", text(&self.max_age)),
                ("maxBytes", text(&self.max_bytes)),
                ("maxMessages", self.max_messages.map(Value::from)),
            ],
        );
        put(&mut spec, "groups", [("expireAfter", text(&self.groups_expire_after))]);
        spec
    }
}

impl FixedArgs {
    /// The part of a `spec` that the flags speak of.
    pub(super) fn spec(&self) -> Map<String, Value> {
        fixed(self.filter.as_deref(), self.shards, self.last_value)
    }
}

/// The only Stream that the manifest `file` holds; it must be called `name`, if one is given.
pub(super) fn read(file: &Path, name: Option<&str>) -> anyhow::Result<Declared> {
    let (shown, set) = manifests(file)?;
    let [declared] = &set.streams[..] else {
        bail!("{shown} holds {} Streams; allowed: one", set.streams.len());
    };
    let (object, meta) = (&declared.object, &declared.object.metadata);
    declared_as(&shown, "stream", object.stream_name(), name, meta.namespace.as_deref(), &object.spec)
}

/// The manifest to read instead of flags.
#[derive(Clone, Debug, Args)]
pub(super) struct FileArgs {
    /// Manifest (YAML) with one Stream, instead of flags
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
}
