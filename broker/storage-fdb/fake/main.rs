//! A client library with a cluster in it: the C API that the engine calls, over a database in memory. Tests load it
//! where there is no FoundationDB, to see that what goes through the API arrives; what FoundationDB makes of it is
//! seen on FoundationDB alone.
//!
//! Each cluster file has a database of its own. Options are taken and ignored.

#![expect(unsafe_code, reason = "it is called from C")]

mod db;
mod future;

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::slice;
use std::sync::{Arc, OnceLock};

use db::{Database, Mutation, Query};
use foundationdb_sys::{
    FDBCallback, FDBConflictRangeType, FDBConflictRangeType_FDB_CONFLICT_RANGE_TYPE_READ, FDBDatabase,
    FDBDatabaseOption, FDBFuture, FDBKeyValue, FDBMutationType,
    FDBMutationType_FDB_MUTATION_TYPE_SET_VERSIONSTAMPED_KEY,
    FDBMutationType_FDB_MUTATION_TYPE_SET_VERSIONSTAMPED_VALUE, FDBNetworkOption, FDBStreamingMode,
    FDBTransaction, FDBTransactionOption, fdb_bool_t, fdb_error_t,
};
use future::{Answer, Future, Signal};
use parking_lot::{Condvar, Mutex};

pub(crate) type Stamp = [u8; 10];

const STAMPED_KEY: FDBMutationType = FDBMutationType_FDB_MUTATION_TYPE_SET_VERSIONSTAMPED_KEY;
const STAMPED_VALUE: FDBMutationType = FDBMutationType_FDB_MUTATION_TYPE_SET_VERSIONSTAMPED_VALUE;
const INVALID_CALL: fdb_error_t = 2000;
/// Bytes in an answer for a range, as FoundationDB limits them.
const ANSWER_BYTES: usize = 80_000;

/// Whoever writes a key that ends like this ends the network, which nobody has asked for.
const LAST_KEY: &[u8] = b"\0end of the network";

static CLUSTERS: OnceLock<Mutex<BTreeMap<String, Arc<Database>>>> = OnceLock::new();
static STOPPED: Mutex<bool> = Mutex::new(false);
static STOPPING: Condvar = Condvar::new();

struct Transaction {
    database: Arc<Database>,
    read_version: Option<i64>,
    reads: Vec<(Vec<u8>, Vec<u8>)>,
    writes: Vec<(Vec<u8>, Vec<u8>)>,
    mutations: Vec<Mutation>,
    stamp: Arc<Mutex<Option<Stamp>>>,
    committed: i64,
}

impl Transaction {
    fn version(&mut self) -> i64 {
        *self.read_version.get_or_insert_with(|| self.database.read_version())
    }

    fn commit(&mut self) -> Result<Answer, i32> {
        if self.mutations.is_empty() && self.writes.is_empty() {
            self.committed = -1;
            return Ok(Answer::Nothing);
        }
        let mutations = std::mem::take(&mut self.mutations);
        if mutations
            .iter()
            .any(|mutation| matches!(mutation, Mutation::Set(key, _) if key.ends_with(LAST_KEY)))
        {
            end_network();
        }
        let (version, stamp) =
            self.database.commit(self.read_version, &self.reads, &self.writes, mutations)?;
        self.committed = version;
        *self.stamp.lock() = Some(stamp);
        Ok(Answer::Nothing)
    }
}

fn end_network() {
    *STOPPED.lock() = true;
    STOPPING.notify_all();
}

/// The bytes at `start`.
unsafe fn bytes<'a>(start: *const u8, length: c_int) -> &'a [u8] {
    let length = usize::try_from(length).expect("lengths are not negative");
    // SAFETY: the caller of the C API gives a place with its length.
    unsafe { slice::from_raw_parts(start, length) }
}

/// What `handle` stands for.
unsafe fn of<'a, T, H>(handle: *mut H) -> &'a mut T {
    // SAFETY: handles are made by `Box::into_raw` of what they stand for, and used by one thread at a time.
    unsafe { &mut *handle.cast() }
}

