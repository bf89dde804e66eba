//! Many tasks at once, with histories that only a serializable store produces.

use tokio::task::JoinSet;
use weir_env::seed::{Seed, trials};

use super::{History, Must, Subject, Tally};
use crate::{ConflictKind, Error, Isolation, Result, Transaction, transact};

const TASKS: u64 = 8;
const ROUNDS: u64 = 25;

async fn read_number(tx: &mut dyn Transaction, key: &[u8]) -> Result<u64> {
    let value = tx.get(key, Isolation::Serializable).await?;
    Ok(value.and_then(|bytes| bytes.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes))
}

impl Subject {
    /// Runs `work` in as many tasks as the suite uses, each with numbers of its own.
    async fn in_parallel<F>(&self, work: impl Fn(Self, u64, Seed) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let seed = Seed::fixed(11);
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            tasks.spawn(work(self.clone(), task, seed.fork(&task.to_string())));
        }
        tasks.join_all().await;
    }

    fn numbered(&self, number: u64) -> Vec<u8> {
        self.key(format!("{number:08}"))
    }
}

/// Transfers between accounts keep the sum, and every reader sees a moment at which it holds.
pub async fn money_is_neither_made_nor_lost(subject: Subject) {
    const ACCOUNTS: u64 = 5;
    let mut tx = subject.begin();
    for account in 0..ACCOUNTS {
        tx.set(&subject.numbered(account), &100u64.to_be_bytes());
    }
    tx.commit().await.must();
    let work = async |subject: Subject, task: u64, seed: Seed| {
        for _ in 0..ROUNDS {
            if task == 0 {
                let page = subject.begin().get_range(subject.all(), Isolation::Serializable).await.must();
                let sum: u64 = page
                    .pairs
                    .iter()
                    .filter_map(|(_, v)| v.as_ref().try_into().ok())
                    .map(u64::from_be_bytes)
                    .sum();
                assert_eq!(sum, ACCOUNTS * 100);
                tokio::task::yield_now().await;
                continue;
            }
            let (from, to) = (seed.below(ACCOUNTS), seed.below(ACCOUNTS));
            let amount = seed.below(50);
            let (from, to) = (&subject.numbered(from)[..], &subject.numbered(to)[..]);
            let transfer = transact(&*subject.store, |tx| {
                Box::pin(async move {
                    let left = read_number(tx, from).await?.saturating_sub(amount);
                    let moved = read_number(tx, from).await? - left;
                    tokio::task::yield_now().await;
                    tx.set(from, &left.to_be_bytes());
                    let had = read_number(tx, to).await?;
                    tx.set(to, &(had + moved).to_be_bytes());
                    Ok(())
                })
            });
            transfer.await.must();
        }
    };
    subject.in_parallel(move |subject, task, seed| Box::pin(work(subject, task, seed))).await;
    let mut sum = 0;
    let mut tx = subject.begin();
    for account in 0..ACCOUNTS {
        sum += read_number(&mut *tx, &subject.numbered(account)).await.must();
    }
    assert_eq!(sum, ACCOUNTS * 100);
}

/// Nodes that point to the next one in a ring; every task cuts a node out and puts it in one place further on.
pub async fn a_ring_stays_one_ring(subject: Subject) {
    const NODES: u64 = 12;
    let mut tx = subject.begin();
    for node in 0..NODES {
        tx.set(&subject.numbered(node), &((node + 1) % NODES).to_be_bytes());
    }
    tx.commit().await.must();
    subject
        .in_parallel(|subject, _, seed| async move {
            for _ in 0..ROUNDS {
                let (start, subject) = (seed.below(NODES), &subject);
                let rotate = transact(&*subject.store, |tx| {
                    Box::pin(async move {
                        let second = read_number(tx, &subject.numbered(start)).await?;
                        let third = read_number(tx, &subject.numbered(second)).await?;
                        tokio::task::yield_now().await;
                        let fourth = read_number(tx, &subject.numbered(third)).await?;
                        tx.set(&subject.numbered(start), &third.to_be_bytes());
                        tx.set(&subject.numbered(third), &second.to_be_bytes());
                        tx.set(&subject.numbered(second), &fourth.to_be_bytes());
                        Ok(())
                    })
                });
                rotate.await.must();
            }
        })
        .await;
    let (mut tx, mut node, mut length) = (subject.begin(), 0, 0);
    loop {
        node = read_number(&mut *tx, &subject.numbered(node)).await.must();
        length += 1;
        if node == 0 || length > NODES {
            break;
        }
    }
    assert_eq!(length, NODES);
}

