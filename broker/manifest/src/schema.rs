//! Judges a YAML tree by the OpenAPI schema of a custom resource definition and fills in its defaults, as a
//! Kubernetes API server does. Knows no kind; rules in CEL are somebody else's.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::{Map, Value};
use weir_operator_api::FORMATS;

use crate::yaml::{Entry, Kind, Node, quote};

/// What is wrong at a line.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) line: usize,
    pub(crate) path: String,
    pub(crate) message: String,
}

/// Most findings in one document: who has more to mend starts with these.
const FINDINGS_MAX: usize = 100;

/// Collects what is wrong in one document, up to [`FINDINGS_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn add(&mut self, line: usize, path: &str, message: impl Into<String>) {
        if self.0.len() < FINDINGS_MAX {
            self.0.push(Finding { line, path: path.to_owned(), message: message.into() });
        }
    }

    /// Reports every field that a map has twice.
    pub(crate) fn add_duplicates(&mut self, path: &str, node: &Node) {
        match &node.kind {
            Kind::Scalar(_) => {}
            Kind::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.add_duplicates(&format!("{path}[{index}]"), item);
                }
            }
            Kind::Map(entries) => {
                let mut seen = std::collections::BTreeMap::new();
                for Entry { key, line, value } in entries {
                    let path = join(path, key);
                    if let Some(first) = seen.insert(key, *line) {
                        self.add(*line, &path, format!("the field is there twice, first in line {first}"));
                    }
                    self.add_duplicates(&path, value);
                }
            }
        }
    }
}

/// The path of the field `name` below `path`.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// `node` as JSON with the defaults of `schema`. What does not fit is reported and left out.
pub(crate) fn check(schema: &JSONSchemaProps, path: &str, node: &Node, findings: &mut Findings) -> Value {
    let before = findings.0.len();
    let value = match (schema.type_.as_deref(), &node.kind) {
        (Some("object"), Kind::Map(entries)) => return object(schema, path, node.line, entries, findings),
        (Some("array"), Kind::List(items)) => list(schema, path, node.line, items, findings),
        (Some("boolean"), Kind::Scalar(value @ Value::Bool(_))) => value.clone(),
        (Some("integer"), Kind::Scalar(value @ Value::Number(number))) if number.as_i64().is_some() => {
            value.clone()
        }
        (Some("string"), Kind::Scalar(value @ Value::String(_))) => value.clone(),
        (None, Kind::Scalar(value @ (Value::String(_) | Value::Number(_))))
            if schema.x_kubernetes_int_or_string == Some(true) =>
        {
            value.clone()
        }
        _ => {
            let message = match &schema.enum_ {
                Some(allowed) => unknown_value(node, allowed),
                None => format!("{} does not fit; allowed: {}", node.describe(), allowed(schema)),
            };
            findings.add(node.line, path, message);
            return Value::Null;
        }
    };
    check_value(schema, path, node, &value, findings);
    if findings.0.len() == before { value } else { Value::Null }
}

fn object(
    schema: &JSONSchemaProps,
    path: &str,
    line: usize,
    entries: &[Entry],
    findings: &mut Findings,
) -> Value {
    let no_properties = std::collections::BTreeMap::new();
    let properties = schema.properties.as_ref().unwrap_or(&no_properties);
    let additional = match &schema.additional_properties {
        Some(JSONSchemaPropsOrBool::Schema(schema)) => Some(schema.as_ref()),
        Some(JSONSchemaPropsOrBool::Bool(_)) | None => None,
    };
    let mut fields = Map::new();
    for Entry { key, line, value } in entries {
        let path = join(path, key);
        match properties.get(key).or(additional) {
            None => {
                let names: Vec<&str> = properties.keys().map(String::as_str).collect();
                findings.add(*line, &path, format!("unknown field; allowed: {}", names.join(", ")));
            }
            // The API server takes it for absent, too.
            Some(_) if value.is_null() => {}
            Some(schema) => {
                let value = check(schema, &path, value, findings);
                fields.insert(key.clone(), value);
            }
        }
    }
    if let Some(max) = schema.max_properties
        && i64::try_from(entries.len()).is_ok_and(|count| count > max)
    {
        findings.add(line, path, format!("{} entries are too many; allowed: up to {max}", entries.len()));
    }
    for (name, schema) in properties {
        if let (false, Some(JSON(default))) = (fields.contains_key(name), &schema.default) {
            fields.insert(name.clone(), default.clone());
        }
    }
    for name in schema.required.iter().flatten().filter(|name| !fields.contains_key(*name)) {
        findings.add(line, &join(path, name), "the field is missing; it is required");
    }
    Value::Object(fields)
}

