//! The commands for people, and the MQTT client beneath them. No broker of ours is involved: the other side is
//! written here, packet by packet, so that these tests stand on the codec alone.

mod admin;
mod auth;
mod bench;
mod client;
mod help;
mod peer;
mod pub_sub;

use std::process::{Command, Output};

/// Runs `weir` with `args` and `input` on its standard input, until it ends.
pub(crate) async fn weir(args: &[&str], input: &str) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    // Variables would change what is tested.
    command.args(args).env_clear();
    let input = input.to_owned();
    let run = move || {
        use std::io::Write;
        use std::process::Stdio;
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Small enough for the pipe; a command that does not read it may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    Finished::from(tokio::task::spawn_blocking(run).await.unwrap())
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Finished {
    /// Standard output of a command that succeeded.
    #[track_caller]
    pub(crate) fn output(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Standard error of a command that failed.
    #[track_caller]
    pub(crate) fn failure(self) -> String {
        assert_eq!(self.code, 1, "{self:?}");
        self.stderr
    }
}
