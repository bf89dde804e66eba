//! The admin API off this machine: `weir queue list` with the right and the wrong secrets.

use tokio::io::AsyncReadExt;
use weir::config::Config;

use super::listeners::handshake;
use super::{DEADLINE, TestBroker, config, memory, queue};
use crate::authority::{Authority, Signed};
use crate::cli::weir;

/// A broker with the queue `jobs`, and what its callers need.
struct Guarded {
    authority: Authority,
    broker: TestBroker,
    token: String,
}

impl Guarded {
    async fn start(configure: impl FnOnce(&mut Config, &Authority, &str)) -> Self {
        let authority = Authority::new();
        let server = authority.sign("server", "localhost");
        let token = authority.dir().join("token").to_str().unwrap().to_owned();
        std::fs::write(&token, "0123456789abcdef\n").unwrap();
        let mut config = config();
        config.admin_access.certificate_file = Some(server.cert);
        config.admin_access.key_file = Some(server.key);
        configure(&mut config, &authority, &token);
        let broker = TestBroker::start_with(config, &memory()).await;
        broker.declare(&[queue("jobs", "jobs/#")]).await;
        Self { authority, broker, token }
    }

    /// `weir queue list` with `args`.
    async fn list(&self, args: &[&str]) -> crate::cli::Finished {
        let admin = format!("localhost:{}", self.broker.admin.port());
        weir(&[&["queue", "list", "--admin", &admin], args].concat(), "").await
    }

    /// The same of a caller that trusts this authority.
    async fn list_trusting(&self, authority: &Authority, args: &[&str]) -> crate::cli::Finished {
        self.list(&[&["--ca-file", authority.pem.to_str().unwrap()], args].concat()).await
    }
}

fn shown(certificate: &Signed) -> [&str; 4] {
    ["--cert", certificate.cert.to_str().unwrap(), "--key", certificate.key.to_str().unwrap()]
}

#[tokio::test]
async fn a_token_over_tls_opens_the_admin_api() {
    let guarded = Guarded::start(|config, _, token| {
        config.admin_access.token_file = Some(token.into());
    })
    .await;
    let (own, other) = (&guarded.authority, Authority::new());
    let list = guarded.list_trusting(own, &["--token-file", &guarded.token]).await.output();
    assert!(list.contains("jobs"), "{list}");

    let wrong = own.dir().join("wrong");
    std::fs::write(&wrong, "0123456789abcdeX").unwrap();
    for args in [&[][..], &["--token-file", wrong.to_str().unwrap()]] {
        let failure = guarded.list_trusting(own, args).await.failure();
        assert!(
            failure.contains("does not know you") && failure.contains("`--token-file FILE`"),
            "{failure}"
        );
        assert!(!failure.contains("0123456789"), "{failure}");
    }
    let failure = guarded.list_trusting(&other, &["--token-file", &guarded.token]).await.failure();
    assert!(failure.contains("certificate") && failure.contains("--ca-file"), "{failure}");
    // Without TLS there is no answer, and above all no list.
    guarded.list(&["--token-file", &guarded.token]).await.failure();
}

#[tokio::test]
async fn a_certificate_opens_the_admin_api() {
    let guarded = Guarded::start(|config, authority, _| {
        config.admin_access.client_ca_file = Some(authority.pem.clone());
    })
    .await;
    let (own, other) = (&guarded.authority, Authority::new());
    let (operator, stranger) =
        (own.sign("operator", "operator.example"), other.sign("stranger", "stranger.example"));
    let list = guarded.list_trusting(own, &shown(&operator)).await.output();
    assert!(list.contains("jobs"), "{list}");
    let named = |name| [&shown(&operator)[..], &["--server-name", name]].concat();
    let list = guarded.list_trusting(own, &named("localhost")).await.output();
    assert!(list.contains("jobs"), "{list}");
    let failure = guarded.list_trusting(own, &named("elsewhere")).await.failure();
    assert!(failure.contains("certificate"), "{failure}");
    for args in [&[][..], &shown(&stranger)] {
        let failure = guarded.list_trusting(own, args).await.failure();
        assert!(failure.contains("--cert"), "{failure}");
    }
    let failure = guarded.list_trusting(&other, &shown(&operator)).await.failure();
    assert!(failure.contains("--ca-file"), "{failure}");
}

#[tokio::test]
async fn another_token_counts_without_a_restart() {
    let guarded = Guarded::start(|config, _, token| {
        config.admin_access.token_file = Some(token.into());
        config.auth.reload_interval = std::time::Duration::from_millis(100);
    })
    .await;
    let own = &guarded.authority;
    let old = own.dir().join("old");
    std::fs::copy(&guarded.token, &old).unwrap();
    let old = ["--token-file", old.to_str().unwrap()];
    // One that can be guessed is none: the last stays.
    std::fs::write(&guarded.token, "short").unwrap();
    guarded.list_trusting(own, &old).await.output();
    std::fs::write(&guarded.token, "fedcba9876543210").unwrap();
    let followed =
        async { while guarded.list_trusting(own, &["--token-file", &guarded.token]).await.code != 0 {} };
    tokio::time::timeout(DEADLINE, followed).await.expect("the new token in time");
    guarded.list_trusting(own, &old).await.failure();
}

#[tokio::test]
async fn other_certificates_count_without_a_restart() {
    let guarded = Guarded::start(|config, _, _| {
        config.auth.reload_interval = std::time::Duration::from_millis(100);
    })
    .await;
    let (own, other) = (&guarded.authority, Authority::new());
    guarded.list_trusting(own, &[]).await.output();
    // The files that the broker reads.
    let (read, new) = (own.sign("server", "localhost"), other.sign("server", "localhost"));
    std::fs::copy(&new.cert, &read.cert).unwrap();
    std::fs::copy(&new.key, &read.key).unwrap();
    let followed = async { while guarded.list_trusting(&other, &[]).await.code != 0 {} };
    tokio::time::timeout(DEADLINE, followed).await.expect("the new certificate in time");
    guarded.list_trusting(own, &[]).await.failure();
    // What is no good changes nothing.
    std::fs::write(&read.cert, "nothing").unwrap();
    guarded.list_trusting(&other, &[]).await.output();
}

#[tokio::test]
async fn connections_that_say_nothing_do_not_lock_the_admin_api() {
    let guarded =
        Guarded::start(|config, _, token| config.admin_access.token_file = Some(token.into())).await;
    let admin = guarded.broker.admin;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(tokio::net::TcpStream::connect(admin).await.unwrap());
    }
    // Comes in when they are out.
    handshake(admin, guarded.authority.client(None), "localhost").await.unwrap();
    for mut stream in silent {
        // A reset is an end, too.
        let mut byte = [0];
        let end = tokio::time::timeout(DEADLINE, stream.read(&mut byte));
        assert!(matches!(end.await.expect("an end in time"), Ok(0) | Err(_)));
    }
}
