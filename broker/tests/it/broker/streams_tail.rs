//! Readers at the end of a stream are fed from memory, however many they are.

use weir_codec::ReasonCode;

use super::client::{AtLeastOnce, V311, clean};
use super::{TestBroker, stream};

const READERS: usize = 20;
const MESSAGES: usize = 30;

#[tokio::test]
async fn live_readers_do_not_read_the_store_and_one_of_history_does() {
    let broker = TestBroker::start().await;
    broker.declare(&[stream("log", "log/#")]).await;
    // Nobody reads yet: it is in the store alone.
    broker.publish("log/1", &["before"]).await;
    let mut readers = Vec::new();
    for n in 0..READERS {
        let id = format!("reader{n}");
        if n % 2 == 0 {
            let mut reader = broker.clean(&id).await;
            let granted = reader.read_from("$stream/log", AtLeastOnce, "latest").await;
            assert_eq!(granted, ReasonCode::GrantedQoS1);
            readers.push(reader);
        } else {
            let mut reader = broker.connect(clean(&id, V311)).await;
            reader.subscribe("$s/latest/log/#", AtLeastOnce).await;
            readers.push(reader);
        }
    }
    let texts: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
    broker.publish("log/1", &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for reader in &mut readers {
        assert_eq!(reader.take_texts(MESSAGES).await, texts);
    }
    assert_eq!(broker.metric("weir_stream_tail_misses_total").await, 0.0);
    assert!(broker.metric("weir_stream_tail_hits_total").await >= 20.0);
    assert!(broker.metric("weir_stream_tail_bytes").await > 0.0);
    // One that comes later reads what was before it from the store, and pushes nothing out.
    let held = broker.metric("weir_stream_tail_bytes").await;
    drop(readers);
    let mut history = broker.clean("history").await;
    history.read_from("$stream/log", AtLeastOnce, "earliest").await;
    assert_eq!(history.take_texts(1).await, ["before"]);
    assert_eq!(history.take_texts(MESSAGES).await, texts);
    assert!(broker.metric("weir_stream_tail_misses_total").await >= 1.0);
    assert!(broker.metric("weir_stream_tail_bytes").await <= held);
}
