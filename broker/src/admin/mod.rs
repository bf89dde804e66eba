//! The admin API: `weir.admin.v1` over gRPC, for people and the operator.
//!
//! Answers from the core and its store alone; changes nothing but what calls ask for. Wire types are made here, at the edge, and go no further.
//! It must never know sessions or connections of MQTT clients. The core owns all state; a call owns what it
//! reads from.

mod access;
mod backup;
mod changes;
pub(crate) mod connections;
mod convert;
mod declared;
mod pods;
mod queue_ops;
mod read;
mod stream_groups;
mod stream_ops;
#[cfg(test)]
mod tests;
mod trace;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::Kind;
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::admin_server::{Admin, AdminServer};
use weir_proto::admin::v1::declarations_server::DeclarationsServer;

pub(crate) use access::{Access, Guard};
use convert::{Reports, status};
use read::Reading;

/// Calls that one connection may have under way.
const CALLS_PER_CONNECTION_MAX: u32 = 64;
/// Streams read at the same time: each holds a batch of messages in memory.
const READS_MAX: usize = 32;
/// Looks at queues, purges and redrives at the same time: each holds pages of messages in memory.
const OPERATIONS_MAX: usize = 8;
/// Largest request: the `spec` of a queue or stream.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Largest answer: a list of all queues there may be, or one message.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest time until a call is answered, below that of our own client.
const ANSWER_WAIT: Duration = Duration::from_secs(8);
/// Queues or streams of a list that are asked at the same time.
const ASKED_AT_ONCE: usize = 16;
/// How often a silent client is asked whether it is still there, and how long its answer may take.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Longest wait at shutdown for clients that do not take what was sent to them.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);

/// Serves the admin API on `listener` until `shutdown`, which ends reads that follow a stream.
///
/// # Errors
/// If the server fails. Errors of one connection end that connection.
pub(crate) async fn serve(
    listener: TcpListener,
    core: Arc<Core>,
    access: Access,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let service = Arc::new(Service::new(core, shutdown.clone()));
    let tasks = service.tasks.clone();
    let declarations = DeclarationsServer::from_arc(Arc::clone(&service))
        .max_decoding_message_size(declared::REQUEST_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let service = AdminServer::from_arc(service)
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let followed = access.follow();
    let declarations = InterceptedService::new(declarations, access.guard.clone());
    let service = InterceptedService::new(service, access.guard);
    let server = Server::builder()
        .trace_fn(trace::span_of)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .add_service(declarations)
        .serve_with_incoming_shutdown(
            connections::incoming(listener, connections::CONNECTIONS_MAX, access.tls),
            shutdown.clone().cancelled_owned(),
        );
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(SHUTDOWN_WAIT).await;
    };
    let served = tokio::select! {
        served = server => served.context("serve the admin API"),
        () = followed => Ok(()),
        () = overdue => {
            tracing::debug!("clients of the admin API are cut off");
            Ok(())
        }
    };
    // Backups end with `shutdown`, or with the connections, which are gone; changes of the catalog by themselves.
    tasks.close();
    tasks.wait().await;
    served
}

/// Answers the calls.
struct Service {
    core: Arc<Core>,
    shutdown: CancellationToken,
    reads: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    backups: Arc<Semaphore>,
    operations: Semaphore,
    /// What outlives its call: changes of the catalog, which must not end half-way, and what reads backups.
    tasks: TaskTracker,
}

impl Service {
    fn new(core: Arc<Core>, shutdown: CancellationToken) -> Self {
        let (reads, backups) = (Semaphore::new(READS_MAX), Semaphore::new(backup::BACKUPS_MAX));
        let tasks = TaskTracker::new();
        let operations = Semaphore::new(OPERATIONS_MAX);
        let watches = Arc::new(Semaphore::new(declared::WATCHES_MAX));
        Self {
            core,
            shutdown,
            reads: Arc::new(reads),
            watches,
            backups: Arc::new(backups),
            operations,
            tasks,
        }
    }

    /// The queue or stream called `name`.
    fn find(&self, kind: Kind, name: &str) -> Result<Arc<Object>, Status> {
        let word = convert::word(kind);
        let name = changes::name_of(kind, name)?;
        self.core.catalog().view().find(kind, name.as_str()).ok_or_else(|| {
            let hint = format!("`weir {word} list` shows what there is");
            Status::not_found(format!("there is no {word} `{}`; {hint}", name.as_str()))
        })
    }

    /// All queues or streams by name, each with what its owners say of it.
    async fn all(&self, kind: Kind) -> Result<Vec<(Arc<Object>, Reports)>, Status> {
        let objects: Vec<Arc<Object>> = self.core.catalog().view().all(kind).cloned().collect();
        let asked = objects.into_iter().map(|object| async move {
            let reports = self.reports(&object).await;
            // One that is damaged must not hide the others.
            let reports = reports.or_else(|error| Reports::damaged(&error).ok_or(error));
            reports.map_err(|error| status(&error, &object)).map(|reports| (object, reports))
        });
        stream::iter(asked).buffered(ASKED_AT_ONCE).try_collect().await
    }

