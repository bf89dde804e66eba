//! The configuration file: TOML, every key known. Errors name the file, the line and what is allowed there.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::settings::{self, Setting};
use super::{Config, Problem};

/// Applies `text`, the contents of `path`, to `config`.
pub(super) fn apply(config: &mut Config, path: &Path, text: &str, problems: &mut Vec<Problem>) {
    let file = File { path, text };
    match DeTable::parse(text) {
        Ok(table) => file.apply_table(config, "", table.get_ref(), problems),
        Err(error) => problems.push(Problem {
            origin: Some(file.origin(error.span().map_or(0, |span| span.start), "")),
            message: error.message().to_owned(),
        }),
    }
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn apply_table(
        &self,
        config: &mut Config,
        prefix: &str,
        table: &DeTable<'_>,
        problems: &mut Vec<Problem>,
    ) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            let origin = self.origin(name.span().start, &key);
            if let Some(setting) = settings::all().find(|setting| setting.key == key) {
                match texts(setting, value.get_ref()) {
                    Ok(values) => setting.apply(config, &values, &origin, problems),
                    Err(message) => problems.push(Problem { origin: Some(origin), message }),
                }
                continue;
            }
            let inner = format!("{key}.");
            match value.get_ref() {
                DeValue::Table(table) if settings::all().any(|setting| setting.key.starts_with(&inner)) => {
                    self.apply_table(config, &inner, table, problems);
                }
                _ => problems.push(Problem {
                    origin: Some(origin),
                    message: format!("unknown key; allowed here: {}", siblings(prefix)),
                }),
            }
        }
    }

    fn origin(&self, offset: usize, key: &str) -> String {
        let line = 1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        let separator = if key.is_empty() { "" } else { ": " };
        format!("{}:{line}{separator}{key}", self.path.display())
    }
}

/// Names that may follow `prefix`: keys, and tables of keys.
fn siblings(prefix: &str) -> String {
    let mut names: Vec<&str> = settings::all()
        .filter_map(|setting| setting.key.strip_prefix(prefix))
        .map(|rest| rest.split('.').next().unwrap_or(rest))
        .collect();
    names.dedup();
    names.join(", ")
}

fn texts(setting: &Setting, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(values) if setting.many => {
            values.iter().map(|value| scalar(value.get_ref()).ok_or_else(|| refused(setting))).collect()
        }
        _ => scalar(value).map(|text| vec![text]).ok_or_else(|| refused(setting)),
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn refused(setting: &Setting) -> String {
    let list = if setting.many { ", or a list of them" } else { "" };
    format!("a value of this type is not allowed; allowed: a string, a number or true/false{list}")
}
