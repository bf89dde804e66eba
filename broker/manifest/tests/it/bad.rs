//! Bad manifests and the exact words that people get.

use weir_manifest::{ERRORS_MAX, KEY_BYTES_MAX};

use crate::load_files;

/// The errors of one file `a.yaml`.
fn errors(text: &str) -> Vec<String> {
    load_files(&[("a.yaml", text)]).unwrap_err()
}

/// The errors of a queue with this spec, whose first line is line 5.
fn queue_errors(spec: &str) -> Vec<String> {
    let head = "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {name: traffic}\nspec:\n";
    let spec: Vec<String> = spec.lines().map(|line| format!("  {line}\n")).collect();
    errors(&format!("{head}{}", spec.concat()))
}

#[test]
fn fields_of_a_queue() {
    for (spec, expected) in [
        (
            "retention:\n  maxAge: 1h\n  overflow: Foo",
            "a.yaml:7: spec.retention.overflow: unknown value \"Foo\"; allowed: RejectPublish, DropOldest",
        ),
        (
            "dispatch: {strategie: random}",
            "a.yaml:5: spec.dispatch.strategie: unknown field; allowed: maxInflightPerConsumer, strategy",
        ),
        (
            "shards: four",
            "a.yaml:5: spec.shards: the text \"four\" does not fit; allowed: a whole number, 1 to 64",
        ),
        ("shards: 65", "a.yaml:5: spec.shards: 65 is out of range; allowed: a whole number, 1 to 64"),
        ("shards: 1.5", "a.yaml:5: spec.shards: 1.5 does not fit; allowed: a whole number, 1 to 64"),
        ("shards: [1]", "a.yaml:5: spec.shards: a list does not fit; allowed: a whole number, 1 to 64"),
        (
            "retention: {maxMessages: -1}",
            "a.yaml:5: spec.retention.maxMessages: -1 is out of range; allowed: a whole number, 0 or more",
        ),
        ("ordering: 5", "a.yaml:5: spec.ordering: unknown value 5; allowed: none, key"),
        ("lastValue: yes", "a.yaml:5: spec.lastValue: the text \"yes\" does not fit; allowed: true or false"),
        ("key: 7", "a.yaml:5: spec.key: 7 does not fit; allowed: text"),
        ("key: ''", "a.yaml:5: spec.key: 0 characters do not fit; allowed: 1 to 4096"),
        ("retention: all", "a.yaml:5: spec.retention: the text \"all\" does not fit; allowed: a mapping"),
        (
            "ackTimeout: 30 sec",
            "a.yaml:5: spec.ackTimeout: \"30 sec\" is not a duration; allowed: whole numbers with the units \
             h, m, s or ms, such as 30s, 1h30m or 168h, up to 876000h",
        ),
        ("ackTimeout: 10ms", "a.yaml:5: spec.ackTimeout: 10ms is out of range; allowed: 100ms to 168h"),
        (
            "retention:\n\n  maxBytes: 10 GB",
            "a.yaml:7: spec.retention.maxBytes: \"10 GB\" is not a size; allowed: bytes, alone or with one of \
             k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei, such as 10Gi or 500M, below 8Ei",
        ),
        (
            "retention: {maxBytes: true}",
            "a.yaml:5: spec.retention.maxBytes: true does not fit; allowed: a number, alone or with a unit",
        ),
        (
            "topicFilter: sensor/#/data",
            "a.yaml:5: spec.topicFilter: \"sensor/#/data\" is not a topic filter: wildcard `#` at byte 7 is not \
             in the last level; allowed: levels divided by `/`, `+` for one whole level, `#` for the last ones",
        ),
        (
            "topicFilter: $SYS/#",
            "a.yaml:5: spec.topicFilter: \"$SYS/#\" begins with `$`; allowed: ordinary topics",
        ),
        (
            "queueName: -traffic",
            "a.yaml:5: spec.queueName: \"-traffic\" is not a name; allowed: 1 to 128 letters, digits, `-`, `.`, \
             `_`, the first a letter or digit",
        ),
        (
            "deadLetter: {topic: dead/+}",
            "a.yaml:5: spec.deadLetter.topic: \"dead/+\" is not a topic name: topic name has the wildcard `+` at \
             byte 5; allowed: levels divided by `/`",
        ),
        (
            "shards: 2\ndeadLetter: {}",
            "a.yaml:6: spec.deadLetter: exactly one target is needed; allowed: queueRef or topic",
        ),
        (
            "deadLetter:\n  queueRef: {}",
            "a.yaml:6: spec.deadLetter.queueRef.name: the field is missing; it is required",
        ),
        (
            "deadLetter:\n  queueRef:\n    name: traffic",
            "a.yaml:7: spec.deadLetter.queueRef.name: a queue cannot be its own dead-letter queue; allowed: \
             another queue",
        ),
        (
            "retryBackoff:\n  initial: 5m\n  factor: 2",
            "a.yaml:6: spec.retryBackoff.initial: 5m is longer than max; allowed: up to 1m",
        ),
        (
            "publisherControls:\n- delay\n- delay",
            "a.yaml:7: spec.publisherControls[1]: \"delay\" is there twice; allowed: once",
        ),
        (
            "publisherControls:\n- delay\n- ttl",
            "a.yaml:7: spec.publisherControls[1]: unknown value \"ttl\"; allowed: delay, priority, dedup",
        ),
        ("shards: 1\nshards: 2", "a.yaml:6: spec.shards: the field is there twice, first in line 5"),
    ] {
        assert_eq!(queue_errors(spec), [expected], "{spec}");
    }
}

