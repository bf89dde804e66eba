//! Spans of calls, which go on with the trace that a caller says it is in (`traceparent`, W3C Trace Context). Knows no
//! calls; owns nothing.

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::codegen::http::{HeaderMap, Request};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header that names a trace and the span in it.
const TRACEPARENT: &str = "traceparent";

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

/// The span of a call. Where nobody wants spans, no header is looked at.
pub(super) fn span_of(request: &Request<()>) -> Span {
    let span = tracing::debug_span!("admin call", path = request.uri().path());
    if !span.is_disabled() && request.headers().contains_key(TRACEPARENT) {
        let caller = TraceContextPropagator::new().extract(&Headers(request.headers()));
        // Fails where spans go to logs only.
        let _ = span.set_parent(caller);
    }
    span
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use opentelemetry::trace::{SpanId, TraceId, TracerProvider};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
    use parking_lot::Mutex;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;
    use tracing_subscriber::layer::SubscriberExt;
    use weir_core::Core;
    use weir_core::metrics::Metrics;
    use weir_env::clock::Clock;
    use weir_env::seed::Seed;
    use weir_proto::admin::v1 as wire;
    use weir_proto::admin::v1::declarations_client::DeclarationsClient;
    use weir_storage::MemoryStore;

    use crate::admin::{Access, serve};
    use crate::config::AdminAccess;

    #[derive(Clone, Debug, Default)]
    struct Spans(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Spans {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().extend(batch);
            Ok(())
        }
    }

    impl Spans {
        fn find(&self, name: &str) -> Vec<SpanData> {
            self.0.lock().iter().filter(|span| span.name == name).cloned().collect()
        }
    }

    fn apply(writer: u64) -> wire::ApplyObjectRequest {
        wire::ApplyObjectRequest {
            writer,
            owner: Some(wire::ObjectOwner {
                cluster: "eu".into(),
                namespace: "city".into(),
                object: "traffic".into(),
                uid: "u".into(),
                generation: 1,
            }),
            kind: wire::ObjectKind::Queue.into(),
            name: "traffic".into(),
            spec: "{}".into(),
        }
    }

    /// On one thread: the subscriber is that of the thread.
    #[tokio::test]
    async fn a_trace_goes_on_from_the_caller_to_the_transaction() {
        let spans = Spans::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(layer);
        let _guard = tracing::subscriber::set_default(subscriber);

        let clock = Clock::system();
        let store = Arc::new(MemoryStore::new(clock));
        let core = Arc::new(Core::open(store, clock, &Seed::fixed(1), Metrics::default()).await.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let access = Access::read(&AdminAccess::default(), Duration::ZERO).unwrap();
        tasks.spawn(serve(listener, Arc::clone(&core), access, shutdown.clone()));
        let mut client = DeclarationsClient::connect(address).await.unwrap();
        let request = wire::AcquireWriterRequest { cluster: "eu".into() };
        let writer = client.acquire_writer(request).await.unwrap().into_inner().writer;
        let mut request = tonic::Request::new(apply(writer));
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        client.apply_object(request).await.unwrap();
        // What is no parent is no trace, and no failure.
        let mut request = tonic::Request::new(apply(writer));
        request.metadata_mut().insert("traceparent", "00-nothing".parse().unwrap());
        client.apply_object(request).await.unwrap();
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
        core.close().await;

        let ours = TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap();
        let calls = spans.find("admin call");
        let call = calls.iter().find(|span| span.span_context.trace_id() == ours).expect("the call's span");
        assert_eq!(call.parent_span_id, SpanId::from_hex("b7ad6b7169203331").unwrap());
        let changes = spans.find("catalog change");
        let change =
            changes.iter().find(|span| span.span_context.trace_id() == ours).expect("the change's span");
        assert_eq!(change.parent_span_id, call.span_context.span_id());
        assert_eq!((calls.len(), changes.len()), (3, 2));
    }
}
