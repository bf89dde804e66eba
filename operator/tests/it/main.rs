//! The command `weir-operator` from outside.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const REGENERATE: &str = "cargo run -p weir-operator -- crds --out crds";

fn operator() -> Command {
    Command::new(env!("CARGO_BIN_EXE_weir-operator"))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| PathBuf::from(entry.unwrap().file_name()))
        .filter(|name| name.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

#[test]
fn committed_crds_are_the_generated_ones() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
    let generated = tempfile::tempdir().unwrap();
    let out = generated.path().join("new/folder");
    assert!(operator().args(["crds", "--out"]).arg(&out).status().unwrap().success());

    assert_eq!(files(&committed), files(&out), "regenerate with: {REGENERATE}");
    assert_eq!(files(&out).len(), 3);
    for file in files(&out) {
        let same = fs::read(committed.join(&file)).unwrap() == fs::read(out.join(&file)).unwrap();
        assert!(same, "crds/{} is out of date; regenerate with: {REGENERATE}", file.display());
    }
}

#[test]
fn crds_go_to_standard_output() {
    let output = operator().arg("crds").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let documents: Vec<&str> = text.split("---\n").skip(1).collect();
    assert_eq!(documents.len(), 3);
    for (document, name) in
        documents.iter().zip(["brokers.weir.dev", "messagequeues.weir.dev", "streams.weir.dev"])
    {
        assert!(document.contains(&format!("  name: {name}\n")), "{document}");
    }
}
