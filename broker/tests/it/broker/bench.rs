//! `weir bench` on queues and streams: what it says is what happened.

use serde_json::Value;
use weir_core::definition::Kind;

use super::{TestBroker, config, memory, queue, stream};
use crate::cli::weir;

async fn runs(args: &[&str]) -> Vec<Value> {
    let document: Value = serde_json::from_str(&weir(args, "").await.output()).unwrap();
    document["runs"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_backlog_is_worked_off_by_each_number_of_consumers() {
    let broker = TestBroker::start_with(config(), &memory()).await;
    broker.declare(&[queue("jobs", "job/#")]).await;
    let (url, pid) = (format!("mqtt://{}", broker.addr), std::process::id().to_string());
    let args =
        ["bench", "backlog", "jobs", "-t", "job/{}", "-m", "700", "-p", "3", "-c", "1,4", "-o", "json"];
    let runs = runs(&[&args[..], &["--broker-pid", &pid, "--url", &url]].concat()).await;
    assert_eq!(runs.len(), 4);
    for (fill, drain, consumers) in [(&runs[0], &runs[1], 1), (&runs[2], &runs[3], 4)] {
        assert_eq!((&fill["acknowledged"], &fill["received"]), (&700.into(), &0.into()), "{fill}");
        assert_eq!((&drain["subscribers"], &drain["lost"]), (&consumers.into(), &0.into()), "{drain}");
        // What was in flight to a consumer that was cut off may come again.
        let all = drain["received"].as_u64().unwrap();
        assert!(all >= 700, "{drain}");
        let (fewest, most) = (&drain["receivedByFewest"], &drain["receivedByMost"]);
        let (fewest, most) = (fewest.as_u64().unwrap(), most.as_u64().unwrap());
        assert!(fewest * consumers <= all && all <= most * consumers, "{drain}");
        if cfg!(target_os = "linux") {
            let memory = |which: &str| drain["used"][which].as_u64().unwrap();
            assert!(memory("brokerResidentBytesPeak") >= memory("brokerResidentBytesBefore"), "{drain}");
        }
    }
    broker.stop().await;
}

#[tokio::test]
async fn publishers_share_the_topics_of_a_queue() {
    let broker = TestBroker::start_with(config(), &memory()).await;
    // A queue of its own tells what came on each topic.
    let topics = ["job/0", "job/1", "job/2", "job/3", "job/4"];
    let each = topics.map(|topic| queue(&topic.replace('/', "-"), topic));
    broker.declare(&[&each[..], &[queue("jobs", "job/#")]].concat()).await;
    let url = format!("mqtt://{}", broker.addr);
    let args = ["bench", "queue", "jobs", "-t", "job/{}", "--topics", "5", "-p", "2", "-c", "2"];
    let more = ["--rate", "500", "-d", "200ms", "-o", "json", "--url", &url];
    let run = &runs(&[&args[..], &more].concat()).await[0];
    assert_eq!(run["lost"], 0, "{run}");
    let sent = run["sent"].as_u64().unwrap();
    let mut depths = 0;
    for topic in topics {
        let name = topic.replace('/', "-");
        let object = broker.core.catalog().view().find(Kind::Queue, &name).unwrap();
        let reports = broker.core.describe(&object).await.unwrap();
        let depth: u64 = reports.into_iter().map(|report| report.queue.unwrap().depth).sum();
        assert!(depth > 0, "{topic} got nothing");
        depths += depth;
    }
    assert_eq!(depths, sent);
    broker.stop().await;
}

#[tokio::test]
async fn a_stream_is_filled_replayed_and_followed() {
    let broker = TestBroker::start_with(config(), &memory()).await;
    broker.declare(&[stream("s-0", "s/0"), stream("s-1", "s/1")]).await;
    let url = format!("mqtt://{}", broker.addr);
    let args = ["bench", "stream", "s-{}", "-t", "s/{}", "--streams", "2", "-m", "700", "-o", "json"];
    let parts = ["--parts", "fill,replay,middle,tail,beside", "--readers", "1,2"];
    let rate = ["--rate", "500", "-d", "200ms", "--url", &url];
    let all = runs(&[&args[..], &parts, &rate].concat()).await;
    assert_eq!(all.len(), 10);
    for fill in &all[..2] {
        assert_eq!((&fill["acknowledged"], &fill["received"]), (&350.into(), &0.into()), "{fill}");
    }
    for (run, received) in all[2..6].iter().zip([700, 1_400, 350, 700]) {
        assert_eq!((&run["received"], &run["lost"]), (&received.into(), &0.into()), "{run}");
        assert_eq!(run["receivedOfOtherRuns"], 0, "{run}");
        assert!(run["latency"]["first"]["maxNanos"].as_u64().unwrap() > 0, "{run}");
    }
    for run in &all[6..] {
        assert_eq!((&run["lost"], &run["refused"]), (&0.into(), &0.into()), "{run}");
        assert!(run["sent"].as_u64().unwrap() > 0, "{run}");
    }
    assert!(all[6]["latency"]["endToEnd"]["maxNanos"].as_u64().unwrap() > 0);
    // What is there already is read without being filled again.
    let again = runs(&[&args[..], &["--parts", "replay", "--url", &url]].concat()).await;
    assert_eq!((again.len(), &again[0]["lost"]), (1, &0.into()), "{}", again[0]);
    broker.stop().await;
}
