//! Certificates that change on disk are taken up without a restart, within [`INTERVAL`] or at SIGHUP.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Listener;
use super::tls::Reloaded;

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// Looks at the files of `listeners` until `stop`.
pub(crate) async fn follow(listeners: Vec<Arc<Listener>>, stop: CancellationToken) {
    let mut hangup = signal(SignalKind::hangup())
        .inspect_err(|error| tracing::warn!(%error, "SIGHUP is not heard; changed files are found anyway"))
        .ok();
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = heard(&mut hangup) => tracing::info!("files are read again"),
            () = stop.cancelled() => return,
        }
        for listener in &listeners {
            if listener.tls.is_some() {
                let listener = Arc::clone(listener);
                // A reload that panics is a bug; the certificates of before go on.
                let _ = tokio::task::spawn_blocking(move || reload(&listener)).await;
            }
        }
    }
}

/// Waits for the signal, for ever if it cannot be heard.
async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

fn reload(listener: &Listener) {
    let Some(tls) = &listener.tls else { return };
    match tls.reload() {
        Reloaded::Same => {}
        Reloaded::New => {
            tracing::info!(listener = %listener.name, "new connections get the new certificates")
        }
        Reloaded::Broken(error) => {
            tracing::error!(
                listener = %listener.name,
                error = %format!("{error:#}"),
                "changed certificates are not usable and the ones of before are still in use; correct the files"
            );
        }
    }
}
