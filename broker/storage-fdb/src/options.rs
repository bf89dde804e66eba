//! How a store uses a cluster, as plain data.

use std::path::PathBuf;
use std::time::Duration;

/// Longest [`FdbOptions::name`], in bytes: it stands before every key.
pub const NAME_BYTES_MAX: usize = 32;

/// Where a store is, and how long to wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbOptions {
    /// The cluster file. FoundationDB writes to it when the coordinators of the cluster change.
    pub cluster_file: PathBuf,
    /// Name of the installation, with which each of its keys begins: up to [`NAME_BYTES_MAX`] letters, digits, `-`,
    /// `_` and `.`. Stores of different names in one cluster never meet.
    pub name: String,
    /// Longest wait for an answer of the cluster.
    pub timeout: Duration,
}

impl FdbOptions {
    /// Whether `text` can be a [`FdbOptions::name`].
    #[must_use]
    pub fn is_name(text: &str) -> bool {
        let is_allowed = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_allowed)
    }

    /// The store of the installation `weir` in the cluster of `cluster_file`; waits ten seconds.
    pub fn new(cluster_file: impl Into<PathBuf>) -> Self {
        Self { cluster_file: cluster_file.into(), name: "weir".to_owned(), timeout: Duration::from_secs(10) }
    }
}
