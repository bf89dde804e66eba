//! CONNECT: is the client who it says it is?

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytestring::ByteString;
use weir_auth::{JwtError, JwtVerifier, PasswordFile, Token};
use weir_codec::Connect;

use super::{Auth, HASHES_WAITING_MAX, Identity, Proved, Refused};
use crate::listen::Peer;

/// One of those who wait for a hash.
struct Waiting<'a>(&'a Auth);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Auth {
    /// Who the client is, by what it says in CONNECT and what its transport knows. A refusal takes the longer the more
    /// often it happens.
    pub(crate) async fn authenticate(&self, connect: &Connect, peer: &Peer) -> Result<Identity, Refused> {
        let started = self.clock.now();
        let result = self.judge(connect, peer).await;
        self.metrics.auth_seconds.observe((self.clock.now() - started).as_secs_f64());
        result
    }

    async fn judge(&self, connect: &Connect, peer: &Peer) -> Result<Identity, Refused> {
        if self.config.certificate_as_user
            && let Some(name) = peer.certificate_name().filter(|name| !name.is_empty())
        {
            return self.judge_certificate(name, connect, peer.ip()).await;
        }
        if !self.authenticates() {
            return Ok(Identity::default());
        }
        let username = connect.username.as_deref().unwrap_or_default();
        let password = connect.password.as_deref().unwrap_or_default();
        if username.is_empty() && password.is_empty() {
            return if self.admits_anonymous() { Ok(Identity::default()) } else { Err(Refused::MISSING) };
        }
        let state = self.state.load_full();
        if state.jwt.is_some() && JwtVerifier::resembles_token(password) {
            return self.judge_token(username, password, peer.ip()).await;
        }
        let Some(users) = &state.users else {
            return self.refuse(Refused::WRONG, peer.ip(), Some(username)).await;
        };
        self.judge_password(users, username, connect, peer.ip()).await
    }

    /// A certificate, which the handshake has verified. A client that says it is somebody else is mistaken, or tries.
    async fn judge_certificate(
        &self,
        name: &ByteString,
        connect: &Connect,
        address: Option<IpAddr>,
    ) -> Result<Identity, Refused> {
        match connect.username.as_deref() {
            None | Some("") => {}
            Some(username) if username == &**name => {}
            Some(_) => return self.refuse(Refused::OTHER_CERTIFICATE, address, None).await,
        }
        Ok(Identity { user: Some(name.clone()), ..Identity::default() })
    }

    async fn judge_password(
        &self,
        users: &Arc<PasswordFile>,
        username: &str,
        connect: &Connect,
        address: Option<IpAddr>,
    ) -> Result<Identity, Refused> {
        let password = connect.password.clone().unwrap_or_default();
        let stamp = users.stamp(username);
        let known =
            |stamp| Identity { user: Some(username.to_owned().into()), expires_at: None, stamp: Some(stamp) };
        let proof = stamp.map(|stamp| self.recent.lock().proof(username, &password, stamp));
        // Before the throttle: what strangers fail at does not keep those out who have just been here.
        if let (Some(stamp), Some(proof)) = (stamp, &proof)
            && self.recent.lock().holds(proof, self.clock.now().into_std())
        {
            self.metrics.auth_recent.inc();
            return Ok(known(stamp));
        }
        self.admit(address, Some(username))?;
        if !self.verify(users, username, password, address).await? {
            return self.refuse(Refused::WRONG, address, Some(username)).await;
        }
        let (Some(stamp), Some(proof)) = (stamp, proof) else {
            return self.refuse(Refused::WRONG, address, Some(username)).await;
        };
        self.recent.lock().add(proof, self.clock.now().into_std());
        self.throttle.lock().succeeded(username);
        Ok(known(stamp))
    }

    /// Verifies a password on a thread of its own, when there is one.
    async fn verify(
        &self,
        users: &Arc<PasswordFile>,
        username: &str,
        password: bytes::Bytes,
        address: Option<IpAddr>,
    ) -> Result<bool, Refused> {
        let others = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(self);
        if others >= HASHES_WAITING_MAX {
            return Err(Refused::BUSY);
        }
        let permit = Arc::clone(&self.hashes).acquire_owned().await.map_err(|_| Refused::BUSY)?;
        drop(waiting);
        // Again: many guesses that waited together may have failed meanwhile.
        self.admit(address, Some(username))?;
        let (users, username) = (Arc::clone(users), username.to_owned());
        let hash = move || {
            let right = users.verify(&username, &password);
            // Here, so that it is held as long as the work goes on, whatever becomes of the connection.
            drop(permit);
            right
        };
        tokio::task::spawn_blocking(hash).await.map_err(|_| Refused::BUSY)
    }

    /// A token in place of a password.
    async fn judge_token(
        &self,
        username: &str,
        token: &[u8],
        address: Option<IpAddr>,
    ) -> Result<Identity, Refused> {
        self.admit(address, None)?;
        match self.verify_token(token) {
            Ok(token) if username.is_empty() || username == token.user => Ok(identity(token)),
            Ok(_) => {
                tracing::info!("a token came with another user name than it has");
                self.refuse(Refused::WRONG, address, None).await
            }
            Err(error) => {
                tracing::info!(%error, "token refused");
                self.refuse(Refused::WRONG, address, None).await
            }
        }
    }