#[test]
fn documents() {
    for (text, expected) in [
        ("kind: Stream\n", "a.yaml:1: apiVersion: the field is missing; it is required"),
        (
            "# comment\napiVersion: weir.dev/v2\nkind: Stream\n",
            "a.yaml:2: apiVersion: unknown value \"weir.dev/v2\"; allowed: weir.dev/v1alpha1",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: Queue\n",
            "a.yaml:2: kind: unknown value \"Queue\"; allowed: Broker, MessageQueue, Stream",
        ),
        (
            "- a\n- b\n",
            "a.yaml:1: a list is no manifest; allowed: a mapping with apiVersion, kind, metadata, spec",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {name: a}\n",
            "a.yaml:1: spec: the field is missing; it is required",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {name: a}\nspec: {}\nspecs: {}\n",
            "a.yaml:5: specs: unknown field; allowed: apiVersion, kind, metadata, spec",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {namespace: a}\nspec: {}\n",
            "a.yaml:3: metadata.name: the field is missing; it is required",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata:\n  name: Traffic\nspec: {}\n",
            "a.yaml:4: metadata.name: \"Traffic\" is not a name; allowed: 1 to 253 lower-case letters, digits \
             and, inside, `-` and `.`",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata:\n  name: a\n  namespace: a.b\nspec: {}\n",
            "a.yaml:5: metadata.namespace: \"a.b\" is not a name; allowed: 1 to 63 lower-case letters, digits \
             and, inside, `-`",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata:\n  name: 7\nspec: {}\n",
            "a.yaml:4: metadata.name: 7 does not fit; allowed: text (in quotes, where it looks like something \
             else)",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata:\n  name: a\n  label: {}\nspec: {}\n",
            "a.yaml:5: metadata.label: unknown field; allowed: annotations, labels, name, namespace",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: Stream\nmetadata: {name: a}\n\nspec:\n  shards: 1\n",
            "a.yaml:5: spec.topicFilter: the field is missing; it is required",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {name: a}\nspec:\n  store: {}\n",
            "a.yaml:5: spec.store: exactly one store is needed; allowed: fdb, embedded or remote",
        ),
    ] {
        assert_eq!(errors(text), [expected], "{text}");
    }
    let long =
        format!("apiVersion: weir.dev/v1alpha1\nkind: Stream\nmetadata: {{name: {}}}\n", "a".repeat(129));
    assert_eq!(
        errors(&format!("{long}spec: {{topicFilter: a}}")),
        ["a.yaml:3: metadata.name: the name has 129 bytes; allowed: up to 128, or a streamName of its own"]
    );
}

