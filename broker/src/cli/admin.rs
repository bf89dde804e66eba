//! The admin API from outside: connecting to it, and its errors in the words of people.

use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::admin_client::AdminClient;

use super::args::no_broker;
use super::output::{Format, Table, harmless, time};

/// Longest wait for the connection and for an answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where the admin API is, and how to print what it says.
#[derive(Clone, Debug, Args)]
pub(super) struct AdminArgs {
    /// Address of the broker's admin API
    #[arg(long, env = "WEIR_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    admin: String,
    /// How to print the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

impl AdminArgs {
    pub(super) async fn connect(&self) -> anyhow::Result<AdminClient<Channel>> {
        // The broker's log says `grpc://`; HTTP/2 without TLS is what is meant.
        let host = ["grpc://", "http://"].iter().find_map(|scheme| self.admin.strip_prefix(scheme));
        let endpoint = Endpoint::from_shared(format!("http://{}", host.unwrap_or(&self.admin)))
            .ok()
            .filter(|endpoint| endpoint.uri().path() == "/" && endpoint.uri().query().is_none())
            .ok_or_else(|| {
                let allowed = "HOST:PORT, grpc://HOST:PORT, http://HOST:PORT";
                anyhow!("`{}` is not allowed for --admin; allowed: {allowed}", self.admin)
            })?
            .connect_timeout(DEADLINE);
        let channel =
            endpoint.connect().await.map_err(|error| no_broker(&self.admin, &root_cause(&error)))?;
        Ok(AdminClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// The answer to one call, within the deadline.
    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> anyhow::Result<T> {
        match tokio::time::timeout(DEADLINE, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.explain(&status)),
            Err(_) => Err(anyhow!("the broker at {} did not answer within {DEADLINE:?}", self.admin)),
        }
    }

    /// What a refusal of the broker means to a person.
    pub(super) fn explain(&self, status: &Status) -> anyhow::Error {
        let said = harmless(status.message());
        match status.code() {
            Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition => anyhow!("{said}"),
            Code::Unavailable => anyhow!("the broker at {} can't answer now: {said}", self.admin),
            Code::Unimplemented => {
                anyhow!("what answers at {} is no broker, or one without this call", self.admin)
            }
            code => anyhow!("the broker at {} failed: {said} ({code:?})", self.admin),
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The words that say whether an object is in order: its `Ready` condition.
pub(super) fn ready(conditions: &[wire::Condition]) -> String {
    match conditions.iter().find(|condition| condition.r#type == "Ready") {
        Some(condition) if condition.status == "True" => "ready".to_owned(),
        Some(condition) => harmless(&condition.reason),
        None => "-".to_owned(),
    }
}

/// Name and value pairs, one a line, under a common width.
pub(super) fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{:<width$}  {value}\n", format!("{name}:"))).collect()
}

/// Where an object was declared, for people.
pub(super) fn declared(declaration: Option<&wire::Declaration>) -> String {
    let Some(declaration) = declaration else { return "-".to_owned() };
    let name = harmless(&format!("{}/{}", declaration.namespace, declaration.object));
    let source = match declaration.source.as_str() {
        "" => String::new(),
        source => format!(" in {}", harmless(source)),
    };
    format!("{name}{source}, {}, generation {}", time(declaration.created_micros), declaration.generation)
}

/// Conditions and warnings, as the end of a description.
pub(super) fn remarks(conditions: &[wire::Condition], warnings: &[String]) -> String {
    let mut text = String::new();
    if !conditions.is_empty() {
        let mut table = Table::new(&["CONDITION", "STATUS", "REASON", "MESSAGE"]);
        for c in conditions {
            table.row([&c.r#type, &c.status, &c.reason, &c.message].map(|cell| harmless(cell)).into());
        }
        text.push_str(&format!("\n{table}"));
    }
    for warning in warnings {
        text.push_str(&format!("\nwarning: {}\n", harmless(warning)));
    }
    text
}

pub(super) fn declaration_json(declaration: Option<&wire::Declaration>) -> Value {
    declaration.map_or(Value::Null, |declaration| {
        json!({
            "namespace": declaration.namespace,
            "object": declaration.object,
            "source": declaration.source,
            "createdMicros": declaration.created_micros,
            "generation": declaration.generation,
        })
    })
}

pub(super) fn conditions_json(conditions: &[wire::Condition]) -> Value {
    let conditions = conditions.iter().map(|condition| {
        json!({
            "type": condition.r#type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
        })
    });
    conditions.collect()
}
