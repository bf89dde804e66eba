//! Programs from Debian packages, unpacked into a folder: no privileges, nothing outside the folder changed.
//!
//! [`unpack`] adds what the machine lacks to its own libraries. [`unpack_whole`] takes packages of a newer suite
//! with every library they need, the C library included, and [`Whole::program`] starts them through their own
//! loader, so that the age of the machine does not matter. The mirror is the one that the machine is configured
//! with; this module must never name one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use super::{Tool, find_program, installed, run};

/// Suites that are newer than most machines, the steadier first.
const NEWER_SUITES: [&str; 2] = ["forky", "sid"];
/// What Debian's archives are signed with, on machines that have it.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Packages that were unpacked with every library they need.
#[derive(Clone, Debug)]
pub(super) struct Whole(PathBuf);

impl Whole {
    /// The folder that stands for `/`.
    pub(super) fn root(&self) -> &Path {
        &self.0
    }

    /// A program among the packages, by its path from their root.
    pub(super) fn program(&self, program: &str) -> Result<Tool> {
        let libraries = libraries(&self.0);
        let loader = std::fs::read_dir(self.0.join("usr/lib").join(multiarch()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux")))
            .context("the loader of the unpacked C library")?;
        let tool = Tool::plain(loader).argument("--library-path");
        Ok(tool.argument(std::env::join_paths(libraries)?).argument(self.0.join(program)))
    }
}

/// A program of unpacked Debian packages, with the libraries beside it.
pub(super) fn unpacked(root: &Path, program: &str) -> Tool {
    let libraries = std::env::join_paths(libraries(root)).unwrap_or_default();
    Tool::plain(root.join(program)).env("LD_LIBRARY_PATH", libraries)
}

/// The folder into which `packages`, and what they need and this machine lacks, are unpacked.
pub(super) async fn unpack(name: &str, packages: &[&str]) -> Result<PathBuf> {
    installed(&format!("debian-{name}"), async |folder| {
        let apt = Apt::new(&folder)?;
        apt.run(&["-q", "update"]).await?;
        let missing = apt.plan(packages).await?;
        ensure!(!missing.is_empty(), "{packages:?} are installed but do not work");
        apt.unpack(&missing, &folder).await
    })
    .await
}

/// `packages` (each a name, or `name=version` where the version may end in `*`) from the first newer suite that
/// has them, with every library they need.
pub(super) async fn unpack_whole(name: &str, packages: &[&str]) -> Result<Whole> {
    let name = format!("debian-{name}");
    let install = async |folder: PathBuf| {
        let mirror = mirror(&folder).await?;
        let mut failures = Vec::new();
        for suite in NEWER_SUITES {
            match unpack_from(&mirror, suite, packages, &folder).await {
                Ok(()) => return Ok(()),
                Err(error) => failures.push(format!("{suite}: {error:#}")),
            }
        }
        bail!("no suite of the configured mirror has {packages:?}:\n{}", failures.join("\n"))
    };
    installed(&name, install).await.map(Whole)
}

async fn unpack_from(mirror: &str, suite: &str, packages: &[&str], folder: &Path) -> Result<()> {
    let apt = Apt::new(folder)?.only(mirror, suite)?;
    apt.run(&["-q", "update"]).await?;
    let asked = |package: &str| packages.iter().any(|asked| asked.split('=').next() == Some(package));
    let mut plan = apt.plan(packages).await?;
    // Programs need their libraries; what else a whole system would have is of no use in a folder.
    plan.retain(|package| {
        let name = package.split('=').next().unwrap_or_default();
        asked(name) || ["lib", "erlang-"].iter().any(|kind| name.starts_with(kind)) || name == "zlib1g"
    });
    apt.unpack(&plan, folder).await?;
    // Some packages leave the names that programs look their libraries up by to the installation.
    let mut link = Command::new(find_program("ldconfig").context("`ldconfig` of the C library")?);
    link.arg("-n").arg(folder.join("usr/lib").join(multiarch()));
    run(link).await.map(drop)
}

/// The Debian mirror that this machine installs from.
async fn mirror(folder: &Path) -> Result<String> {
    let apt = Apt::new(folder)?;
    apt.run(&["-q", "update"]).await?;
    let format = "$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)";
    let targets = apt.run(&["indextargets", "--format", format]).await?;
    let mirror = targets.lines().find_map(|line| line.strip_prefix("Debian Debian main "));
    Ok(mirror.context("this machine's apt is configured with no mirror of Debian")?.to_owned())
}

/// apt with package lists and caches of its own.
struct Apt {
    work: tempfile::TempDir,
    options: Vec<String>,
}

impl Apt {
    /// Its temporary files are below `folder`.
    fn new(folder: &Path) -> Result<Self> {
        ensure!(find_program("apt-get").is_some(), "this machine has no apt-get to install it with");
        let work = tempfile::tempdir_in(folder)?;
        for folder in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(work.path().join(folder))?;
        }
        let mut apt = Self { work, options: Vec::new() };
        apt.folder_option("Dir::State::Lists", "lists");
        apt.folder_option("Dir::Cache", "cache");
        let fixed = ["Debug::NoLocking=1", "APT::Sandbox::User=", "Acquire::Retries=3"];
        apt.options.extend(fixed.map(str::to_owned));
        Ok(apt)
    }

    /// The same with one suite of one mirror alone, for a machine on which nothing is installed.
    fn only(mut self, mirror: &str, suite: &str) -> Result<Self> {
        let signed =
            if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let work = self.work.path();
        std::fs::write(work.join("sources.list"), format!("deb {signed}{mirror} {suite} main\n"))?;
        std::fs::write(work.join("status"), "")?;
        std::fs::create_dir(work.join("none"))?;
        self.folder_option("Dir::Etc::SourceList", "sources.list");
        self.folder_option("Dir::Etc::SourceParts", "none");
        self.folder_option("Dir::Etc::PreferencesParts", "none");
        self.folder_option("Dir::State::Status", "status");
        Ok(self)
    }

    fn folder_option(&mut self, option: &str, name: &str) {
        self.options.push(format!("{option}={}", self.work.path().join(name).display()));
    }

    async fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("apt-get");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(arguments).current_dir(self.work.path()).env("LC_ALL", "C");
        run(command).await
    }

