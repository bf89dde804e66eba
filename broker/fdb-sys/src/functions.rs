//! One wrapper for each function of the C API, under its own name.
//!
//! Their arguments and results are those of [`crate::bindings`], or this does not compile; what a wrapper returns
//! while no library is loaded stands behind the `=`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use crate::bindings::*;
use crate::{NOT_LOADED, library};

const NOT_LOADED_TEXT: &CStr = c"The FoundationDB client library is not loaded";

macro_rules! forward {
    ($( fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty = $unloaded:expr)?; )*) => {
        $(
            #[doc = concat!("`", stringify!($name), "` of the C API.")]
            ///
            /// # Safety
            /// As the documentation of the C API says.
            pub unsafe fn $name($($argument: $type),*) $(-> $result)? {
                match library() {
                    // SAFETY: the table was filled from the library by the names of the functions, and the caller
                    // keeps to what the C API asks for.
                    Some(library) => unsafe { library.functions.$name($($argument),*) },
                    None => { $($unloaded)? }
                }
            }
        )*

        /// Every function that is wrapped.
        pub const FUNCTIONS: &[&str] = &[$(stringify!($name)),*];
    };
}

forward! {
    fn fdb_get_error(code: fdb_error_t) -> *const c_char = NOT_LOADED_TEXT.as_ptr();
    fn fdb_error_predicate(predicate_test: c_int, code: fdb_error_t) -> fdb_bool_t = 0;
    fn fdb_network_set_option(option: FDBNetworkOption, value: *const u8, value_length: c_int) -> fdb_error_t = NOT_LOADED;
    fn fdb_setup_network() -> fdb_error_t = NOT_LOADED;
    fn fdb_run_network() -> fdb_error_t = NOT_LOADED;
    fn fdb_stop_network() -> fdb_error_t = NOT_LOADED;
    fn fdb_future_cancel(f: *mut FDBFuture);
    fn fdb_future_destroy(f: *mut FDBFuture);
    fn fdb_future_is_ready(f: *mut FDBFuture) -> fdb_bool_t = 0;
    fn fdb_future_set_callback(f: *mut FDBFuture, callback: FDBCallback, callback_parameter: *mut c_void) -> fdb_error_t = NOT_LOADED;
    fn fdb_future_get_error(f: *mut FDBFuture) -> fdb_error_t = NOT_LOADED;
    fn fdb_future_get_int64(f: *mut FDBFuture, out: *mut i64) -> fdb_error_t = NOT_LOADED;
    fn fdb_future_get_key(f: *mut FDBFuture, out_key: *mut *const u8, out_key_length: *mut c_int) -> fdb_error_t = NOT_LOADED;
    fn fdb_future_get_value(f: *mut FDBFuture, out_present: *mut fdb_bool_t, out_value: *mut *const u8, out_value_length: *mut c_int) -> fdb_error_t = NOT_LOADED;
    fn fdb_future_get_keyvalue_array(f: *mut FDBFuture, out_kv: *mut *const FDBKeyValue, out_count: *mut c_int, out_more: *mut fdb_bool_t) -> fdb_error_t = NOT_LOADED;
    fn fdb_future_get_mappedkeyvalue_array(f: *mut FDBFuture, out_kv: *mut *const FDBMappedKeyValue, out_count: *mut c_int, out_more: *mut fdb_bool_t) -> fdb_error_t = NOT_LOADED;
    fn fdb_future_get_key_array(f: *mut FDBFuture, out_key_array: *mut *const FDBKey, out_count: *mut c_int) -> fdb_error_t = NOT_LOADED;
    fn fdb_future_get_string_array(f: *mut FDBFuture, out_strings: *mut *mut *const c_char, out_count: *mut c_int) -> fdb_error_t = NOT_LOADED;
    fn fdb_create_database(cluster_file_path: *const c_char, out_database: *mut *mut FDBDatabase) -> fdb_error_t = NOT_LOADED;
    fn fdb_database_destroy(d: *mut FDBDatabase);
    fn fdb_database_set_option(d: *mut FDBDatabase, option: FDBDatabaseOption, value: *const u8, value_length: c_int) -> fdb_error_t = NOT_LOADED;
    fn fdb_database_create_transaction(d: *mut FDBDatabase, out_transaction: *mut *mut FDBTransaction) -> fdb_error_t = NOT_LOADED;
    fn fdb_database_get_main_thread_busyness(db: *mut FDBDatabase) -> f64 = 0.0;
    fn fdb_database_get_client_status(db: *mut FDBDatabase) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_destroy(tr: *mut FDBTransaction);
    fn fdb_transaction_cancel(tr: *mut FDBTransaction);
    fn fdb_transaction_set_option(tr: *mut FDBTransaction, option: FDBTransactionOption, value: *const u8, value_length: c_int) -> fdb_error_t = NOT_LOADED;
    fn fdb_transaction_set_read_version(tr: *mut FDBTransaction, version: i64);
    fn fdb_transaction_get_read_version(tr: *mut FDBTransaction) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_get(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int, snapshot: fdb_bool_t) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_get_key(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int, or_equal: fdb_bool_t, offset: c_int, snapshot: fdb_bool_t) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_get_addresses_for_key(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_get_range(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, begin_or_equal: fdb_bool_t, begin_offset: c_int, end_key_name: *const u8, end_key_name_length: c_int, end_or_equal: fdb_bool_t, end_offset: c_int, limit: c_int, target_bytes: c_int, mode: FDBStreamingMode, iteration: c_int, snapshot: fdb_bool_t, reverse: fdb_bool_t) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_get_mapped_range(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, begin_or_equal: fdb_bool_t, begin_offset: c_int, end_key_name: *const u8, end_key_name_length: c_int, end_or_equal: fdb_bool_t, end_offset: c_int, mapper_name: *const u8, mapper_name_length: c_int, limit: c_int, target_bytes: c_int, mode: FDBStreamingMode, iteration: c_int, snapshot: fdb_bool_t, reverse: fdb_bool_t) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_set(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int, value: *const u8, value_length: c_int);
    fn fdb_transaction_atomic_op(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int, param: *const u8, param_length: c_int, operation_type: FDBMutationType);
    fn fdb_transaction_clear(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int);
    fn fdb_transaction_clear_range(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, end_key_name: *const u8, end_key_name_length: c_int);
    fn fdb_transaction_watch(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_commit(tr: *mut FDBTransaction) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_get_committed_version(tr: *mut FDBTransaction, out_version: *mut i64) -> fdb_error_t = NOT_LOADED;
    fn fdb_transaction_get_approximate_size(tr: *mut FDBTransaction) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_get_versionstamp(tr: *mut FDBTransaction) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_on_error(tr: *mut FDBTransaction, error: fdb_error_t) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_reset(tr: *mut FDBTransaction);
    fn fdb_transaction_add_conflict_range(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, end_key_name: *const u8, end_key_name_length: c_int, type_: FDBConflictRangeType) -> fdb_error_t = NOT_LOADED;
    fn fdb_transaction_get_estimated_range_size_bytes(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, end_key_name: *const u8, end_key_name_length: c_int) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_transaction_get_range_split_points(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, end_key_name: *const u8, end_key_name_length: c_int, chunk_size: i64) -> *mut FDBFuture = ptr::null_mut();
    fn fdb_select_api_version_impl(runtime_version: c_int, header_version: c_int) -> fdb_error_t = NOT_LOADED;
    fn fdb_get_max_api_version() -> c_int = 0;
    fn fdb_get_client_version() -> *const c_char = c"".as_ptr();
}