    async fn reports(&self, object: &Arc<Object>) -> weir_core::Result<Reports> {
        self.core.describe(object).await.map(Reports::new)
    }

    /// The answer to a call, in time.
    async fn answer<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<Response<T>, Status> {
        tokio::select! {
            answered = tokio::time::timeout(ANSWER_WAIT, call) => match answered {
                Ok(answer) => answer.map(Response::new),
                Err(_) => {
                    let wait = ANSWER_WAIT.as_secs();
                    Err(Status::unavailable(format!("the store did not answer within {wait} s; try again")))
                }
            },
            () = self.shutdown.cancelled() => Err(convert::shutting_down()),
        }
    }
}

#[tonic::async_trait]
impl Admin for Service {
    type ReadStreamStream = Pin<Box<dyn Stream<Item = Result<wire::ReadStreamResponse, Status>> + Send>>;
    type BackUpStoreStream = Pin<Box<dyn Stream<Item = Result<wire::BackUpStoreResponse, Status>> + Send>>;

    async fn list_queues(
        &self,
        _: Request<wire::ListQueuesRequest>,
    ) -> Result<Response<wire::ListQueuesResponse>, Status> {
        self.answer(async {
            let all = self.all(Kind::Queue).await?;
            let queues = all.iter().map(|(object, reports)| convert::queue(object, reports));
            Ok(wire::ListQueuesResponse { queues: queues.collect() })
        })
        .await
    }

    async fn describe_queue(
        &self,
        request: Request<wire::DescribeQueueRequest>,
    ) -> Result<Response<wire::DescribeQueueResponse>, Status> {
        self.answer(async {
            let object = self.find(Kind::Queue, &request.into_inner().name)?;
            let reports = self.reports(&object).await.map_err(|error| status(&error, &object))?;
            Ok(convert::queue_description(&object, &reports))
        })
        .await
    }

    async fn peek_queue(
        &self,
        request: Request<wire::PeekQueueRequest>,
    ) -> Result<Response<wire::PeekQueueResponse>, Status> {
        self.answer(self.peek(request.into_inner())).await
    }

    async fn purge_queue(
        &self,
        request: Request<wire::PurgeQueueRequest>,
    ) -> Result<Response<wire::PurgeQueueResponse>, Status> {
        self.answer(self.purge(request.into_inner())).await
    }

    async fn redrive_queue(
        &self,
        request: Request<wire::RedriveQueueRequest>,
    ) -> Result<Response<wire::RedriveQueueResponse>, Status> {
        self.answer(self.redrive(request.into_inner())).await
    }

    async fn pause_queue(
        &self,
        request: Request<wire::PauseQueueRequest>,
    ) -> Result<Response<wire::PauseQueueResponse>, Status> {
        let name = request.into_inner().name;
        let paused = async { Ok(wire::PauseQueueResponse { queue: Some(self.pause(&name, true).await?) }) };
        self.answer(paused).await
    }

    async fn resume_queue(
        &self,
        request: Request<wire::ResumeQueueRequest>,
    ) -> Result<Response<wire::ResumeQueueResponse>, Status> {
        let name = request.into_inner().name;
        let resumed =
            async { Ok(wire::ResumeQueueResponse { queue: Some(self.pause(&name, false).await?) }) };
        self.answer(resumed).await
    }

    async fn create_queue(
        &self,
        request: Request<wire::CreateQueueRequest>,
    ) -> Result<Response<wire::CreateQueueResponse>, Status> {
        let wire::CreateQueueRequest { name, namespace, spec } = request.into_inner();
        self.answer(async {
            let generation = self.make(Kind::Queue, &name, &namespace, &spec).await?;
            Ok(wire::CreateQueueResponse { generation })
        })
        .await
    }

    async fn update_queue(
        &self,
        request: Request<wire::UpdateQueueRequest>,
    ) -> Result<Response<wire::UpdateQueueResponse>, Status> {
        let wire::UpdateQueueRequest { name, change, force } = request.into_inner();
        self.answer(async {
            let generation = self.change(Kind::Queue, &name, change, force).await?;
            Ok(wire::UpdateQueueResponse { generation })
        })
        .await
    }

    async fn delete_queue(
        &self,
        request: Request<wire::DeleteQueueRequest>,
    ) -> Result<Response<wire::DeleteQueueResponse>, Status> {
        let request = request.into_inner();
        self.answer(async {
            let retained = self.remove(Kind::Queue, &request.name, request.policy(), request.force).await?;
            Ok(wire::DeleteQueueResponse { retained })
        })
        .await
    }

    async fn list_streams(
        &self,
        _: Request<wire::ListStreamsRequest>,
    ) -> Result<Response<wire::ListStreamsResponse>, Status> {
        self.answer(async {
            let all = self.all(Kind::Stream).await?;
            let stream = |(object, reports): &(Arc<Object>, Reports)| {
                convert::stream(object, reports, &self.core.activity(object))
            };
            let streams = all.iter().map(stream);
            Ok(wire::ListStreamsResponse { streams: streams.collect() })
        })
        .await
    }

