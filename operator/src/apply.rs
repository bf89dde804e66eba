//! The command `weir-operator apply`: objects of Weir from files, by server-side apply. A chart applies its Broker with it after
//! the definitions, which one release cannot do otherwise. Knows the API server, and no broker.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::ApiResource;
use kube::{Client, CustomResourceExt as _};
use serde::Deserialize as _;
use tokio::time::{sleep, timeout};
use weir_operator_api::{Broker, GROUP, MessageQueue, Stream, VERSION};

/// Longest wait for the API server to know the kinds.
const KINDS_WAIT: Duration = Duration::from_secs(60);
const BETWEEN: Duration = Duration::from_secs(1);

/// Applies Brokers, queues and streams from YAML files.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files of YAML, each with one object or several.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// As whom to own the fields that the files set.
    #[arg(long, value_name = "NAME", default_value = "weir-apply")]
    field_manager: String,
    /// Namespace of objects that name none.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    namespace: String,
}

/// Runs the command.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let mut objects = Vec::new();
    for file in &args.files {
        objects.extend(read(file)?);
    }
    let client = Client::try_default().await.context("find the API server")?;
    for object in objects {
        let types = object.types.as_ref().context("an object has a kind")?;
        let namespace = object.metadata.namespace.as_deref().unwrap_or(&args.namespace);
        let api = Api::namespaced_with(client.clone(), namespace, &resource(types)?);
        let name = object.metadata.name.as_deref().context("an object has a name")?;
        let applied = timeout(KINDS_WAIT, apply(&api, name, &object, &args.field_manager)).await;
        let shown = format!("{} {namespace}/{name}", types.kind);
        match applied {
            Ok(applied) => applied.with_context(|| format!("apply {shown}"))?,
            Err(_) => bail!(
                "the API server does not know {} of {GROUP}: install the definitions (crds/)",
                types.kind
            ),
        }
        writeln!(std::io::stdout(), "{shown} applied").context("write to standard output")?;
    }
    Ok(())
}

/// Applies an object, as soon as the API server knows its kind.
async fn apply(
    api: &Api<DynamicObject>,
    name: &str,
    object: &DynamicObject,
    manager: &str,
) -> kube::Result<()> {
    let how = PatchParams::apply(manager).force();
    loop {
        match api.patch(name, &how, &Patch::Apply(object)).await {
            // The path of a kind that is not there yet is not found either.
            Err(kube::Error::Api(status)) if status.code == 404 && !status.message.contains("namespaces") => {
                sleep(BETWEEN).await;
            }
            applied => return applied.map(drop),
        }
    }
}

/// The objects in a file, each checked for what no API server would take.
fn read(file: &Path) -> Result<Vec<DynamicObject>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let value = serde_yaml::Value::deserialize(document);
        let value = value.with_context(|| format!("read the YAML of {}", file.display()))?;
        if value.is_null() {
            continue;
        }
        let object: DynamicObject =
            serde_yaml::from_value(value).with_context(|| format!("read an object of {}", file.display()))?;
        let types =
            object.types.as_ref().with_context(|| format!("an object of {} has no kind", file.display()))?;
        resource(types).with_context(|| file.display().to_string())?;
        ensure!(
            object.metadata.name.is_some(),
            "a {} in {} has no metadata.name",
            types.kind,
            file.display()
        );
        objects.push(object);
    }
    ensure!(!objects.is_empty(), "{} holds no object", file.display());
    Ok(objects)
}

/// How the API server calls a kind of ours.
fn resource(types: &TypeMeta) -> Result<ApiResource> {
    let ours = [Broker::api_resource(), MessageQueue::api_resource(), Stream::api_resource()];
    let asked = GroupVersionKind::try_from(types).context("an apiVersion and a kind")?;
    let found = ours
        .into_iter()
        .find(|ours| ours.kind == asked.kind && ours.group == asked.group && ours.version == asked.version);
    found.with_context(|| {
        format!(
            "{} {} is not ours to apply; allowed: Broker, MessageQueue and Stream of {GROUP}/{VERSION}",
            types.api_version, types.kind
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<DynamicObject>> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), text)?;
        read(file.path())
    }

    #[test]
    fn a_file_may_hold_several_objects() -> Result<()> {
        let text = "apiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: { name: main }\nspec: {}\n---\n---\n\
                    apiVersion: weir.dev/v1alpha1\nkind: Stream\nmetadata: { name: s, namespace: city }\n";
        let objects = read_text(text)?;
        assert_eq!(objects.len(), 2);
        let streams = resource(objects[1].types.as_ref().context("a kind")?)?;
        assert_eq!(
            (streams.plural.as_str(), objects[1].metadata.namespace.as_deref()),
            ("streams", Some("city"))
        );
        Ok(())
    }

    #[test]
    fn what_cannot_be_applied_is_named() {
        let cases = [
            ("apiVersion: v1\nkind: Secret\nmetadata: { name: a }\n", "v1 Secret is not ours to apply"),
            (
                "apiVersion: weir.dev/v2\nkind: Broker\nmetadata: { name: a }\n",
                "weir.dev/v2 Broker is not ours",
            ),
            ("apiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {}\n", "has no metadata.name"),
            ("kind: [", "read the YAML of"),
            ("", "holds no object"),
        ];
        for (text, told) in cases {
            let error = format!("{:#}", read_text(text).unwrap_err());
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }
}
