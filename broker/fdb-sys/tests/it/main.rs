//! The bindings against the headers, and libraries that are not there, too old or something else.

#![expect(unsafe_code, reason = "the C API is called")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bindings;
mod load;
