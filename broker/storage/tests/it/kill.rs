//! A process that commits is killed at any moment: what it reported as committed is there.
//!
//! The test starts its own program again as the victim, which prints a number once the commit of that number
//! has returned.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::task::JoinSet;
use weir_env::seed::Seed;
use weir_storage::Store;

use crate::embedded::{open, rows};

const VICTIM_DIR: &str = "WEIR_STORAGE_TEST_VICTIM_DIR";
const TASKS: u64 = 4;

/// Commits rows until it is killed. Does nothing when it isn't the victim.
#[tokio::test]
async fn victim() {
    let Some(dir) = std::env::var_os(VICTIM_DIR) else { return };
    let store = Arc::new(open(Path::new(&dir)));
    let first = rows(&store, "").await.len() as u64;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for n in (first * TASKS + task..).step_by(4) {
                let mut tx = store.begin();
                let len = if n % 7 == 0 { 40_000 } else { 100 };
                tx.set(format!("a {n:010}").as_bytes(), &vec![b'x'; len]);
                tx.set(format!("b {n:010}").as_bytes(), b"the other half");
                tx.commit().await.unwrap();
                println!("\ncommitted {n}");
            }
        });
    }
    tasks.join_all().await;
}

/// Runs the victim until it has reported `reports` commits, kills it, and returns all it reported.
fn run_and_kill(dir: &Path, reports: u64) -> Vec<u64> {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::victim", "--nocapture"])
        .env(VICTIM_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut reported = Vec::new();
    for line in lines {
        if let Some(number) = line.strip_prefix("committed ") {
            // The last line may be cut off in the middle of a number; it is complete if another follows.
            reported.push(number.parse().unwrap());
            if reported.len() as u64 == reports {
                victim.kill().unwrap();
            }
        }
    }
    victim.wait().unwrap();
    assert!(reported.len() as u64 >= reports, "the victim ended by itself");
    reported
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let seed = Seed::from_entropy();
    let mut acknowledged = Vec::new();
    for round in 0..10 {
        let reports = 1 + seed.below(120);
        acknowledged.extend(run_and_kill(dir.path(), reports));
        let store = open(dir.path());
        let (first, second) = (rows(&store, "a ").await, rows(&store, "b ").await);
        store.close().await;
        let number = |key: &[u8]| String::from_utf8_lossy(&key[2..]).parse::<u64>().unwrap();
        let found: Vec<u64> = first.iter().map(|(key, _)| number(key)).collect();
        let halves: Vec<u64> = second.iter().map(|(key, _)| number(key)).collect();
        assert_eq!(found, halves, "a transaction is whole or absent, round {round}");
        for n in &acknowledged {
            assert!(
                found.binary_search(n).is_ok(),
                "lost {n} in round {round}, killed after {reports} reports"
            );
        }
    }
}
