//! A stream under publishers, readers of every kind, trims, deletion, restarts, rivals and store faults as they come:
//! against what the outside knows. A run depends on its seed alone; a failing one prints it.
//!
//! Whatever a reader was ever given for an offset is what every other is given for it, from memory or from the store,
//! now or after a crash. Offsets are dense; what was acknowledged is there, or was cut as the limits or a trim say. Of
//! what is deleted nothing is left, and what has its name later has nothing of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_core::catalog::Object;
use weir_core::core::Options;
use weir_core::definition::{Definition, Kind};
use weir_core::key::Publisher;
use weir_core::keyspace::segment::Record;
use weir_core::keyspace::{LogId, PublishId, tag};
use weir_core::metrics::Metrics;
use weir_core::shard::read_segments;
use weir_core::stream::{ReadLimits, ReadOptions, Start, StreamReader};
use weir_core::{Core, Error};
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::{Seed, trials};
use weir_storage::{FaultHandle, FaultRates, FaultStore, Isolation, RangeQuery, SharedStore};
use weir_topic::TopicFilter;

use crate::model::{Trace, Weather, assert_replays, simulate};
use crate::support::{definition, in_memory, message};

const SEEDS: u64 = 200;
const STEPS: u64 = 50;
const TOPICS: u64 = 6;
const READERS_MAX: usize = 4;
/// Readers that have nothing to give are waited for this long.
const READ_WAIT: Duration = Duration::from_millis(50);
/// Of streams that are cut by age.
const AGE: Duration = Duration::from_secs(30);
/// Readers of what is deleted are told so within this time.
const GONE_WAIT: Duration = Duration::from_secs(60);
/// Attempts at a declaration until the store is made to work.
const DECLARE_ATTEMPTS: usize = 20;

#[derive(Debug)]
struct Sent {
    topic: u64,
    accepted: bool,
    /// May be published again, under the same name.
    publish: Option<PublishId>,
    /// It was, or nobody knows when it was stored: it may stand behind what was published later.
    is_late: bool,
    size: usize,
}

/// What one reader was given of one shard, in one life or several.
#[derive(Debug)]
struct Given {
    shard: u8,
    options: ReadOptions,
    /// Where it began, and where it stands.
    from: u64,
    next: u64,
    offsets: Vec<u64>,
    ended: bool,
    /// It ended while no rival had been there of whom its broker knows nothing.
    is_exact: bool,
}

/// A reader and its entry of each shard in [`World::given`].
struct Live {
    reader: StreamReader,
    entries: BTreeMap<u8, usize>,
}

struct World {
    weather: Weather,
    seed: Seed,
    store: SharedStore,
    faults: FaultHandle,
    clock: Clock,
    definition: Definition,
    sent: BTreeMap<String, Sent>,
    /// Of this stream and of those that had its name before.
    sent_ever: u64,
    /// Where trims have each shard begin: at least there, and at most.
    trims: BTreeMap<u8, (u64, u64)>,
    /// Logs of streams that were deleted with their records.
    gone: Vec<LogId>,
    /// What was ever read, by shard and offset.
    seen: BTreeMap<(u8, u64), Arc<Record>>,
    given: Vec<Given>,
    readers: Vec<Live>,
    /// Entries of readers that may go on in another life.
    resumable: Vec<usize>,
    /// Another broker had the shards in this life, or may have had: what is left of one that crashed ends its turn.
    had_rival: bool,
    has_crashed: bool,
    trace: Trace,
}

fn shape(seed: &Seed) -> Definition {
    let mut stream = definition(Kind::Stream, "s", "a/+", 1 + u8::try_from(seed.below(3)).unwrap());
    stream.key = (seed.below(2) == 0).then(|| "message.topic".into());
    match seed.below(5) {
        0 => stream.retention.max_messages = 12 * u64::from(stream.shards),
        1 => stream.retention.max_bytes = 200_000 * u64::from(stream.shards),
        2 => stream.retention.max_age_ms = u64::try_from(AGE.as_millis()).unwrap(),
        _ => {}
    }
    stream
}

