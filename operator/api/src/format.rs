//! The text formats of the schema: each a regular expression for the API server and a parser for everybody
//! else, so that a manifest is judged alike with and without a cluster.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;
use weir_topic::{ObjectName, TOPIC_BYTES_MAX, TopicFilter, TopicName};

use crate::{ByteSize, KubeDuration};

/// One text format.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The regular expression, as it stands in the schema.
    pub pattern: &'static str,
    /// Says in one line what is wrong with a text and what is allowed.
    ///
    /// # Errors
    /// The text is not of this format.
    pub check: fn(&str) -> Result<(), String>,
}

/// Every format that the schema of any kind uses.
pub const FORMATS: [Format; 11] = [
    Format { pattern: KubeDuration::PATTERN, check: duration },
    Format { pattern: ByteSize::PATTERN, check: size },
    Format { pattern: TOPIC_FILTER, check: topic_filter },
    Format { pattern: TOPIC_NAME, check: topic_name },
    Format { pattern: OBJECT_NAME, check: object_name },
    Format { pattern: DNS_LABEL, check: dns_label },
    Format { pattern: DNS_SUBDOMAIN, check: dns_subdomain },
    Format { pattern: NAME_PATTERN, check: name_pattern },
    Format { pattern: QUANTITY, check: quantity },
    Format { pattern: STORE_PREFIX, check: store_prefix },
    Format { pattern: ADDRESS, check: address },
];

const TOPIC_FILTER: &str = "^(#|([^/+#]*|[+])(/([^/+#]*|[+]))*(/#)?)$";
const TOPIC_NAME: &str = "^[^+#]+$";
const OBJECT_NAME: &str = "^[0-9A-Za-z][-._0-9A-Za-z]{0,127}$";
const DNS_LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const DNS_SUBDOMAIN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
const NAME_PATTERN: &str = "^[-._0-9A-Za-z]*[*]?$";
const QUANTITY: &str = "^[0-9]+([.][0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$";

const STORE_PREFIX: &str = "^[-._0-9A-Za-z]+$";
const ADDRESS: &str = "^[^/ ]+:[0-9]{1,5}$";

/// Names in Kubernetes are at most this long.
const DNS_SUBDOMAIN_MAX: usize = 253;

fn duration(text: &str) -> Result<(), String> {
    text.parse::<KubeDuration>().map(drop).map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<(), String> {
    text.parse::<ByteSize>().map(drop).map_err(|error| error.to_string())
}

fn topic_filter(text: &str) -> Result<(), String> {
    TopicFilter::parse(text.to_owned()).map(drop).map_err(|error| {
        format!(
            "{text:?} is not a topic filter: {error}; allowed: levels divided by `/`, `+` for one whole level, `#` for \
             the last ones"
        )
    })
}

fn topic_name(text: &str) -> Result<(), String> {
    TopicName::parse(text.to_owned())
        .map(drop)
        .map_err(|error| format!("{text:?} is not a topic name: {error}; allowed: levels divided by `/`"))
}

fn object_name(text: &str) -> Result<(), String> {
    ObjectName::parse(text.to_owned()).map(drop).map_err(|_| {
        format!("{text:?} is not a name; allowed: 1 to 128 letters, digits, `-`, `.`, `_`, the first a letter or digit")
    })
}

fn dns_label(text: &str) -> Result<(), String> {
    if text.len() <= 63 && is_dns_label(text) {
        return Ok(());
    }
    Err(format!("{text:?} is not a name; allowed: 1 to 63 lower-case letters, digits and, inside, `-`"))
}

fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() <= DNS_SUBDOMAIN_MAX && text.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is not a name; allowed: 1 to {DNS_SUBDOMAIN_MAX} lower-case letters, digits and, inside, `-` and `.`"
    ))
}

fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
        && text.bytes().next().is_some_and(alphanumeric)
        && text.bytes().last().is_some_and(alphanumeric)
}

fn name_pattern(text: &str) -> Result<(), String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')) {
        return Ok(());
    }
    Err(format!("{text:?} is not a name pattern; allowed: a name, or the start of one and `*`"))
}

fn quantity(text: &str) -> Result<(), String> {
    const SUFFIXES: [&str; 14] = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(whole) && digits(fraction) && SUFFIXES.contains(&suffix) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is not a quantity; allowed: a number, alone or with a unit, such as 500m, 2 or 1Gi"
    ))
}

fn store_prefix(text: &str) -> Result<(), String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        return Ok(());
    }
    Err(format!("{text:?} is not a prefix; allowed: letters, digits, `-`, `.` and `_`"))
}

fn address(text: &str) -> Result<(), String> {
    let is_host = |host: &str| !host.is_empty() && !host.contains(['/', ' ']);
    let is_port =
        |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    if text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port)) {
        return Ok(());
    }
    Err(format!("{text:?} is not an address; allowed: HOST:PORT"))
}

/// What a publish or a queue or stream may never begin with.
const RESERVED_RULE: &str = "!self.startsWith('$')";

pub(crate) fn topic_filter_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": TOPIC_BYTES_MAX,
        "pattern": TOPIC_FILTER,
        "x-kubernetes-validations": json!([
            { "rule": RESERVED_RULE, "message": "must not begin with `$`" },
        ]),
    })
}

pub(crate) fn topic_name_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": TOPIC_BYTES_MAX,
        "pattern": TOPIC_NAME,
        "x-kubernetes-validations": json!([
            { "rule": RESERVED_RULE, "message": "must not begin with `$`" },
        ]),
    })
}

pub(crate) fn object_name_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": ObjectName::BYTES_MAX, "pattern": OBJECT_NAME })
}

/// A listener's name also names a port of a Service, hence 15.
pub(crate) fn port_name_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 15, "pattern": DNS_LABEL })
}

pub(crate) fn kube_name_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": DNS_SUBDOMAIN_MAX, "pattern": DNS_SUBDOMAIN })
}

pub(crate) fn name_pattern_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": ObjectName::BYTES_MAX, "pattern": NAME_PATTERN })
}

pub(crate) fn store_prefix_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 32, "pattern": STORE_PREFIX })
}

pub(crate) fn address_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 300, "pattern": ADDRESS })
}

pub(crate) fn quantity_schema() -> serde_json::Value {
    json!({ "x-kubernetes-int-or-string": true, "minimum": 0, "maxLength": 32, "pattern": QUANTITY })
}

/// Checks a Kubernetes object name outside of any schema.
///
/// # Errors
/// What is wrong with it and what is allowed.
pub fn check_object_name(text: &str) -> Result<(), String> {
    dns_subdomain(text)
}

/// Checks a Kubernetes namespace.
///
/// # Errors
/// What is wrong with it and what is allowed.
pub fn check_namespace(text: &str) -> Result<(), String> {
    dns_label(text)
}