/// Every list that was ever read is a beginning of the list at the end, which holds each element once.
pub async fn lists_grow_by_appending(subject: Subject) {
    const LISTS: u64 = 3;
    let append_all = |subject: Subject, task: u64, seed: Seed| async move {
        for round in 0..ROUNDS {
            let list = subject.numbered(seed.below(LISTS));
            let element = u8::try_from(task * ROUNDS + round).expect("tasks times rounds fit a byte");
            let (key, task) = (&list[..], subject.key(format!("seen {task} {round:04}")));
            let seen = &task[..];
            let append = transact(&*subject.store, |tx| {
                Box::pin(async move {
                    let before = tx.get(key, Isolation::Serializable).await?.unwrap_or_default();
                    tokio::task::yield_now().await;
                    tx.set(key, &[&before[..], &[element]].concat());
                    tx.set(seen, &[&key[key.len() - 1..], &before].concat());
                    Ok(())
                })
            });
            append.await.must();
        }
    };
    subject.in_parallel(append_all).await;
    let mut tx = subject.begin();
    let lists = subject.pairs(&mut *tx, subject.range("0", "1")).await;
    let mut elements: Vec<u8> = lists.iter().flat_map(|(_, list)| list.clone()).collect();
    elements.sort_unstable();
    assert!(elements.iter().copied().eq((0..=u8::MAX).take(elements.len())), "each once: {elements:?}");
    assert_eq!(elements.len() as u64, TASKS * ROUNDS);
    for (who, seen) in subject.pairs(&mut *tx, subject.range("seen", "seeo")).await {
        let (name, list) = seen.split_first().expect("begins with the list's name");
        let full = lists.iter().find(|(key, _)| key.last() == Some(name)).map(|(_, list)| list);
        assert!(full.is_some_and(|full| full.starts_with(list)), "{}", String::from_utf8_lossy(&who));
    }
}

/// Owners take over from each other by raising an epoch, and append under the fence of theirs: in the log
/// epochs never go back, and offsets have no holes.
pub async fn one_owner_at_a_time(subject: Subject) {
    let own_and_append = |subject: Subject, _: u64, seed: Seed| async move {
        for _ in 0..ROUNDS / 5 {
            let owner = subject.key("owner");
            let (key, log) = (&owner[..], subject.range("log/", "log0").reverse().limit(1));
            let prefix_len = subject.key("log/").len();
            let log = &log;
            let take_over = transact(&*subject.store, |tx| {
                Box::pin(async move {
                    let epoch = read_number(tx, key).await? + 1;
                    tx.set(key, &epoch.to_be_bytes());
                    let tail = tx.get_range(log.clone(), Isolation::Serializable).await?.pairs;
                    let last = tail.first().and_then(|(key, _)| key[prefix_len..].try_into().ok());
                    Ok((epoch, last.map_or(0, |last| u64::from_be_bytes(last) + 1)))
                })
            });
            let ((epoch, next), committed) = take_over.await.must();
            for offset in (next..).take(usize::try_from(seed.below(6)).unwrap_or(0)) {
                let mut tx = subject.begin();
                tx.set_read_version(committed.version);
                tx.add_conflict_key(key, ConflictKind::Read);
                tx.set(&[&subject.key("log/")[..], &offset.to_be_bytes()].concat(), &epoch.to_be_bytes());
                match tx.commit().await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(Error::Conflict | Error::TooOld) => break,
                    Err(error) => panic!("unexpected error: {error}"),
                }
            }
        }
    };
    subject.in_parallel(own_and_append).await;
    let log = subject.pairs(&mut *subject.begin(), subject.range("log/", "log0")).await;
    assert!(log.iter().is_sorted_by_key(|(_, epoch)| epoch), "an old owner has written: {log:?}");
    assert!(log.iter().zip(0u64..).all(|((key, _), offset)| key[4..] == offset.to_be_bytes()), "holes");
    assert!(!log.is_empty());
}

/// Random transactions of every kind at once: some order explains what all of them saw. See [`History`].
pub async fn histories_are_serializable(subject: Subject) {
    let (mut runs, mut tally) = (0, Tally::default());
    for trial in trials(subject.histories) {
        let prefix = subject.key(format!("{}/", trial.seed()));
        let history = History::record(&subject.store, &prefix, trial.seed()).await;
        tally = tally.plus(history.check(&subject.store).await);
        runs += 1;
    }
    assert!(tally.committed >= 8 * runs && tally.read_only >= runs && tally.absent >= runs, "{tally:?}");
}
