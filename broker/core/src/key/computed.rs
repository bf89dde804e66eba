//! Keys that have to be computed: CEL over the fields of a message.
//!
//! An expression is checked once, when it is declared, and evaluated for every message that is stored. What it costs
//! is bounded by what it may say: no macros that loop, no functions whose result grows faster than what they are
//! given, so many mentions of a message, and no more of its payload than `PAYLOAD_BYTES_MAX`. How deep it goes is
//! bounded before it is parsed, so that no text takes more stack than a thread has. It knows nothing beyond the
//! message and its publisher: no clock, no randomness, no state.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::objects::Map;
// The other parser of the crate recurses dozens of times for a bracket: sixteen of them overflow a stack of 2 MiB.
use cel::parser::PrattParser;
use cel::{Context, Env, Value};

use super::{Publisher, abridged};
use crate::message::Message;

/// Bytes of an expression, as in the schema of manifests.
const EXPRESSION_BYTES_MAX: usize = 4096;
/// How deep an expression may be nested, in brackets as in operators.
const EXPRESSION_DEPTH_MAX: u16 = 32;
/// How often the characters may occur for each of which a parser may go a level deeper.
const NESTING_CHARACTERS_MAX: usize = 128;
const NESTING_CHARACTERS: [char; 6] = ['(', '[', '{', '?', '!', '-'];
/// How often an expression may mention the message.
const EXPRESSION_MENTIONS_MAX: usize = 16;
/// Bytes of payload that an expression reads; of a message with more, `payload` and `json` are absent.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

const MESSAGE: &str = "message";

/// Operators and functions an expression may use. None does more than it is given asks for, and a result is no longer
/// than all arguments together: no `join`, `replace` or `format`.
const FUNCTIONS: [&str; 34] = [
    "_?_:_",
    "_&&_",
    "_||_",
    "!_",
    "_-_",
    "_+_",
    "_*_",
    "_/_",
    "_%_",
    "_==_",
    "_!=_",
    "_>=_",
    "_<=_",
    "_>_",
    "_<_",
    "-_",
    "_[_]",
    "@in",
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "string",
    "int",
    "uint",
    "double",
    "bytes",
    "bool",
    "split",
    "substring",
    "charAt",
    "lowerAscii",
    "upperAscii",
    "trim",
];

/// CEL's standard library, and what it has for strings.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    env.add_extension(cel::extensions::strings).expect("its names are not those of the standard library");
    Arc::new(env)
});

/// A field of `message`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Topic,
    ClientId,
    Username,
    Payload,
    Json,
    UserProperties,
    Qos,
    Retain,
}

impl Field {
    const ALL: [Self; 8] = [
        Self::Topic,
        Self::ClientId,
        Self::Username,
        Self::Payload,
        Self::Json,
        Self::UserProperties,
        Self::Qos,
        Self::Retain,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::ClientId => "clientId",
            Self::Username => "username",
            Self::Payload => "payload",
            Self::Json => "json",
            Self::UserProperties => "userProperties",
            Self::Qos => "qos",
            Self::Retain => "retain",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }

    /// What a message has there; `None` if it has nothing.
    fn value(self, message: &Message, publisher: &Publisher) -> Option<Value> {
        Some(match self {
            Self::Topic => message.topic.as_str().into(),
            Self::ClientId => (&*publisher.client_id).into(),
            Self::Username => (&**publisher.username.as_ref()?).into(),
            Self::Payload => Value::Bytes(Arc::new(payload(message)?.to_vec())),
            Self::Json => of_json(serde_json::from_slice(payload(message)?).ok()?),
            // Of several with one name the last counts.
            Self::UserProperties => {
                map(message.properties.user.iter().map(|(name, value)| (name.to_string(), (&**value).into())))
            }
            Self::Qos => Value::Int(message.qos.into()),
            Self::Retain => Value::Bool(message.retain),
        })
    }
}

fn payload(message: &Message) -> Option<&[u8]> {
    (message.payload.len() <= PAYLOAD_BYTES_MAX).then_some(&message.payload)
}

fn map(entries: impl Iterator<Item = (String, Value)>) -> Value {
    // Randomly seeded, as the crate wants it: nothing an expression may say sees the order.
    Value::Map(Map { map: Arc::new(entries.map(|(name, value)| (name.into(), value)).collect()) })
}

/// Whole numbers stay whole, so that an id reads as it was written.
fn of_json(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(truth),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::UInt(number),
            (None, None) => number.as_f64().map_or(Value::Null, Value::Float),
        },
        Json::String(text) => text.into(),
        Json::Array(values) => Value::List(Arc::new(values.into_iter().map(of_json).collect())),
        Json::Object(fields) => map(fields.into_iter().map(|(name, value)| (name, of_json(value)))),
    }
}

/// An expression that has been checked. Clones are the same one.
#[derive(Clone)]
pub(super) struct Computed {
    text: Arc<str>,
    expression: Arc<IdedExpr>,
    /// The fields it mentions.
    fields: Arc<[Field]>,
}

