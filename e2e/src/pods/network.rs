//! A network of the pods' own that can be cut: each pod in a network namespace, all on one bridge with the store server
//! and the clients. The bridge is in a namespace of this process, so that nothing of it is left on the machine.
//!
//! Needs root and `ip`. Knows addresses and cables, and nothing of what goes over them.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitStatus;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// What a namespace of names is mounted on, which `ip netns` uses.
const NAMES: &str = "/run/netns";
const BRIDGE: &str = "pods";
/// Where the cable of a pod ends in the pod.
const INSIDE: &str = "eth0";
/// The network of the bridge: nobody else is on it.
const PREFIX: [u8; 3] = [10, 73, 0];
/// Rules of a pod's routing, the first that fits counts. What comes in and has its destination here is received by
/// [`LOCAL`], so that either way can be cut without the other, and loopback stays.
const CUT_IN: &str = "5";
const LOCAL: &str = "10";
const CUT_OUT: &str = "20";

/// Which way a pod is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Nothing goes either way.
    Both,
    /// Nothing reaches it.
    In,
    /// Nothing that it sends arrives.
    Out,
}

/// Why a program that is run by [`run_inside`] could not have a network of its own; `None` if it can.
pub async fn refusal() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    for program in [&["ip", "-Version"][..], &["unshare", "--net", "--mount", "true"]] {
        let output = Command::new(program[0]).args(&program[1..]).output().await;
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Some(format!("`{}` ended with {}: {said}", program.join(" "), output.status));
            }
            Err(error) => return Some(format!("`{}` cannot be run: {error}", program[0])),
        }
    }
    None
}

/// Runs this program again with these arguments, in namespaces of its own for its network and its mounts.
///
/// # Errors
/// If it cannot be started.
pub async fn run_inside(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<ExitStatus> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]).arg(std::env::current_exe()?).args(arguments).kill_on_drop(true);
    command.status().await.context("start `unshare`")
}

/// The bridge and its cables; gone with the namespace that they are in.
#[derive(Debug)]
pub(super) struct Network;

impl Network {
    /// Makes it for `pods`, in the namespaces that [`run_inside`] has made.
    pub(super) async fn make(pods: usize) -> Result<Self> {
        std::fs::create_dir_all(NAMES)?;
        run("mount", &["-t", "tmpfs", "names", NAMES]).await?;
        let hub = Self::hub();
        ip(&["link", "set", "lo", "up"]).await?;
        ip(&["link", "add", BRIDGE, "type", "bridge"]).await?;
        ip(&["address", "add", &format!("{hub}/24"), "dev", BRIDGE]).await?;
        ip(&["link", "set", BRIDGE, "up"]).await?;
        for n in 0..pods {
            let (name, cable, address) = (Self::name(n), cable(n), format!("{}/24", Self::address(n)?));
            ip(&["netns", "add", &name]).await?;
            ip(&["link", "add", &cable, "type", "veth", "peer", "name", INSIDE, "netns", &name]).await?;
            ip(&["link", "set", &cable, "master", BRIDGE, "up"]).await?;
            let of_pod: [&[&str]; 5] = [
                &["link", "set", "lo", "up"],
                &["address", "add", &address, "dev", INSIDE],
                &["link", "set", INSIDE, "up"],
                &["rule", "add", "priority", LOCAL, "lookup", "local"],
                &["rule", "delete", "priority", "0"],
            ];
            for arguments in of_pod {
                in_pod(n, arguments).await?;
            }
        }
        Ok(Self)
    }

    /// Where the store server and the clients are.
    pub(super) fn hub() -> IpAddr {
        let [a, b, c] = PREFIX;
        Ipv4Addr::new(a, b, c, 1).into()
    }

    /// Where the pod `n` is.
    pub(super) fn address(n: usize) -> Result<IpAddr> {
        let [a, b, c] = PREFIX;
        Ok(Ipv4Addr::new(a, b, c, u8::try_from(n + 10)?).into())
    }

    /// The namespace of the pod `n`.
    pub(super) fn name(n: usize) -> String {
        format!("pod-{n}")
    }

    /// Cuts the pod `n` off.
    pub(super) async fn cut(&self, n: usize, way: Way) -> Result<()> {
        match way {
            Way::Both => ip(&["link", "set", &cable(n), "down"]).await,
            Way::In => in_pod(n, &["rule", "add", "priority", CUT_IN, "iif", INSIDE, "blackhole"]).await,
            Way::Out => in_pod(n, &["rule", "add", "priority", CUT_OUT, "iif", "lo", "blackhole"]).await,
        }
    }

    /// Undoes [`Self::cut`].
    pub(super) async fn mend(&self, n: usize, way: Way) -> Result<()> {
        match way {
            Way::Both => ip(&["link", "set", &cable(n), "up"]).await,
            Way::In => in_pod(n, &["rule", "delete", "priority", CUT_IN]).await,
            Way::Out => in_pod(n, &["rule", "delete", "priority", CUT_OUT]).await,
        }
    }
}

/// Where the cable of the pod `n` ends at the bridge.
fn cable(n: usize) -> String {
    format!("cable-{n}")
}

async fn in_pod(n: usize, arguments: &[&str]) -> Result<()> {
    let name = Network::name(n);
    ip(&[&["-netns", name.as_str()], arguments].concat()).await
}

async fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments).await
}

async fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("start `{program}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}`: {}", arguments.join(" "), said.trim());
    Ok(())
}
