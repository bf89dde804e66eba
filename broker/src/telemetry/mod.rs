//! Logs, and spans for a collector.
//!
//! Logs go to standard error, as text or JSON. Spans are made whatever the log filter says, but only if an OTLP
//! endpoint is configured; otherwise a span that the filter hides costs next to nothing. Sampling follows
//! `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. Nothing here may see payloads or secrets: callers do not put
//! them into fields.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Dispatch, Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use crate::config::{LogConfig, LogFormat};

/// Time one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps the exporter alive; [`TelemetryGuard::shutdown`] sends what it still holds.
#[must_use = "spans are lost if the guard is dropped without `shutdown`"]
#[derive(Debug)]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

/// Sets up logs and spans for the whole process; call once, inside the tokio runtime that outlives the guard.
///
/// # Errors
/// If the filter or the endpoint is not valid, or a subscriber is already set.
pub fn init(log: &LogConfig, otlp_endpoint: Option<&str>) -> anyhow::Result<TelemetryGuard> {
    let provider = otlp_endpoint.map(otlp_provider).transpose()?;
    let ansi = std::io::stderr().is_terminal();
    let dispatch = dispatch(log, ansi, std::io::stderr, provider.as_ref())?;
    tracing::dispatcher::set_global_default(dispatch).context("set up logs")?;
    Ok(TelemetryGuard { provider })
}

impl TelemetryGuard {
    /// Sends the spans that wait, within [`EXPORT_TIMEOUT`].
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else { return };
        // The exporter's thread waits for its connection, which this runtime drives: do not block a worker.
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(EXPORT_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "last spans not exported");
        }
    }
}

fn otlp_provider(endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .with_context(|| format!("export spans to {endpoint}"))?;
    let resource = Resource::builder().with_service_name("weir").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

fn dispatch<W>(
    log: &LogConfig,
    ansi: bool,
    writer: W,
    provider: Option<&SdkTracerProvider>,
) -> anyhow::Result<Dispatch>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&log.filter).context("log filter")?;
    let lines = tracing_subscriber::fmt::layer::<Registry>().with_writer(writer).with_ansi(ansi);
    let lines = match log.format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let spans = provider.map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("weir"))
            .with_location(false)
            .with_threads(false)
            .with_filter(FilterFn::new(is_traced))
    });
    Ok(Dispatch::new(tracing_subscriber::registry().with(lines).with(spans)))
}

/// Our spans at every level, our events from INFO up. Not those of libraries: the exporter's own requests would
/// make spans for ever.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("weir") && (metadata.is_span() || *metadata.level() <= Level::INFO)
}

#[cfg(test)]
mod tests;
