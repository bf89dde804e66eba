//! One YAML document as one object of ours, with defaults, or what is wrong with it. Knows no other document.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use weir_operator_api::{
    Broker, GROUP, MessageQueue, Problem, Stream, VERSION, check_namespace, check_object_name,
};

use crate::schema::{Findings, check, join};
use crate::yaml::{Entry, Kind, Node, quote};

/// Where objects live that name no namespace.
const NAMESPACE: &str = "default";

/// What a document holds.
#[derive(Debug)]
pub(crate) enum Document {
    /// Only white space and comments.
    Empty,
    /// A resource of somebody else; said in words.
    Foreign(String),
    /// A list of documents.
    Many(Vec<Node>),
    Queue(Box<MessageQueue>),
    Stream(Box<Stream>),
    Broker(Box<Broker>),
}

/// The kinds, and the schema of each one's `spec`.
#[derive(Debug)]
pub(crate) struct Kinds(Vec<(String, Option<JSONSchemaProps>)>);

impl Kinds {
    pub(crate) fn new() -> Self {
        let kinds = weir_operator_api::crds().into_iter().map(|crd| {
            let schema = crd.spec.versions.into_iter().next().and_then(|version| version.schema);
            let mut fields =
                schema.and_then(|schema| schema.open_api_v3_schema).and_then(|root| root.properties);
            (crd.spec.names.kind, fields.as_mut().and_then(|fields| fields.remove("spec")))
        });
        Self(kinds.collect())
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }
}

/// Judges a document. What is wrong is added to `findings`, and nothing given.
pub(crate) fn read(kinds: &Kinds, node: &Node, findings: &mut Findings) -> Option<Document> {
    let entries = match &node.kind {
        Kind::Scalar(Value::Null) => return Some(Document::Empty),
        Kind::Map(entries) => entries,
        Kind::Scalar(_) | Kind::List(_) => {
            let what = node.describe();
            let message =
                format!("{what} is no manifest; allowed: a mapping with apiVersion, kind, metadata, spec");
            findings.add(node.line, "", message);
            return None;
        }
    };
    let (api_version, kind) = (text_field(node, "apiVersion", findings), text_field(node, "kind", findings));
    let (Some(api_version), Some(kind)) = (api_version, kind) else { return None };
    if (api_version, kind) == ("v1", "List") {
        let items = node.field("items").map(|items| &items.kind);
        return Some(Document::Many(match items {
            Some(Kind::List(items)) => items.clone(),
            Some(Kind::Map(_) | Kind::Scalar(_)) | None => Vec::new(),
        }));
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if group != GROUP {
        return Some(Document::Foreign(format!(
            "{} of {} is not a resource of {GROUP}: ignored",
            quote(kind),
            quote(api_version)
        )));
    }
    findings.add_duplicates("", node);
    if version != VERSION {
        let message = format!("unknown value {}; allowed: {GROUP}/{VERSION}", quote(api_version));
        findings.add(line_of(node, "apiVersion"), "apiVersion", message);
        return None;
    }
    let Some((_, spec_schema)) = kinds.0.iter().find(|(name, _)| name == kind) else {
        let message = format!("unknown value {}; allowed: {}", quote(kind), kinds.names());
        findings.add(line_of(node, "kind"), "kind", message);
        return None;
    };
    for Entry { key, line, .. } in entries {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&key.as_str()) {
            findings.add(*line, key, "unknown field; allowed: apiVersion, kind, metadata, spec");
        }
    }
    let metadata = metadata(node, findings);
    let spec = match (node.field("spec"), spec_schema) {
        (Some(spec), Some(schema)) if !spec.is_null() => check(schema, "spec", spec, findings),
        _ => {
            findings.add(node.line, "spec", "the field is missing; it is required");
            return None;
        }
    };
    let object = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec });
    if !findings.0.is_empty() {
        return None;
    }
    match kind {
        "MessageQueue" => typed(object, MessageQueue::problems, node, findings).map(Document::Queue),
        "Stream" => typed(object, Stream::problems, node, findings).map(Document::Stream),
        _ => typed(object, Broker::problems, node, findings).map(Document::Broker),
    }
}

