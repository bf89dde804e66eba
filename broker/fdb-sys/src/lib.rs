//! The C API of FoundationDB 7.3 for the `foundationdb` crate, from a library that is opened with [`load`] instead
//! of linked. So a program that can use FoundationDB builds and starts where `libfdb_c` is not installed.
//!
//! Until [`load`] has succeeded no function reaches C: those that return an error code return [`NOT_LOADED`], the
//! others null or zero. It knows neither what is stored nor who asks. Once loaded the library stays so until the
//! process ends; the table of its functions is owned here.

#![expect(unsafe_code, reason = "a foreign library is called")]

#[expect(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::missing_safety_doc,
    clippy::too_many_arguments,
    clippy::use_self,
    reason = "generated: see bindings.sh"
)]
#[rustfmt::skip]
pub mod bindings;
#[expect(clippy::too_many_arguments, reason = "they are those of the C API")]
mod functions;
mod load;
mod versions;

pub use bindings::*;
pub use functions::*;
pub use load::{Library, LoadError, library, load};

/// The API version of these bindings. A library of this or a later version can be loaded.
pub const FDB_API_VERSION: u32 = 730;

/// What functions return before [`load`] has succeeded. FoundationDB's own codes are positive.
pub const NOT_LOADED: fdb_error_t = -1;
