//! Rules as TOML: an array of tables, of its own file (`[[rules]]`) or of the configuration (`[[auth.rules]]`).
//! Every mistake is reported with its line. Knows no paths.

use toml::de::{DeTable, DeValue};

use crate::rules::RULES_MAX;
use crate::{Action, NamePattern, Problem, Rule, Rules, TopicPattern, Verdict};

const KEYS: &str =
    "allow, deny, users, clients, addresses, anonymous, certificate, topics, names, retain, will";

impl Rules {
    /// Reads a file of rules, of which nothing but `[[rules]]` may be in it.
    ///
    /// # Errors
    /// Every mistake; also a file without rules, which would deny everything or, worse, be read as no restriction.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let file = File::new(text);
        let table = file.table()?;
        let mut problems: Vec<Problem> = table
            .get_ref()
            .iter()
            .filter(|(key, _)| key.get_ref() != "rules")
            .map(|(key, _)| {
                file.problem(key.span().start, format!("unknown key `{}`; allowed: rules", key.get_ref()))
            })
            .collect();
        let rules = table.get_ref().get("rules").map(|value| file.rules(value, &mut problems));
        finish(rules, problems)
    }

    /// Reads `[[auth.rules]]` of a configuration file; `None` if there is none.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse_configuration(text: &str) -> Result<Option<Self>, Vec<Problem>> {
        let file = File::new(text);
        let table = file.table()?;
        let auth = table.get_ref().get("auth").and_then(|auth| auth.get_ref().as_table());
        let Some(value) = auth.and_then(|auth| auth.get("rules")) else { return Ok(None) };
        let mut problems = Vec::new();
        let rules = file.rules(value, &mut problems);
        finish(Some(rules), problems).map(Some)
    }
}

fn finish(rules: Option<Vec<Rule>>, mut problems: Vec<Problem>) -> Result<Rules, Vec<Problem>> {
    let rules = rules.unwrap_or_default();
    if problems.is_empty() && rules.is_empty() {
        let message = "there is no rule; allowed: one [[rules]] table for each, at least one".to_owned();
        problems.push(Problem { line: 0, message });
    }
    if rules.len() > RULES_MAX {
        problems.push(Problem { line: 0, message: format!("{} rules; allowed: {RULES_MAX}", rules.len()) });
    }
    if problems.is_empty() { Ok(Rules(rules)) } else { Err(problems) }
}

type Spanned<T> = toml::Spanned<T>;

struct File<'a> {
    text: &'a str,
    /// Where lines end.
    ends: Vec<usize>,
}

impl<'a> File<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, ends: text.match_indices('\n').map(|(at, _)| at).collect() }
    }

    fn table(&self) -> Result<Spanned<DeTable<'a>>, Vec<Problem>> {
        DeTable::parse(self.text).map_err(|error| {
            vec![self.problem(error.span().map_or(0, |span| span.start), error.message().to_owned())]
        })
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.ends.partition_point(|end| *end < offset)
    }

    fn problem(&self, offset: usize, message: String) -> Problem {
        Problem { line: self.line(offset), message }
    }

    fn rules(&self, value: &Spanned<DeValue<'_>>, problems: &mut Vec<Problem>) -> Vec<Rule> {
        let Some(list) = value.get_ref().as_array() else {
            problems.push(self.problem(value.span().start, "allowed: one table for each rule".to_owned()));
            return Vec::new();
        };
        let mut rules = Vec::new();
        for value in list.iter() {
            match value.get_ref().as_table() {
                Some(table) => rules.extend(self.rule(self.line(value.span().start), table, problems)),
                None => problems.push(self.problem(value.span().start, "allowed: a table".to_owned())),
            }
        }
        rules
    }

    fn rule(&self, line: usize, table: &DeTable<'_>, problems: &mut Vec<Problem>) -> Option<Rule> {
        let before = problems.len();
        let mut rule = Rule {
            line,
            verdict: Verdict::Deny,
            actions: Vec::new(),
            users: Vec::new(),
            clients: Vec::new(),
            addresses: Vec::new(),
            anonymous: None,
            certificate: None,
            topics: Vec::new(),
            names: Vec::new(),
            retain: None,
            will: None,
        };
        let verdicts = ["allow", "deny"].iter().filter(|key| table.contains_key(**key)).count();
        if verdicts != 1 {
            let message = "a rule has either `allow` or `deny`, with a list of actions".to_owned();
            problems.push(Problem { line, message });
        }
        for (key, value) in table {
            if let Err(message) = set(&mut rule, key.get_ref(), value.get_ref()) {
                problems.push(self.problem(key.span().start, format!("{}: {message}", key.get_ref())));
            }
        }
        if problems.len() == before {
            problems.extend(contradiction(&rule).map(|message| Problem { line, message }));
        }
        (problems.len() == before).then_some(rule)
    }
}

