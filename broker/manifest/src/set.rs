//! All manifests of a folder together: all good or none, and no name declared twice. Reads no files.

use std::collections::BTreeMap;
use std::fmt;

use weir_operator_api::{Broker, MessageQueue, Stream};

use crate::ManifestError;
use crate::document::{self, Document, Kinds, line_of};
use crate::schema::Findings;
use crate::yaml::{self, Node};

/// Most mistakes that are told at once; the documents behind them are not judged.
pub const ERRORS_MAX: usize = 1000;

/// Most warnings that are kept.
const WARNINGS_MAX: usize = 1000;

/// Where an object was declared; prints as `file:line`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Name of the file inside of the folder.
    pub file: String,
    /// Line at which the document begins, the first being 1.
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// An object and where it was declared.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared<T> {
    /// The object, with the schema's defaults, a name and a namespace.
    pub object: T,
    /// Where it was declared.
    pub source: Source,
}

/// Everything that a folder declares, in the order of files and lines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ManifestSet {
    /// The queues; each `queue_name` once.
    pub queues: Vec<Declared<MessageQueue>>,
    /// The streams; each `stream_name` once.
    pub streams: Vec<Declared<Stream>>,
    /// The brokers, of which a process that runs alone takes what applies to it.
    pub brokers: Vec<Declared<Broker>>,
    /// What was ignored, one line each, with its place.
    pub warnings: Vec<String>,
}

/// Parses and checks `files`, each a name and a content.
pub(crate) fn parse<'a>(
    files: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<ManifestSet, Vec<ManifestError>> {
    let mut parser = Parser {
        kinds: Kinds::new(),
        set: ManifestSet::default(),
        names: Names::default(),
        errors: Vec::new(),
    };
    for (file, content) in files {
        parser.file(file, content);
    }
    if parser.errors.is_empty() { Ok(parser.set) } else { Err(parser.errors) }
}

struct Parser {
    kinds: Kinds,
    set: ManifestSet,
    names: Names,
    errors: Vec<ManifestError>,
}

impl Parser {
    fn file(&mut self, file: &str, content: &[u8]) {
        let first_error = self.errors.len();
        let text = match std::str::from_utf8(content) {
            Ok(text) => text,
            Err(error) => {
                let line =
                    1 + content.iter().take(error.valid_up_to()).filter(|&&byte| byte == b'\n').count();
                return self.error(file, line, "", "not UTF-8; allowed: UTF-8");
            }
        };
        let (documents, syntax_error) = yaml::parse(text);
        for document in documents {
            self.document(file, &document);
        }
        if let Some(error) = syntax_error {
            self.error(file, error.line, "", error.message);
        }
        if let Some(errors) = self.errors.get_mut(first_error..) {
            errors.sort_by_key(|error| error.line);
        }
    }

    fn document(&mut self, file: &str, node: &Node) {
        if self.errors.len() >= ERRORS_MAX {
            return;
        }
        let source = Source { file: file.to_owned(), line: node.line };
        let mut findings = Findings::default();
        let document = document::read(&self.kinds, node, &mut findings);
        match document {
            None | Some(Document::Empty) => {}
            Some(Document::Foreign(what)) => {
                if self.set.warnings.len() < WARNINGS_MAX {
                    self.set.warnings.push(format!("{source}: {what}"));
                }
            }
            Some(Document::Many(items)) => items.iter().for_each(|item| self.document(file, item)),
            Some(Document::Queue(object)) => {
                self.names.object("MessageQueue", &object.metadata, &source, node, &mut findings);
                self.names.topic("queue", object.queue_name(), &source, node, &mut findings);
                self.set.queues.push(Declared { object: *object, source });
            }
            Some(Document::Stream(object)) => {
                self.names.object("Stream", &object.metadata, &source, node, &mut findings);
                self.names.topic("stream", object.stream_name(), &source, node, &mut findings);
                self.set.streams.push(Declared { object: *object, source });
            }
            Some(Document::Broker(object)) => {
                self.names.object("Broker", &object.metadata, &source, node, &mut findings);
                self.set.brokers.push(Declared { object: *object, source });
            }
        }
        for finding in findings.0 {
            self.error(file, finding.line, &finding.path, finding.message);
        }
    }

    fn error(&mut self, file: &str, line: usize, path: &str, message: impl Into<String>) {
        self.errors.push(ManifestError {
            file: file.to_owned(),
            line: Some(line),
            path: path.to_owned(),
            message: message.into(),
        });
    }
}

/// Where each name was declared first.
#[derive(Default)]
struct Names {
    objects: BTreeMap<(&'static str, String), Source>,
    topics: BTreeMap<(&'static str, String), Source>,
}

impl Names {
    /// Objects of one kind in one namespace have names of their own.
    fn object(
        &mut self,
        kind: &'static str,
        metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
        source: &Source,
        node: &Node,
        findings: &mut Findings,
    ) {
        let name = metadata.name.as_deref().unwrap_or_default();
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = format!("{namespace}/{name}");
        if let Some(first) = self.objects.get(&(kind, name.clone())) {
            let message = format!("{kind} {name} is already declared at {first}");
            findings.add(line_of(node, "metadata.name"), "metadata.name", message);
        } else {
            self.objects.insert((kind, name), source.clone());
        }
    }

    /// Clients know a queue or stream by one name, whatever its namespace.
    fn topic(
        &mut self,
        kind: &'static str,
        name: &str,
        source: &Source,
        node: &Node,
        findings: &mut Findings,
    ) {
        if !findings.0.is_empty() {
            return; // the same object twice, already said
        }
        let key = (kind, name.to_owned());
        if let Some(first) = self.topics.get(&key) {
            let field = if kind == "queue" { "spec.queueName" } else { "spec.streamName" };
            let path = match node.field("spec").and_then(|spec| spec.field(field.trim_start_matches("spec.")))
            {
                Some(_) => field,
                None => "metadata.name",
            };
            let message = format!("${kind}/{name} is already declared at {first}; allowed: another {field}");
            findings.add(line_of(node, path), path, message);
        } else {
            self.topics.insert(key, source.clone());
        }
    }
}
