//! Which tests say that they prove which statements, read from the sources of all crates.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Evidence;
use super::statements::{Id, Version};

const MARKER: &str = "// Conformance ";

/// A test that proves something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Proof {
    /// From the root of the repository.
    pub(super) path: String,
    pub(super) test: String,
}

/// The evidence in every source below `root`, and what is wrong with it.
pub(super) fn found_below(root: &Path) -> (Evidence, Vec<String>) {
    let (mut found, mut mistakes) = (BTreeMap::new(), Vec::new());
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap_or_default();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                let from_root = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                read(&from_root, &fs::read_to_string(&path).unwrap(), &mut found, &mut mistakes);
            }
        }
    }
    (found, mistakes)
}

/// Adds the evidence of one file.
fn read(path: &str, source: &str, found: &mut Evidence, mistakes: &mut Vec<String>) {
    let mut marked: Vec<(Version, Id)> = Vec::new();
    let mut is_test = false;
    for (line, number) in source.lines().map(str::trim).zip(1..) {
        if let Some(marker) = line.strip_prefix(MARKER) {
            match parse(marker) {
                Ok(statements) => marked.extend(statements),
                Err(why) => mistakes.push(format!("{path}:{number}: {why}")),
            }
        } else if line.starts_with("#[") {
            is_test |=
                ["#[test]", "#[tokio::test]", "#[tokio::test("].iter().any(|test| line.starts_with(test));
        } else if !line.starts_with("//") {
            if !marked.is_empty() {
                match function(line).filter(|_| is_test) {
                    Some(test) => {
                        let proof = Proof { path: path.to_owned(), test: test.to_owned() };
                        for statement in marked.drain(..) {
                            found.entry(statement).or_default().insert(proof.clone());
                        }
                    }
                    None => mistakes.push(format!("{path}:{number}: the marker above is not over a test")),
                }
            }
            marked.clear();
            is_test = false;
        }
    }
    if !marked.is_empty() {
        mistakes.push(format!("{path}: a marker at the end is not over a test"));
    }
}

/// `v5: 3.1.2-4, 3.2.2-2`.
fn parse(marker: &str) -> Result<Vec<(Version, Id)>, String> {
    let (version, ids) = marker.split_once(": ").ok_or("a marker looks like `Conformance v5: 3.1.2-4`")?;
    let version = Version::parse(version).ok_or_else(|| format!("{version:?} is neither v5 nor v311"))?;
    ids.split(", ").map(|id| Ok((version, id.parse()?))).collect()
}

/// The name of the function that this line begins.
fn function(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
    rest.split_once('(').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: &str) -> (Vec<String>, Vec<String>) {
        let (mut found, mut mistakes) = (BTreeMap::new(), Vec::new());
        read("a.rs", source, &mut found, &mut mistakes);
        let found = found.iter().flat_map(|((version, id), proofs)| {
            proofs.iter().map(move |proof| format!("{version} {id} {}", proof.test))
        });
        (found.collect(), mistakes)
    }

    #[test]
    fn markers_are_over_tests() {
        // In pieces, so that this file has no marker here.
        let source = ["// Conf", "ormance v5: 3.1.2-4, 4.2-1\n// Conf", "ormance v311: 1.5.3-1\n"].concat();
        let test =
            format!("{source}// Why.\n#[tokio::test(start_paused = true)]\n    async fn a_test() {{\n");
        let found = ["MQTT 5.0 3.1.2-4 a_test", "MQTT 5.0 4.2-1 a_test", "MQTT 3.1.1 1.5.3-1 a_test"];
        assert_eq!(of(&test), (found.map(str::to_owned).to_vec(), Vec::new()));
        for no_test in ["fn a_test() {\n", "\n#[test]\nfn a_test() {\n", "#[test]\nstruct A;\n", ""] {
            let (found, mistakes) = of(&(source.clone() + no_test));
            assert!(found.is_empty() && mistakes.len() == 1, "{no_test}: {found:?} {mistakes:?}");
        }
    }

    #[test]
    fn what_a_marker_says_is_checked() {
        for bad in ["v4: 3.1.2-4", "v5 3.1.2-4", "v5: 3.1.2", "v5: 3.1.2-4,3.1.2-5"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
