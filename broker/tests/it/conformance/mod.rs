//! What the tests prove of the MQTT specifications. `statements_*.toml` list every normative statement; a comment
//! directly over a test names those that it proves:
//!
//! ```text
//! // Conformance v5: 3.1.2-4, 3.2.2-2
//! // Conformance v311: 3.1.2-6
//! #[test]
//! fn a_clean_start_forgets() {
//! ```
//!
//! Here both are joined to `docs/mqtt-conformance.md`. A statement without tests needs a reason, and one with tests
//! must not have any. Knows nothing of the broker: it reads sources.

mod evidence;
mod statements;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use evidence::Proof;
use statements::{Id, State, Version};

const DOCUMENT: &str = "docs/mqtt-conformance.md";
const REGENERATE: &str = "WEIR_REGENERATE=1 cargo test -p weir --test it conformance";

/// The tests that prove each statement.
type Evidence = BTreeMap<(Version, Id), BTreeSet<Proof>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn evidence() -> Evidence {
    let (found, mistakes) = evidence::found_below(&root());
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    found
}

#[test]
fn every_statement_has_tests_or_a_reason() {
    let evidence = evidence();
    let mut wrong = Vec::new();
    for version in Version::ALL {
        let statements = statements::of(version);
        for (id, statement) in &statements {
            let tests = evidence.contains_key(&(version, *id));
            match (statement.state(), tests) {
                (Ok(State::Holds(_)), true) | (Ok(State::NotServer(_) | State::Deviates(_)), false) => {}
                (Ok(State::Holds(_)), false) => {
                    wrong.push(format!("{version} {id}: neither tests nor a reason"))
                }
                (Ok(_), true) => wrong.push(format!("{version} {id}: tests and a reason for having none")),
                (Err(why), _) => wrong.push(format!("{version} {id}: {why}")),
            }
        }
        let unknown = evidence.iter().filter(|((v, id), _)| *v == version && !statements.contains_key(id));
        wrong.extend(unknown.map(|((_, id), tests)| format!("{version} {id}: no such statement: {tests:?}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_document_is_the_generated_one() {
    let path = root().join(DOCUMENT);
    let generated = table::document(&evidence());
    if std::env::var_os("WEIR_REGENERATE").is_some() {
        fs::write(path, generated).unwrap();
        return;
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert!(committed == generated, "{DOCUMENT} is out of date; regenerate with: {REGENERATE}");
}
