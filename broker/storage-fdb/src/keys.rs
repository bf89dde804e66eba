//! The keys of one installation within a cluster: its name, a zero byte, then the key. No name holds a zero byte, so
//! the keys of one name never lie among those of another.

use bytes::Bytes;
use weir_storage::{Error, Result};

use crate::options::{FdbOptions, NAME_BYTES_MAX};

#[derive(Clone, Debug)]
pub(crate) struct Prefix(Box<[u8]>);

impl Prefix {
    /// The prefix of the installation `name`.
    pub(crate) fn new(name: &str) -> Result<Self> {
        if !FdbOptions::is_name(name) {
            return Err(Error::Unavailable(
                format!(
                    "`{name}` can't be the prefix of keys in FoundationDB: allowed are 1 to {NAME_BYTES_MAX} letters, \
                     digits, `-`, `_` and `.`"
                )
                .into(),
            ));
        }
        Ok(Self([name.as_bytes(), b"\0"].concat().into()))
    }

    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The key in the cluster.
    pub(crate) fn join(&self, key: &[u8]) -> Vec<u8> {
        [&self.0, key].concat()
    }

    /// The key of the installation.
    pub(crate) fn strip(&self, key: &[u8]) -> Bytes {
        Bytes::copy_from_slice(key.get(self.0.len()..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_apart() {
        let [short, long] = ["weir", "weir2"].map(|name| Prefix::new(name).unwrap());
        assert!(!long.0.starts_with(&short.0));
        assert_eq!(short.join(b"k"), b"weir\0k");
        assert_eq!(&short.strip(b"weir\0k")[..], b"k");
    }

    #[test]
    fn names_that_would_not_do_are_refused() {
        for name in ["", "a b", "a\0", "\u{ff}", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(Prefix::new(name).is_err(), "{name:?}");
        }
    }
}
