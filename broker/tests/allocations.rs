//! What forwarding a live message allocates: the message, however many it is for, and nothing for each of them. And what
//! an idle connection holds.
//!
//! A binary of its own, with a single test, because a program has one global allocator, and this one counts what the
//! whole process does. The clients here use nothing but plain sockets and buffers made beforehand, so what is counted is
//! the broker's.

#![cfg(test)]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use weir::config::{Config, Listener};
use weir::server::{self, Extras};
use weir_core::keyspace::format::KeyspaceFormat;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{MemoryStore, SharedStore, Store};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Longest wait for anything that is expected.
const DEADLINE: Duration = Duration::from_secs(20);
/// Messages in one round.
const MESSAGES: usize = 256;
/// Rounds that are counted. The quietest tells: the broker has other things to do now and then.
const ROUNDS: usize = 6;
/// Allocations for one message, those of reading and decoding it included: three, and what the broker does meanwhile.
const PER_MESSAGE_MAX: f64 = 3.25;
/// Allocations for one message that one more subscriber may cost: an allocation in a hundred deliveries.
const PER_DELIVERY_MAX: f64 = 0.01;

/// Connections of which each has to be small when it is idle.
const IDLE: usize = 512;
/// Bytes that an idle connection may hold, its share of tables included. What an allocator adds is not counted.
const PER_IDLE_MAX: usize = 3000;

/// The protocol level of CONNECT.
#[derive(Clone, Copy, Debug)]
enum Version {
    V311 = 4,
    V5 = 5,
}

fn packet(first: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let length = u8::try_from(body.len()).ok().filter(|&length| length < 128).expect("a small packet");
    [&[first, length][..], &body].concat()
}

impl Version {
    /// An empty list of properties, where there is one.
    fn properties(self) -> &'static [u8] {
        match self {
            Self::V311 => &[],
            Self::V5 => &[0],
        }
    }

    /// A connected client, whose id the broker assigns.
    fn connect(self, addr: SocketAddr) -> TcpStream {
        self.connect_as(addr, "")
    }

    /// A connected client.
    fn connect_as(self, addr: SocketAddr, id: &str) -> TcpStream {
        let mut stream = TcpStream::connect(addr).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        stream.set_write_timeout(Some(DEADLINE)).expect("a deadline");
        let clean_without_keep_alive = [self as u8, 2, 0, 0];
        let length = u16::try_from(id.len()).expect("a short client id").to_be_bytes();
        let id = [&length, id.as_bytes()].concat();
        let body = [&b"\0\x04MQTT"[..], &clean_without_keep_alive[..], self.properties(), &id];
        stream.write_all(&packet(0x10, &body)).expect("CONNECT");
        read_packet(&mut stream, 0x20);
        stream
    }

    /// A client that has subscribed to `t` with QoS 0.
    fn subscribe(self, addr: SocketAddr) -> TcpStream {
        let mut stream = self.connect(addr);
        let subscribe = packet(0x82, &[&[0, 1], self.properties(), &[0, 1, b't', 0]]);
        stream.write_all(&subscribe).expect("SUBSCRIBE");
        read_packet(&mut stream, 0x90);
        stream
    }

    /// A message of QoS 0 to `t`. It goes out to subscribers as it came.
    fn publish(self) -> Vec<u8> {
        packet(0x30, &[&[0, 1, b't'], self.properties(), &[7; 64]])
    }
}

fn read_packet(stream: &mut TcpStream, first: u8) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).expect("the head of a packet");
    assert_eq!(head[0], first);
    stream.read_exact(&mut vec![0; usize::from(head[1])]).expect("the rest of it");
}

/// Allocations for each message, if it comes in bursts of so many and goes to so many subscribers.
fn allocations_per_message(addr: SocketAddr, version: Version, subscribers: usize, burst: usize) -> f64 {
    let mut subscribers: Vec<TcpStream> = (0..subscribers).map(|_| version.subscribe(addr)).collect();
    let mut publisher = version.connect(addr);
    let sent = version.publish().repeat(burst);
    let mut received = vec![0; sent.len()];
    let mut round = || {
        let before = ALLOCATOR.stats();
        for _ in 0..MESSAGES / burst {
            publisher.write_all(&sent).expect("PUBLISH");
            for subscriber in &mut subscribers {
                subscriber.read_exact(&mut received).expect("what was published");
            }
        }
        let counted = ALLOCATOR.stats() - before;
        (counted.allocations + counted.reallocations) as f64 / MESSAGES as f64
    };
    // Buffers grow to what they need.
    round();
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

/// Bytes that each of many idle connections holds, once the broker has let go of what connecting took.
fn bytes_of_idle_connection(runtime: &Runtime, addr: SocketAddr) -> usize {
    let held = || {
        let stats = ALLOCATOR.stats();
        stats.bytes_allocated.saturating_sub(stats.bytes_deallocated)
    };
    let started = Clock::system().now();
    let before = held();
    let connect = |n| Version::V5.connect_as(addr, &format!("idle-client-{n:08}"));
    let idle: Vec<TcpStream> = (0..IDLE).map(connect).collect();
    let mut least = usize::MAX;
    while least > PER_IDLE_MAX && started.elapsed() < DEADLINE {
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(100)).await });
        least = least.min(held().saturating_sub(before) / idle.len());
    }
    least
}

/// What the broker looks at each second costs next to nothing if there is one virtual shard.
async fn store_of_one_shard() -> SharedStore {
    let store = MemoryStore::new(Clock::system());
    let mut tx = store.begin();
    let format = KeyspaceFormat { virtual_shards: 1, cluster_id: [1; 16] };
    tx.set(&KeyspaceFormat::key(), &format.encode());
    tx.commit().await.expect("a commit");
    Arc::new(store)
}

#[test]
fn forwarding_to_one_more_subscriber_allocates_nothing_and_idle_connections_are_small() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { listeners: vec![Listener::tcp(any)], http: any, admin: any, ..Config::default() };
    let (started_tx, started) = oneshot::channel();
    let shutdown = CancellationToken::new();
    let serving = runtime.spawn({
        let shutdown = shutdown.clone();
        async move {
            let store = store_of_one_shard().await;
            let (clock, seed) = (Clock::system(), Seed::from_entropy());
            server::run_with(&config, store, clock, &seed, shutdown, started_tx, Extras::default()).await
        }
    });
    let started = async { tokio::time::timeout(DEADLINE, started).await };
    let addr = runtime.block_on(started).expect("a start in time").expect("a start").mqtt[0];
    let idle = bytes_of_idle_connection(&runtime, addr);
    let mut report = format!("an idle connection holds {idle} B\n");
    let mut failed = idle > PER_IDLE_MAX;
    for version in [Version::V311, Version::V5] {
        for burst in [1, 128] {
            let of = |subscribers| allocations_per_message(addr, version, subscribers, burst);
            let [one, some, many] = [of(1), of(16), of(100)];
            failed |= [one, some, many].into_iter().any(|each| each > PER_MESSAGE_MAX)
                || (some - one) / 15.0 > PER_DELIVERY_MAX
                || (many - one) / 99.0 > PER_DELIVERY_MAX;
            report += &format!(
                "{version:?}, bursts of {burst}: {one:.2} for 1 subscriber, {some:.2} for 16, {many:.2} for 100\n"
            );
        }
    }
    shutdown.cancel();
    let stopped = async { tokio::time::timeout(DEADLINE, serving).await };
    runtime.block_on(stopped).expect("a stop in time").expect("no panic").expect("a stop in order");
    assert!(!failed, "allocations for each message:\n{report}");
}
