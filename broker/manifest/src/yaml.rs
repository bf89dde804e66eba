//! YAML as a tree that remembers its lines. Knows no schema.
//!
//! Plain scalars are resolved by the core schema of YAML 1.2. Aliases are copied, so that a tree owns all of
//! itself; the number of nodes and the depth are bounded, whatever the input makes of them.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::Value;

/// Deepest nesting of a manifest.
pub const DEPTH_MAX: usize = 48;

/// Most nodes in a file, counting what aliases repeat. Bounds memory.
pub const NODES_MAX: usize = 500_000;

/// Longest name of a field. Bounds the paths in messages; Kubernetes knows none over 317.
pub const KEY_BYTES_MAX: usize = 512;

/// A value and the line, from 1, at which a person would look for it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Null, a truth value, a number or text.
    Scalar(Value),
    List(Vec<Node>),
    /// In the order of the file; a key may be there twice.
    Map(Vec<Entry>),
}

/// A field of a map.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) value: Node,
}

/// Text that is not YAML, or over a limit.
#[derive(Clone, Debug)]
pub(crate) struct SyntaxError {
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// The documents of a file, up to the first mistake.
pub(crate) fn parse(text: &str) -> (Vec<Node>, Option<SyntaxError>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader =
        Reader { parser: Parser::new_from_str(text), anchors: BTreeMap::new(), nodes_left: NODES_MAX };
    let mut documents = Vec::new();
    loop {
        match reader.document() {
            Ok(Some(document)) => documents.push(document),
            Ok(None) => return (documents, None),
            Err(error) => return (documents, Some(error)),
        }
    }
}

impl Node {
    /// The value of a field; the first one if it is there twice.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value),
            Kind::List(_) | Kind::Scalar(_) => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Scalar(Value::Null))
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar(value) => value.as_str(),
            Kind::List(_) | Kind::Map(_) => None,
        }
    }

    /// What a person would call this value.
    pub(crate) fn describe(&self) -> String {
        match &self.kind {
            Kind::Scalar(Value::Null) => "nothing".to_owned(),
            Kind::Scalar(Value::String(text)) => format!("the text {}", quote(text)),
            Kind::Scalar(value) => value.to_string(),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
        }
    }

    fn count(&self) -> usize {
        1 + match &self.kind {
            Kind::Scalar(_) => 0,
            Kind::List(items) => items.iter().map(Self::count).sum(),
            Kind::Map(entries) => entries.iter().map(|entry| 1 + entry.value.count()).sum::<usize>(),
        }
    }

    fn depth(&self) -> usize {
        1 + match &self.kind {
            Kind::Scalar(_) => 0,
            Kind::List(items) => items.iter().map(Self::depth).max().unwrap_or(0),
            Kind::Map(entries) => entries.iter().map(|entry| entry.value.depth()).max().unwrap_or(0),
        }
    }
}

/// `text` in quotes, cut short.
pub(crate) fn quote(text: &str) -> String {
    const SHOWN_MAX: usize = 64;
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: BTreeMap<usize, Anchored>,
    nodes_left: usize,
}

struct Anchored {
    node: Node,
    count: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn document(&mut self) -> Result<Option<Node>, SyntaxError> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(None),
                (Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd, _) => {}
                (event, span) => {
                    let node = self.node(event, span, 1)?;
                    self.anchors.clear();
                    return Ok(Some(node));
                }
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), SyntaxError> {
        match self.parser.next() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(not_yaml(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, SyntaxError> {
        let line = span.start.line();
        self.nodes_left = self.nodes_left.checked_sub(1).ok_or_else(|| too_many(line))?;
        if depth > DEPTH_MAX {
            return Err(too_deep(line));
        }
        let (kind, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (Kind::Scalar(scalar(&text, style, tag.as_deref(), line)?), anchor)
            }
            Event::SequenceStart(anchor, _) => (Kind::List(self.list(depth)?), anchor),
            Event::MappingStart(anchor, _) => (Kind::Map(self.map(depth)?), anchor),
            Event::Alias(id) => return self.alias(id, line, depth),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => {
                return Err(SyntaxError { line, message: "not YAML: a value is missing".into() });
            }
        };
        let node = Node { line, kind };
        if anchor > 0 {
            let (count, depth) = (node.count(), node.depth());
            // Kept for its aliases: a copy that counts too.
            self.nodes_left = self.nodes_left.checked_sub(count).ok_or_else(|| too_many(line))?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), count, depth });
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, SyntaxError> {
        let mut entries = Vec::new();
        loop {
            let (key, line) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                (Event::Scalar(key, ..), span) => (key.into_owned(), span.start.line()),
                (_, span) => {
                    let message = "a field's name is not text; allowed: text".to_owned();
                    return Err(SyntaxError { line: span.start.line(), message });
                }
            };
            self.nodes_left = self.nodes_left.checked_sub(1).ok_or_else(|| too_many(line))?;
            if key.len() > KEY_BYTES_MAX {
                let message =
                    format!("a field's name has {} bytes; allowed: up to {KEY_BYTES_MAX}", key.len());
                return Err(SyntaxError { line, message });
            }
            let (event, span) = self.next()?;
            let mut value = self.node(event, span, depth + 1)?;
            // A collection begins behind its field's name, nothing at all stands nowhere: people look at the
            // name.
            if value.as_str().is_none()
                && !matches!(value.kind, Kind::Scalar(Value::Bool(_) | Value::Number(_)))
            {
                value.line = line;
            }
            entries.push(Entry { key, line, value });
        }
    }

    fn alias(&mut self, id: usize, line: usize, depth: usize) -> Result<Node, SyntaxError> {
        let Some(anchored) = self.anchors.get(&id) else {
            return Err(SyntaxError {
                line,
                message: "not YAML: the alias stands inside of its anchor".into(),
            });
        };
        if depth + anchored.depth > DEPTH_MAX + 1 {
            return Err(too_deep(line));
        }
        self.nodes_left = self.nodes_left.checked_sub(anchored.count).ok_or_else(|| too_many(line))?;
        Ok(anchored.node.clone())
    }
}

