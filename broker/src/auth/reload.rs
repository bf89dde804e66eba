//! Files of users, rules and keys are read again when they change, or at SIGHUP. A broken file changes nothing: what was
//! in force stays, and the log says where the mistake is.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Auth, Problems, files};
use crate::config::AuthConfig;
use crate::metrics::Reload;

/// What shows that a file is another one than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Print(Vec<Option<(u64, u64, Option<SystemTime>)>>);

impl Print {
    pub(super) fn of(config: &AuthConfig) -> Self {
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
        // Of what is in force; a failure leaves it, so that the files are tried again.
        let mut print = self.print.clone();
        let mut failed = None;
        let interval = self.config.reload_interval;
        loop {
            let asked = tokio::select! {
                () = next(&mut hangup) => true,
                () = elapsed(interval) => false,
                () = stop.cancelled() => return,
            };
            // Before the files are read, so that no change is missed.
            let Some(now) = self.look().await else { continue };
            if !asked && now == print {
                continue;
            }
            match self.reload().await {
                Ok(()) => (print, failed) = (now, None),
                Err(problems) => {
                    // Once, however often it is tried.
                    if asked || failed.as_ref() != Some(&problems) {
                        self.metrics.auth_reloads.inc(Reload::Failed);
                        for problem in &problems.0 {
                            tracing::error!(%problem, "who may do what is not read again; what was in force stays");
                        }
                    }
                    failed = Some(problems);
                }
            }
        }
    }

    async fn look(&self) -> Option<Print> {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || Print::of(&config)).await.ok()
    }

    async fn reload(&self) -> Result<(), Problems> {
        let config = self.config.clone();
        let loaded = tokio::task::spawn_blocking(move || files::load(&config)).await;
        let state = loaded.map_err(|error| Problems(vec![error.to_string()]))??;
        self.state.store(Arc::new(state));
        self.generation.send_modify(|generation| *generation += 1);
        self.metrics.auth_reloads.inc(Reload::Done);
        self.log_state();
        Ok(())
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

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use weir_env::clock::Clock;

    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_change_between_start_and_the_first_look_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.toml");
        std::fs::write(&path, "[[rules]]\nallow = [\"publish\"]\ntopics = [\"#\"]\n").unwrap();
        let mut config = Config::default();
        config.auth.rules_file = Some(path.clone());
        config.auth.reload_interval = Duration::from_millis(10);
        let metrics = Metrics::register(&mut Registry::default());
        let auth = Auth::open(&config, Vec::new(), metrics, Clock::system()).unwrap();
        std::fs::write(&path, "[[rules]]\nallow = [\"subscribe\"]\ntopics = [\"#\"]\n").unwrap();
        let mut changes = auth.generation.subscribe();
        let stop = CancellationToken::new();
        let seen = tokio::time::timeout(Duration::from_secs(30), changes.changed());
        tokio::select! {
            seen = seen => seen.unwrap().unwrap(),
            () = Arc::clone(&auth).follow(stop) => panic!("it follows until it is stopped"),
        }
    }
}