macro_rules! exported {
    ($( fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block )*) => {
        $(
            /// # Safety
            /// As the documentation of the C API says.
            // SAFETY: no other function of this name is in the library.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $type),*) $(-> $result)? {
                // SAFETY: as the caller has it.
                #[allow(unused_unsafe, reason = "some need nothing of the caller")]
                unsafe { $body }
            }
        )*
    };
}

/// Functions that the `foundationdb` crate wants to be there and the engine does not call.
macro_rules! absent {
    ($($name:ident),* $(,)?) => { $(
        // SAFETY: no other function of this name is in the library.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> fdb_error_t {
            INVALID_CALL
        }
    )* };
}

absent!(
    fdb_future_cancel,
    fdb_future_get_mappedkeyvalue_array,
    fdb_future_get_key_array,
    fdb_future_get_string_array,
    fdb_database_get_main_thread_busyness,
    fdb_database_get_client_status,
    fdb_transaction_cancel,
    fdb_transaction_get_key,
    fdb_transaction_get_addresses_for_key,
    fdb_transaction_get_mapped_range,
    fdb_transaction_get_approximate_size,
    fdb_transaction_on_error,
    fdb_transaction_reset,
    fdb_transaction_get_estimated_range_size_bytes,
    fdb_transaction_get_range_split_points,
);