fn wants(options: &ReadOptions, record: &Record) -> bool {
    let since = match options.start {
        Start::Time(at) => at,
        _ => Timestamp::default(),
    };
    record.message.published_at >= since
        && options.filter.as_ref().is_none_or(|filter| filter.matches(&record.message.topic))
        && options.key.as_ref().is_none_or(|key| record.key_bytes() == Some(key))
}

impl World {
    fn new(seed: u64) -> Self {
        let weather = [Weather::Fair, Weather::Crashes, Weather::Storm, Weather::Storm]
            [usize::try_from(seed % 4).unwrap()];
        let (store, clock) = in_memory();
        let seed = Seed::fixed(seed);
        let store = FaultStore::wrap(store, seed.fork("faults"));
        Self {
            weather,
            faults: store.handle(),
            store: Arc::new(store),
            clock,
            definition: shape(&seed.fork("shape")),
            seed: seed.fork("world"),
            sent: BTreeMap::new(),
            sent_ever: 0,
            trims: BTreeMap::new(),
            gone: Vec::new(),
            seen: BTreeMap::new(),
            given: Vec::new(),
            readers: Vec::new(),
            resumable: Vec::new(),
            had_rival: false,
            has_crashed: false,
            trace: Trace::default(),
        }
    }

    fn note(&mut self, what: String) {
        self.trace.note(self.clock, &what);
    }

    fn chance(&self, n: u64) -> bool {
        self.seed.below(n) == 0
    }

    async fn open(&mut self) -> Core {
        loop {
            let seed = self.seed.next_u64();
            let tail_bytes = [0, 50_000, 10_000_000][usize::try_from(self.seed.below(3)).unwrap()];
            let read_bytes = [1, 600_000][usize::try_from(self.seed.below(2)).unwrap()];
            let reading = ReadLimits { read_bytes, tail_bytes };
            let options = Options { reading, ..Options::default() };
            let (store, metrics) = (Arc::clone(&self.store), Metrics::default());
            match Core::open_with(store, self.clock, &Seed::fixed(seed), metrics, options).await {
                Ok(core) => return core,
                Err(error) => self.note(format!("open: {error}")),
            }
        }
    }

    fn stream(core: &Core) -> Arc<Object> {
        core.catalog().view().find(Kind::Stream, "s").unwrap()
    }

    /// Publishes a few messages, one after the other, and waits for all of them, or not long enough.
    async fn publish(&mut self, core: &Core) {
        let mut receipts = Vec::new();
        for _ in 0..=self.seed.below(8) {
            let (payload, is_repeat) = self.next_publish();
            let sent = &self.sent[&payload];
            let mut message = message(self.clock, &format!("a/{}", sent.topic), &payload);
            message.payload = format!("{payload} {}", "x".repeat(sent.size)).into();
            let publish = sent.publish.map(|id| (id, is_repeat));
            self.note(format!("publish {payload}, repeat {is_repeat}"));
            let targets = core.targets(&message.topic);
            match core.append(&targets, &message, &Publisher::default(), publish).await {
                Ok(receipt) => receipts.push((payload, receipt)),
                Err(error) => self.note(format!("{payload}: {error}")),
            }
        }
        let patience = self.weather.patience(&self.seed);
        for (payload, receipt) in receipts {
            let answer = tokio::time::timeout(patience, receipt.settled()).await;
            let accepted = answer.is_ok_and(|failures| failures.is_empty());
            assert!(accepted || self.weather != Weather::Fair, "{payload} was not taken");
            self.note(format!("{payload}: accepted {accepted}"));
            let sent = self.sent.get_mut(&payload).unwrap();
            sent.accepted |= accepted;
            sent.is_late |= !accepted;
        }
    }