impl std::fmt::Debug for Computed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Computed").field(&self.text).finish()
    }
}

impl PartialEq for Computed {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Computed {}

impl Computed {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        check_text(text)?;
        let parser = PrattParser::new().max_recursion_depth(EXPRESSION_DEPTH_MAX);
        let expression = parser.parse(text).map_err(|errors| {
            let first = errors.errors.first().map_or("nobody knows why", |error| error.msg.as_str());
            format!("it is not in CEL: {}", abridged(first))
        })?;
        let mut check = Check::default();
        check.visit(&expression, 0)?;
        if check.mentions > EXPRESSION_MENTIONS_MAX {
            return Err(format!(
                "it mentions `message` {} times; at most {EXPRESSION_MENTIONS_MAX} are allowed",
                check.mentions
            ));
        }
        Ok(Self {
            text: text.into(),
            expression: Arc::new(expression),
            fields: check.fields.into_iter().collect(),
        })
    }

    /// The key of a message: text, a whole number or a truth value as text, or bytes that are UTF-8; `None` for
    /// anything else, and if it cannot be computed.
    pub(super) fn evaluate(&self, message: &Message, publisher: &Publisher) -> Option<Bytes> {
        let fields = self
            .fields
            .iter()
            .filter_map(|field| Some((field.name().to_owned(), field.value(message, publisher)?)));
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        context.add_variable_from_value(MESSAGE, map(fields));
        match Value::resolve(&self.expression, &context).ok()? {
            Value::String(text) => Some(text.as_str().to_owned().into()),
            Value::Bytes(bytes) => std::str::from_utf8(&bytes).ok().map(|text| text.to_owned().into()),
            Value::Int(number) => Some(number.to_string().into()),
            Value::UInt(number) => Some(number.to_string().into()),
            Value::Bool(truth) => Some(truth.to_string().into()),
            _ => None,
        }
    }
}

/// Refuses what would take a parser too deep, wherever in the text it stands: strings are no hiding place.
fn check_text(text: &str) -> Result<(), String> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(format!("it has {} bytes; at most {EXPRESSION_BYTES_MAX} are allowed", text.len()));
    }
    let nesting = text.chars().filter(|c| NESTING_CHARACTERS.contains(c)).count();
    if nesting > NESTING_CHARACTERS_MAX {
        return Err(format!(
            "the characters ( [ {{ ? ! - occur {nesting} times in it; at most {NESTING_CHARACTERS_MAX} are allowed"
        ));
    }
    Ok(())
}

/// What an expression says.
#[derive(Default)]
struct Check {
    mentions: usize,
    fields: BTreeSet<Field>,
}

impl Check {
    fn visit(&mut self, node: &IdedExpr, depth: u16) -> Result<(), String> {
        if depth > EXPRESSION_DEPTH_MAX {
            return Err(format!(
                "it is nested more than {EXPRESSION_DEPTH_MAX} deep; a chain of operators or of fields counts"
            ));
        }
        let depth = depth + 1;
        match &node.expr {
            Expr::Literal(_) | Expr::Unspecified => Ok(()),
            Expr::Select(select) => {
                if matches!(&select.operand.expr, Expr::Ident(name) if name == MESSAGE) {
                    return self.mention(&select.field);
                }
                self.visit(&select.operand, depth)
            }
            Expr::Ident(name) if name == MESSAGE => {
                Err(format!("`message` stands for nothing by itself; use one of {}", fields()))
            }
            Expr::Ident(name) => Err(format!("`{name}` is unknown; use {}", fields())),
            Expr::Call(call) => {
                if !FUNCTIONS.contains(&call.func_name.as_str()) {
                    let known = FUNCTIONS.iter().filter(|name| name.starts_with(char::is_alphabetic));
                    let known: Vec<&str> = known.copied().collect();
                    return Err(format!(
                        "`{}` is not allowed; allowed are operators, `has` and the functions {}",
                        call.func_name,
                        known.join(", ")
                    ));
                }
                let target = call.target.as_deref();
                target.into_iter().chain(&call.args).try_for_each(|part| self.visit(part, depth))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.visit(element, depth)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.visit(&entry.key, depth)?;
                    self.visit(&entry.value, depth)
                }
                EntryExpr::StructField(_) => Err("it makes a structure, which is not allowed".into()),
            }),
            Expr::Comprehension(_) => {
                Err("`all`, `exists`, `exists_one`, `map` and `filter` are not allowed: they loop".into())
            }
            Expr::Struct(_) => Err("it makes a structure, which is not allowed".into()),
        }
    }

    fn mention(&mut self, name: &str) -> Result<(), String> {
        let field = Field::of_name(name)
            .ok_or_else(|| format!("`message.{name}` is unknown; use one of {}", fields()))?;
        self.mentions += 1;
        self.fields.insert(field);
        Ok(())
    }
}

fn fields() -> String {
    Field::ALL.map(|field| format!("message.{}", field.name())).join(", ")
}

#[cfg(test)]
mod tests;
