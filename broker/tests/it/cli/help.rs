//! What people read first.

use clap::CommandFactory;

use super::weir;

/// The help of a command, in a fixed width, since there is no terminal.
async fn help(command: &[&str]) -> String {
    let args = [command, &["--help"]].concat();
    weir(&args, "").await.output().replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

/// Every command that the command line knows, those that only hold others included.
fn commands() -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![(Vec::new(), weir::cli::Cli::command())];
    while let Some((path, command)) = open.pop() {
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            let path = [&path[..], &[below.get_name().to_owned()]].concat();
            open.push((path, below.clone()));
        }
        found.push(path);
    }
    found.sort();
    found
}

#[tokio::test]
async fn help_of_every_command() {
    let commands = commands();
    assert!(commands.len() > 25, "{commands:?}");
    for command in &commands {
        let name = format!("help {}", command.join(" "));
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        insta::assert_snapshot!(name.trim().replace(' ', "_"), help(&command).await);
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