    pub(super) fn verify_token(&self, token: &[u8]) -> Result<Token, JwtError> {
        let state = self.state.load();
        state.jwt.as_ref().ok_or(JwtError::KeyUnknown)?.verify(token, self.clock.wall())
    }

    /// Whether an enhanced method may be tried from there.
    pub(crate) fn admit(&self, address: Option<IpAddr>, user: Option<&str>) -> Result<(), Refused> {
        let admitted = self.throttle.lock().admits(address, user, self.clock.now().into_std());
        if admitted { Ok(()) } else { Err(Refused::THROTTLED) }
    }

    /// Counts a failure and waits before it is told.
    async fn refuse<T>(
        &self,
        refused: Refused,
        address: Option<IpAddr>,
        user: Option<&str>,
    ) -> Result<T, Refused> {
        self.failed(address, user).await;
        Err(refused)
    }

    /// The same for an enhanced method.
    pub(crate) async fn failed(&self, address: Option<IpAddr>, user: Option<&str>) {
        let delay = self.count_failure(address, user);
        tokio::time::sleep(delay).await;
    }

    /// Counts a failure. How long it should take until it is told.
    pub(crate) fn count_failure(&self, address: Option<IpAddr>, user: Option<&str>) -> Duration {
        let mut throttle = self.throttle.lock();
        let delay = throttle.failed(address, user, self.clock.now().into_std());
        self.metrics.auth_throttled_entries.set(i64::try_from(throttle.entries()).unwrap_or(i64::MAX));
        delay
    }
}

fn identity(token: Token) -> Identity {
    Identity { user: Some(token.user.into()), expires_at: Some(token.expires_at), stamp: None }
}

impl From<&Proved> for Identity {
    fn from(proved: &Proved) -> Self {
        Self { user: Some(proved.user.clone()), expires_at: proved.expires_at, stamp: None }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use prometheus_client::registry::Registry;
    use tokio::sync::SemaphorePermit;
    use weir_auth::ThrottleConfig;
    use weir_codec::ReasonCode;
    use weir_env::clock::Clock;

    use super::*;
    use crate::config::Config;
    use crate::metrics::{AuthRefusal, Metrics};

    /// Knows the user anna, whose password is her name.
    struct Bench {
        auth: Arc<Auth>,
        users: Arc<PasswordFile>,
        connect: Connect,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("users");
            std::fs::write(&path, format!("anna:{}\n", weir_auth::hash_password(b"anna").unwrap())).unwrap();
            let mut config = Config::default();
            config.auth.users_file = Some(path);
            let metrics = Metrics::register(&mut Registry::default());
            let auth = Auth::open(&config, Vec::new(), metrics, Clock::system()).unwrap();
            let users = auth.state.load().users.clone().unwrap();
            let connect = Connect { password: Some("anna".into()), ..Connect::default() };
            Self { auth, users, connect }
        }

        /// Every thread that hashes.
        async fn busy(&self) -> SemaphorePermit<'_> {
            let threads = u32::try_from(self.auth.hashes.available_permits()).unwrap();
            self.auth.hashes.acquire_many(threads).await.unwrap()
        }

        async fn anna(&self, address: IpAddr) -> Result<Identity, Refused> {
            self.auth.judge_password(&self.users, "anna", &self.connect, Some(address)).await
        }
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[tokio::test]
    async fn who_may_wait_for_a_hash_is_bounded() {
        let bench = Bench::new();
        let busy = bench.busy().await;
        let mut waiting = Vec::new();
        for n in 0..HASHES_WAITING_MAX {
            let mut one = Box::pin(bench.anna(HERE));
            assert_eq!(one.as_mut().now_or_never(), None, "{n} waits");
            waiting.push(one);
        }
        let refused = bench.anna(HERE).now_or_never().expect("an answer at once").unwrap_err();
        assert_eq!((refused.reason, refused.label), (ReasonCode::ServerBusy, AuthRefusal::Busy));
        // Who gives up makes room.
        waiting.truncate(1);
        let mut second = Box::pin(bench.anna(HERE));
        assert_eq!(second.as_mut().now_or_never(), None, "it waits");
        drop(busy);
        let (first, second) = tokio::join!(waiting.remove(0), second);
        assert_eq!((first.unwrap().user, second.unwrap().user), (Some("anna".into()), Some("anna".into())));
        assert_eq!(bench.auth.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn guesses_that_wait_together_are_not_all_looked_at() {
        let bench = Bench::new();
        let busy = bench.busy().await;
        let mut guess = Box::pin(bench.anna(HERE));
        assert_eq!(guess.as_mut().now_or_never(), None, "it waits");
        for _ in 0..ThrottleConfig::default().address_failures_max {
            bench.auth.count_failure(Some(HERE), None);
        }
        drop(busy);
        assert_eq!(guess.await.unwrap_err().label, AuthRefusal::Throttled);
        assert!(bench.anna(ELSEWHERE).await.is_ok());
    }

    #[tokio::test]
    async fn a_user_that_is_gone_when_its_password_is_hashed_stays_out() {
        let bench = Bench::new();
        let proved = bench.anna(HERE).await.unwrap();
        let access =
            |identity: Identity| bench.auth.access(identity, &"a".into(), Some(HERE), false).map(drop);
        assert_eq!(access(proved.clone()), Ok(()));
        bench.auth.state.store(Arc::default());
        assert_eq!(access(proved).unwrap_err().label, AuthRefusal::BadCredentials);
    }
}
