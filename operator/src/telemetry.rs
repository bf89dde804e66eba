//! Logs on standard error, and spans for a collector if the standard variables of OpenTelemetry name one. Nothing here
//! may see secrets: callers do not put them into fields.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Metadata};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::layer::SubscriberExt as _;

/// Time the last export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Any of them turns spans on.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// How log lines look.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Keeps the exporter alive; [`TelemetryGuard::shutdown`] sends what it still holds.
#[must_use = "spans are lost if the guard is dropped without `shutdown`"]
#[derive(Debug)]
pub(crate) struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

/// Sets up logs and spans for the whole process; call once, inside the runtime that outlives the guard.
pub(crate) fn init(format: LogFormat, filter: &str) -> anyhow::Result<TelemetryGuard> {
    let wanted = ENDPOINTS.iter().any(|name| std::env::var(name).is_ok_and(|value| !value.is_empty()));
    let provider = wanted.then(provider).transpose()?;
    let filter = EnvFilter::try_new(filter).context("log filter")?;
    let ansi = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let lines = match format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let spans = provider.as_ref().map(|provider| {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("weir-operator"))
            .with_location(false)
            .with_threads(false)
            .with_filter(FilterFn::new(is_traced))
    });
    let subscriber = tracing_subscriber::registry().with(lines).with(spans);
    tracing::subscriber::set_global_default(subscriber).context("set up logs")?;
    Ok(TelemetryGuard { provider })
}

impl TelemetryGuard {
    /// Sends the spans that wait, within five seconds.
    pub(crate) async fn shutdown(self) {
        let Some(provider) = self.provider else { return };
        // The exporter's thread waits for its connection, which this runtime drives: do not block a worker.
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(EXPORT_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "last spans not exported");
        }
    }
}

fn provider() -> anyhow::Result<SdkTracerProvider> {
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().build().context("export spans by OTLP")?;
    let resource = Resource::builder().with_service_name("weir-operator").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// Our spans at every level, our events from INFO up; of libraries nothing: the exporter's own requests would make spans
/// for ever.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("weir") && (metadata.is_span() || *metadata.level() <= Level::INFO)
}
