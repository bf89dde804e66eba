//! What a queue or stream is to be, out of flags or a file, and what is said once it is so: what both commands share to
//! make, change and delete one. Knows no broker.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Map, Value, json};
use weir_manifest::ManifestSet;
use weir_proto::admin::v1 as wire;

use super::admin::AdminArgs;
use super::output::{Format, Output, harmless};

/// Adds fields to the object below `parent`, or to `spec` itself; those that are not given are left out.
pub(super) fn put<const N: usize>(
    spec: &mut Map<String, Value>,
    parent: &str,
    fields: [(&str, Option<Value>); N],
) {
    let given: Map<_, _> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    if parent.is_empty() {
        spec.extend(given);
    } else if !given.is_empty() {
        spec.insert(parent.to_owned(), Value::Object(given));
    }
}

/// A queue or stream out of a file.
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) namespace: String,
    /// JSON.
    pub(super) spec: String,
}

/// What the manifests in `file` declare, and what to call the file.
pub(super) fn manifests(file: &Path) -> anyhow::Result<(String, ManifestSet)> {
    let shown = file.display().to_string();
    let content = std::fs::read(file).with_context(|| format!("read {shown}"))?;
    let set = weir_manifest::parse_file(&shown, &content).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow!("{}", lines.join("\n"))
    })?;
    Ok((shown, set))
}

/// What a file declares, as `found`; it must be called `name`, if one is given.
pub(super) fn declared_as(
    shown: &str,
    what: &str,
    found: &str,
    name: Option<&str>,
    namespace: Option<&str>,
    spec: &impl Serialize,
) -> anyhow::Result<Declared> {
    if name.is_some_and(|name| name != found) {
        bail!("{shown} declares the {what} {found}, not the one that is named here");
    }
    Ok(Declared {
        name: found.to_owned(),
        namespace: namespace.unwrap_or_default().to_owned(),
        spec: serde_json::to_string(spec).context("write the manifest as JSON")?,
    })
}

/// Reads the only queue or stream of a file, which must be called as is said here, if it is.
pub(super) type Read = fn(&Path, Option<&str>) -> anyhow::Result<Declared>;

/// What flags say of the fields that never change.
pub(super) fn fixed(filter: Option<&str>, shards: Option<u32>, last_value: bool) -> Map<String, Value> {
    let mut spec = Map::new();
    put(
        &mut spec,
        "",
        [
            ("topicFilter", filter.map(Value::from)),
            ("shards", shards.map(Value::from)),
            ("lastValue", last_value.then_some(Value::Bool(true))),
        ],
    );
    spec
}

/// What is to be made: a file says it, or flags do.
pub(super) fn to_create(
    file: Option<&Path>,
    read: Read,
    name: Option<&str>,
    namespace: Option<&str>,
    spec: Map<String, Value>,
) -> anyhow::Result<Declared> {
    match file {
        Some(_) if !spec.is_empty() => bail!("flags for fields and --file exclude each other"),
        Some(file) => read(file, name),
        None => Ok(Declared {
            name: named(name)?,
            namespace: namespace.unwrap_or_default().to_owned(),
            spec: Value::Object(spec).to_string(),
        }),
    }
}

/// What a queue or stream becomes.
pub(super) enum Change {
    /// The whole of it, JSON.
    Spec(String),
    /// A JSON merge patch.
    Patch(String),
}

/// What is to be changed, and how: a file says it, or flags do.
pub(super) fn to_change(
    file: Option<&Path>,
    read: Read,
    name: Option<&str>,
    patch: Map<String, Value>,
) -> anyhow::Result<(String, Change)> {
    match file {
        Some(_) if !patch.is_empty() => bail!("flags for fields and --file exclude each other"),
        Some(file) => {
            let declared = read(file, name)?;
            Ok((declared.name, Change::Spec(declared.spec)))
        }
        None if patch.is_empty() => {
            bail!("there is nothing to change: name a field by its flag, or --file FILE")
        }
        None => Ok((named(name)?, Change::Patch(Value::Object(patch).to_string()))),
    }
}

fn named(name: Option<&str>) -> anyhow::Result<String> {
    name.map(str::to_owned).ok_or_else(|| anyhow!("a name is needed, or a manifest: --file FILE"))
}

/// What becomes of the messages of what is deleted.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Messages {
    /// They stay for one of the same name
    Retain,
    /// They are removed, also those of one that was deleted before
    Delete,
}

/// As the admin API has it; without a word, the deletion policy decides.
pub(super) fn policy(messages: Option<Messages>) -> i32 {
    let policy = match messages {
        None => wire::DeletionPolicy::Unspecified,
        Some(Messages::Retain) => wire::DeletionPolicy::Retain,
        Some(Messages::Delete) => wire::DeletionPolicy::Delete,
    };
    policy.into()
}

/// Says that a queue or stream was `done`: created, updated.
pub(super) fn say_done(
    admin: &AdminArgs,
    what: &str,
    name: &str,
    done: &str,
    generation: u64,
) -> anyhow::Result<()> {
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&json!({"name": name, "generation": generation}))?,
        Format::Text => output.text(&format!("{what} {} {done}\n", harmless(name)))?,
    }
    Ok(())
}

/// Says that a queue or stream was deleted.
pub(super) fn say_deleted(admin: &AdminArgs, what: &str, name: &str, retained: bool) -> anyhow::Result<()> {
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&json!({"name": name, "retained": retained}))?,
        Format::Text => {
            let messages = if retained { "its messages are kept" } else { "with its messages" };
            output.text(&format!("{what} {} deleted, {messages}\n", harmless(name)))?;
        }
    }
    Ok(())
}