fn set(rule: &mut Rule, key: &str, value: &DeValue<'_>) -> Result<(), String> {
    match key {
        "allow" | "deny" => {
            rule.verdict = if key == "allow" { Verdict::Allow } else { Verdict::Deny };
            rule.actions = list(value, |text| {
                let known = Action::ALL.into_iter().find(|action| action.as_str() == text);
                known.ok_or_else(|| {
                    format!("`{text}` is not allowed; allowed: connect, publish, subscribe, consume, create")
                })
            })?;
        }
        "users" => rule.users = list(value, NamePattern::parse)?,
        "clients" => rule.clients = list(value, NamePattern::parse)?,
        "addresses" => rule.addresses = list(value, str::parse)?,
        "topics" => rule.topics = list(value, TopicPattern::parse)?,
        "names" => rule.names = list(value, NamePattern::parse)?,
        "anonymous" => rule.anonymous = Some(flag(value)?),
        "certificate" => rule.certificate = Some(flag(value)?),
        "retain" => rule.retain = Some(flag(value)?),
        "will" => rule.will = Some(flag(value)?),
        _ => return Err(format!("unknown key; allowed: {KEYS}")),
    }
    Ok(())
}

fn list<T>(value: &DeValue<'_>, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let refused = || "allowed: a list of strings, not empty".to_owned();
    let values = value.as_array().filter(|values| !values.is_empty()).ok_or_else(refused)?;
    values.iter().map(|value| value.get_ref().as_str().ok_or_else(refused).and_then(&parse)).collect()
}

fn flag(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "allowed: true, false".to_owned())
}

/// Keys that are fine alone and say nothing, or the wrong thing, together.
fn contradiction(rule: &Rule) -> Option<String> {
    let speaks_of = |action| rule.actions.contains(&action);
    let of_topics = [Action::Publish, Action::Subscribe, Action::Create].into_iter().any(speaks_of);
    if of_topics && rule.topics.is_empty() {
        return Some("publish, subscribe and create need `topics`; [\"#\"] stands for all".to_owned());
    }
    if !of_topics && !rule.topics.is_empty() {
        return Some("`topics` is for publish, subscribe and create; consume has `names`".to_owned());
    }
    if speaks_of(Action::Consume) && rule.names.is_empty() {
        return Some("consume needs `names` of queues and streams; [\"*\"] stands for all".to_owned());
    }
    if !rule.names.is_empty() && !speaks_of(Action::Consume) && !speaks_of(Action::Create) {
        return Some("`names` is for consume and create".to_owned());
    }
    if (rule.retain.is_some() || rule.will.is_some()) && rule.actions != [Action::Publish] {
        return Some("`retain` and `will` are for rules that speak of publish alone".to_owned());
    }
    if rule.anonymous == Some(true) && !rule.users.is_empty() {
        return Some("no client is both anonymous and one of `users`: make it two rules".to_owned());
    }
    None
}