    /// What installing `packages` would add, each as `name=version`.
    async fn plan(&self, packages: &[&str]) -> Result<Vec<String>> {
        let arguments = [&["--simulate", "--no-install-recommends", "install"], packages].concat();
        Ok(additions(&self.run(&arguments).await?))
    }

    async fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
        self.run(&[&["-q", "download"][..], &packages].concat()).await?;
        for archive in std::fs::read_dir(self.work.path())? {
            let archive = archive?.path();
            if archive.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                unpack.arg("--extract").arg(&archive).arg(folder);
                run(unpack).await?;
            }
        }
        Ok(())
    }
}

/// Reads lines such as `Inst libc6 [2.36] (2.43-7 Debian:testing [amd64])`.
fn additions(plan: &str) -> Vec<String> {
    let addition = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        let (version, _) = rest.split_once('(')?.1.split_once(' ')?;
        Some(format!("{name}={version}"))
    };
    plan.lines().filter_map(addition).collect()
}

fn multiarch() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

fn libraries(root: &Path) -> [PathBuf; 2] {
    ["usr/lib", "lib"].map(|lib| root.join(lib).join(multiarch()))
}

#[cfg(test)]
mod tests {
    use super::additions;

    #[test]
    fn additions_are_read_with_their_versions() {
        let plan = "Reading package lists...\n\
                    Inst libc6 [2.36-9] (2.43-7 Debian:testing [amd64]) []\n\
                    Inst mosquitto (2.1.2-3 Debian:testing [amd64])\n\
                    Conf mosquitto (2.1.2-3 Debian:testing [amd64])\n";
        assert_eq!(additions(plan), ["libc6=2.43-7", "mosquitto=2.1.2-3"]);
    }
}