fn not_yaml(error: &ScanError) -> SyntaxError {
    SyntaxError { line: error.marker().line(), message: format!("not YAML: {}", error.info()) }
}

fn too_deep(line: usize) -> SyntaxError {
    SyntaxError { line, message: format!("nested too deeply; allowed: {DEPTH_MAX} levels") }
}

fn too_many(line: usize) -> SyntaxError {
    SyntaxError { line, message: format!("the file has too many values; allowed: {NODES_MAX}") }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, line: usize) -> Result<Value, SyntaxError> {
    let tag = match tag {
        None => None,
        Some(tag) if tag.is_yaml_core_schema() => Some(tag.suffix.as_str()),
        Some(tag) => {
            return Err(SyntaxError { line, message: format!("the tag {tag} is unknown; allowed: no tag") });
        }
    };
    Ok(match (tag, style) {
        (Some("str"), _) => Value::from(text),
        (Some(_), _) | (None, ScalarStyle::Plain) => plain(text),
        (None, _) => Value::from(text),
    })
}

/// A number with a leading zero stays text: YAML 1.1 reads it as octal and YAML 1.2 as decimal.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.trim_start_matches(['-', '+']);
    let looks_numeric = text.len() - digits.len() <= 1
        && digits.starts_with(|c: char| c.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0') || digits.starts_with("0."));
    if !looks_numeric {
        return Value::from(text);
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if let Ok(number) = unsigned.parse::<i64>() {
        return Value::from(number);
    }
    if let Ok(number) = unsigned.parse::<u64>() {
        return Value::from(number);
    }
    let is_float =
        digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'-' | b'+'));
    match unsigned.parse::<f64>() {
        Ok(number) if is_float && number.is_finite() => Value::from(number),
        _ => Value::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, value) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("true", Value::Bool(true)),
            ("yes", Value::from("yes")),
            ("0", Value::from(0)),
            ("-7", Value::from(-7)),
            ("+7", Value::from(7)),
            ("010", Value::from("010")),
            ("18446744073709551615", Value::from(u64::MAX)),
            ("1.5", Value::from(1.5)),
            ("0.5", Value::from(0.5)),
            ("1e3", Value::from(1000.0)),
            ("1e999", Value::from("1e999")),
            ("10Gi", Value::from("10Gi")),
            ("--1", Value::from("--1")),
            ("infinity", Value::from("infinity")),
        ] {
            assert_eq!(plain(text), value, "{text}");
        }
    }

    #[test]
    fn aliases_cannot_grow_a_tree_beyond_its_bound() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..20 {
            let item = format!("*a{}", level - 1);
            let items = vec![item; 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        let (documents, error) = parse(&text);
        assert!(documents.is_empty());
        assert!(error.unwrap().message.contains("too many values"));
    }

    #[test]
    fn depth_is_bounded_with_and_without_aliases() {
        let (_, error) = parse(&"[".repeat(DEPTH_MAX + 1));
        assert!(error.unwrap().message.contains("nested too deeply"));
        let (documents, error) = parse(&"[".repeat(100_000));
        assert!(documents.is_empty() && error.is_some());

        let mut text = String::from("a0: &a0 [x]\n");
        for level in 1..60 {
            text.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        let (_, error) = parse(&text);
        assert!(error.unwrap().message.contains("nested too deeply"));
    }
}
