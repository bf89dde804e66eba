use std::io;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::*;

/// Collects what is written, as a log would be.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A collector that keeps the spans it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            self.0.lock().extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn log(format: LogFormat, filter: &str) -> LogConfig {
    LogConfig { format, filter: filter.to_owned() }
}

fn written(log: &LogConfig, events: impl FnOnce()) -> String {
    let buffer = Buffer::default();
    let writer = buffer.clone();
    let dispatch = dispatch(log, false, move || writer.clone(), None).unwrap();
    tracing::dispatcher::with_default(&dispatch, events);
    buffer.text()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_reach_the_collector_with_their_parents() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::default();
    let tasks = TaskTracker::new();
    let service = TraceServiceServer::new(collector.clone());
    tasks.spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );

    let provider = otlp_provider(&endpoint).unwrap();
    // A filter that hides every line must not hide the spans.
    let dispatch = dispatch(&log(LogFormat::Text, "off"), false, io::sink, Some(&provider)).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        let publish = tracing::trace_span!(target: "weir::router", "publish", qos = 1);
        publish.in_scope(|| tracing::trace_span!(target: "weir_core::stream", "commit").in_scope(|| {}));
        tracing::info_span!(target: "h2::client", "not ours").in_scope(|| {});
    });
    TelemetryGuard { provider: Some(provider) }.shutdown().await;

    let spans = collector.0.lock().clone();
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["commit", "publish"]);
    assert_eq!(spans[0].parent_span_id, spans[1].span_id);
    assert_eq!(spans[0].trace_id, spans[1].trace_id);
    assert!(spans[1].parent_span_id.is_empty());
    assert!(spans[1].attributes.iter().any(|attribute| attribute.key == "qos"));
}

#[tokio::test]
async fn a_collector_that_is_away_does_not_stop_us() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let provider = otlp_provider(&endpoint).unwrap();
    let dispatch = dispatch(&log(LogFormat::Text, "off"), false, io::sink, Some(&provider)).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::info_span!(target: "weir", "lost").in_scope(|| {})
    });
    TelemetryGuard { provider: Some(provider) }.shutdown().await;
}

#[test]
fn text_lines_carry_level_message_and_fields() {
    let text = written(&log(LogFormat::Text, "info"), || {
        tracing::info!(target: "weir::server", addr = "127.0.0.1:1883", "listening");
        tracing::debug!(target: "weir::server", "hidden");
    });
    assert!(text.contains("INFO weir::server: listening addr=\"127.0.0.1:1883\""), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn json_lines_are_objects() {
    let text = written(&log(LogFormat::Json, "weir=debug"), || {
        tracing::debug!(target: "weir::server", client_id = "c1", "connected");
        tracing::error!(target: "other", "hidden");
    });
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&line["level"], &line["message"], &line["client_id"]),
        (&"DEBUG".into(), &"connected".into(), &"c1".into())
    );
}

#[test]
fn a_bad_filter_is_an_error() {
    assert!(dispatch(&log(LogFormat::Text, "weir=loud"), false, io::sink, None).is_err());
}
