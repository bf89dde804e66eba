//! The admin API from outside: connecting to it, and its errors in the words of people.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::{Value, json};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
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
    /// Secret that the broker asks for
    #[arg(long, env = "WEIR_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Authorities (PEM) that the broker's certificate must come from; speaks TLS
    #[arg(long, env = "WEIR_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Name that the broker's certificate must be for, if it is not the host of --admin
    #[arg(long, env = "WEIR_SERVER_NAME", value_name = "NAME", requires = "ca_file")]
    server_name: Option<String>,
    /// Own certificate (PEM), for a broker that asks for one
    #[arg(long, env = "WEIR_CERT", value_name = "FILE", requires_all = ["key", "ca_file"])]
    cert: Option<PathBuf>,
    /// Private key (PEM) of --cert
    #[arg(long, env = "WEIR_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// How to print the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
}

impl AdminArgs {
    pub(super) async fn connect(&self) -> anyhow::Result<AdminClient<Caller>> {
        // The broker's log says `grpc://`; HTTP/2 is what is meant.
        let host =
            ["grpc://", "http://", "https://"].iter().find_map(|scheme| self.admin.strip_prefix(scheme));
        let scheme = if self.ca_file.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", host.unwrap_or(&self.admin)))
            .ok()
            .filter(|endpoint| endpoint.uri().path() == "/" && endpoint.uri().query().is_none())
            .ok_or_else(|| {
                let allowed = "HOST:PORT, grpc://HOST:PORT, http://HOST:PORT, https://HOST:PORT";
                anyhow!("`{}` is not allowed for --admin; allowed: {allowed}", self.admin)
            })?
            .connect_timeout(DEADLINE);
        let endpoint = match self.tls()? {
            Some(tls) => endpoint.tls_config(tls).context("use --ca-file, --cert and --key")?,
            None => endpoint,
        };
        let token = Token::read(self.token_file.as_deref())?;
        let channel = endpoint.connect().await.map_err(|error| {
            self.explain_tls(&error).unwrap_or_else(|| no_broker(&self.admin, &root_cause(&error)))
        })?;
        let caller = InterceptedService::new(channel, token);
        Ok(AdminClient::new(caller).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    fn tls(&self) -> anyhow::Result<Option<ClientTlsConfig>> {
        let Some(authorities) = &self.ca_file else { return Ok(None) };
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(authorities)?));
        let tls = match &self.server_name {
            Some(name) => tls.domain_name(name),
            None => tls,
        };
        Ok(Some(match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
            _ => tls,
        }))
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
        if let Some(explained) = self.explain_tls(status) {
            return explained;
        }
        let said = harmless(status.message());
        // What a broker answers has no cause on this side. The cause that it names to TLS often comes too late to be read.
        if self.ca_file.is_some() && status.source().is_some() {
            let broker = &self.admin;
            return anyhow!(
                "the broker at {broker} ended the connection ({said}); it may want a certificate of an authority \
                 that it knows: --cert and --key show one"
            );
        }
        match status.code() {
            Code::NotFound
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::Aborted => anyhow!("{said}"),
            Code::Unavailable => anyhow!("the broker at {} can't answer now: {said}", self.admin),
            Code::Unauthenticated => anyhow!("the broker at {} does not know you: {said}", self.admin),
            Code::Unimplemented => {
                anyhow!("what answers at {} is no broker, or one without this call", self.admin)
            }
            code => anyhow!("the broker at {} failed: {said} ({code:?})", self.admin),
        }
    }
}

impl AdminArgs {
    /// What to do if `error` comes from TLS. In TLS 1.3 a broker may refuse a certificate after the connection stands,
    /// so that it is the first call which fails.
    fn explain_tls(&self, error: &(dyn StdError + 'static)) -> Option<anyhow::Error> {
        let tls = tls_error(error)?;
        let advice = match tls {
            rustls::Error::AlertReceived(_) => "--cert and --key show a certificate that it may want",
            _ => "--ca-file names the authorities that its certificate may come from",
        };
        Some(anyhow!("no trust between you and the broker at {} ({tls}); {advice}", self.admin))
    }
}

/// Sends calls, with the token if there is one.
pub(super) type Caller = InterceptedService<Channel, Token>;

/// What is put before each call.
#[derive(Clone)]
pub(super) struct Token(Option<MetadataValue<Ascii>>);

impl Token {
    fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", read(path)?.trim())
            .parse()
            .map_err(|_| anyhow!("{} holds no token: allowed: visible characters", path.display()))?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let here = error.downcast_ref().or_else(|| wrapped.and_then(|wrapped| wrapped.downcast_ref()));
    here.or_else(|| tls_error(error.source()?))
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
        "" => match declaration.origin.as_str() {
            "admin" => " by the admin API".to_owned(),
            "automatic" => " by a subscription".to_owned(),
            "operator" => format!(" of the Kubernetes cluster {}", harmless(&declaration.cluster)),
            _ => String::new(),
        },
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
            "origin": declaration.origin,
            "cluster": declaration.cluster,
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
