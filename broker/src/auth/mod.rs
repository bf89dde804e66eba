//! Who a client is and what it may do, as the broker asks it: credentials and rules in force, their files read again
//! when they change, passwords hashed away from the threads that serve clients, guessing slowed down.
//!
//! What a password, a token or a rule means is known by `weir-auth`; here is what needs files, time and tasks. It
//! knows no packets but CONNECT. The state is swapped as a whole, so nobody sees half of a reload.

mod access;
mod authenticate;
mod files;
mod method;
mod refused;
mod reload;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use bytestring::ByteString;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use weir_auth::{JwtVerifier, PasswordFile, Recent, Rules, Throttle, ThrottleConfig};
use weir_env::clock::{Clock, Timestamp};

use crate::config::Config;
use crate::metrics::Metrics;

pub(crate) use access::{ClientAccess, Denied};
pub use files::{Problems, check, load_rules};
pub use method::{Claim, Exchange, Method, Proved, Step};
pub(crate) use refused::Refused;

/// How long credentials that were right need not be verified again.
const RECENT_LIFETIME: Duration = Duration::from_mins(5);
/// Passwords hashed at the same time at most: each takes a core and megabytes.
const HASHES_MAX: usize = 4;
/// CONNECTs that may wait for their password to be hashed; each holds its packet.
const HASHES_WAITING_MAX: usize = 1024;

/// Authentication and authorization of one broker.
pub(crate) struct Auth {
    config: crate::config::AuthConfig,
    allow_anonymous: bool,
    /// The files as the broker found them when it started.
    print: reload::Print,
    state: ArcSwap<State>,
    /// Grows with every reload.
    generation: watch::Sender<u64>,
    throttle: Mutex<Throttle>,
    recent: Mutex<Recent>,
    hashes: Arc<Semaphore>,
    waiting: AtomicUsize,
    methods: Vec<Arc<dyn Method>>,
    metrics: Metrics,
    clock: Clock,
}

/// What the files say.
#[derive(Debug, Default)]
struct State {
    users: Option<Arc<PasswordFile>>,
    jwt: Option<JwtVerifier>,
    rules: Option<Arc<Rules>>,
}

/// Whom a connection belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `None`: anonymous.
    pub(crate) user: Option<ByteString>,
    /// When its proof ends.
    pub(crate) expires_at: Option<Timestamp>,
    /// Of the user's line in the password file, if that proved it.
    stamp: Option<u64>,
}

impl Auth {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    /// Every mistake in them.
    pub(crate) fn open(
        config: &Config,
        methods: Vec<Arc<dyn Method>>,
        metrics: Metrics,
        clock: Clock,
    ) -> anyhow::Result<Arc<Self>> {
        // Before the files are read, so that no change is missed.
        let print = reload::Print::of(&config.auth);
        let state = files::load(&config.auth).context("read who may do what")?;
        let hashes =
            std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, HASHES_MAX));
        let auth = Self {
            config: config.auth.clone(),
            allow_anonymous: config.allow_anonymous,
            print,
            state: ArcSwap::from_pointee(state),
            generation: watch::Sender::new(0),
            throttle: Mutex::new(Throttle::new(ThrottleConfig::default())),
            recent: Mutex::new(Recent::new(RECENT_LIFETIME).map_err(anyhow::Error::msg)?),
            hashes: Arc::new(Semaphore::new(hashes)),
            waiting: AtomicUsize::new(0),
            methods,
            metrics,
            clock,
        };
        auth.log_state();
        Ok(Arc::new(auth))
    }

    /// Whether clients can prove who they are.
    pub(crate) fn authenticates(&self) -> bool {
        self.config.authenticates() || !self.methods.is_empty()
    }

    /// Whether rules restrict what clients may do.
    pub(crate) fn has_rules(&self) -> bool {
        self.config.rules().is_some()
    }

    /// Whether `identity` would still be let in: its line in the password file is as it was.
    fn still_knows(&self, identity: &Identity) -> bool {
        let (Some(stamp), Some(user)) = (identity.stamp, &identity.user) else { return true };
        let state = self.state.load();
        state.users.as_ref().and_then(|users| users.stamp(user)) == Some(stamp)
    }

    fn log_state(&self) {
        let state = self.state.load();
        if !self.authenticates() && !self.has_rules() {
            return;
        }
        tracing::info!(
            users = state.users.as_ref().map_or(0, |users| users.len()),
            rules = state.rules.as_ref().map_or(0, |rules| rules.all().len()),
            tokens = state.jwt.is_some(),
            certificates = self.config.certificate_as_user,
            anonymous = self.admits_anonymous(),
            "who may do what is read"
        );
    }

    /// Without authentication only loopback listeners open, so whoever is there may come in.
    fn admits_anonymous(&self) -> bool {
        self.allow_anonymous || !self.authenticates()
    }
}
