//! Which crate of the workspace uses which: the table in `docs/ARCHITECTURE.md` says what is allowed, the
//! manifests say what is. Here because every crate that runs in a broker stands on this one; it knows no other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const DOCUMENT: &str = "docs/ARCHITECTURE.md";
const HEADING: &str = "## Who may use whom";

/// What stays apart whatever the table says, over any number of steps: a change of mind belongs here too.
const NEVER: &[(&str, &str, &str)] = &[
    ("weir-session", "weir-core", "the connection turns what a session asks for into calls on the core"),
    ("weir-core", "weir-session", "the connection turns what the core gives into deliveries of a session"),
    ("weir-core", "weir-codec", "packets are converted at the edge"),
    ("weir-core", "weir-proto", "wire types are converted at the edge"),
    ("weir-core", "weir-operator-api", "manifests are converted at the edge"),
    ("weir-storage", "weir-topic", "the store knows nothing of MQTT"),
    ("weir-session", "weir-storage", "the session does no IO"),
    ("weir-operator", "weir-core", "the operator asks a broker over gRPC"),
    ("weir-e2e", "weir", "the harness knows brokers from outside only"),
    ("weir-e2e", "weir-core", "the harness knows brokers from outside only"),
];

type Edges = BTreeMap<String, BTreeSet<String>>;

#[test]
fn crates_use_only_what_the_architecture_allows() {
    let allowed = documented();
    let wrong: Vec<String> = found()
        .into_iter()
        .flat_map(|(user, used)| {
            let allowed = allowed.get(&user).cloned();
            used.into_iter().filter_map(move |used| match &allowed {
                Some(allowed) if allowed.contains(&used) => None,
                _ => Some(format!("{user} -> {used}")),
            })
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "not allowed: {}. A new edge is a commit of its own: add it to the table below `{HEADING}` in {DOCUMENT} \
         and say in the commit why it is needed, or do without it",
        wrong.join(", ")
    );
}

#[test]
fn the_architecture_names_every_crate_and_no_other() {
    let (documented, found) = (documented(), found());
    let documented: Vec<&String> = documented.keys().collect();
    let found: Vec<&String> = found.keys().collect();
    assert_eq!(
        documented, found,
        "left: {DOCUMENT}, table below `{HEADING}`; right: crates of the workspace"
    );
}

#[test]
fn some_crates_never_meet() {
    let found = found();
    for (user, used, why) in NEVER {
        assert!(found.contains_key(*user) && found.contains_key(*used), "{user}, {used}: no such crates");
        let path = path(&found, user, used);
        assert!(path.is_none(), "{}: {why}", path.unwrap_or_default().join(" -> "));
    }
}

#[test]
fn edges_lead_one_way() {
    let allowed = documented();
    for (user, used) in &allowed {
        for used in used {
            let back = path(&allowed, used, user);
            assert!(
                back.is_none(),
                "{DOCUMENT} allows a circle: {user} -> {}",
                back.unwrap_or_default().join(" -> ")
            );
        }
    }
}

#[test]
fn a_path_is_found_over_several_steps() {
    let edges = |pairs: &[(&str, &str)]| {
        let mut edges = Edges::new();
        for (user, used) in pairs {
            edges.entry((*user).to_owned()).or_default().insert((*used).to_owned());
        }
        edges
    };
    let chain = edges(&[("a", "b"), ("b", "c"), ("b", "a")]);
    assert_eq!(path(&chain, "a", "c"), Some(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]));
    assert_eq!(path(&chain, "c", "a"), None);
}

/// A way from `user` to `used`.
fn path(edges: &Edges, user: &str, used: &str) -> Option<Vec<String>> {
    let mut ways = vec![vec![user.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        let Some(last) = way.last() else { continue };
        if last == used {
            return Some(way);
        }
        if !seen.insert(last.clone()) {
            continue;
        }
        for next in edges.get(last).into_iter().flatten() {
            ways.push(way.iter().chain([next]).cloned().collect());
        }
    }
    None
}

/// What the document allows: the first and the last column of its table.
fn documented() -> Edges {
    let path = root().join(DOCUMENT);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, section) = text.split_once(HEADING).unwrap_or_else(|| panic!("{DOCUMENT} has no `{HEADING}`"));
    let rows =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let edges: Edges = rows
        .filter_map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
            let (first, last) = (cells.first()?, cells.last()?);
            Some((names(first).next()?, names(last).collect()))
        })
        .collect();
    assert!(!edges.is_empty(), "{DOCUMENT} has no table below `{HEADING}`");
    edges
}

/// The crates that a cell names: what stands between backticks.
fn names(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// What the manifests say, dependencies of tests and of build scripts included.
fn found() -> Edges {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo is there, or this would not run");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("cargo metadata lists packages");
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let crates: BTreeSet<String> = packages.iter().map(name).collect();
    let used = |package: &Value| {
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        dependencies.map(name).filter(|used| crates.contains(used)).collect()
    };
    packages.iter().map(|package| (name(package), used(package))).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
