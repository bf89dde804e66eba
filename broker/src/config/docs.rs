//! `docs/configuration.md` against the table of settings: one row each, with its names and its default. And the
//! examples in `docs/examples` against what is read.

use std::collections::BTreeSet;

use super::{Config, Flags, Sources, load, settings};
use crate::auth::load_rules;

/// First cells of a row: key, flag, variables, default.
type Row = [String; 4];

fn row(cells: [&str; 4]) -> Row {
    cells.map(|cell| cell.trim().to_owned())
}

/// Rows of settings have a flag in their second cell.
fn documented() -> Vec<Row> {
    let text = include_str!("../../../docs/configuration.md");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|');
        let row = row([cells.next()?, cells.next()?, cells.next()?, cells.next()?]);
        row[1].starts_with("`--").then_some(row)
    });
    rows.collect()
}

fn existing() -> Vec<Row> {
    let defaults = Config::default();
    let quoted = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let rows = settings::all().map(|setting| {
        let variables = [Some(setting.env), setting.env_fallback].into_iter().flatten();
        let variables: Vec<String> = variables.map(quoted).collect();
        let default = quoted(&(setting.show)(&defaults));
        [quoted(setting.key), quoted(&format!("--{}", setting.flag)), variables.join(", "), default]
    });
    // Names the file that the others may be in.
    rows.chain([row(["", "`--config`", "`WEIR_CONFIG`", ""])]).collect()
}

#[test]
fn every_setting_has_one_row_and_every_row_a_setting() {
    let (documented, existing) = (documented(), existing());
    let (found, wanted): (BTreeSet<_>, BTreeSet<_>) =
        (documented.iter().collect(), existing.iter().collect());
    let missing: Vec<_> = wanted.difference(&found).collect();
    let wrong: Vec<_> = found.difference(&wanted).collect();
    assert!(missing.is_empty() && wrong.is_empty(), "missing: {missing:#?}\nwrong: {wrong:#?}");
    assert_eq!(documented.len(), existing.len(), "a row twice");
}

#[test]
fn every_example_loads_and_so_do_its_rules() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples");
    let files = std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path());
    let mut loaded = 0;
    for file in files.filter(|file| file.extension().is_some_and(|extension| extension == "toml")) {
        let config = load(&Sources { file: Some(&file), env: &|_| None, flags: &Flags::default() });
        let config = config.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        if let Err(problems) = load_rules(&config.auth) {
            panic!("{}: {problems}", file.display());
        }
        loaded += 1;
    }
    assert!(loaded > 0, "no example in {examples}");
}
