//! Calls that no client of ours makes: refused, and nothing else is harmed.

use bytes::Bytes;
use futures_util::stream;
use tonic::Code;
use tonic::transport::Channel;
use weir_proto::store::v1 as wire;
use weir_proto::store::v1::failure::Reason;
use weir_proto::store::v1::mutation::Kind;
use weir_proto::store::v1::settle_response::State;
use weir_proto::store::v1::store_client::StoreClient;
use weir_storage_remote::REQUEST_BYTES_MAX;

use crate::support::Server;

struct Raw {
    client: StoreClient<Channel>,
    session: wire::Session,
    _down: tonic::Streaming<wire::AttachResponse>,
}

impl Raw {
    async fn attach(server: &Server) -> Self {
        let mut client = StoreClient::connect(format!("http://{}", server.address))
            .await
            .unwrap()
            .max_encoding_message_size(2 * REQUEST_BYTES_MAX);
        let mut down = client.attach(stream::pending()).await.unwrap().into_inner();
        let session = down.message().await.unwrap().unwrap().session.unwrap();
        Self { client, session, _down: down }
    }

    fn request(&self, number: u64, kind: Kind) -> wire::CommitRequest {
        wire::CommitRequest {
            session: Some(self.session.clone()),
            number,
            mutations: vec![wire::Mutation { kind: Some(kind) }],
            ..wire::CommitRequest::default()
        }
    }

    async fn commit(&mut self, request: wire::CommitRequest) -> Result<wire::Committed, wire::Failure> {
        match self.client.commit(request).await.unwrap().into_inner().outcome.unwrap() {
            wire::commit_response::Outcome::Committed(committed) => Ok(committed),
            wire::commit_response::Outcome::Failure(failure) => Err(failure),
        }
    }
}

fn set(value: &'static [u8]) -> Kind {
    Kind::Set(wire::Pair { key: Bytes::from("key"), value: Bytes::from(value) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_and_the_session_goes_on() {
    let server = Server::memory().await;
    let mut raw = Raw::attach(&server).await;
    let stamped = |offset| wire::Stamped { key: Bytes::from("key"), value: Bytes::new(), offset };
    for (number, kind) in (1..).zip([
        Kind::StampedKey(stamped(0)),
        Kind::StampedKey(stamped(u32::MAX)),
        Kind::StampedValue(stamped(0)),
    ]) {
        let refused = raw.commit(raw.request(number, kind)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::Unavailable);
        assert!(refused.text.contains("versionstamp"), "{}", refused.text);
    }
    let mut nothing = raw.request(10, set(b"x"));
    nothing.mutations[0].kind = None;
    assert_eq!(raw.commit(nothing).await.unwrap_err().reason(), Reason::Unavailable);
    let too_large = Kind::Set(wire::Pair { key: Bytes::from("key"), value: vec![0; 100_000].into() });
    let refused = raw.commit(raw.request(11, too_large)).await.unwrap_err();
    assert_eq!((refused.reason(), &*refused.what, refused.size), (Reason::TooLarge, "value", 100_000));
    let huge =
        Kind::Set(wire::Pair { key: Bytes::from("key"), value: vec![0; REQUEST_BYTES_MAX + 1].into() });
    let status = raw.client.commit(raw.request(12, huge)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    let held = wire::Held { session: Some(raw.session.clone()), number: 77 };
    let request = wire::GetRangeRequest { held: Some(held), ..wire::GetRangeRequest::default() };
    let answer = raw.client.get_range(request).await.unwrap().into_inner();
    assert_eq!(answer.failure.unwrap().reason(), Reason::Unavailable);
    raw.commit(raw.request(13, set(b"x"))).await.unwrap();
}

/// What the numbers of commits are for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_is_committed_once_and_never_after_it_was_given_up() {
    let server = Server::memory().await;
    let mut raw = Raw::attach(&server).await;
    let settle = |raw: &Raw, number| {
        let (mut client, session) = (raw.client.clone(), Some(raw.session.clone()));
        async move { client.settle(wire::SettleRequest { session, number }).await.unwrap().into_inner() }
    };
    let first = raw.commit(raw.request(1, set(b"1"))).await.unwrap();
    assert_eq!(raw.commit(raw.request(1, set(b"again"))).await.unwrap(), first, "the same commit");
    let settled = settle(&raw, 1).await;
    assert_eq!(settled.state(), State::Ended);
    let outcome = Some(wire::commit_response::Outcome::Committed(first));
    assert_eq!(settled.outcome.unwrap().outcome, outcome);
    assert_eq!(settle(&raw, 2).await.state(), State::Never);
    assert_eq!(raw.commit(raw.request(2, set(b"2"))).await.unwrap_err().reason(), Reason::Busy);
    let third = wire::CommitRequest { settled_below: 3, ..raw.request(3, set(b"3")) };
    raw.commit(third).await.unwrap();
    assert_eq!(settle(&raw, 1).await.state(), State::Forgotten);
    assert_eq!(raw.commit(raw.request(1, set(b"late"))).await.unwrap_err().reason(), Reason::Busy);

    let answer = raw.client.get(wire::GetRequest { key: Bytes::from("key"), version: None }).await.unwrap();
    assert_eq!(answer.into_inner().value.as_deref(), Some(&b"3"[..]));

    // Of another life of the server, or of none.
    let own = raw.session.clone();
    for session in
        [wire::Session { server: Bytes::from("other"), ..own.clone() }, wire::Session { number: 9, ..own }]
    {
        raw.session = session;
        assert_eq!(raw.commit(raw.request(4, set(b"4"))).await.unwrap_err().reason(), Reason::Detached);
        assert_eq!(settle(&raw, 4).await.state(), State::Forgotten);
    }
}
