//! What all newtypes over checked text have in common. Knows nothing of what was checked.

/// Access to the text of newtypes over [`ByteString`](bytestring::ByteString). Equality, order and hash must be
/// derived: then they are those of the text, and a map keyed by the type can be asked with a `&str`.
macro_rules! text_newtype {
    ($($name:ident),*) => {$(
        impl $name {
            /// The whole text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The whole text as UTF-8.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }

            /// The text as it was parsed.
            #[must_use]
            pub fn into_inner(self) -> bytestring::ByteString {
                self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )*};
}

pub(crate) use text_newtype;