#[test]
fn what_is_no_yaml() {
    for (text, start) in [
        ("a: [1\nb: 2\n", "a.yaml:"),
        ("a: b: c\n", "a.yaml:1: not YAML: "),
        ("a:\n  b: 1\n c: 2\n", "a.yaml:3: not YAML: "),
        ("a: 'x\n", "a.yaml:"),
        ("a: *b\n", "a.yaml:1: not YAML: "),
        ("? [a]\n: b\n", "a.yaml:1: a field's name is not text; allowed: text"),
        ("a: !secret b\n", "a.yaml:1: the tag !secret is unknown; allowed: no tag"),
    ] {
        let errors = errors(text);
        assert!(errors.len() == 1 && errors[0].starts_with(start), "{text:?}: {errors:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), b"a: b\nc: \xff\n").unwrap();
    let errors = weir_manifest::load(dir.path()).unwrap_err();
    assert_eq!(errors[0].to_string(), "a.yaml:2: not UTF-8; allowed: UTF-8");
}

#[test]
fn all_mistakes_of_all_files_at_once_in_their_order() {
    let queue = |name: &str, spec: &str| {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        )
    };
    let first = format!("{}---\n{}", queue("a", "{shards: 0, key: 1}"), queue("b", "{}"));
    let second = format!("{}---\n{}---\n[\n", queue("c", "{ordering: fifo}"), queue("B", "{}"));
    let errors = load_files(&[("2.yaml", &second), ("1.yaml", &first)]).unwrap_err();
    let places: Vec<&str> = errors.iter().map(|error| error.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["1.yaml:4", "1.yaml:4", "2.yaml:4", "2.yaml:8", places[4]], "{errors:?}");
    assert!(errors[4].contains("not YAML: "), "{errors:?}");
}

#[test]
fn endless_mistakes_are_told_in_part() {
    let unknown: Vec<String> = (0..500).map(|n| format!("f{n}: 1")).collect();
    assert_eq!(queue_errors(&unknown.join("\n")).len(), 100);

    assert_eq!(errors(&"a: 1\n---\n".repeat(100_000)).len(), ERRORS_MAX);

    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let expected =
        format!("a.yaml:5: a field's name has {} bytes; allowed: up to {KEY_BYTES_MAX}", long.len());
    assert_eq!(queue_errors(&format!("{long}: 1")), [expected]);
}

#[test]
fn one_name_is_declared_once() {
    let object = |kind: &str, name: &str, spec: &str| {
        let metadata =
            format!("metadata:\n  name: {name}\n  namespace: {}\n", if name == "x" { "x" } else { "y" });
        format!("apiVersion: weir.dev/v1alpha1\nkind: {kind}\n{metadata}spec: {spec}\n")
    };
    let check = |first: &str, second: &str, expected: &[&str]| {
        let result = load_files(&[("1.yaml", first), ("2.yaml", &format!("# second\n{second}"))]);
        let errors = result.err().unwrap_or_default();
        assert_eq!(errors, expected);
    };
    let stream = "{topicFilter: a}";

    check(
        &object("MessageQueue", "a", "{}"),
        &object("MessageQueue", "a", "{}"),
        &["2.yaml:5: metadata.name: MessageQueue y/a is already declared at 1.yaml:1"],
    );
    check(
        &object("MessageQueue", "a", "{}"),
        &object("MessageQueue", "x", "\n  queueName: a"),
        &[
            "2.yaml:8: spec.queueName: $queue/a is already declared at 1.yaml:1; allowed: another spec.queueName",
        ],
    );
    check(
        &object("Stream", "a", "{topicFilter: a, streamName: x}"),
        &object("Stream", "x", stream),
        &[
            "2.yaml:5: metadata.name: $stream/x is already declared at 1.yaml:1; allowed: another spec.streamName",
        ],
    );
    check(&object("MessageQueue", "a", "{}"), &object("Stream", "a", stream), &[]);
}
