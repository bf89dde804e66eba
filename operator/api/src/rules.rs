//! CEL rules for the schema, and the ranges that they and `problems` agree on.

use kube::core::Rule;
use serde_json::{Value, json};

use crate::{KubeDuration, Problem};

/// A range of durations, both ends allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DurationRange {
    min: KubeDuration,
    max: KubeDuration,
}

impl DurationRange {
    pub(crate) const fn new(min: KubeDuration, max: KubeDuration) -> Self {
        Self { min, max }
    }

    /// The rule for a field of this range.
    pub(crate) fn rules(self) -> Value {
        let Self { min, max } = self;
        let rule = format!("duration(self) >= duration('{min}') && duration(self) <= duration('{max}')");
        json!([{ "rule": rule, "message": format!("must be {min} to {max}") }])
    }

    /// The same rule without CEL.
    pub(crate) fn check(self, path: &str, value: KubeDuration, problems: &mut Vec<Problem>) {
        if value < self.min || value > self.max {
            let Self { min, max } = self;
            problems.push(Problem::new(path, format!("{value} is out of range; allowed: {min} to {max}")));
        }
    }
}

/// The rule that an optional field of the spec neither appears, changes nor goes.
pub(crate) fn immutable_option(field: &str) -> Rule {
    Rule::new(format!(
        "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    ))
    .message(format!("{field} is immutable").as_str())
    .field_path(format!(".{field}"))
}

/// The rule that a field of the spec that is always there never changes.
pub(crate) fn immutable(field: &str) -> Rule {
    Rule::new(format!("self.{field} == oldSelf.{field}"))
        .message(format!("{field} is immutable").as_str())
        .field_path(format!(".{field}"))
}
