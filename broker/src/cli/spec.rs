//! What a queue or stream is to be, out of flags or a file: what both commands share. Knows no broker.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde_json::{Map, Value};
use weir_manifest::ManifestSet;

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
