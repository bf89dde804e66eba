//! `kubectl`, as people use it.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::within;

/// The client of one cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub(super) fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { program, kubeconfig }
    }

    /// The file by which it finds the cluster, with all rights.
    #[must_use]
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// What it prints with `arguments`, split at spaces; it must succeed.
    pub async fn run(&self, arguments: &str) -> Result<String> {
        self.call(arguments, "").await?.map_err(|refusal| anyhow::anyhow!("kubectl {arguments}: {refusal}"))
    }

    /// The object, or list of objects, of `kubectl get` with `arguments`.
    pub async fn get(&self, arguments: &str) -> Result<Value> {
        let text = self.run(&format!("get -o json {arguments}")).await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {arguments}"))
    }

    /// `kubectl apply` of manifests in YAML or JSON.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.call("apply -f -", manifests).await?.map_err(|refusal| anyhow::anyhow!("{refusal}\n{manifests}"))
    }

    /// The error message of `kubectl apply`, which must be refused.
    pub async fn refused(&self, manifests: &str) -> Result<String> {
        match self.call("apply -f -", manifests).await? {
            Ok(answer) => bail!("it was taken: {answer}\n{manifests}"),
            Err(refusal) => Ok(refusal),
        }
    }

    /// Its standard output if it succeeds, or else its standard error.
    pub async fn call(&self, arguments: &str, input: &str) -> Result<Result<String, String>> {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments.split_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        within(&format!("kubectl {arguments}"), async {
            let mut child = command.spawn()?;
            let mut stdin = child.stdin.take().context("its standard input")?;
            let write = async {
                // One that needs no input may have ended before it read any.
                let _ended = stdin.write_all(input.as_bytes()).await;
                drop(stdin);
            };
            let (output, ()) = tokio::join!(child.wait_with_output(), write);
            let output = output?;
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok(if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) })
        })
        .await
    }
}
