//! One queue or stream out of the text of its `spec` alone, as people and programs hand it over without a folder. Reads no files.

use weir_operator_api::{GROUP, MessageQueue, Stream, VERSION};

use crate::document::{self, Document, Kinds};
use crate::schema::Findings;
use crate::yaml::{self, Entry, Kind, Node};
use crate::{ManifestError, ManifestSet, set};

/// What errors name as the file.
const TEXT: &str = "spec";

/// Parses and checks one file of manifests, called `file` in errors.
///
/// # Errors
/// Every mistake, in the order of lines.
pub fn parse_file(file: &str, content: &[u8]) -> Result<ManifestSet, Vec<ManifestError>> {
    set::parse([(file, content)].into_iter())
}

/// The MessageQueue that a `spec` in YAML or JSON declares; an empty one has all defaults. `name` is the object's, and
/// clients know the queue by it unless the `spec` says otherwise.
///
/// # Errors
/// Every mistake, in the order of lines.
pub fn parse_queue_spec(namespace: &str, name: &str, spec: &str) -> Result<MessageQueue, Vec<ManifestError>> {
    let queue = |document| if let Document::Queue(queue) = document { Some(*queue) } else { None };
    parse_spec("MessageQueue", namespace, name, spec, queue)
}

/// The Stream that a `spec` declares, as [`parse_queue_spec`] does for queues.
///
/// # Errors
/// Every mistake, in the order of lines.
pub fn parse_stream_spec(namespace: &str, name: &str, spec: &str) -> Result<Stream, Vec<ManifestError>> {
    let stream = |document| if let Document::Stream(stream) = document { Some(*stream) } else { None };
    parse_spec("Stream", namespace, name, spec, stream)
}

fn parse_spec<T>(
    kind: &str,
    namespace: &str,
    name: &str,
    spec: &str,
    pick: impl FnOnce(Document) -> Option<T>,
) -> Result<T, Vec<ManifestError>> {
    let error = |line: usize, path: &str, message: String| ManifestError {
        file: TEXT.to_owned(),
        line: Some(line),
        path: path.to_owned(),
        message,
    };
    let (mut documents, syntax_error) = yaml::parse(spec);
    if let Some(mistake) = syntax_error {
        return Err(vec![error(mistake.line, "", mistake.message)]);
    }
    if documents.len() > 1 {
        return Err(vec![error(1, "", "more than one document; allowed: one".to_owned())]);
    }
    let spec = match documents.pop() {
        Some(node) if !node.is_null() => node,
        _ => Node { line: 1, kind: Kind::Map(Vec::new()) },
    };
    let text = |text: &str| Node { line: 1, kind: Kind::Scalar(text.into()) };
    let entry = |key: &str, value: Node| Entry { key: key.to_owned(), line: value.line, value };
    let metadata = Kind::Map(vec![entry("name", text(name)), entry("namespace", text(namespace))]);
    let root = Kind::Map(vec![
        entry("apiVersion", text(&format!("{GROUP}/{VERSION}"))),
        entry("kind", text(kind)),
        entry("metadata", Node { line: 1, kind: metadata }),
        entry("spec", spec),
    ]);
    let mut findings = Findings::default();
    let document = document::read(&Kinds::new(), &Node { line: 1, kind: root }, &mut findings);
    if let (Some(object), true) = (document.and_then(pick), findings.0.is_empty()) {
        return Ok(object);
    }
    let mut errors: Vec<_> =
        findings.0.into_iter().map(|finding| error(finding.line, &finding.path, finding.message)).collect();
    errors.sort_by_key(|error| error.line);
    Err(errors)
}
