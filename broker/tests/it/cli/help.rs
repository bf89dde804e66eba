//! What people read first.

use super::weir;

/// The help of a command, in a fixed width, since there is no terminal.
async fn help(command: &[&str]) -> String {
    let args = [command, &["--help"]].concat();
    weir(&args, "").await.output().replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

#[tokio::test]
async fn help_of_every_command() {
    let commands: [&[&str]; 15] = [
        &[],
        &["serve"],
        &["pub"],
        &["sub"],
        &["queue", "list"],
        &["queue"],
        &["queue", "peek"],
        &["queue", "purge"],
        &["queue", "redrive"],
        &["stream", "tail"],
        &["bench"],
        &["bench", "fanout"],
        &["store", "check"],
        &["store", "backup"],
        &["store", "restore"],
    ];
    for command in commands {
        let name = format!("help {}", command.join(" "));
        insta::assert_snapshot!(name.trim().replace(' ', "_"), help(command).await);
    }
}

#[tokio::test]
async fn a_bad_configuration_ends_the_start_with_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.toml");
    std::fs::write(&path, "htpp = 1\n").unwrap();
    let path = path.to_str().unwrap();
    let failure = weir(&["serve", "--config", path, "--listen", "tcp://127.0.0.1:0"], "")
        .await
        .failure()
        .replace(path, "FILE");
    insta::assert_snapshot!(failure);
}

/// Also where FoundationDB is installed: a library that is named is the only one tried.
#[tokio::test]
async fn a_store_in_foundationdb_without_its_library_says_what_to_install() {
    let args = ["serve", "--store", "fdb:/etc/foundationdb/fdb.cluster"];
    let failure =
        weir(&[&args[..], &["--fdb-client-library", "/nowhere/libfdb_c.so"]].concat(), "").await.failure();
    let expected = ["/nowhere/libfdb_c.so (cannot open", "install", "foundationdb-clients", "embedded:DIR"];
    assert!(expected.iter().all(|part| failure.contains(part)), "{failure}");
}
