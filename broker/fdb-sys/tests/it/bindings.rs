//! `src/bindings.rs` says what the headers say.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use foundationdb_sys::FUNCTIONS;

const BINDINGS: &str = include_str!("../../src/bindings.rs");
const HEADER: &str = include_str!("../../include/fdb_c.h");

/// The functions of the table with how many arguments each takes.
fn bound() -> BTreeMap<&'static str, usize> {
    let table = BINDINGS.split("pub struct Functions {").nth(1).unwrap().split("\n}").next().unwrap();
    let fields = table.split("    pub ").skip(1);
    fields
        .map(|field| {
            let (name, rest) = field.split_once(':').unwrap();
            let arguments = rest.split_once("fn(").unwrap().1.split(')').next().unwrap();
            (name, arguments.split(',').filter(|argument| !argument.trim().is_empty()).count())
        })
        .collect()
}

/// How many arguments the header gives `function`.
fn declared(function: &str) -> Option<usize> {
    let declarations = HEADER.split("DLLEXPORT").skip(1).filter_map(|text| text.split(';').next());
    let mut arguments = declarations.filter_map(|text| {
        let (before, after) = text.split_once(&format!("{function}("))?;
        let is_name = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        is_name.then(|| after.rsplit_once(')').map_or(after, |(arguments, _)| arguments))
    });
    let arguments = arguments.next()?;
    Some(arguments.split(',').filter(|argument| !["", "void"].contains(&argument.trim())).count())
}

#[test]
fn every_function_of_the_table_has_its_wrapper_and_its_declaration() {
    let bound = bound();
    let mut wrapped = FUNCTIONS.to_vec();
    wrapped.sort_unstable();
    assert!(bound.keys().copied().eq(wrapped), "bound: {:?}, wrapped: {FUNCTIONS:?}", bound.keys());
    assert!(bound.len() > 40, "{bound:?}");
    for (function, arguments) in bound {
        assert_eq!(declared(function), Some(arguments), "arguments of {function} in the header, and bound");
    }
}

/// Where the test runner does not hide it.
fn not_run(why: &str) {
    let mut stderr = io::stderr();
    writeln!(stderr, "NOT RUN: comparing the bindings with what bindgen writes: {why}").unwrap();
}

/// Runs where the bindgen that wrote the bindings is at hand, with a libclang that it finds.
#[test]
fn bindgen_writes_the_same_bindings_again() {
    let version =
        BINDINGS.lines().next().unwrap().split("rust-bindgen ").nth(1).unwrap().trim_end_matches(" */");
    let found = Command::new("bindgen").arg("--version").output();
    let found = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if !found.as_ref().is_ok_and(|found| *found == format!("bindgen {version}")) {
        not_run(&format!("it needs bindgen {version} on the path, and libclang"));
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let written = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new("sh").arg(folder.join("bindings.sh")).arg(written.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("libclang") && !output.status.success() {
        not_run("bindgen finds no libclang");
        return;
    }
    assert!(output.status.success(), "{errors}");
    let again = fs::read_to_string(written.path()).unwrap();
    assert!(again == BINDINGS, "src/bindings.rs is not what bindings.sh writes: run it");
}
