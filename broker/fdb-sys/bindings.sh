#!/bin/sh
# Writes the bindings to the file named, or to standard output. Needs bindgen 0.72.1 and libclang.
set -eu
cd "$(dirname "$0")"
functions='fdb_(get_max_api_version|get_client_version|get_error|error_predicate|select_api_version_impl|setup_network|run_network|stop_network|network_set_option|create_database|database_(create_transaction|destroy|set_option|get_client_status|get_main_thread_busyness)|future_(cancel|destroy|is_ready|set_callback|get_error|get_int64|get_key|get_value|get_string_array|get_keyvalue_array|get_key_array|get_mappedkeyvalue_array)|transaction_(destroy|cancel|reset|set_option|set_read_version|get_read_version|get|get_key|get_addresses_for_key|get_range|get_mapped_range|set|atomic_op|clear|clear_range|watch|commit|get_committed_version|get_approximate_size|get_versionstamp|on_error|add_conflict_range|get_estimated_range_size_bytes|get_range_split_points))'
types='FDB_(future|database|transaction)|FDB(Future|Database|Transaction|Key|KeyValue|KeySelector|GetRangeReqAndResult|MappedKeyValue|Callback|(Network|Database|Transaction)Option|StreamingMode|MutationType|ConflictRangeType|ErrorPredicate)|fdb_(error|bool)_t|key|keyvalue|keyselector|getrangereqandresult|mappedkeyvalue'
exec bindgen include/fdb_c.h ${1:+--output "$1"} \
    --dynamic-loading Functions --dynamic-link-require-all \
    --no-layout-tests --no-doc-comments --no-recursive-allowlist --formatter prettyplease \
    --allowlist-function "$functions" --allowlist-type "$types" --allowlist-var 'FDB[A-Z][A-Za-z]*_FDB_.*' \
    -- -Iinclude -DFDB_API_VERSION=730
