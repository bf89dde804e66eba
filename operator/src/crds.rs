//! The command `weir-operator crds`: the custom resource definitions as YAML, on standard output or as one
//! file per kind. Knows no cluster.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Prints the custom resource definitions, or writes them to a folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write one file per kind to, created if absent; without it, everything goes to standard output.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.out {
        Some(dir) => write(dir),
        None => print(),
    }
}

fn print() -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for crd in weir_operator_api::crds() {
        let yaml = serde_yaml::to_string(&crd).context("print a custom resource definition")?;
        match write!(out, "---\n{yaml}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("write to standard output")?,
        }
    }
    Ok(())
}

fn write(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create folder {}", dir.display()))?;
    for crd in weir_operator_api::crds() {
        let yaml = serde_yaml::to_string(&crd).context("print a custom resource definition")?;
        let path = dir.join(format!("{}.yaml", crd.spec.names.plural));
        fs::write(&path, yaml).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
