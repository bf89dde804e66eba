//! `weir auth`: hashes that work, mistakes with their line, decisions with their reason.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use super::weir;

const RULES: &str = r##"[[rules]]
deny = ["publish"]
topics = ["config/#"]
retain = true

[[rules]]
allow = ["publish", "subscribe"]
users = ["anna"]
topics = ["home/%u/#", "config/#"]

[[rules]]
allow = ["consume"]
addresses = ["10.0.0.0/8"]
names = ["jobs"]
"##;

async fn explain(args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("rules.toml");
    std::fs::write(&rules, RULES).unwrap();
    let args = [&["auth", "explain", "--rules-file", rules.to_str().unwrap()], args].concat();
    weir(&args, "").await.output()
}

#[tokio::test]
async fn a_hash_is_of_the_password_alone() {
    let line = weir(&["auth", "hash", "--user", "anna"], "secret\n").await.output();
    let users = weir_auth::PasswordFile::parse(&line).unwrap();
    assert!(users.verify("anna", b"secret") && !users.verify("anna", b"secret\n"));
    let bare = weir(&["auth", "hash"], "secret").await.output();
    assert!(bare.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{bare}");
    for input in ["", "\n", "a\nb\n"] {
        let failure = weir(&["auth", "hash"], input).await.failure();
        assert_eq!(failure, "weir: standard input must hold one line, the password\n");
    }
    let failure = weir(&["auth", "hash", "--user", "#anna"], "secret").await.failure();
    assert!(failure.contains("`#anna` is not allowed"), "{failure}");
}

#[tokio::test]
async fn decisions_have_their_reason() {
    let anna: &[&str] = &["--user", "anna", "--client-id", "c1"];
    let mut all = String::new();
    for args in [
        &["publish", "home/anna/door"][..],
        &["publish", "--retain", "config/x"],
        &["publish", "$queue/jobs"],
        &["subscribe", "home/+/door"],
        &["subscribe", "$share/g/home/anna/#"],
        &["subscribe", "$queue/jobs"],
        &["--address", "10.1.2.3", "subscribe", "$queue/jobs"],
        &["--address", "10.1.2.3", "consume", "jobs"],
        &["create", "auto-1", "jobs/#"],
    ] {
        all.push_str(&format!("# {}\n{}\n", args.join(" "), explain(&[anna, args].concat()).await));
    }
    all.push_str(&format!("# anonymous\n{}", explain(&["publish", "home/anna/door"]).await));
    insta::assert_snapshot!(all);
}

#[tokio::test]
async fn files_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let shown = |text: String| text.replace(dir.path().to_str().unwrap(), "DIR");
    let hash = weir_auth::hash_password(b"x").unwrap();
    std::fs::write(path("users"), format!("anna:{hash}\n")).unwrap();
    std::fs::write(path("rules"), RULES).unwrap();
    let config = |text: String| std::fs::write(path("weir.toml"), text).unwrap();
    let check = async || weir(&["auth", "check", "--config", &path("weir.toml")], "").await;
    config(format!("[auth]\nusersFile = '{}'\nrulesFile = '{}'\n", path("users"), path("rules")));
    assert_eq!(shown(check().await.output()), "DIR/users: 1 users\nDIR/rules: 3 rules\n");

    std::fs::write(path("users"), "anna:hunter2\n").unwrap();
    std::fs::write(path("rules"), "[[rules]]\nallow = [\"publish\"]\n").unwrap();
    let failure = shown(check().await.failure());
    insta::assert_snapshot!(failure);
    assert!(!failure.contains("hunter2"));

    config("[auth]\n[[auth.rules]]\nallow = [\"read\"]\ntopics = [\"a\"]\n".to_owned());
    insta::assert_snapshot!(shown(check().await.failure()));
    config("[auth]\n[[auth.rules]]\nallow = [\"publish\"]\ntopics = [\"a\"]\n".to_owned());
    assert_eq!(shown(check().await.output()), "DIR/weir.toml: 1 rules\n");
    config(String::new());
    assert!(check().await.failure().contains("nothing says who may do what"));
}

/// `weir serve` until the end of the test, and what it logs.
struct Serving {
    child: Child,
    lines: Option<Lines<BufReader<ChildStderr>>>,
}

impl Serving {
    /// With these rules, which it reads again only when it is told to.
    fn start(rules: &Path) -> Self {
        let rules = rules.to_str().unwrap();
        let listen = ["--listen", "mqtt://127.0.0.1:0"];
        Self::with(&[&listen[..], &["--auth-reload-interval", "0s", "--auth-rules-file", rules]].concat())
    }

    /// On ports of its own, but for its listeners.
    fn with(args: &[&str]) -> Self {
        let any = "127.0.0.1:0";
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["serve", "--store", "memory:", "--http", any, "--admin", any])
            .args(args)
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Some(BufReader::new(child.stderr.take().unwrap()).lines());
        Self { child, lines }
    }

    /// The next line of the log that has `text` in it.
    async fn logged(&mut self, text: &'static str) -> String {
        let mut lines = self.lines.take().unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains(text));
            (line, lines)
        });
        let Ok(read) = tokio::time::timeout(Duration::from_secs(20), read).await else {
            // Ends the log, and so the thread that reads it.
            let _ = self.child.kill();
            panic!("the broker does not say `{text}`");
        };
        let (line, lines) = read.unwrap();
        self.lines = Some(lines);
        line.unwrap_or_else(|| panic!("the broker ended and did not say `{text}`"))
    }

    fn hang_up(&self) {
        let kill = format!("kill -HUP {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_listener_that_believes_every_proxy_is_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("weir.toml");
    let listener = |name, from| {
        format!("[[listeners]]\nname = '{name}'\nurl = 'mqtt://127.0.0.1:0'\nproxyProtocol = true\n{from}\n")
    };
    let both = "allowAnonymous = true\n".to_owned()
        + &listener("named", "proxyFrom = ['127.0.0.1']")
        + &listener("open", "");
    std::fs::write(&config, both).unwrap();
    let mut broker = Serving::with(&["--config", config.to_str().unwrap()]);
    let line = broker.logged("proxyProtocol without proxyFrom").await;
    assert!(line.contains("WARN") && line.contains("open"), "{line}");
    broker.logged("ready").await;
}

#[tokio::test]
async fn a_hangup_reads_the_files_again() {
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("rules.toml");
    std::fs::write(&rules, RULES).unwrap();
    let mut broker = Serving::start(&rules);
    let read = "who may do what is read";
    assert!(broker.logged(read).await.contains("rules=3"));
    broker.logged("ready").await;

    std::fs::write(&rules, RULES.repeat(2)).unwrap();
    broker.hang_up();
    assert!(broker.logged(read).await.contains("rules=6"));

    std::fs::write(&rules, format!("{RULES}[[rules]]\nallow = [\"read\"]\n")).unwrap();
    broker.hang_up();
    let line = broker.logged("not read again").await;
    assert!(line.contains("rules.toml:16: allow: `read` is not allowed"), "{line}");

    std::fs::write(&rules, RULES).unwrap();
    broker.hang_up();
    assert!(broker.logged(read).await.contains("rules=3"));
}