    /// A new message, or an earlier one once more.
    fn next_publish(&mut self) -> (String, bool) {
        let named: Vec<&String> =
            self.sent.iter().filter(|(_, sent)| sent.publish.is_some()).map(|(payload, _)| payload).collect();
        if !named.is_empty() && self.chance(6) {
            let payload = named[usize::try_from(self.seed.below(named.len() as u64)).unwrap()].clone();
            self.sent.get_mut(&payload).unwrap().is_late = true;
            return (payload, true);
        }
        let topic = self.seed.below(TOPICS);
        let payload = format!("t{topic}-{:05}", self.sent_ever);
        self.sent_ever += 1;
        let size = match self.seed.below(20) {
            0 => 100_000,
            1..=4 => 30_000,
            _ => 10,
        };
        let publish = self.chance(3).then(|| PublishId::new(self.clock.wall(), self.seed.next_id()));
        self.sent.insert(payload.clone(), Sent { topic, accepted: false, publish, is_late: false, size });
        (payload, false)
    }

    fn place(&self) -> Start {
        let ago = Duration::from_millis(self.seed.below(40_000));
        match self.seed.below(5) {
            0 => Start::Latest,
            1 => Start::Offset(self.seed.below(60)),
            2 => Start::Time(Timestamp::from_micros(
                self.clock.wall().as_micros().saturating_sub(u64::try_from(ago.as_micros()).unwrap()),
            )),
            3 => Start::Offsets(vec![(u8::try_from(self.seed.below(3)).unwrap(), self.seed.below(60))]),
            _ => Start::Earliest,
        }
    }

    fn options(&self) -> ReadOptions {
        let until = match self.seed.below(6) {
            0 => Some(self.place()),
            1 => Some(Start::Time(
                self.clock.wall().saturating_add(Duration::from_millis(self.seed.below(5_000))),
            )),
            _ => None,
        };
        let filter = self.chance(4).then(|| format!("a/{}", self.seed.below(TOPICS)));
        let key = (self.definition.key.is_some() && self.chance(5))
            .then(|| format!("a/{}", self.seed.below(TOPICS)).into());
        let filter = filter.map(|filter| TopicFilter::parse(filter).unwrap());
        ReadOptions { start: self.place(), until, filter, key, ..ReadOptions::default() }
    }

