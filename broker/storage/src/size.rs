//! The size of a transaction, counted alike by every engine. Knows the limits, not the engines.

use crate::limits::{KEY_BYTES_MAX, OPERATION_BYTES, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};
use crate::{Error, Result};

/// Counts what a transaction does against [`limits`](crate::limits); see the crate's documentation for the
/// rule.
#[derive(Clone, Debug, Default)]
pub struct TransactionSize {
    total: usize,
    longest_key: usize,
    longest_value: usize,
}

impl TransactionSize {
    /// What a write of a key of `key` bytes with a value of `value` bytes adds: the key counts twice.
    #[must_use]
    pub const fn of_write(key: usize, value: usize) -> usize {
        OPERATION_BYTES.saturating_add(key).saturating_add(key).saturating_add(value)
    }

    /// Counts a write of a key of `key` bytes with a value of `value` bytes.
    pub const fn add_write(&mut self, key: usize, value: usize) {
        self.total = self.total.saturating_add(Self::of_write(key, value));
        if key > self.longest_key {
            self.longest_key = key;
        }
        if value > self.longest_value {
            self.longest_value = value;
        }
    }

    /// Counts a range that was cleared, read or added as a conflict, by the lengths of its two ends.
    pub const fn add_range(&mut self, begin: usize, end: usize) {
        self.total = self.total.saturating_add(OPERATION_BYTES).saturating_add(begin).saturating_add(end);
    }

    /// Bytes counted so far.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Fails if a key, a value or the whole is over its limit.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub const fn check(&self) -> Result<()> {
        let (what, size, limit) = if self.longest_key > KEY_BYTES_MAX {
            ("key", self.longest_key, KEY_BYTES_MAX)
        } else if self.longest_value > VALUE_BYTES_MAX {
            ("value", self.longest_value, VALUE_BYTES_MAX)
        } else if self.total >= TRANSACTION_BYTES_MAX {
            ("transaction", self.total, TRANSACTION_BYTES_MAX)
        } else {
            return Ok(());
        };
        Err(Error::TooLarge { what, size, limit })
    }
}
