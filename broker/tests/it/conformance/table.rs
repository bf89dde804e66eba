//! The document that people read.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::statements::{self, Id, State, Statement, Version};
use super::{Evidence, REGENERATE};

const ABOUT: &str = "\
# MQTT conformance

Every normative statement of MQTT 5.0 and 3.1.1, in words of our own, and what Weir makes of it. The ids are those of
the specifications: `3.1.2-4` is `[MQTT-3.1.2-4]`.

* **holds**: these tests fail if it does not. Where there is an exception, it is said.
* **not ours**: it asks nothing of a server, or nothing of one that can do what Weir can.
* **deviates**: what Weir does instead, and why.
";

/// A version without numbered statements: what it has else than 3.1.1.
const MQTT_3_1: &str = "
## MQTT 3.1

Protocol name `MQIsdp`, level 3, is taken and treated as 3.1.1, except that

* CONNACK does not say whether a session is present: 3.1 has no such bit;
* a client identifier must be there, with a clean session too; one of more than 23 characters is taken;
* user name and password may be missing although their flags are set, and bits of CONNECT that 3.1 calls unused are
  not looked at;
* flags of the fixed header are not looked at outside of PUBLISH, because clients set DUP on whatever they send again;
* SUBACK has no word for a refusal, so that a filter which is refused is answered with QoS 0, and the refusal logged.

Any other pair of name and level is refused: with CONNACK 0x01 up to level 4 and for every level of `MQIsdp`, with 0x84
in the form of MQTT 5 above, and without an answer if the name is no name of MQTT.

Bridges that set the highest bit of the level (0x83 with `MQIsdp`, 0x84 with `MQTT`, as mosquitto's do) are taken, and
get what an MQTT 5 client would ask for: their subscriptions are No Local and Retain As Published, except to filters
that begin with `$`.

Tests: [`v31.rs`](../broker/tests/it/broker/v311/v31.rs), [`vectors_v31.rs`](../broker/codec/tests/it/vectors_v31.rs).
";

/// The whole document.
pub(super) fn document(evidence: &Evidence) -> String {
    let mut text = ABOUT.to_owned();
    write!(text, "\nGenerated from the tests and `broker/tests/it/conformance`: `{REGENERATE}`.\n").unwrap();
    for version in Version::ALL {
        let statements = statements::of(version);
        write!(text, "\n## {version}\n\n{}\n", summary(&statements)).unwrap();
        let mut topic = None;
        for (id, statement) in &statements {
            if topic != Some(id.topic()) {
                topic = Some(id.topic());
                write!(text, "\n### {}\n\n| id | what it asks | |\n|---|---|---|\n", heading(*id, version))
                    .unwrap();
            }
            row(&mut text, version, *id, statement, evidence);
        }
    }
    text + MQTT_3_1
}

fn summary(statements: &BTreeMap<Id, Statement>) -> String {
    let count = |wanted: fn(State<'_>) -> bool| {
        statements.values().filter(|statement| statement.state().is_ok_and(wanted)).count()
    };
    let holds = count(|state| matches!(state, State::Holds(_)));
    let not_ours = count(|state| matches!(state, State::NotServer(_)));
    let deviates = count(|state| matches!(state, State::Deviates(_)));
    let all = statements.len();
    format!("{all} statements: {holds} hold, {not_ours} are not ours, {deviates} deviate.")
}

fn row(text: &mut String, version: Version, id: Id, statement: &Statement, evidence: &Evidence) {
    let verdict = match statement.state() {
        Ok(State::Holds(except)) => {
            let proofs = evidence.get(&(version, id)).into_iter().flatten();
            let tests: Vec<String> =
                proofs.map(|proof| format!("[`{}`](../{})", proof.test, proof.path)).collect();
            let except = except.map(|except| format!("**Except**: {except}"));
            let proofs = tests.join(", ");
            [format!("**holds**: {proofs}")].into_iter().chain(except).collect::<Vec<_>>().join(". ")
        }
        Ok(State::NotServer(why)) => format!("**not ours**: {why}"),
        Ok(State::Deviates(why)) => format!("**deviates**: {why}"),
        Err(why) => why.to_owned(),
    };
    writeln!(text, "| {id} | {} | {verdict} |", statement.says).unwrap();
}

fn heading(id: Id, version: Version) -> String {
    let (chapter, section) = id.topic();
    let about = match (chapter, section) {
        (1, _) => "data representation",
        (2, _) => "packet format",
        (3, 1) => "CONNECT",
        (3, 2) => "CONNACK",
        (3, 3) => "PUBLISH",
        (3, 4) => "PUBACK",
        (3, 5) => "PUBREC",
        (3, 6) => "PUBREL",
        (3, 7) => "PUBCOMP",
        (3, 8) => "SUBSCRIBE",
        (3, 9) => "SUBACK",
        (3, 10) => "UNSUBSCRIBE",
        (3, 11) => "UNSUBACK",
        (3, 12) => "PINGREQ",
        (3, 14) => "DISCONNECT",
        (3, 15) => "AUTH",
        (4, 1) => "session state",
        (4, 2) => "transport",
        (4, 3) => "quality of service",
        (4, 4) => "retry",
        (4, 5) => "receipt",
        (4, 6) => "order",
        (4, 7) => "topics",
        (4, 8) if version == Version::V5 => "subscriptions",
        (4, 9) => "flow control",
        (4, 12) => "authentication",
        (4, 8 | 13) => "errors",
        (6, _) => "WebSocket",
        (7, _) => "conformance",
        _ => panic!("{id} stands in a section without a heading here"),
    };
    format!("{chapter}.{section} {about}")
}
