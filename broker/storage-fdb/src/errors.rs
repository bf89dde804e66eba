//! What FoundationDB's error codes mean to a caller: the one place that knows them.

use std::sync::Arc;

use foundationdb::FdbError;
use weir_storage::Error;
use weir_storage::limits::{KEY_BYTES_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};

/// What a code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    TooOld,
    Conflict,
    /// Nothing was committed, and a pause helps.
    Busy,
    /// Something over a limit of FoundationDB, which are wider than ours.
    TooLarge(&'static str, usize),
    /// Nothing was committed, and repeating does not help before a person or time has changed something.
    Refused,
    /// A commit may have happened and is over.
    Settled,
    /// A commit may have happened or may still do so.
    Open,
}

const fn meaning(code: i32) -> Meaning {
    match code {
        1007 => Meaning::TooOld,
        1020 => Meaning::Conflict,
        // The client has seen to it that the commit is no longer under way before it says so.
        1021 => Meaning::Settled,
        // future_version, process_behind, commit and GRV proxy memory limits, throttled as batch, by tag, at the proxy.
        1009 | 1037 | 1042 | 1051 | 1078 | 1213 | 1223 => Meaning::Busy,
        // Locked by an operator; no storage left; permission; no library of the cluster's version.
        1038 | 1225 | 6000 | 2123..=2125 => Meaning::Refused,
        2101 => Meaning::TooLarge("transaction", TRANSACTION_BYTES_MAX),
        2102 => Meaning::TooLarge("key", KEY_BYTES_MAX),
        2103 => Meaning::TooLarge("value", VALUE_BYTES_MAX),
        // The client refuses these before it sends anything: files and options, the network, the API, TLS.
        1510..=1516 | 2000..=2029 | 2104..=2109 | 2200..=2204 | foundationdb_sys::NOT_LOADED => {
            Meaning::Refused
        }
        // timed_out, cancelled (1025, 1101), cluster_version_changed (1039), and whatever else: none of them says that
        // nothing will happen.
        _ => Meaning::Open,
    }
}

/// What an error says. The client library answers for codes that are not known here: those of a later release.
fn meaning_of(error: FdbError) -> Meaning {
    match meaning(error.code()) {
        Meaning::Open if error.is_retryable_not_committed() => Meaning::Busy,
        meaning => meaning,
    }
}

/// The error of anything but a commit.
pub(crate) fn of_read(error: FdbError) -> Error {
    match meaning_of(error) {
        Meaning::TooOld => Error::TooOld,
        // The time of the whole transaction is over (see `Shared::transaction`), which is later than its lifetime.
        Meaning::Open if error.code() == 1031 => Error::TooOld,
        Meaning::Conflict => Error::Conflict,
        Meaning::Busy | Meaning::Settled => Error::Busy(text(error)),
        Meaning::TooLarge(what, limit) => too_large(what, limit),
        // The cluster has just been upgraded; the client reconnects by itself.
        Meaning::Open if error.code() == 1039 => Error::Busy(text(error)),
        Meaning::Refused | Meaning::Open => Error::Unavailable(text(error)),
    }
}

/// The error of a commit.
pub(crate) fn of_commit(error: FdbError) -> Error {
    match meaning_of(error) {
        Meaning::TooOld => Error::TooOld,
        Meaning::Conflict => Error::Conflict,
        Meaning::Busy => Error::Busy(text(error)),
        Meaning::TooLarge(what, limit) => too_large(what, limit),
        Meaning::Refused => Error::Unavailable(text(error)),
        Meaning::Settled => Error::UnknownSettled,
        Meaning::Open => Error::UnknownOpen,
    }
}

const fn too_large(what: &'static str, limit: usize) -> Error {
    // Found by FoundationDB, which does not say by how much.
    Error::TooLarge { what, size: limit + 1, limit }
}

fn text(error: FdbError) -> Arc<str> {
    let advice = match error.code() {
        1038 => "; `fdbcli --exec unlock` ends the lock of an operator, a restore or a disaster recovery",
        1515 | 2104 => "; look at the cluster file",
        2022 => "; look at the environment variables FDB_NETWORK_OPTION_*",
        2107 => {
            "; look at FDB_TLS_CERTIFICATE_FILE, FDB_TLS_KEY_FILE, FDB_TLS_CA_FILE and FDB_TLS_VERIFY_PEERS"
        }
        2123..=2125 => "; the client library must be of the cluster's release: see docs/foundationdb.md",
        6000 => "; the cluster asks for authorization tokens",
        _ => "",
    };
    format!("FoundationDB says {} ({}){advice}", error.message(), error.code()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variant that `code` becomes, for a read and for a commit.
    fn variants(code: i32) -> [String; 2] {
        let error = FdbError::from_code(code);
        [of_read(error), of_commit(error)].map(|error| {
            let text = format!("{error:?}");
            text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
        })
    }

    #[test]
    fn codes_are_told_apart_by_what_a_caller_does_next() {
        for (codes, read, commit) in [
            (&[1007][..], "TooOld", "TooOld"),
            (&[1020], "Conflict", "Conflict"),
            (&[1009, 1037, 1042, 1051, 1078, 1213, 1223], "Busy", "Busy"),
            (&[1021], "Busy", "UnknownSettled"),
            (&[1031], "TooOld", "UnknownOpen"),
            (&[1025, 1101, 1100, 1022, 4100, 1006], "Unavailable", "UnknownOpen"),
            (&[1039], "Busy", "UnknownOpen"),
            (&[1038, 1515, 2104, 2107, 2124, 2203, 6000], "Unavailable", "Unavailable"),
            (&[foundationdb_sys::NOT_LOADED], "Unavailable", "Unavailable"),
            (&[2101, 2102, 2103], "TooLarge", "TooLarge"),
        ] {
            for &code in codes {
                assert_eq!(variants(code), [read, commit], "{code}");
            }
        }
    }

    #[test]
    fn no_code_of_which_nothing_is_known_passes_for_not_committed() {
        let not_committed =
            (0..10_000).filter(|&code| meaning(code) != Meaning::Open && meaning(code) != Meaning::Settled);
        // As many as are named above: a wider range would be a mistake.
        assert_eq!(not_committed.count(), 9 + 6 + 3 + 7 + 30 + 6 + 5);
    }
}
