//! What expressions evaluate to, what is refused, and that nothing that anybody writes does harm.

use proptest::prelude::*;

use super::*;
use crate::message::tests::full_message;

fn publisher() -> Publisher {
    Publisher { client_id: "c1".into(), username: None }
}

fn message(payload: impl Into<Bytes>) -> Message {
    Message {
        topic: weir_topic::TopicName::parse("a/dev1/c").unwrap(),
        payload: payload.into(),
        qos: 1,
        retain: false,
        ..full_message()
    }
}

/// Runs with little stack: a thread of a runtime has four times as much.
fn with_little_stack<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(512 * 1024).spawn_scoped(scope, run).unwrap();
        thread.join().unwrap()
    })
}

#[test]
fn values() {
    let check = |expression: &str, payload: &str, expected: Option<&str>| {
        let computed = Computed::parse(expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
        let key = computed.evaluate(&message(payload.to_owned()), &publisher());
        assert_eq!(key.as_deref(), expected.map(str::as_bytes), "{expression} of {payload}");
    };
    check("message.topic.split('/')[1]", "", Some("dev1"));
    check("message.topic.split('/')[7]", "", None);
    check("message.topic.substring(2, 6)", "", Some("dev1"));
    check("message.topic.substring(-1)", "", None);
    check("message.topic.charAt(2).upperAscii()", "", Some("D"));
    check("message.topic in ['a/dev1/c'] ? 'y' : 'n'", "", Some("y"));
    check("{'a/dev1/c': 'x'}[message.topic]", "", Some("x"));
    check("has(message.username) ? message.username : message.clientId", "", Some("c1"));
    check("message.username + ''", "", None);
    check("message.userProperties.k + 'z'", "", Some("wz"));
    check("message.userProperties[message.json.name]", "{\"name\": \"k\"}", Some("w"));
    check("message.qos", "", Some("1"));
    check("message.retain", "", Some("false"));
    check("message.payload", "pp", Some("pp"));
    check("string(message.payload) + '!'", "pp", Some("pp!"));
    check("b'\\xff'", "", None);
    check("message.qos / 0", "", None);
    check("message.json.id", "{\"id\": 5}", Some("5"));
    check("message.json.id", "{\"id\": 18446744073709551615}", Some("18446744073709551615"));
    check("message.json.id", "{\"id\": 1.5}", None);
    check("message.json.id", "{\"id\": null}", None);
    check("message.json.id", "{\"id\": [1]}", None);
    check("message.json.id", "{\"id\": {}}", None);
    check("message.json.id", "{}", None);
    check("message.json.id", "[]", None);
    check("message.json.id", "nope", None);
    check("message.json", "\"text\"", Some("text"));
    check("message.json.a.b + '-' + message.clientId", "{\"a\": {\"b\": \"x\"}}", Some("x-c1"));
    check("message.json.l[1]", "{\"l\": [\"a\", \"b\"]}", Some("b"));
    check("message.json.l[-1]", "{\"l\": [\"a\"]}", None);
    check("has(message.json.id) ? message.json.id : message.topic", "{}", Some("a/dev1/c"));
    for operation in ["+", "-", "*", "/", "%"] {
        let (least, other) =
            (i64::MIN, if operation == "+" { -1 } else { i64::from(operation != "-") * -2 + 1 });
        let payload = format!("[{least}, {other}]");
        check(&format!("message.json[0] {operation} message.json[1]"), &payload, None);
    }
    check("-message.json", &i64::MIN.to_string(), None);
    check("int(message.json)", "1e300", None);
}

#[test]
fn what_is_refused_and_why() {
    let check = |expression: &str, expected: &str| {
        let problem = Computed::parse(expression).unwrap_err();
        assert!(problem.contains(expected), "{expression}: {problem}");
    };
    check("", "it is not in CEL");
    check("1 +", "it is not in CEL");
    check("'a", "it is not in CEL");
    check("message", "use one of message.topic, message.clientId");
    check("topic", "`topic` is unknown; use message.topic");
    check("message.nope", "`message.nope` is unknown; use one of message.topic");
    check("message['topic']", "use one of message.topic");
    check("message.topic.replace('a', 'b')", "`replace` is not allowed; allowed are operators, `has`");
    check("[message.topic].join('a')", "`join` is not allowed");
    check("'%s'.format([message.topic])", "`format` is not allowed");
    check("message.topic.matches('a*')", "`matches` is not allowed");
    check("timestamp('2000-01-01T00:00:00Z')", "`timestamp` is not allowed");
    check("[1].map(x, x)", "they loop");
    check("message.json.l.exists(x, x == 1)", "they loop");
    check("Foo{a: 1}", "it makes a structure");
    check(&["message.topic"; 17].join("+"), "it mentions `message` 17 times; at most 16 are allowed");
    check(&["1"; 40].join("+"), "it is nested more than 32 deep");
    check(&"[".repeat(129), "occur 129 times in it; at most 128 are allowed");
    check(&" ".repeat(4097), "it has 4097 bytes; at most 4096 are allowed");
    assert!(Computed::parse(&["message.topic"; 16].join("+")).is_ok());
    assert!(Computed::parse("'((([[[{{{!!!---???' + message.topic").is_ok());
}

#[test]
fn hostile_expressions_need_little_stack() {
    let many = |piece: &str| piece.repeat((EXPRESSION_BYTES_MAX - 1) / piece.len());
    let around = |open: &str, n: usize, close: &str| format!("{}1{}", open.repeat(n), close.repeat(n));
    let mut expressions: Vec<String> = NESTING_CHARACTERS.iter().map(|c| many(&c.to_string())).collect();
    for piece in
        ["!-", "a?b:", "-(", "a+", "a*", "a==", "a||", "a&&", "a.", "'", "\"", ",", "$", "\u{e9}", "a in "]
    {
        expressions.push(many(piece));
        expressions.push(format!("{}1", many(piece)));
    }
    for n in [31, 32, 33, 42, 64, 128] {
        for (open, close) in [
            ("(", ")"),
            ("[", "]"),
            ("{1:", "}"),
            ("size(", ")"),
            ("a[", "]"),
            ("a.a(", ")"),
            ("1?", ":1"),
            ("1?1:", ""),
            ("!", ""),
            ("-", ""),
            ("!-", ""),
            ("", ".a()"),
            ("", "[1]"),
            ("[-(", ")]"),
            ("[1].all(x,", ")"),
            ("-a.b(", ").c"),
            ("')' + (", ")"),
            ("r'\\' + (", ")"),
        ] {
            expressions.push(around(open, n, close));
        }
    }
    expressions.push(format!("a{}", ".a".repeat(2000)));
    expressions.push(format!("[{}]", ["1"; 2000].join(",")));
    expressions.push(format!("{{{}}}", ["1:1"; 1000].join(",")));
    for expression in expressions {
        with_little_stack(|| {
            if let Ok(computed) = Computed::parse(&expression) {
                computed.evaluate(&message(""), &publisher());
            }
        });
    }
}

#[test]
fn the_deepest_expressions_and_payloads_need_little_stack() {
    let calls = format!("{}message.json{}", "string(".repeat(30), ")".repeat(30));
    let indexes = format!("message.json{}", "[0]".repeat(30));
    let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
    with_little_stack(|| {
        let evaluate = |expression: &str, payload: &str| {
            let computed = Computed::parse(expression).unwrap();
            computed.evaluate(&message(payload.to_owned()), &publisher())
        };
        assert_eq!(evaluate(&calls, "7").as_deref(), Some(&b"7"[..]));
        assert_eq!(evaluate(&indexes, &deep), None);
        assert_eq!(
            evaluate("message.json == message.json ? 'same' : ''", &deep).as_deref(),
            Some(&b"same"[..])
        );
        assert_eq!(evaluate("message.json", &"[".repeat(60_000)), None);
    });
}

#[test]
fn large_payloads_are_not_read() {
    let payload = |len: usize| format!("\"{}\"", "x".repeat(len - 2));
    let size = Computed::parse("string(size(message.payload)) + message.json.substring(0, 1)").unwrap();
    let read = size.evaluate(&message(payload(PAYLOAD_BYTES_MAX)), &publisher());
    assert_eq!(read.as_deref(), Some(&b"65536x"[..]));
    assert_eq!(size.evaluate(&message(payload(PAYLOAD_BYTES_MAX + 1)), &publisher()), None);
    let has = Computed::parse("has(message.json) || has(message.payload)").unwrap();
    let read = has.evaluate(&message(payload(PAYLOAD_BYTES_MAX + 1)), &publisher());
    assert_eq!(read.as_deref(), Some(&b"false"[..]));
}

const TOKENS: [&str; 44] = [
    "message",
    "message.json",
    "message.topic",
    "message.payload",
    "message.qos",
    ".",
    "a",
    "json",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    ":",
    "?",
    ",",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "==",
    "<",
    "in ",
    "&&",
    "||",
    "'a'",
    "b'\\xff'",
    "\"",
    "'''",
    "r'",
    "\\",
    "0",
    "1",
    "-9223372036854775808",
    "18446744073709551615u",
    "1e308",
    "has",
    ".split",
    ".substring",
    "int",
    "// \n",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_soup_of_tokens_does_harm(
        tokens in prop::collection::vec(prop::sample::select(&TOKENS[..]), 0..24),
        payload in prop::sample::select(&["", "1", "[1,-9223372036854775808]", "{\"a\":{\"a\":\"x\"}}", "\"a\\u0000\""][..]),
    ) {
        if let Ok(computed) = Computed::parse(&tokens.concat()) {
            computed.evaluate(&message(payload), &publisher());
        }
    }

    #[test]
    fn no_text_does_harm(text in "\\PC{0,64}") {
        let _parsed = Computed::parse(&text);
    }

    /// Operators over values of every kind, which a soup of tokens seldom is.
    #[test]
    fn operators_take_any_values(
        left in prop::sample::select(&OPERANDS[..]),
        operator in prop::sample::select(&["+", "-", "*", "/", "%", "==", "!=", "<", ">=", "in", "&&", "||"][..]),
        right in prop::sample::select(&OPERANDS[..]),
        function in prop::sample::select(&["", "string", "int", "uint", "double", "bytes", "bool", "size", "!", "-"][..]),
        payload in prop::sample::select(&["", "1", "-9223372036854775808", "[1,2]", "{\"a\":1}", "\"\u{e9}\""][..]),
    ) {
        let expression = format!("{function}({left} {operator} {right})");
        let computed = Computed::parse(&expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
        computed.evaluate(&message(payload), &publisher());
    }
}

const OPERANDS: [&str; 19] = [
    "message.json",
    "message.payload",
    "message.topic",
    "message.qos",
    "message.retain",
    "message.userProperties",
    "0",
    "-1",
    "1u",
    "-9223372036854775808",
    "9223372036854775807",
    "1e308",
    "''",
    "'\u{e9}'.substring(0, 1)",
    "message.topic.split('')",
    "[message.json]",
    "{1: 2}",
    "null",
    "'a'.charAt(message.json)",
];
