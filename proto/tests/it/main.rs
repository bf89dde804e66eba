//! The committed code is what the `.proto` files say.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

const REGENERATE: &str = "WEIR_REGENERATE=1 cargo test -p weir-proto";

const CONTRACTS: [&str; 5] = [
    "externalscaler/externalscaler.proto",
    "weir/admin/v1/admin.proto",
    "weir/admin/v1/declared.proto",
    "weir/peer/v1/peer.proto",
    "weir/store/v1/store.proto",
];

fn generate(out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(CONTRACTS.map(|file| root.join(file)), [root]).unwrap();
    tonic_prost_build::configure().bytes(".").out_dir(out).compile_fds(files).unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| PathBuf::from(entry.unwrap().file_name())).collect();
    files.sort();
    files
}

#[test]
fn committed_code_is_the_generated_one() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    if std::env::var_os("WEIR_REGENERATE").is_some() {
        generate(&committed);
        return;
    }
    let generated = tempfile::tempdir().unwrap();
    generate(generated.path());
    assert_eq!(files(&committed), files(generated.path()), "regenerate with: {REGENERATE}");
    for file in files(generated.path()) {
        let same =
            fs::read(committed.join(&file)).unwrap() == fs::read(generated.path().join(&file)).unwrap();
        assert!(same, "src/gen/{} is out of date; regenerate with: {REGENERATE}", file.display());
    }
}
