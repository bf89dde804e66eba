//! Who may call the admin API, or another one over gRPC: the server's TLS, and the token that every call must bring.
//! Knows no calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use secrecy::{ExposeSecret, SecretString};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::config::{AdminAccess, TlsConfig};
use crate::listen::{Reloaded, TlsServer};

/// Shortest token, in bytes.
const TOKEN_BYTES_MIN: usize = 16;

/// What is read from the files of an [`AdminAccess`].
pub(crate) struct Access {
    pub(crate) tls: Option<Arc<TlsServer>>,
    pub(crate) guard: Guard,
    token_file: Option<PathBuf>,
    /// How often the files are read again; zero: never.
    interval: Duration,
}

/// Lets calls through that bring the token, or all if there is none. Its clones have the same token.
#[derive(Clone)]
pub(crate) struct Guard(Option<Arc<ArcSwap<SecretString>>>);

impl Access {
    /// Reads the files. They are followed in this `interval`.
    pub(crate) fn read(config: &AdminAccess, interval: Duration) -> anyhow::Result<Self> {
        let tls = match (&config.certificate_file, &config.key_file) {
            (Some(certificate), Some(key)) => {
                let files = TlsConfig {
                    cert: vec![certificate.clone()],
                    key: vec![key.clone()],
                    client_ca: config.client_ca_file.clone(),
                    ..TlsConfig::default()
                };
                Some(Arc::new(TlsServer::load_for(&files, b"h2")?))
            }
            _ => None,
        };
        let token = config.token_file.as_deref().map(token).transpose()?;
        if token.is_some() && tls.is_none() {
            tracing::info!("the token of a gRPC API is sent as it is, without TLS");
        }
        let guard = Guard(token.map(|token| Arc::new(ArcSwap::from_pointee(token))));
        Ok(Self { tls, guard, token_file: config.token_file.clone(), interval })
    }

    /// Takes over what the files say, as soon as they say something else, for ever. What is no good changes nothing.
    pub(crate) fn follow(&self) -> impl Future<Output = ()> + Send + use<> {
        let (guard, path, interval) = (self.guard.clone(), self.token_file.clone(), self.interval);
        let tls = self.tls.clone();
        async move {
            if interval.is_zero() || (path.is_none() && tls.is_none()) {
                return std::future::pending().await;
            }
            let mut last_problem = None;
            loop {
                tokio::time::sleep(interval).await;
                if let (Guard(Some(current)), Some(path)) = (&guard, &path) {
                    follow_token(current, path.clone(), &mut last_problem).await;
                }
                if let Some(tls) = tls.clone() {
                    // A reload that panics is a bug; the certificates of before go on.
                    let _ = tokio::task::spawn_blocking(move || follow_certificates(&tls)).await;
                }
            }
        }
    }
}

/// Takes over another token. What keeps it from that is said once.
async fn follow_token(current: &ArcSwap<SecretString>, path: PathBuf, last_problem: &mut Option<String>) {
    let Ok(read) = tokio::task::spawn_blocking(move || token(&path)).await else { return };
    let problem = read.as_ref().err().map(|error| format!("{error:#}"));
    if problem.is_some() && problem != *last_problem {
        tracing::error!(problem, "the token of a gRPC API is not read again; the last one stays");
    }
    *last_problem = problem;
    if let Ok(read) = read
        && read.expose_secret() != current.load().expose_secret()
    {
        current.store(Arc::new(read));
        tracing::info!("a gRPC API has another token");
    }
}

fn follow_certificates(tls: &TlsServer) {
    match tls.reload() {
        Reloaded::Same => {}
        Reloaded::New => tracing::info!("new connections to a gRPC API get the new certificates"),
        Reloaded::Broken(error) => tracing::error!(
            error = %format!("{error:#}"),
            "changed certificates of a gRPC API are not usable and the ones of before are still in use; correct the files"
        ),
    }
}

impl Guard {
    /// What a caller sends as `authorization` that has the token, if there is one.
    pub(crate) fn bearer(&self) -> Option<String> {
        self.0.as_ref().map(|token| format!("Bearer {}", token.load().expose_secret()))
    }
}

fn file(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn token(path: &Path) -> anyhow::Result<SecretString> {
    let token = file(path)?.trim().to_owned();
    if token.len() < TOKEN_BYTES_MIN {
        bail!(
            "{}: a token of {} bytes can be guessed; allowed: from {TOKEN_BYTES_MIN}",
            path.display(),
            token.len()
        );
    }
    Ok(token.into())
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.0 else { return Ok(request) };
        let sent = request.metadata().get("authorization").map(|value| value.as_bytes());
        let sent = sent.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
        if weir_auth::is_same_secret(sent, token.load().expose_secret().as_bytes()) {
            return Ok(request);
        }
        tracing::info!("call over gRPC without the right token");
        Err(Status::unauthenticated("the token is missing or wrong; `--token-file FILE` sends one"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(guard: &mut Guard, header: Option<&'static str>) -> Result<(), tonic::Code> {
        let mut request = Request::new(());
        if let Some(header) = header {
            request.metadata_mut().insert("authorization", header.parse().unwrap());
        }
        guard.call(request).map(|_| ()).map_err(|status| status.code())
    }

    #[test]
    fn only_the_token_opens() {
        let mut guard = Guard(Some(Arc::new(ArcSwap::from_pointee("0123456789abcdef".into()))));
        assert_eq!(call(&mut guard, Some("Bearer 0123456789abcdef")), Ok(()));
        for header in
            [None, Some(""), Some("Bearer "), Some("Bearer 0123456789abcdeF"), Some("0123456789abcdef")]
        {
            assert_eq!(call(&mut guard, header), Err(tonic::Code::Unauthenticated), "{header:?}");
        }
        assert_eq!(call(&mut Guard(None), None), Ok(()));
    }

    #[test]
    fn a_token_that_is_short_or_absent_ends_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let config = AdminAccess { token_file: Some(path.clone()), ..AdminAccess::default() };
        assert!(Access::read(&config, Duration::ZERO).is_err(), "no file");
        std::fs::write(&path, "short\n").unwrap();
        let error =
            Access::read(&config, Duration::ZERO).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("5 bytes") && !error.contains("short"), "{error}");
        std::fs::write(&path, "long enough for a token\n").unwrap();
        assert!(Access::read(&config, Duration::ZERO).is_ok());
    }
}
