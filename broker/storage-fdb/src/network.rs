//! The network thread of the client library: started at most once in a process, joined before its end.
//!
//! What there can be only one of in a process is in the statics here; nothing else in the crate is global.

#![expect(unsafe_code, reason = "running the network and hooking the exit of the process are unsafe")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use foundationdb::api::{FdbApiBuilder, NetworkRunner, NetworkStop, NetworkWait};
use foundationdb_sys::{FDB_API_VERSION, LoadError};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use weir_storage::{Error, Result};

use crate::errors;

static STATE: Mutex<State> = Mutex::new(State::Idle);
static THREAD: Mutex<Option<Thread>> = Mutex::new(None);
/// Whether the thread was asked to end.
static STOPPING: AtomicBool = AtomicBool::new(false);

const DIED: &str =
    "the network thread of FoundationDB has ended: it runs once in a process, so start the process again";

/// The network of this process. Cheap to clone; when the last one is gone, the thread is stopped and joined, and there
/// is no other in this process.
#[derive(Clone, Debug)]
pub struct FdbNetwork {
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    library: PathBuf,
    client_version: String,
    /// Cancelled when the thread has ended without being asked to: nothing is answered any more.
    died: CancellationToken,
}

enum State {
    Idle,
    /// The weak end of what every [`FdbNetwork`] shares; once that is gone the network has ended.
    Started(Weak<Running>),
    /// The client library takes no second attempt.
    Failed(Arc<str>),
}

struct Thread {
    stop: NetworkStop,
    handle: JoinHandle<()>,
}

impl FdbNetwork {
    /// Opens the client library and starts the network, or shares the one that runs already, whatever its library.
    /// The library is `library`, or else found as `foundationdb_sys::load` says. Options are taken from the environment
    /// (`FDB_NETWORK_OPTION_*`, `FDB_TLS_*`), which must not change any more.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with where the library was looked for, or why it can't be used.
    pub fn start(library: Option<&Path>) -> Result<Self> {
        let mut state = STATE.lock();
        match &*state {
            State::Idle => {}
            State::Started(running) => {
                let running = running.upgrade().ok_or_else(|| {
                    Error::Unavailable(
                        "the network of FoundationDB has ended: it runs once in a process".into(),
                    )
                })?;
                let network = Self { running };
                return network.check().map(|()| network);
            }
            State::Failed(why) => return Err(Error::Unavailable(Arc::clone(why))),
        }
        let library = foundationdb_sys::load(library).map_err(|error| not_loaded(&error))?;
        let died = CancellationToken::new();
        match run(died.clone()) {
            Ok(thread) => {
                *THREAD.lock() = Some(thread);
                stop_at_exit()?;
            }
            Err(error) => {
                if let Error::Unavailable(why) = &error {
                    *state = State::Failed(Arc::clone(why));
                }
                return Err(error);
            }
        }
        let running = Arc::new(Running {
            library: library.path().to_owned(),
            client_version: library.client_version(),
            died,
        });
        *state = State::Started(Arc::downgrade(&running));
        tracing::info!(library = %library.path().display(), version = running.client_version, "FoundationDB client started");
        Ok(Self { running })
    }

    /// The version of the client library, like `7.3.79`.
    #[must_use]
    pub fn client_version(&self) -> &str {
        &self.running.client_version
    }

    /// Fails if the thread has ended without being asked to.
    pub(crate) fn check(&self) -> Result<()> {
        match self.running.died.is_cancelled() {
            true => Err(Error::Unavailable(DIED.into())),
            false => Ok(()),
        }
    }

    /// Waits until the thread has ended without being asked to, and says so.
    pub(crate) async fn died(&self) -> Arc<str> {
        self.running.died.cancelled().await;
        DIED.into()
    }

    /// The client library that was opened.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.running.library
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        stop();
    }
}

fn not_loaded(error: &LoadError) -> Error {
    let advice = "install the package `foundationdb-clients` of FoundationDB 7.3 or later, or name the file in \
                  `fdb.clientLibrary` or FDB_LOCAL_CLIENT_LIBRARY_PATH; a store on the local disk needs no library: \
                  `--store embedded:DIR`";
    Error::Unavailable(format!("{error}; {advice}").into())
}

/// Selects the version, sets the network up and runs it.
fn run(died: CancellationToken) -> Result<Thread> {
    let version = i32::try_from(FDB_API_VERSION).unwrap_or(i32::MAX);
    let builder = FdbApiBuilder::default().set_runtime_version(version);
    let (runner, wait) = builder.build().and_then(|network| network.build()).map_err(errors::of_read)?;
    spawn(runner, wait, died)
}

/// Has the thread stopped and joined when the process exits. Handlers run in the reverse order of their setting, and
/// those with which the client library takes its objects down are set as these come into use: so this is called again
/// after what brings new ones, and the handler of the last call ends the thread before any of them.
pub(crate) fn stop_at_exit() -> Result<()> {
    extern "C" fn at_exit() {
        stop();
    }
    // SAFETY: the function is C's own, and what it is given does not unwind and may run more than once.
    match unsafe { atexit(at_exit) } {
        0 => Ok(()),
        _ => Err(Error::Unavailable("the exit of the process can't be hooked, as FoundationDB needs".into())),
    }
}

fn spawn(runner: NetworkRunner, wait: NetworkWait, died: CancellationToken) -> Result<Thread> {
    let run = move || {
        // Also when the client library panics.
        let died = died.drop_guard();
        // SAFETY: `stop` is called before the process ends: by the last `FdbNetwork`, or at exit.
        let outcome = unsafe { runner.run() };
        match outcome {
            Ok(()) if STOPPING.load(Ordering::Acquire) => drop(died.disarm()),
            Ok(()) => tracing::error!("the network of FoundationDB ended by itself"),
            Err(error) => tracing::error!(%error, "the network of FoundationDB ended"),
        }
    };
    let handle = thread::Builder::new().name("fdb-network".into()).spawn(run).map_err(|error| {
        Error::Unavailable(format!("start the network thread of FoundationDB: {error}").into())
    })?;
    Ok(Thread { stop: wait.wait(), handle })
}

/// Stops the network and waits for its thread, once.
fn stop() {
    // Held until the thread has ended, so that whoever comes second waits too.
    let mut thread = THREAD.lock();
    let Some(Thread { stop, handle }) = thread.take() else { return };
    STOPPING.store(true, Ordering::Release);
    match stop.stop() {
        Ok(()) if handle.join().is_err() => tracing::error!("the network thread of FoundationDB panicked"),
        Ok(()) => {}
        // Joining would wait for ever.
        Err(error) => tracing::error!(%error, "the network of FoundationDB could not be stopped"),
    }
}

unsafe extern "C" {
    fn atexit(handler: extern "C" fn()) -> std::ffi::c_int;
}
