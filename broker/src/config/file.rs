//! The configuration file: TOML, every key known. Errors name the file, the line and what is allowed there.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use weir_auth::Rules;

use super::settings::{self, Setting};
use super::{Config, Listener, Problem, listeners};

/// The key of the tables of listeners.
const LISTENERS: &str = "listeners";

/// Applies `text`, the contents of `path`, to `config`; the listeners that have tables of their own.
pub(super) fn apply(
    config: &mut Config,
    path: &Path,
    text: &str,
    problems: &mut Vec<Problem>,
) -> Vec<Listener> {
    let file = File { path, text };
    let mut named = Vec::new();
    match DeTable::parse(text) {
        Ok(mut table) => {
            if let Some((key, value)) = table.get_mut().remove_entry(LISTENERS) {
                let origin = file.origin(key.span().start, LISTENERS);
                named = file.listeners(value.get_ref(), &origin, problems);
            }
            file.apply_table(config, "", table.get_ref(), problems);
        }
        Err(error) => problems.push(Problem {
            origin: Some(file.origin(error.span().map_or(0, |span| span.start), "")),
            message: error.message().to_owned(),
        }),
    }
    named
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
            if key == "auth.rules" {
                self.check_rules(config, problems);
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

    /// `[[listeners]]`
    fn listeners(&self, value: &DeValue<'_>, origin: &str, problems: &mut Vec<Problem>) -> Vec<Listener> {
        let tables = match value {
            DeValue::Array(tables) => tables.iter().map(|table| table.get_ref().as_table()).collect(),
            _ => None,
        };
        let tables: Vec<&DeTable<'_>> = tables.unwrap_or_else(|| {
            let message = format!("not a list of tables; allowed: [[{LISTENERS}]] with {}", listeners::KEYS);
            problems.push(Problem { origin: Some(origin.to_owned()), message });
            Vec::new()
        });
        tables
            .into_iter()
            .enumerate()
            .filter_map(|(n, table)| self.listener(n, table, origin, problems))
            .collect()
    }

    fn listener(
        &self,
        n: usize,
        table: &DeTable<'_>,
        origin: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Listener> {
        let url = table.iter().find(|(name, _)| name.get_ref() == "url");
        let first = url.or_else(|| table.iter().next());
        let url = url.and_then(|(_, value)| scalar(value.get_ref())).ok_or_else(|| {
            format!("{LISTENERS}[{n}] has no url; allowed: url = \"mqtts://ADDRESS[:PORT]\" and others")
        });
        let mut listener = match url.and_then(|url| Listener::parse(&url)) {
            Ok(listener) => listener,
            Err(message) => {
                let of = |(name, _): (&Spanned<DeString<'_>>, _)| {
                    self.origin(name.span().start, &format!("{LISTENERS}[{n}].{}", name.get_ref()))
                };
                let origin = first.map_or_else(|| origin.to_owned(), of);
                problems.push(Problem { origin: Some(origin), message });
                return None;
            }
        };
        for (name, value) in table {
            let key = name.get_ref();
            let result = match (&**key, value.get_ref()) {
                ("tls", DeValue::Table(table)) => {
                    // The settings of `[tls]`, for this one alone.
                    let mut alone = Config::default();
                    self.apply_table(&mut alone, "tls.", table, problems);
                    listener.tls = alone.tls;
                    Ok(())
                }
                (key @ ("proxyFrom" | "origins"), DeValue::Array(values)) => values
                    .iter()
                    .map(|value| scalar(value.get_ref()))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| "allowed: a list of strings".to_owned())
                    .and_then(|texts| listener.set(key, &texts.join(","))),
                (key, value) => scalar(value)
                    .ok_or_else(|| "a value of this type is not allowed".to_owned())
                    .and_then(|text| listener.set(key, &text)),
            };
            if let Err(message) = result {
                let origin = self.origin(name.span().start, &format!("{LISTENERS}[{n}].{key}"));
                problems.push(Problem { origin: Some(origin), message });
            }
        }
        Some(listener)
    }

    /// Rules are a list of tables, and read where they are used; here they are only checked.
    fn check_rules(&self, config: &mut Config, problems: &mut Vec<Problem>) {
        config.auth.rules_in = Some(self.path.to_path_buf());
        let found = Rules::parse_configuration(self.text).err().unwrap_or_default();
        problems.extend(found.into_iter().map(|problem| Problem {
            origin: Some(format!("{}:{}: auth.rules", self.path.display(), problem.line)),
            message: problem.message,
        }));
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
    if prefix.is_empty() {
        names.push(LISTENERS);
    }
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