fn list(schema: &JSONSchemaProps, path: &str, line: usize, items: &[Node], findings: &mut Findings) -> Value {
    if let Some(allowed) = range(schema.min_items, schema.max_items, items.len()) {
        findings.add(line, path, format!("{} entries do not fit; allowed: {allowed}", items.len()));
    }
    let Some(JSONSchemaPropsOrArray::Schema(item_schema)) = &schema.items else { return Value::Null };
    let is_set = schema.x_kubernetes_list_type.as_deref() == Some("set");
    let mut values = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let value = check(item_schema, &path, item, findings);
        if is_set && !value.is_null() && values.contains(&value) {
            findings.add(item.line, &path, format!("{value} is there twice; allowed: once"));
        }
        values.push(value);
    }
    Value::Array(values)
}

/// Enumerations, ranges, lengths and formats of a value that is of the right type.
fn check_value(schema: &JSONSchemaProps, path: &str, node: &Node, value: &Value, findings: &mut Findings) {
    if let Some(allowed) = &schema.enum_
        && !allowed.iter().any(|JSON(allowed)| allowed == value)
    {
        findings.add(node.line, path, unknown_value(node, allowed));
        return;
    }
    if let (Some("integer"), Some(number)) = (schema.type_.as_deref(), value.as_i64())
        && !fits(schema, number)
    {
        findings.add(node.line, path, format!("{number} is out of range; allowed: {}", allowed(schema)));
    }
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if schema.x_kubernetes_int_or_string == Some(true) => number.to_string(),
        _ => return,
    };
    let length = text.chars().count();
    if let Some(allowed) = range(schema.min_length, schema.max_length, length) {
        findings.add(node.line, path, format!("{length} characters do not fit; allowed: {allowed}"));
        return;
    }
    let format = schema.pattern.as_ref().and_then(|pattern| FORMATS.iter().find(|f| f.pattern == pattern));
    if let Some(Err(message)) = format.map(|format| (format.check)(&text)) {
        findings.add(node.line, path, message);
    }
}

fn unknown_value(node: &Node, allowed: &[JSON]) -> String {
    let value = node.as_str().map_or_else(|| node.describe(), quote);
    let allowed: Vec<String> = allowed
        .iter()
        .map(|JSON(value)| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        .collect();
    format!("unknown value {value}; allowed: {}", allowed.join(", "))
}

/// Whether `number` is in the range and of the size that `schema` allows.
fn fits(schema: &JSONSchemaProps, number: i64) -> bool {
    // Ranges in the schema are far below 2^53, up to which a float is exact.
    #[expect(clippy::cast_precision_loss, reason = "a number that large is out of every range")]
    let float = number as f64;
    let sized = schema.format.as_deref() != Some("int32") || i32::try_from(number).is_ok();
    sized && schema.minimum.is_none_or(|min| float >= min) && schema.maximum.is_none_or(|max| float <= max)
}

/// What `schema` allows, in words.
fn allowed(schema: &JSONSchemaProps) -> String {
    if schema.x_kubernetes_int_or_string == Some(true) {
        return "a number, alone or with a unit".to_owned();
    }
    match (schema.type_.as_deref(), schema.minimum, schema.maximum) {
        (Some("integer"), Some(min), Some(max)) => format!("a whole number, {min} to {max}"),
        (Some("integer"), Some(min), None) => format!("a whole number, {min} or more"),
        (Some("integer"), None, Some(max)) => format!("a whole number, up to {max}"),
        (Some("integer"), None, None) => "a whole number".to_owned(),
        (Some("boolean"), ..) => "true or false".to_owned(),
        (Some("object"), ..) => "a mapping".to_owned(),
        (Some("array"), ..) => "a list".to_owned(),
        _ => "text".to_owned(),
    }
}

/// The allowed range of a length or count, if `actual` is outside.
fn range(min: Option<i64>, max: Option<i64>, actual: usize) -> Option<String> {
    let actual = i64::try_from(actual).unwrap_or(i64::MAX);
    let outside = min.is_some_and(|min| actual < min) || max.is_some_and(|max| actual > max);
    outside.then(|| match (min, max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("{min} or more"),
        (None, Some(max)) => format!("up to {max}"),
        (None, None) => "any number".to_owned(),
    })
}
