//! What an API server demands of a schema, and what people see of it.

use serde_json::{Value, json};
use weir_operator_api::{FORMATS, MessageQueue, Stream};

use crate::object;

/// Calls `visit` with the path and the schema of every field below `schema`.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            walk(&format!("{path}.{name}"), property, visit);
        }
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&format!("{path}{{}}"), &schema["additionalProperties"], visit);
    }
}

fn schemas() -> Vec<(String, Value)> {
    weir_operator_api::crds()
        .into_iter()
        .map(|crd| {
            let crd = serde_json::to_value(crd).unwrap();
            let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
            (kind, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
        })
        .collect()
}

#[test]
fn every_field_is_structural_explained_and_of_a_known_format() {
    for (kind, schema) in schemas() {
        walk(&kind, &schema, &mut |path, field| {
            let typed = field["type"].is_string() || field["x-kubernetes-int-or-string"] == json!(true);
            assert!(typed, "{path} has no type");
            assert!(field["nullable"].is_null(), "{path} is nullable");
            assert!(field["additionalProperties"] != json!(false), "{path} forbids fields twice");
            let nameless = path.ends_with(['}', ']']);
            assert!(nameless || field["description"].is_string(), "{path} has no description");
            if let Some(format) = field["format"].as_str() {
                assert!(["int32", "int64", "date-time"].contains(&format), "{path} has the format {format}");
            }
            if let Some(pattern) = field["pattern"].as_str() {
                assert!(FORMATS.iter().any(|format| format.pattern == pattern), "{path} has {pattern}");
            }
        });
    }
}

/// An API server refuses a CRD whose rules could cost too much; it estimates from these limits.
#[test]
fn what_rules_read_is_bounded() {
    for (kind, schema) in schemas() {
        walk(&format!("{kind}."), &schema["properties"]["spec"], &mut |path, field| {
            let bounded = match field["type"].as_str() {
                Some("string") => field["enum"].is_array() || field["maxLength"].is_u64(),
                Some("array") => field["maxItems"].is_u64(),
                Some("object") if field["additionalProperties"].is_object() => {
                    field["maxProperties"].is_u64()
                }
                _ => true,
            };
            assert!(bounded, "{path} has no limit");
        });
    }
}

#[test]
fn only_what_must_be_said_is_required() {
    let mut required = Vec::new();
    for (kind, schema) in schemas() {
        walk(&kind, &schema, &mut |path, field| {
            for name in field["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !path.contains(".status") && !path.contains("Ref") {
                    required.push(format!("{path}.{name}"));
                }
            }
        });
    }
    assert_eq!(
        required,
        [
            "Broker.spec",
            "Broker.spec.store",
            "Broker.spec.adminTls.secretRef",
            "Broker.spec.autoCreate.queues[].namePattern",
            "Broker.spec.autoCreate.streams[].namePattern",
            "Broker.spec.listeners[].name",
            "Broker.spec.listeners[].port",
            "Broker.spec.listeners[].type",
            "Broker.spec.peerTls.secretRef",
            "Broker.spec.pods.imagePullSecrets[].name",
            "Broker.spec.scaling.maxReplicas",
            "Broker.spec.store.embedded.storage",
            "Broker.spec.store.fdb.clusterFile",
            "Broker.spec.store.fdb.clusterFile.configMapRef",
            "Broker.spec.store.remote.address",
            "MessageQueue.spec",
            "Stream.spec",
            "Stream.spec.topicFilter",
        ]
    );
}

#[test]
fn the_defaults_of_the_schema_are_those_of_the_types() {
    let fill = |schema: &Value| {
        let fields = schema["properties"].as_object().unwrap();
        fields
            .iter()
            .filter(|(_, field)| !field["default"].is_null())
            .map(|(name, field)| (name.clone(), field["default"].clone()))
            .collect::<serde_json::Map<_, _>>()
    };
    for (kind, schema) in schemas() {
        let mut filled = Value::Object(fill(&schema["properties"]["spec"]));
        let (typed, minimal) = match kind.as_str() {
            "MessageQueue" => {
                let minimal = object("MessageQueue", "a", &json!({}));
                let queue: MessageQueue = serde_json::from_value(minimal).unwrap();
                (serde_json::to_value(queue.spec).unwrap(), json!({}))
            }
            "Stream" => {
                let minimal = json!({ "topicFilter": "a" });
                let stream: Stream = serde_json::from_value(object("Stream", "a", &minimal)).unwrap();
                (serde_json::to_value(stream.spec).unwrap(), minimal)
            }
            _ => continue,
        };
        for (name, value) in minimal.as_object().unwrap() {
            filled[name] = value.clone();
        }
        assert_eq!(filled, typed, "{kind}");
    }
}

#[test]
fn names_for_kubectl() {
    let names: Vec<Value> = weir_operator_api::crds()
        .iter()
        .map(|crd| json!([crd.spec.names.short_names, crd.spec.names.categories]))
        .collect();
    assert_eq!(
        names,
        [json!([["weirbroker"], ["weir"]]), json!([["mq"], ["weir"]]), json!([["mqstream"], ["weir"]]),]
    );
}

/// What the regular expression lets through and the parser does not is in the second list, and the other way
/// round nothing is.
#[test]
fn patterns_and_parsers_agree() {
    let samples = [
        "",
        "0",
        "1",
        "30s",
        "1h30m",
        "168h0m0s",
        "1.5h",
        "30 s",
        "1d",
        "h",
        "1h1h1h1h1h",
        "876001h",
        "10Gi",
        "1.5Gi",
        "500M",
        "1gi",
        "1.",
        ".5",
        "8Ei",
        "500m",
        "-1",
        "a",
        "A",
        "a/b",
        "a/+/b",
        "a/#",
        "#",
        "+",
        "/",
        "//",
        "/#",
        "a#",
        "a/#/b",
        "a+/b",
        "$SYS",
        "a b",
        "a.b",
        "a-b",
        "a_b",
        "-a",
        "a-",
        "a..b",
        "auto-*",
        "*",
        "a*b",
        "a**",
        "ä",
        "a\u{0}b",
        "1e3",
    ];
    let mut stricter = Vec::new();
    for format in FORMATS {
        let regex = regex::Regex::new(format.pattern).unwrap();
        for sample in samples {
            match (regex.is_match(sample), (format.check)(sample).is_ok()) {
                (true, false) => stricter.push(sample),
                (by_pattern, by_parser) => {
                    assert_eq!(by_pattern, by_parser, "{sample:?} for {}", format.pattern);
                }
            }
        }
    }
    // Too long a duration, too large a size, and what length limits or nothing but the parser can see of topics.
    assert_eq!(stricter, ["876001h", "8Ei", "", "a\0b", "a\0b"]);
}
