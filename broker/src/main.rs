//! The `weir` binary. Everything is in the library.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A message is allocated by the thread that reads it and freed by the one that commits or delivers it. The system's
/// allocator takes long for that.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    weir::cli::main()
}