exported! {
    fn fdb_get_max_api_version() -> c_int { 730 }
    fn fdb_get_client_version() -> *const c_char { c"7.3.0,fake,fdb00b073000000".as_ptr() }
    fn fdb_select_api_version_impl(_runtime: c_int, _header: c_int) -> fdb_error_t { 0 }
    fn fdb_get_error(_code: fdb_error_t) -> *const c_char { c"as the fake library has it".as_ptr() }
    fn fdb_error_predicate(_predicate: c_int, _code: fdb_error_t) -> fdb_bool_t { 0 }
    fn fdb_network_set_option(_option: FDBNetworkOption, _value: *const u8, _length: c_int) -> fdb_error_t { 0 }
    fn fdb_setup_network() -> fdb_error_t { 0 }

    fn fdb_run_network() -> fdb_error_t {
        let mut stopped = STOPPED.lock();
        while !*stopped {
            STOPPING.wait(&mut stopped);
        }
        0
    }

    fn fdb_stop_network() -> fdb_error_t {
        end_network();
        0
    }

    fn fdb_create_database(file: *const c_char, out: *mut *mut FDBDatabase) -> fdb_error_t {
        let file = CStr::from_ptr(file).to_string_lossy().into_owned();
        let mut clusters = CLUSTERS.get_or_init(Mutex::default).lock();
        let database = clusters.entry(file).or_insert_with(|| Arc::new(Database::new()));
        *out = Box::into_raw(Box::new(Arc::clone(database))).cast();
        0
    }

    fn fdb_database_destroy(database: *mut FDBDatabase) {
        drop(Box::from_raw(database.cast::<Arc<Database>>()));
    }

    fn fdb_database_set_option(_d: *mut FDBDatabase, _o: FDBDatabaseOption, _v: *const u8, _l: c_int) -> fdb_error_t { 0 }

    fn fdb_database_create_transaction(database: *mut FDBDatabase, out: *mut *mut FDBTransaction) -> fdb_error_t {
        let database = Arc::clone(of::<Arc<Database>, _>(database));
        let (reads, writes, mutations) = Default::default();
        let transaction =
            Transaction { database, read_version: None, reads, writes, mutations, stamp: Arc::default(), committed: -1 };
        *out = Box::into_raw(Box::new(transaction)).cast();
        0
    }

    fn fdb_transaction_destroy(tr: *mut FDBTransaction) {
        drop(Box::from_raw(tr.cast::<Transaction>()));
    }

    fn fdb_transaction_set_option(_t: *mut FDBTransaction, _o: FDBTransactionOption, _v: *const u8, _l: c_int) -> fdb_error_t { 0 }

    fn fdb_transaction_set_read_version(tr: *mut FDBTransaction, version: i64) {
        of::<Transaction, _>(tr).read_version = Some(version);
    }

    fn fdb_transaction_get_read_version(tr: *mut FDBTransaction) -> *mut FDBFuture {
        Future::make(Ok(Answer::Version(of::<Transaction, _>(tr).version())))
    }

    fn fdb_transaction_get(tr: *mut FDBTransaction, key: *const u8, length: c_int, _snapshot: fdb_bool_t) -> *mut FDBFuture {
        let transaction = of::<Transaction, _>(tr);
        let version = transaction.version();
        Future::make(transaction.database.get(bytes(key, length), version).map(Answer::Value))
    }

    fn fdb_transaction_get_range(
        tr: *mut FDBTransaction,
        begin: *const u8,
        begin_length: c_int,
        begin_or_equal: fdb_bool_t,
        begin_offset: c_int,
        end: *const u8,
        end_length: c_int,
        end_or_equal: fdb_bool_t,
        end_offset: c_int,
        limit: c_int,
        target_bytes: c_int,
        _mode: FDBStreamingMode,
        _iteration: c_int,
        _snapshot: fdb_bool_t,
        reverse: fdb_bool_t,
    ) -> *mut FDBFuture {
        let transaction = of::<Transaction, _>(tr);
        if (begin_or_equal, begin_offset, end_or_equal, end_offset) != (0, 1, 0, 1) {
            return Future::make(Err(INVALID_CALL));
        }
        let or = |number: c_int, otherwise: usize| match usize::try_from(number) {
            Ok(0) | Err(_) => otherwise,
            Ok(number) => number,
        };
        let query = Query {
            begin: bytes(begin, begin_length),
            end: bytes(end, end_length),
            limit: or(limit, usize::MAX),
            bytes: or(target_bytes, ANSWER_BYTES).min(ANSWER_BYTES),
            reverse: reverse != 0,
        };
        let version = transaction.version();
        Future::make(transaction.database.range(&query, version).map(|(pairs, more)| Answer::Pairs(pairs, more)))
    }

    fn fdb_transaction_set(tr: *mut FDBTransaction, key: *const u8, length: c_int, value: *const u8, value_length: c_int) {
        let mutation = Mutation::Set(bytes(key, length).to_vec(), bytes(value, value_length).to_vec());
        of::<Transaction, _>(tr).mutations.push(mutation);
    }

    fn fdb_transaction_atomic_op(
        tr: *mut FDBTransaction,
        key: *const u8,
        length: c_int,
        operand: *const u8,
        operand_length: c_int,
        kind: FDBMutationType,
    ) {
        let (key, operand) = (bytes(key, length).to_vec(), bytes(operand, operand_length).to_vec());
        let mutation = match kind {
            STAMPED_KEY => Mutation::StampedKey(key, operand),
            STAMPED_VALUE => Mutation::StampedValue(key, operand),
            other => panic!("operation {other} is not known here"),
        };
        of::<Transaction, _>(tr).mutations.push(mutation);
    }

    fn fdb_transaction_clear(tr: *mut FDBTransaction, key: *const u8, length: c_int) {
        let key = bytes(key, length);
        let mutation = Mutation::Clear(key.to_vec(), [key, &[0]].concat());
        of::<Transaction, _>(tr).mutations.push(mutation);
    }

    fn fdb_transaction_clear_range(
        tr: *mut FDBTransaction,
        begin: *const u8,
        begin_length: c_int,
        end: *const u8,
        end_length: c_int,
    ) {
        let mutation = Mutation::Clear(bytes(begin, begin_length).to_vec(), bytes(end, end_length).to_vec());
        of::<Transaction, _>(tr).mutations.push(mutation);
    }

    fn fdb_transaction_add_conflict_range(
        tr: *mut FDBTransaction,
        begin: *const u8,
        begin_length: c_int,
        end: *const u8,
        end_length: c_int,
        kind: FDBConflictRangeType,
    ) -> fdb_error_t {
        let transaction = of::<Transaction, _>(tr);
        let range = (bytes(begin, begin_length).to_vec(), bytes(end, end_length).to_vec());
        match kind == FDBConflictRangeType_FDB_CONFLICT_RANGE_TYPE_READ {
            true => transaction.reads.push(range),
            false => transaction.writes.push(range),
        }
        0
    }

    fn fdb_transaction_watch(tr: *mut FDBTransaction, key: *const u8, length: c_int) -> *mut FDBFuture {
        let transaction = of::<Transaction, _>(tr);
        let (version, signal) = (transaction.version(), Arc::<Signal>::default());
        let watched = transaction.database.watch(bytes(key, length), version, Arc::clone(&signal));
        Future::make(watched.map(|()| Answer::Watch(signal)))
    }

    fn fdb_transaction_commit(tr: *mut FDBTransaction) -> *mut FDBFuture {
        Future::make(of::<Transaction, _>(tr).commit())
    }

    fn fdb_transaction_get_committed_version(tr: *mut FDBTransaction, out: *mut i64) -> fdb_error_t {
        *out = of::<Transaction, _>(tr).committed;
        0
    }

    fn fdb_transaction_get_versionstamp(tr: *mut FDBTransaction) -> *mut FDBFuture {
        Future::make(Ok(Answer::Stamp(Arc::clone(&of::<Transaction, _>(tr).stamp))))
    }

    fn fdb_future_destroy(f: *mut FDBFuture) {
        let future = Box::from_raw(f.cast::<Future>());
        if let Ok(Answer::Watch(signal)) = &future.answer {
            // What waits for it is let go.
            signal.fire();
        }
    }

    fn fdb_future_is_ready(f: *mut FDBFuture) -> fdb_bool_t {
        fdb_bool_t::from(of::<Future, _>(f).is_ready())
    }

    fn fdb_future_set_callback(f: *mut FDBFuture, callback: FDBCallback, parameter: *mut c_void) -> fdb_error_t {
        let future: &mut Future = of(f);
        let signal = match &future.answer {
            Ok(Answer::Watch(signal)) => Arc::clone(signal),
            Ok(_) | Err(_) => {
                let signal = Arc::<Signal>::default();
                signal.fire();
                signal
            }
        };
        signal.on_fire(callback, f, parameter);
        0
    }

    fn fdb_future_get_error(f: *mut FDBFuture) -> fdb_error_t {
        of::<Future, _>(f).answer.as_ref().err().copied().unwrap_or(0)
    }

    fn fdb_future_get_int64(f: *mut FDBFuture, out: *mut i64) -> fdb_error_t {
        let Ok(Answer::Version(version)) = &of::<Future, _>(f).answer else { return INVALID_CALL };
        *out = *version;
        0
    }

    fn fdb_future_get_key(f: *mut FDBFuture, out: *mut *const u8, out_length: *mut c_int) -> fdb_error_t {
        let future: &mut Future = of(f);
        let Ok(Answer::Stamp(stamp)) = &future.answer else { return INVALID_CALL };
        let Some(stamp) = *stamp.lock() else { return INVALID_CALL };
        future.stamp = stamp;
        (*out, *out_length) = (future.stamp.as_ptr(), 10);
        0
    }

    fn fdb_future_get_value(
        f: *mut FDBFuture,
        out_present: *mut fdb_bool_t,
        out: *mut *const u8,
        out_length: *mut c_int,
    ) -> fdb_error_t {
        let Ok(Answer::Value(value)) = &of::<Future, _>(f).answer else { return INVALID_CALL };
        let bytes = value.as_deref().unwrap_or_default();
        *out_present = fdb_bool_t::from(value.is_some());
        (*out, *out_length) = (bytes.as_ptr(), c_int::try_from(bytes.len()).expect("values are short"));
        0
    }

    fn fdb_future_get_keyvalue_array(
        f: *mut FDBFuture,
        out: *mut *const FDBKeyValue,
        out_count: *mut c_int,
        out_more: *mut fdb_bool_t,
    ) -> fdb_error_t {
        let future: &mut Future = of(f);
        let Ok(Answer::Pairs(_, more)) = &future.answer else { return INVALID_CALL };
        *out = if future.array.is_empty() { ptr::null() } else { future.array.as_ptr() };
        (*out_count, *out_more) = (c_int::try_from(future.array.len()).expect("answers are short"), fdb_bool_t::from(*more));
        0
    }
}
