//! Rules by example: who is meant, what is meant, mistakes in files, explanations.

use weir_auth::{Client, Request, Rules};
use weir_topic::{TopicFilter, TopicName};

const ANNA: Client<'static> =
    Client { user: Some("anna"), client_id: "c1", address: None, certificate: false };

fn rules(text: &str) -> Rules {
    Rules::parse(text).unwrap()
}

fn rule(body: &str) -> Rules {
    rules(&format!("[[rules]]\n{body}"))
}

fn publish(rules: &Rules, client: &Client<'_>, topic: &'static str) -> bool {
    let topic = TopicName::parse(topic).unwrap();
    rules.decide(client, &Request::Publish { topic: &topic, retain: false, will: false }).is_allowed()
}

fn subscribe(rules: &Rules, client: &Client<'_>, filter: &'static str) -> bool {
    let filter = TopicFilter::parse(filter).unwrap();
    rules.decide(client, &Request::Subscribe { filter: &filter }).is_allowed()
}

#[test]
fn who_is_meant() {
    let anonymous = Client { user: None, ..ANNA };
    let near = Client { address: Some("10.1.2.3".parse().unwrap()), ..ANNA };
    let certified = Client { certificate: true, ..ANNA };
    let other_id = Client { client_id: "d1", ..ANNA };
    for (who, meant, others) in [
        (r#"users = ["anna"]"#, ANNA, anonymous),
        (r#"users = ["an*"]"#, ANNA, Client { user: Some("bob"), ..ANNA }),
        (r#"users = ["*"]"#, ANNA, anonymous),
        (r#"clients = ["c*", "e1"]"#, anonymous, other_id),
        (r#"addresses = ["10.0.0.0/8"]"#, near, ANNA),
        ("anonymous = true", anonymous, ANNA),
        ("anonymous = false", ANNA, anonymous),
        ("certificate = true", certified, ANNA),
        (
            r#"users = ["anna"]
            clients = ["c1"]"#,
            ANNA,
            other_id,
        ),
    ] {
        let rules = rule(&format!("allow = [\"publish\"]\ntopics = [\"#\"]\n{who}"));
        assert!(publish(&rules, &meant, "a"), "{who}");
        assert!(!publish(&rules, &others, "a"), "{who}");
    }
}

#[test]
fn the_first_rule_that_applies_decides() {
    let rules = rules(
        r##"
        [[rules]]
        allow = ["subscribe"]
        topics = ["a/b"]
        [[rules]]
        deny = ["publish", "subscribe"]
        topics = ["a/#"]
        [[rules]]
        allow = ["publish", "subscribe"]
        topics = ["#"]
        "##,
    );
    assert!(subscribe(&rules, &ANNA, "a/b"));
    assert!(!publish(&rules, &ANNA, "a/b"), "the first rule is for subscribe");
    for denied in ["a/#", "a/+", "#", "+/b", "+", "+/#", "a"] {
        assert!(!subscribe(&rules, &ANNA, denied), "{denied} has topics of a/#");
    }
    assert!(subscribe(&rules, &ANNA, "b/#") && publish(&rules, &ANNA, "b"));
    assert!(!publish(&rules, &ANNA, "$SYS/x"), "# does not match what begins with $");
}

#[test]
fn placeholders_stand_for_one_level() {
    let own = rule("allow = [\"publish\", \"subscribe\"]\ntopics = [\"home/%u/#\", \"by-id/%c/x\"]");
    assert!(publish(&own, &ANNA, "home/anna/door") && subscribe(&own, &ANNA, "home/anna/+"));
    assert!(publish(&own, &ANNA, "by-id/c1/x") && !publish(&own, &ANNA, "by-id/c2/x"));
    assert!(!publish(&own, &ANNA, "home/bob/door") && !subscribe(&own, &ANNA, "home/+/door"));
    for name in ["+", "#", "a/b", "", "an+na"] {
        let tricky = Client { user: Some(name), client_id: name, ..ANNA };
        for filter in ["home/anna/door", "home/a/b", "home//x", "home/+/x"] {
            assert!(!subscribe(&own, &tricky, filter), "{name} {filter}");
        }
    }
    let first = rule("allow = [\"subscribe\"]\ntopics = [\"%u/#\"]");
    assert!(!subscribe(&first, &Client { user: Some("$SYS"), ..ANNA }, "$SYS/#"));
    assert!(subscribe(&first, &ANNA, "anna/#"));
}

#[test]
fn a_name_that_cannot_be_put_in_does_not_escape_a_denial() {
    let rules = rules(
        r##"
        [[rules]]
        deny = ["publish"]
        topics = ["home/%c/secret"]
        [[rules]]
        allow = ["publish"]
        topics = ["#"]
        "##,
    );
    assert!(!publish(&rules, &ANNA, "home/c1/secret") && publish(&rules, &ANNA, "home/c2/secret"));
    for name in ["a/b", "+", "#", "c+", ""] {
        let tricky = Client { client_id: name, ..ANNA };
        for topic in ["home/a/b/secret", "home/c1/secret", "home/x"] {
            assert!(!publish(&rules, &tricky, topic), "{name} {topic}: everything from the placeholder on");
        }
        assert!(publish(&rules, &tricky, "elsewhere"));
    }
}

#[test]
fn queues_streams_retained_and_wills() {
    let rules = rules(
        r##"
        [[rules]]
        deny = ["publish"]
        topics = ["config/#"]
        retain = true
        [[rules]]
        deny = ["publish"]
        topics = ["status/#"]
        will = true
        [[rules]]
        allow = ["publish"]
        topics = ["#"]
        [[rules]]
        allow = ["consume"]
        names = ["orders", "telemetry-*"]
        [[rules]]
        allow = ["create"]
        names = ["auto-*"]
        topics = ["jobs/#"]
        "##,
    );
    let publish = |topic: &'static str, retain, will| {
        let topic = TopicName::parse(topic).unwrap();
        rules.decide(&ANNA, &Request::Publish { topic: &topic, retain, will }).is_allowed()
    };
    assert!(publish("config/x", false, false) && !publish("config/x", true, false));
    assert!(publish("status/x", true, false) && !publish("status/x", false, true));
    let consume = |name| rules.decide(&ANNA, &Request::Consume { name }).is_allowed();
    assert!(consume("orders") && consume("telemetry-1") && !consume("orders-2") && !consume("telemetry"));
    let create = |name, filter: &'static str| {
        let filter = TopicFilter::parse(filter).unwrap();
        rules.decide(&ANNA, &Request::Create { name, filter: &filter }).is_allowed()
    };
    assert!(create("auto-1", "jobs/+") && !create("own", "jobs/+") && !create("auto-1", "#"));
}

#[test]
fn mistakes_have_their_line() {
    for (text, line, part) in [
        ("", 0, "there is no rule"),
        ("rules = 1", 1, "allowed: one table"),
        ("[[rule]]\n", 1, "unknown key `rule`"),
        ("[[rules]]\nallow = [\"publish\"", 2, "array"),
        ("\n[[rules]]\ntopics = [\"a\"]", 2, "either `allow` or `deny`"),
        ("[[rules]]\nallow = [\"publish\"]\ndeny = [\"publish\"]\ntopics = [\"a\"]", 1, "either"),
        (
            "[[rules]]\nallow = [\"read\"]\ntopics = [\"a\"]",
            2,
            "allowed: connect, publish, subscribe, consume, create",
        ),
        ("[[rules]]\nallow = [\"publish\"]\ntopics = [\"a/#/b\"]", 3, "no topic filter"),
        ("[[rules]]\nallow = [\"subscribe\"]\ntopics = [\"$queue/x\"]", 3, "names"),
        ("[[rules]]\nallow = [\"publish\"]\ntopic = [\"a\"]\ntopics = [\"a\"]", 3, "unknown key"),
        ("[[rules]]\nallow = [\"publish\"]", 1, "need `topics`"),
        ("[[rules]]\nallow = [\"consume\"]", 1, "needs `names`"),
        ("[[rules]]\nallow = [\"consume\"]\nnames = [\"a\"]\ntopics = [\"a\"]", 1, "`topics` is for"),
        ("[[rules]]\nallow = [\"publish\"]\ntopics = [\"a\"]\nnames = [\"a\"]", 1, "`names` is for"),
        (
            "[[rules]]\nallow = [\"publish\", \"subscribe\"]\ntopics = [\"a\"]\nretain = true",
            1,
            "publish alone",
        ),
        (
            "[[rules]]\nallow = [\"publish\"]\ntopics = [\"a\"]\nusers = [\"a\"]\nanonymous = true",
            1,
            "two rules",
        ),
        ("[[rules]]\nallow = [\"publish\"]\ntopics = [\"a\"]\naddresses = [\"10.0.0.1/8\"]", 4, "10.0.0.0/8"),
        ("[[rules]]\nallow = [\"publish\"]\ntopics = []", 3, "not empty"),
        ("[[rules]]\nallow = [\"publish\"]\ntopics = [\"a\"]\nusers = [\"a*b\"]", 4, "`a*b` is not allowed"),
        ("[[rules]]\nallow = [\"publish\"]\ntopics = [\"a\"]\nanonymous = 1", 4, "true, false"),
    ] {
        let problems = Rules::parse(text).unwrap_err();
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        assert_eq!(problems[0].line, line, "{text}: {problems:?}");
        assert!(problems[0].message.contains(part), "{text}: {problems:?}");
    }
}

#[test]
fn rules_may_stand_in_the_configuration() {
    let text = "listen = []\n[auth]\n[[auth.rules]]\nallow = [\"publish\"]\ntopics = [\"a\"]\n";
    let rules = Rules::parse_configuration(text).unwrap().unwrap();
    assert_eq!((rules.all().len(), rules.all()[0].line), (1, 3));
    assert_eq!(Rules::parse_configuration("[auth]\nusersFile = \"x\"\n"), Ok(None));
    assert!(
        Rules::parse_configuration("[auth]\nrules = []\n").is_err(),
        "an empty list is no restriction by mistake"
    );
}

#[test]
fn explanations_name_the_rule_and_pass_the_others() {
    let rules = rules(
        r##"
[[rules]]
deny = ["subscribe"]
users = ["bob"]
topics = ["#"]

[[rules]]
allow = ["subscribe"]
topics = ["home/%u/#"]

[[rules]]
allow = ["subscribe"]
topics = ["news/+"]
"##,
    );
    let explain = |client: &Client<'_>, filter: &'static str| {
        let filter = TopicFilter::parse(filter).unwrap();
        rules.explain(client, &Request::Subscribe { filter: &filter }).to_string()
    };
    assert_eq!(
        explain(&ANNA, "news/a"),
        "allowed: the rule in line 11 allows it to subscribe to `news/a`: `news/+` covers `news/a`\n  line 11: allow = \
         [\"subscribe\"], topics = [\"news/+\"]\nrules that do not apply:\n  line 2: it is for other users\n    deny = \
         [\"subscribe\"], users = [\"bob\"], topics = [\"#\"]\n  line 7: it speaks of other topics\n    allow = \
         [\"subscribe\"], topics = [\"home/%u/#\"]\n"
    );
    let part = explain(&ANNA, "news/#");
    assert!(part.starts_with("denied: no rule allows it to subscribe to `news/#`"), "{part}");
    assert!(part.contains("line 11: it allows only some of the topics"), "{part}");
    let bob = Client { user: Some("bob"), ..ANNA };
    assert!(explain(&bob, "news/a").contains("line 2 denies it"));
    let tricky = Client { user: Some("a/b"), ..ANNA };
    assert!(
        explain(&tricky, "home/a/b").contains("line 7: the name of the client cannot stand for %u or %c")
    );
}

#[test]
fn rules_are_bounded() {
    let rule = "[[rules]]\nallow = [\"consume\"]\nnames = [\"a\"]\n";
    assert_eq!(rules(&rule.repeat(10_000)).all().len(), 10_000);
    let problems = Rules::parse(&rule.repeat(10_001)).unwrap_err();
    assert_eq!(problems[0].message, "10001 rules; allowed: 10000");
}

#[test]
fn who_may_have_a_client_id() {
    let may = |rules: &Rules, user: Option<&'static str>, client_id: &'static str| {
        rules.decide(&Client { user, client_id, ..ANNA }, &Request::Connect).is_allowed()
    };
    let silent = rule("allow = [\"publish\"]\ntopics = [\"a\"]");
    assert!(may(&silent, None, "x"), "rules that do not speak of it leave it to everybody");
    let own = rule("allow = [\"connect\"]\nclients = [\"%u\", \"%u-*\", \"dev-%u\"]");
    for (user, client_id, expected) in [
        (Some("anna"), "anna", true),
        (Some("anna"), "anna-1", true),
        (Some("anna"), "dev-anna", true),
        (Some("anna"), "annab", false),
        (Some("anna"), "dev-anna-1", false),
        (Some("anna"), "bob", false),
        (Some("a"), "anna", false),
        (None, "", false),
        (None, "-1", false),
        (Some(""), "-1", false),
    ] {
        assert_eq!(may(&own, user, client_id), expected, "{user:?} {client_id}");
    }
    let denied =
        rules("[[rules]]\ndeny = [\"connect\"]\nclients = [\"x-%u\"]\n[[rules]]\nallow = [\"connect\"]\n");
    assert!(!may(&denied, Some("anna"), "x-anna") && may(&denied, Some("anna"), "x-bob"));
    assert!(!may(&denied, None, "x-bob") && may(&denied, None, "y"), "no escape by having no name");
    let said = own.explain(&Client { client_id: "bob", ..ANNA }, &Request::Connect).to_string();
    assert!(said.starts_with("denied: no rule allows it to connect with this client id"), "{said}");
    let said = silent.explain(&ANNA, &Request::Connect).to_string();
    assert!(said.starts_with("allowed: no rule says who may connect"), "{said}");
}