    async fn describe_stream(
        &self,
        request: Request<wire::DescribeStreamRequest>,
    ) -> Result<Response<wire::DescribeStreamResponse>, Status> {
        self.answer(async {
            let object = self.find(Kind::Stream, &request.into_inner().name)?;
            let refused = |error| status(&error, &object);
            let reports = self.reports(&object).await.map_err(refused)?;
            let oldest = read::oldest(&self.core, &object, &reports).await.map_err(refused)?;
            Ok(convert::stream_description(&object, &reports, &self.core.activity(&object), &oldest))
        })
        .await
    }

    async fn trim_stream(
        &self,
        request: Request<wire::TrimStreamRequest>,
    ) -> Result<Response<wire::TrimStreamResponse>, Status> {
        self.answer(self.trim(request.into_inner())).await
    }

    async fn fetch_stream(
        &self,
        request: Request<wire::FetchStreamRequest>,
    ) -> Result<Response<wire::FetchStreamResponse>, Status> {
        self.answer(self.fetch(request.into_inner())).await
    }

    async fn list_groups(
        &self,
        request: Request<wire::ListGroupsRequest>,
    ) -> Result<Response<wire::ListGroupsResponse>, Status> {
        self.answer(self.groups(request.into_inner())).await
    }

    async fn seek_group(
        &self,
        request: Request<wire::SeekGroupRequest>,
    ) -> Result<Response<wire::SeekGroupResponse>, Status> {
        self.answer(self.seek(request.into_inner())).await
    }

    async fn delete_group(
        &self,
        request: Request<wire::DeleteGroupRequest>,
    ) -> Result<Response<wire::DeleteGroupResponse>, Status> {
        self.answer(self.forget(request.into_inner())).await
    }

    async fn create_stream(
        &self,
        request: Request<wire::CreateStreamRequest>,
    ) -> Result<Response<wire::CreateStreamResponse>, Status> {
        let wire::CreateStreamRequest { name, namespace, spec } = request.into_inner();
        self.answer(async {
            let generation = self.make(Kind::Stream, &name, &namespace, &spec).await?;
            Ok(wire::CreateStreamResponse { generation })
        })
        .await
    }

    async fn update_stream(
        &self,
        request: Request<wire::UpdateStreamRequest>,
    ) -> Result<Response<wire::UpdateStreamResponse>, Status> {
        let wire::UpdateStreamRequest { name, change, force } = request.into_inner();
        self.answer(async {
            let generation = self.change(Kind::Stream, &name, change, force).await?;
            Ok(wire::UpdateStreamResponse { generation })
        })
        .await
    }

    async fn delete_stream(
        &self,
        request: Request<wire::DeleteStreamRequest>,
    ) -> Result<Response<wire::DeleteStreamResponse>, Status> {
        let request = request.into_inner();
        self.answer(async {
            let retained = self.remove(Kind::Stream, &request.name, request.policy(), request.force).await?;
            Ok(wire::DeleteStreamResponse { retained })
        })
        .await
    }

    async fn read_stream(
        &self,
        request: Request<wire::ReadStreamRequest>,
    ) -> Result<Response<Self::ReadStreamStream>, Status> {
        let permit = Arc::clone(&self.reads).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{READS_MAX} reads of streams are under way; end one of them"))
        })?;
        let request = request.into_inner();
        self.answer(async {
            let object = self.find(Kind::Stream, &request.name)?;
            let reading =
                Reading::open(Arc::clone(&self.core), object, &request, self.shutdown.clone()).await?;
            let messages: Self::ReadStreamStream = Box::pin(reading.messages(permit));
            Ok(messages)
        })
        .await
    }

    async fn back_up_store(
        &self,
        _: Request<wire::BackUpStoreRequest>,
    ) -> Result<Response<Self::BackUpStoreStream>, Status> {
        let permit = Arc::clone(&self.backups)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("a backup is under way; wait for its end"))?;
        self.answer(async {
            let backup = backup::begin(&self.core).await?;
            let (parts, reading) = backup::parts(backup, permit, self.shutdown.clone());
            self.tasks.spawn(reading);
            let parts: Self::BackUpStoreStream = Box::pin(parts);
            Ok(parts)
        })
        .await
    }

    async fn describe_pods(
        &self,
        _: Request<wire::DescribePodsRequest>,
    ) -> Result<Response<wire::DescribePodsResponse>, Status> {
        Ok(Response::new(wire::DescribePodsResponse { pods: self.pods() }))
    }

    async fn drain_pod(
        &self,
        request: Request<wire::DrainPodRequest>,
    ) -> Result<Response<wire::DrainPodResponse>, Status> {
        let wire::DrainPodRequest { id, rate, grace_millis } = request.into_inner();
        self.answer(async {
            let pod = self.order(&id, Some(pods::order(rate, grace_millis)?)).await?;
            Ok(wire::DrainPodResponse { pod: Some(pod) })
        })
        .await
    }

    async fn resume_pod(
        &self,
        request: Request<wire::ResumePodRequest>,
    ) -> Result<Response<wire::ResumePodResponse>, Status> {
        let id = request.into_inner().id;
        self.answer(async { Ok(wire::ResumePodResponse { pod: Some(self.order(&id, None).await?) }) }).await
    }
}
