//! One container as a process: a root folder of its own, its environment, and the network of its pod.
//!
//! There are no images: a root is made of the machine's own `/usr` and the binaries under test, and is not
//! writable if the pod says so. Limits of CPU and memory are not applied.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::process::Command;

use super::super::{Daemon, Programs};
use super::environment::expanded;

/// What images set.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Images that the binaries under test stand for, by the last part of their names.
const IMAGES: [&str; 2] = ["weir", "weir-operator"];

/// A folder of the machine where a container sees a volume.
#[derive(Clone, Debug)]
pub(super) struct Mounted {
    pub(super) source: PathBuf,
    pub(super) target: String,
    pub(super) read_only: bool,
}

/// All that a start of the container needs.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    /// Name of the pod's network.
    pub(super) network: &'a str,
    /// The container's own folder.
    pub(super) folder: PathBuf,
    pub(super) environment: Vec<(String, String)>,
    pub(super) mounts: Vec<Mounted>,
    /// `/etc/hosts` of all pods.
    pub(super) hosts: &'a Path,
    pub(super) programs: &'a Programs,
}

/// Who the container runs as.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    pub(super) uid: i64,
    gid: i64,
    group_of_files: Option<i64>,
}

impl User {
    pub(super) fn of(pod: &Pod, container: &Container) -> Self {
        let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let own = container.security_context.as_ref();
        let uid = own.and_then(|own| own.run_as_user).or_else(|| of_pod?.run_as_user).unwrap_or(0);
        let gid = own.and_then(|own| own.run_as_group).or_else(|| of_pod?.run_as_group).unwrap_or(0);
        Self { uid, gid, group_of_files: of_pod.and_then(|of_pod| of_pod.fs_group) }
    }
}

impl Launch<'_> {
    /// Starts the container; what it writes goes to the file `log`.
    pub(super) fn start(&self, log: PathBuf) -> Result<Daemon> {
        let image = self.container.image.as_deref().unwrap_or_default();
        let name =
            image.rsplit('/').next().and_then(|last| last.split([':', '@']).next()).unwrap_or_default();
        if !IMAGES.contains(&name) {
            bail!("image `{image}`: only those called {} are played", IMAGES.join(" or "));
        }
        let own = self.container.command.iter().chain(&self.container.args).flatten();
        let arguments: Vec<String> = own.map(|word| expanded(word, &self.environment)).collect();
        if self.container.command.as_ref().is_none_or(Vec::is_empty) {
            bail!("the container `{}` has no command, and the image has none", self.container.name);
        }
        std::fs::create_dir_all(&self.folder)?;
        let script = self.folder.join("start.sh");
        std::fs::write(&script, self.script()).context("write how the container starts")?;
        let mut command = Command::new("/usr/sbin/ip");
        command.args(["netns", "exec", self.network, "/bin/sh"]).arg(&script).args(arguments);
        command.env_clear().env("PATH", PATH);
        command.env("HOSTNAME", self.pod.metadata.name.as_deref().unwrap_or_default());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Daemon::start(command, log)
    }

    /// Makes the root folder, as seen by this process and those that it becomes, and enters it.
    fn script(&self) -> String {
        let root = quoted(&self.folder.join("root"));
        let mut script = format!(
            "set -e\nR={root}\nmkdir -p $R\nmount -t tmpfs -o mode=755 tmpfs $R\n\
             mkdir -p $R/usr/local/bin $R/etc $R/proc $R/dev $R/sys $R/var $R/root\n\
             mkdir -m 1777 $R/tmp\n\
             for d in bin sbin lib lib64 share; do\n\
             [ ! -d /usr/$d ] || {{ mkdir $R/usr/$d; mount --bind -o ro /usr/$d $R/usr/$d; }}\n\
             if [ -L /$d ]; then cp -P /$d $R/$d; \
             elif [ -d /$d ]; then mkdir $R/$d; mount --bind -o ro /$d $R/$d; fi\n\
             done\n\
             mount --bind /proc $R/proc\nmount --rbind /dev $R/dev\n\
             cp /etc/ld.so.cache $R/etc/\n\
             echo 'root:x:0:0:::' > $R/etc/passwd\necho 'hosts: files' > $R/etc/nsswitch.conf\n\
             touch $R/etc/hosts $R/usr/local/bin/weir $R/usr/local/bin/weir-operator\n\
             mount --bind {hosts} $R/etc/hosts\n\
             mount --bind {weir} $R/usr/local/bin/weir\n\
             mount --bind {operator} $R/usr/local/bin/weir-operator\n",
            hosts = quoted(self.hosts),
            weir = quoted(&self.programs.weir),
            operator = quoted(&self.programs.operator),
        );
        for mount in &self.mounts {
            let source = quoted(&mount.source);
            let target = format!("$R{}", quoted(Path::new(&mount.target)));
            let options = if mount.read_only { "-o ro " } else { "" };
            let _infallible = writeln!(
                script,
                "if [ -d {source} ]; then mkdir -p {target}; else mkdir -p \"$(dirname {target})\"; \
                 touch {target}; fi\nmount --bind {options}{source} {target}"
            );
        }
        let security = self.container.security_context.as_ref();
        if security.and_then(|security| security.read_only_root_filesystem) == Some(true) {
            script.push_str("mount -o remount,ro $R\n");
        }
        let user = User::of(self.pod, self.container);
        let groups = user.group_of_files.map_or_else(String::new, |group| group.to_string());
        let _infallible =
            writeln!(script, "exec chroot --userspec={}:{} --groups={groups} $R \"$@\"", user.uid, user.gid);
        script
    }
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}
