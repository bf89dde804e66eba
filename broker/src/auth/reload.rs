//! Files of users, rules and keys are read again when they change, or at SIGHUP. A broken file changes nothing: what was
//! in force stays, and the log says where the mistake is.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Auth, files};
use crate::config::AuthConfig;
use crate::metrics::Reload;

/// What shows that a file is another one than before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Print(Vec<Option<(u64, u64, Option<SystemTime>)>>);

impl Print {
    fn of(config: &AuthConfig) -> Self {
        let jwt = &config.jwt;
        let others = [&config.users_file, &jwt.key_file, &jwt.jwks_file, &jwt.secret_file];
        let paths = others.into_iter().filter_map(|path| path.as_deref()).chain(config.rules());
        let print = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.len(), metadata.modified().ok()))
        };
        Self(paths.map(print).collect())
    }
}

impl Auth {
    /// Reads the files again when they change, and whenever the process gets SIGHUP, until `stop`. SIGHUP, which
    /// would end the process, is heeded from this call on.
    pub(crate) fn follow(self: Arc<Self>, stop: CancellationToken) -> impl Future<Output = ()> + Send {
        // Without it, files are still looked at.
        let hangup = signal(SignalKind::hangup()).ok();
        self.follow_files(hangup, stop)
    }

    async fn follow_files(self: Arc<Self>, mut hangup: Option<Signal>, stop: CancellationToken) {
        let mut print = self.print().await;
        let interval = self.config.reload_interval;
        loop {
            let asked = tokio::select! {
                () = next(&mut hangup) => true,
                () = elapsed(interval) => false,
                () = stop.cancelled() => return,
            };
            let now = self.print().await;
            if asked || now != print {
                self.reload().await;
            }
            print = now;
        }
    }

    async fn print(&self) -> Option<Print> {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || Print::of(&config)).await.ok()
    }

    async fn reload(&self) {
        let config = self.config.clone();
        let Ok(loaded) = tokio::task::spawn_blocking(move || files::load(&config)).await else { return };
        match loaded {
            Ok(state) => {
                self.state.store(Arc::new(state));
                self.generation.send_modify(|generation| *generation += 1);
                self.metrics.auth_reloads.inc(Reload::Done);
                self.log_state();
            }
            Err(problems) => {
                self.metrics.auth_reloads.inc(Reload::Failed);
                for problem in &problems.0 {
                    tracing::error!(%problem, "who may do what is not read again; what was in force stays");
                }
            }
        }
    }
}

async fn next(hangup: &mut Option<Signal>) {
    let received = match hangup {
        Some(hangup) => hangup.recv().await,
        None => None,
    };
    if received.is_none() {
        std::future::pending::<()>().await;
    }
}

async fn elapsed(interval: Duration) {
    if interval.is_zero() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(interval).await;
}