    async fn open_reader(&mut self, core: &Core) {
        if self.readers.len() >= READERS_MAX {
            return;
        }
        if let Some(at) = self.resumable.pop() {
            return self.resume(core, at).await;
        }
        let options = self.options();
        self.note(format!("open {options:?}"));
        match core.reader(&Self::stream(core), &options).await {
            Ok(reader) => {
                let mut entries = BTreeMap::new();
                for (shard, from) in reader.positions() {
                    entries.insert(shard, self.given.len());
                    let (options, offsets) = (options.clone(), Vec::new());
                    self.given.push(Given {
                        shard,
                        options,
                        from,
                        next: from,
                        offsets,
                        ended: false,
                        is_exact: false,
                    });
                }
                self.readers.push(Live { reader, entries });
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Goes on with one shard of a reader that an earlier life had.
    async fn resume(&mut self, core: &Core, at: usize) {
        let Given { shard, next, options, .. } = &self.given[at];
        let (shard, next) = (*shard, *next);
        // Where it ended is not known any more, nor from when on it was to read.
        let since = matches!(options.start, Start::Time(_)) && self.given[at].offsets.is_empty();
        if options.until.is_some() || since {
            return;
        }
        let options = options.clone();
        self.note(format!("resume shard {shard} at {next} of {options:?}"));
        match core.shard_reader(&Self::stream(core), shard, next, &options).await {
            Ok(opened) => {
                let mut reader = core.idle_reader();
                reader.add(opened);
                self.readers.push(Live { reader, entries: [(shard, at)].into() });
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &impl std::fmt::Display) {
        assert_ne!(self.weather, Weather::Fair, "{error}");
        self.note(error.to_string());
    }

    /// Every reader takes a batch or two.
    async fn read(&mut self) {
        for mut live in std::mem::take(&mut self.readers) {
            let mut is_open = true;
            for _ in 0..=self.seed.below(3) {
                match tokio::time::timeout(READ_WAIT, live.reader.next()).await {
                    Err(_) => break,
                    Ok(Ok(batch)) => self.take(&live, &batch),
                    Ok(Err(error)) => {
                        self.fail(&error);
                        is_open = !matches!(error, Error::Closed);
                    }
                }
            }
            let ended = live.entries.values().all(|at| self.given[*at].ended);
            assert_eq!(live.reader.is_ended(), ended);
            if is_open && !ended {
                self.readers.push(live);
            }
        }
    }

    fn take(&mut self, live: &Live, batch: &weir_core::stream::ReadBatch) {
        let shard = batch.log.shard;
        let offsets: Vec<u64> = batch.records.iter().map(|(offset, _)| *offset).collect();
        self.note(format!("shard {shard} gives {offsets:?} up to {}, ended {}", batch.next, batch.ended));
        let now = self.clock.wall();
        let given = &mut self.given[live.entries[&shard]];
        assert!(!given.ended, "something after the end");
        assert!(batch.next >= given.next, "back from {} to {}", given.next, batch.next);
        let in_order = [given.next.checked_sub(1)].into_iter().flatten().chain(offsets.iter().copied());
        assert!(in_order.is_sorted_by(|a, b| a < b) && offsets.last().is_none_or(|last| *last < batch.next));
        for (offset, record) in &batch.records {
            assert!(wants(&given.options, record), "not asked for: {offset}");
            assert!(record.message.published_at <= now);
            if let Some(Start::Time(until)) = given.options.until {
                assert!(record.message.published_at < until);
            }
            let seen = self.seen.entry((shard, *offset)).or_insert_with(|| Arc::clone(record));
            assert!(seen == record, "shard {shard}, offset {offset}: {seen:?}, then {record:?}");
        }
        given.next = batch.next;
        given.ended = batch.ended;
        given.is_exact = batch.ended && !self.had_rival;
        given.offsets.extend(offsets);
    }

    /// Somebody removes the oldest messages of a shard, or of all.
    async fn trim(&mut self, core: &Core) {
        let stream = Self::stream(core);
        let before = self.place();
        let shard = self.chance(2).then(|| u8::try_from(self.seed.below(u64::from(self.definition.shards))));
        let shard = shard.map(Result::unwrap);
        let is_dry = self.chance(4);
        let result = core.trim(&stream, &before, shard, is_dry).await;
        self.note(format!("trim {before:?} of {shard:?}, dry {is_dry}: {result:?}"));
        match result {
            Ok(_) if is_dry => {}
            Ok(trimmed) => {
                for cut in trimmed {
                    let (least, most) = self.trims.entry(cut.shard).or_default();
                    // Where no more was to go, it began there already.
                    (*least, *most) = ((*least).max(cut.extent.start), (*most).max(cut.extent.start));
                    // What was in flight when it was asked for may stand behind it.
                    if let Start::Offset(asked) = before
                        && self.weather == Weather::Fair
                    {
                        assert!(cut.extent.start >= asked.min(cut.extent.next), "{cut:?}");
                    }
                }
            }
            // It may be made, or not, or later.
            Err(error) => {
                self.fail(&error);
                for log in stream.logs.iter().filter(|log| shard.is_none_or(|shard| log.shard == shard)) {
                    self.trims.entry(log.shard).or_default().1 = u64::MAX;
                }
            }
        }
    }

    /// Makes the catalog consist of `definitions`.
    async fn declare(&mut self, core: &Core, definitions: &[Definition]) {
        for _ in 0..DECLARE_ATTEMPTS {
            match core.apply(definitions).await {
                Ok(_) => return,
                Err(error) => self.fail(&error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.faults.heal();
        self.faults.settle().await;
        core.apply(definitions).await.unwrap();
    }

    /// The stream is deleted and declared again: it comes back as it was, or, if its records went with it, another has
    /// its name.
    async fn remake(&mut self, core: &Core) {
        let old = Self::stream(core);
        self.definition.delete_data = self.chance(2);
        let declared = self.definition.clone();
        self.note(format!("deletion, with records {}", declared.delete_data));
        self.declare(core, std::slice::from_ref(&declared)).await;
        self.declare(core, &[]).await;
        if declared.delete_data {
            self.finish_deletion(core).await;
            self.end_readers().await;
        }
        self.declare(core, std::slice::from_ref(&declared)).await;
        let is_another = Self::stream(core).id != old.id;
        assert_eq!(is_another, declared.delete_data);
        for live in std::mem::take(&mut self.readers) {
            self.resumable.extend(live.entries.values());
        }
        if is_another {
            self.gone.extend(&old.logs);
            self.sent.clear();
            self.trims.clear();
            self.seen.clear();
            self.given.clear();
            self.resumable.clear();
        }
    }

    /// As a broker does from time to time: a deletion whose outcome was unknown has not removed anything.
    async fn finish_deletion(&mut self, core: &Core) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        for attempt in 0..DECLARE_ATTEMPTS * 10 {
            let Err(error) = core.finish_deletions(self.clock.wall()).await else { return };
            self.fail(&error);
            if attempt == DECLARE_ATTEMPTS {
                self.faults.heal();
                self.faults.settle().await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("a deletion is not finished although the store works");
    }

    /// Every reader is told that its stream is gone; what it has until then is of that.
    async fn end_readers(&mut self) {
        for mut live in std::mem::take(&mut self.readers) {
            loop {
                match tokio::time::timeout(GONE_WAIT, live.reader.next()).await {
                    Ok(Ok(batch)) => self.take(&live, &batch),
                    Ok(Err(Error::Closed)) => break,
                    Ok(Err(error)) => self.fail(&error),
                    Err(_) => {
                        assert!(live.reader.is_ended(), "a reader is not told that its stream is gone");
                        break;
                    }
                }
            }
        }
    }

    /// Another broker takes the shards over for a moment.
    async fn rival(&mut self) {
        self.note("a rival".into());
        self.had_rival = true;
        let core = self.open().await;
        self.publish(&core).await;
        if self.chance(2) {
            core.close().await;
        }
    }

    /// One life of a broker.
    async fn live(&mut self) {
        if self.weather == Weather::Storm {
            let profiles = [FaultRates::calm(), FaultRates::rough(), FaultRates::hostile()];
            self.faults.set_rates(profiles[usize::try_from(self.seed.below(3)).unwrap()]);
        }
        let core = self.open().await;
        self.had_rival = self.has_crashed;
        for _ in 0..self.seed.below(STEPS) {
            match self.seed.below(13) {
                0..=3 => self.publish(&core).await,
                4 | 5 => self.open_reader(&core).await,
                6 if self.chance(3) => drop(self.readers.pop()),
                7 if self.chance(3) && self.weather != Weather::Fair => self.rival().await,
                8 => {
                    let time = self.seed.below(if self.chance(10) { 60_000 } else { 3_000 });
                    tokio::time::sleep(Duration::from_millis(time)).await;
                }
                9 if self.chance(3) => self.trim(&core).await,
                10 if self.chance(20) => self.remake(&core).await,
                _ => self.read().await,
            }
        }
        for live in std::mem::take(&mut self.readers) {
            self.resumable.extend(live.entries.values());
        }
        let orderly = self.weather == Weather::Fair || self.chance(3) && self.weather != Weather::Storm;
        if orderly {
            core.close().await;
        }
        self.has_crashed |= !orderly;
        self.note(format!("end, in order {orderly}"));
    }

    /// Everything that is stored, read by a broker that has just come up; where each shard begins and ends.
    async fn read_all(&mut self, core: &Core) -> BTreeMap<u8, (u64, u64)> {
        let options =
            ReadOptions { start: Start::Earliest, until: Some(Start::Latest), ..ReadOptions::default() };
        let mut reader = core.reader(&Self::stream(core), &options).await.unwrap();
        let mut extents: BTreeMap<u8, (u64, u64)> =
            reader.positions().into_iter().map(|(shard, start)| (shard, (start, start))).collect();
        while !reader.is_ended() {
            let batch = reader.next().await.unwrap();
            let shard = batch.log.shard;
            let (_, end) = extents.get_mut(&shard).unwrap();
            for (offset, record) in batch.records {
                assert_eq!(offset, *end, "offsets are dense");
                *end += 1;
                let seen = self.seen.entry((shard, offset)).or_insert_with(|| Arc::clone(&record));
                assert!(*seen == record, "shard {shard}, offset {offset}: {seen:?}, then {record:?}");
            }
            assert_eq!(*end, batch.next);
        }
        extents
    }

    async fn settle_and_check(&mut self) {
        self.faults.heal();
        self.faults.settle().await;
        self.note("the last life".into());
        let core = self.open().await;
        let reports = core.describe(&Self::stream(&core)).await.unwrap();
        self.note(format!("{:?}", reports.iter().map(|report| report.extent).collect::<Vec<_>>()));
        let extents = self.read_all(&core).await;
        let again = self.read_all(&core).await;
        assert_eq!(extents, again);
        self.check_messages(&extents);
        self.check_given(&extents);
        // Limits that nobody reaches are not in a hurry.
        self.publish(&core).await;
        tokio::time::sleep(AGE * 2 + Duration::from_secs(120)).await;
        self.check_limits(&core).await;
        core.finish_deletions(self.clock.wall()).await.unwrap();
        self.check_gone().await;
        core.close().await;
    }

    /// Nothing is left of what was deleted with its records.
    async fn check_gone(&self) {
        for log in &self.gone {
            for tag in [tag::LOG_STATE, tag::SEGMENT, tag::TIME_INDEX, tag::LOG_BLOB] {
                let (begin, end) = log.range(tag);
                let query = RangeQuery::new(begin, end);
                let page = self.store.begin().get_range(query, Isolation::Snapshot).await.unwrap();
                assert_eq!(page.pairs, [], "{log:?}");
            }
        }
    }

    /// What was acknowledged is there once, in its order, or was cut.
    fn check_messages(&self, extents: &BTreeMap<u8, (u64, u64)>) {
        let (starts, ends) =
            extents.values().fold((0, 0), |(starts, ends), (start, end)| (starts + start, ends + end));
        let accepted = self.sent.values().filter(|sent| sent.accepted).count() as u64;
        // A repeat without a name would be another message; there is none.
        assert!(accepted <= ends && ends <= self.sent.len() as u64, "{accepted} accepted, {ends} stored");
        let mut stored: BTreeMap<&str, (u8, u64)> = BTreeMap::new();
        let mut last_of: BTreeMap<u64, &str> = BTreeMap::new();
        for ((shard, offset), record) in &self.seen {
            let text = std::str::from_utf8(&record.message.payload).unwrap();
            let payload = text.split(' ').next().unwrap();
            let sent = &self.sent[payload];
            assert_eq!(text.len(), payload.len() + 1 + sent.size);
            assert_eq!(stored.insert(payload, (*shard, *offset)), None, "{payload} is stored twice");
            if !sent.is_late {
                let last = last_of.insert(sent.topic, payload);
                assert!(last.is_none_or(|last| last < payload), "{payload} came after {last:?}");
            }
        }
        let absent = self.sent.iter().filter(|(_, sent)| sent.accepted);
        let absent = absent.filter(|(payload, _)| !stored.contains_key(payload.as_str())).count() as u64;
        assert!(absent <= starts, "{absent} acknowledged are missing, {starts} were cut");
        for (shard, (start, end)) in extents {
            let (least, most) = self.trims.get(shard).copied().unwrap_or_default();
            assert!(*start >= least, "shard {shard} begins at {start}, trimmed to {least}");
            assert!(*start <= most.min(*end) || self.definition.retention.is_limited(), "{start} of {shard}");
            let times = self.seen.range((*shard, 0)..=(*shard, u64::MAX));
            assert!(times.map(|(_, record)| record.message.published_at).is_sorted(), "times go back");
            if self.definition.retention.max_age_ms > 0 {
                let cut = self.seen.range((*shard, most.min(*start))..(*shard, *start));
                let too_young =
                    cut.filter(|(_, r)| r.message.published_at.saturating_add(AGE) > self.clock.wall());
                assert_eq!(too_young.count(), 0, "cut before its time");
            }
        }
    }

    /// Readers were given all that they wanted and that was not cut.
    fn check_given(&self, extents: &BTreeMap<u8, (u64, u64)>) {
        for given in &self.given {
            let shard = given.shard;
            let (start, end) = extents[&shard];
            let kept = |from: u64, to: u64| {
                self.seen.range((shard, from.max(start))..(shard, to.max(from.max(start))))
            };
            let offsets: Vec<u64> = given.offsets.iter().copied().filter(|offset| *offset >= start).collect();
            let wanted: Vec<u64> = kept(given.from, given.next)
                .filter(|(_, record)| wants(&given.options, record))
                .map(|((_, offset), _)| *offset)
                .collect();
            assert_eq!(offsets, wanted, "{given:?}");
            assert!(given.next <= end, "{given:?}");
            if let Start::Time(at) = given.options.start {
                let early = kept(0, given.from).filter(|(_, record)| record.message.published_at >= at);
                assert_eq!(early.count(), 0, "{given:?} began too late");
            }
            match given.options.until {
                Some(Start::Time(until)) if given.is_exact => {
                    let missed = kept(given.next, end).filter(|(_, r)| r.message.published_at < until);
                    assert_eq!(missed.count(), 0, "{given:?} ended too early");
                }
                Some(Start::Offset(until)) if given.ended => assert!(given.next >= until.min(end)),
                None => assert!(!given.ended),
                _ => {}
            }
        }
    }

    async fn check_limits(&self, core: &Core) {
        let retention = &self.definition.retention;
        for (shard, report) in core.describe(&Self::stream(core)).await.unwrap().iter().enumerate() {
            let extent = report.extent;
            let kept = extent.next - extent.start;
            if let Some(most) = self
                .definition
                .share(retention.max_messages, u8::try_from(shard).unwrap())
                .filter(|_| kept > 0)
            {
                let trimmed = self
                    .trims
                    .get(&u8::try_from(shard).unwrap())
                    .is_some_and(|(_, cut)| *cut >= extent.start);
                assert!(kept == most.min(extent.next) || trimmed && kept < most, "{extent:?}");
            }
            if let Some(most) = self.definition.share(retention.max_bytes, u8::try_from(shard).unwrap()) {
                let log = &Self::stream(core).logs[shard];
                let segments = read_segments(&self.store, log, extent.start, usize::MAX).await.unwrap();
                assert!(report.bytes <= most || segments.len() == 1, "{} bytes", report.bytes);
            }
        }
    }
}

async fn run(seed: u64) -> Vec<String> {
    let mut world = World::new(seed);
    let core = world.open().await;
    core.apply(std::slice::from_ref(&world.definition)).await.unwrap();
    core.close().await;
    world.note(format!("{:?} {:?}", world.weather, world.definition));
    for _ in 0..3 {
        world.live().await;
    }
    world.settle_and_check().await;
    world.trace.take()
}

#[test]
fn whatever_is_read_of_an_offset_is_read_of_it_for_ever() {
    for trial in trials(SEEDS) {
        simulate(run(trial.seed()));
    }
}

#[test]
fn the_same_seed_is_the_same_history() {
    assert_replays(run);
}
