//! The part of the configuration about a store in FoundationDB. Plain data; what it means is
//! [`weir_storage_fdb`]'s.

use std::path::PathBuf;
use std::time::Duration;

use super::settings::{PLAIN, Setting, one};
use super::value::{self, Quantity};

/// How `store = fdb:FILE` uses the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbConfig {
    /// Name of the installation in the cluster, before each of its keys.
    pub prefix: String,
    /// The client library; `None`: wherever it is found.
    pub client_library: Option<PathBuf>,
    /// Longest wait for an answer of the cluster.
    pub timeout: Duration,
}

impl Default for FdbConfig {
    fn default() -> Self {
        Self { prefix: "weir".to_owned(), client_library: None, timeout: Duration::from_secs(10) }
    }
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "fdb.prefix",
        flag: "fdb-prefix",
        env: "WEIR_FDB_PREFIX",
        value_name: "NAME",
        help: "Name of this installation in a FoundationDB cluster, before each of its keys",
        set: |config, values| {
            config.fdb.prefix = value::fdb_prefix(one(values)?)?;
            Ok(())
        },
        show: |config| config.fdb.prefix.clone(),
        ..PLAIN
    },
    Setting {
        key: "fdb.clientLibrary",
        flag: "fdb-client-library",
        env: "WEIR_FDB_CLIENT_LIBRARY",
        value_name: "FILE",
        help: "FoundationDB's libfdb_c, 7.3 or later, if it is not where the system looks for libraries",
        set: |config, values| {
            config.fdb.client_library = Some(one(values)?.into());
            Ok(())
        },
        show: |config| {
            config.fdb.client_library.as_ref().map(|file| file.display().to_string()).unwrap_or_default()
        },
        ..PLAIN
    },
    Setting {
        key: "fdb.timeout",
        flag: "fdb-timeout",
        env: "WEIR_FDB_TIMEOUT",
        value_name: Duration::VALUE_NAME,
        help: "Longest wait for an answer of a FoundationDB cluster, from 1s to 5m",
        set: |config, values| {
            let range = Duration::from_secs(1)..=Duration::from_mins(5);
            config.fdb.timeout = value::within(one(values)?, &range)?;
            Ok(())
        },
        show: |config| config.fdb.timeout.show(),
        ..PLAIN
    },
];
