//! One queue by the text of its spec.

use weir_manifest::{parse_file, parse_queue_spec};

fn problem(spec: &str) -> String {
    let errors = parse_queue_spec("default", "q", spec).unwrap_err();
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_spec_is_yaml_or_json_or_nothing() {
    for spec in ["topicFilter: a/#\nshards: 2\n", "{\"topicFilter\": \"a/#\", \"shards\": 2}"] {
        let queue = parse_queue_spec("city", "q", spec).unwrap();
        assert_eq!((queue.queue_name(), queue.spec.settings.shards), ("q", 2));
        assert_eq!(queue.metadata.namespace.as_deref(), Some("city"));
    }
    for spec in ["", "{}", "null", "# nothing"] {
        let queue = parse_queue_spec("default", "q", spec).unwrap();
        assert_eq!((queue.spec.topic_filter, queue.spec.settings.shards), (None, 1));
    }
}

#[test]
fn mistakes_say_where() {
    assert!(problem("topicFilter: a\nshards: 99\n").starts_with("spec:2: spec.shards: "));
    assert!(problem("shard: 1").contains("spec.shard: unknown field"));
    assert!(problem("a: [").starts_with("spec:2: not YAML: "));
    assert!(problem("{}\n---\n{}").contains("more than one document"));
    assert!(problem("just text").contains("spec"));
    assert!(!parse_queue_spec("Not a namespace", "q", "").unwrap_err().is_empty());
}

#[test]
fn a_file_is_judged_as_in_a_folder() {
    let queue = "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: { name: q }\nspec: {}\n";
    assert_eq!(parse_file("f.yaml", queue.as_bytes()).unwrap().queues.len(), 1);
    let errors = parse_file("f.yaml", b"kind: MessageQueue").unwrap_err();
    assert!(errors[0].to_string().starts_with("f.yaml:1"), "{errors:?}");
}