/// The line at which a person would look for the field at `path`, or for the nearest that exists above it.
pub(crate) fn line_of(node: &Node, path: &str) -> usize {
    let mut at = node;
    for step in path.split(['.', '[']) {
        let index = step.strip_suffix(']').and_then(|index| index.parse::<usize>().ok());
        let next = match (&at.kind, index) {
            (Kind::List(items), Some(index)) => items.get(index),
            _ => at.field(step),
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    at.line
}

fn typed<T: DeserializeOwned>(
    object: Value,
    problems: fn(&T) -> Vec<Problem>,
    node: &Node,
    findings: &mut Findings,
) -> Option<Box<T>> {
    // The schema has let it through: only a schema that disagrees with the type fails here.
    let object: T = match serde_path_to_error::deserialize(object) {
        Ok(object) => object,
        Err(error) => {
            let path = error.path().to_string();
            findings.add(line_of(node, &path), &path, error.into_inner().to_string());
            return None;
        }
    };
    for Problem { path, message } in problems(&object) {
        findings.add(line_of(node, &path), &path, message);
    }
    findings.0.is_empty().then(|| Box::new(object))
}

/// A text that must be there.
fn text_field<'a>(node: &'a Node, name: &str, findings: &mut Findings) -> Option<&'a str> {
    match node.field(name) {
        Some(value) if !value.is_null() => {
            let text = value.as_str();
            if text.is_none() {
                findings.add(value.line, name, format!("{} does not fit; allowed: text", value.describe()));
            }
            text
        }
        _ => {
            findings.add(node.line, name, "the field is missing; it is required");
            None
        }
    }
}

/// What of the metadata means something here; what an API server adds to it is accepted and left out.
fn metadata(node: &Node, findings: &mut Findings) -> Value {
    const IGNORED: [&str; 8] = [
        "creationTimestamp",
        "finalizers",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ];
    let mut fields = Map::new();
    fields.insert("namespace".into(), NAMESPACE.into());
    let entries = match node.field("metadata").map(|metadata| (metadata.line, &metadata.kind)) {
        Some((_, Kind::Map(entries))) => entries.as_slice(),
        Some((line, Kind::List(_) | Kind::Scalar(Value::Bool(_) | Value::Number(_) | Value::String(_)))) => {
            findings.add(line, "metadata", "not a mapping; allowed: a mapping with name");
            return Value::Null;
        }
        _ => &[],
    };
    for Entry { key, line, value } in entries {
        let path = join("metadata", key);
        match key.as_str() {
            _ if value.is_null() => {}
            "name" | "namespace" => {
                let check = if key == "name" { check_object_name } else { check_namespace };
                match value.as_str().map(|text| (text, check(text))) {
                    Some((text, Ok(()))) => drop(fields.insert(key.clone(), text.into())),
                    Some((_, Err(message))) => findings.add(value.line, &path, message),
                    None => findings.add(value.line, &path, not_text(value)),
                }
            }
            "labels" | "annotations" => {
                fields.insert(key.clone(), texts(&path, value, findings));
            }
            key if IGNORED.contains(&key) => {}
            _ => findings.add(*line, &path, "unknown field; allowed: annotations, labels, name, namespace"),
        }
    }
    let named = entries.iter().any(|entry| entry.key == "name" && !entry.value.is_null());
    if !named {
        let message = "the field is missing; it is required";
        findings.add(line_of(node, "metadata"), "metadata.name", message);
    }
    Value::Object(fields)
}

/// A mapping of texts.
fn texts(path: &str, node: &Node, findings: &mut Findings) -> Value {
    let Kind::Map(entries) = &node.kind else {
        findings.add(node.line, path, format!("{} does not fit; allowed: a mapping", node.describe()));
        return Value::Null;
    };
    let mut texts = Map::new();
    for Entry { key, value, .. } in entries {
        match value.as_str() {
            Some(text) => drop(texts.insert(key.clone(), text.into())),
            None => findings.add(value.line, &join(path, key), not_text(value)),
        }
    }
    Value::Object(texts)
}

fn not_text(node: &Node) -> String {
    format!("{} does not fit; allowed: text (in quotes, where it looks like something else)", node.describe())
}
