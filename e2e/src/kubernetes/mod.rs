//! Kubernetes: the real control plane on this machine, and a player of the rest of it.
//!
//! [`sandbox`] gives a test a network of its own; in it [`Cluster`] starts etcd, the API server, the controller
//! manager and the scheduler, and [`node`] plays the parts that need a machine: the kubelet, which runs pods'
//! containers as processes, kube-proxy and the provisioner of volumes. Nothing here knows Weir but the two
//! binaries that stand for its image.

mod daemon;
mod kubectl;
pub mod node;
mod pki;
pub mod sandbox;

use std::fmt::{self, Write as _};
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::sleep;
use weir_env::clock::Clock;

pub use daemon::{Daemon, tail};
pub use kubectl::Kubectl;
pub use node::Node;
use pki::Pki;
pub use sandbox::Programs;

use crate::{tools, within};

/// How often something that can only be asked for is asked for.
const ASKED_EACH: Duration = Duration::from_millis(100);
/// Where a cluster keeps its state: the sandbox's own memory.
const STATE: &str = "/run/weir-e2e";
/// Addresses of Services.
const SERVICES: &str = "10.96.0.0/16";
/// The node's own address in the pods' network, where the API server is for them.
const NODE: &str = "10.244.0.1";
/// Where the API server keeps its objects.
const ETCD: &str = "http://127.0.0.1:2379";

/// A running cluster with one player of its nodes. It ends with the sandbox.
pub struct Cluster {
    programs: Programs,
    kubectl: Kubectl,
    client: Client,
    pki: Pki,
    logs: PathBuf,
    api_server: Option<Daemon>,
    node: Node,
    _others: [Daemon; 3],
}

impl Cluster {
    /// Starts it inside a sandbox; logs go below the cargo target folder, in a folder called `name`.
    pub async fn start(name: &str, programs: Programs) -> Result<Self> {
        let began = Clock::system().now();
        let logs = tools::target_dir()?.join("e2e-kubernetes").join(name);
        if logs.exists() {
            std::fs::remove_dir_all(&logs)?;
        }
        std::fs::create_dir_all(&logs)?;
        node::make_network().await?;
        let pki = Pki::make(PathBuf::from(STATE).join("pki"))?;
        let etcd = {
            let mut command = Command::new(&programs.control_plane.etcd);
            command.arg("--data-dir").arg(PathBuf::from(STATE).join("etcd"));
            command.args([
                "--listen-client-urls",
                ETCD,
                "--advertise-client-urls",
                ETCD,
                "--unsafe-no-fsync",
            ]);
            Daemon::start(command, logs.join("etcd.log"))?
        };
        let api_server = start_api_server(&programs, &pki, &logs)?;
        let client = within("a client of the API server", client(&pki)).await?;
        let others = start_controllers(&programs, &pki, &logs)?;
        let kubectl = Kubectl::new(programs.control_plane.kubectl.clone(), pki.kubeconfig("admin"));
        let ready = api_server_ready(&client).await;
        ready.with_context(|| api_server.tail())?;
        let node = Node::start(client.clone(), programs.clone(), logs.join("pods")).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        until("the controller manager to make the first account", || async {
            Ok(accounts.get_opt("default").await?)
        })
        .await
        .with_context(|| others[0].tail())?;
        let took = Clock::system().now().duration_since(began);
        eprintln!("{name}: the cluster is ready after {:.1} s; logs: {}", took.as_secs_f64(), logs.display());
        let [controllers, scheduler] = others;
        let others = [etcd, controllers, scheduler];
        Ok(Self { programs, kubectl, client, pki, logs, api_server: Some(api_server), node, _others: others })
    }

    /// The command-line client, with all rights.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// What `helm` prints with `arguments`, split at spaces; it must succeed.
    pub async fn helm(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new(&self.programs.charts.helm);
        command.args(arguments.split_whitespace()).kill_on_drop(true);
        command.env("KUBECONFIG", self.kubectl.kubeconfig()).env("HELM_CACHE_HOME", STATE);
        within(&format!("helm {arguments}"), async {
            let output = command.output().await?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            ensure!(output.status.success(), "{}\n{}", text(&output.stderr), text(&output.stdout));
            Ok(text(&output.stdout))
        })
        .await
    }

    /// Installs the resource definitions that the operator under test prints.
    pub async fn define(&self) -> Result<()> {
        let printed = Command::new(&self.programs.operator).arg("crds").output().await?;
        ensure!(printed.status.success(), "weir-operator crds: {}", String::from_utf8_lossy(&printed.stderr));
        let taken =
            self.kubectl.call("apply --server-side -f -", &String::from_utf8(printed.stdout)?).await?;
        taken.map_err(Error::msg).context("the definitions are taken")?;
        let kinds = "crd/brokers.weir.dev crd/messagequeues.weir.dev crd/streams.weir.dev";
        let wait = format!("wait --for=condition=Established --timeout=30s {kinds}");
        self.kubectl.run(&wait).await.map(drop)
    }

    /// A client of the API with all rights.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The player of its nodes.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The programs that it is made of.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Where the logs are.
    #[must_use]
    pub fn logs(&self) -> &PathBuf {
        &self.logs
    }

    /// What people would look at first when something is wrong: pods, Weir's objects, and the ends of pods' logs.
    pub async fn state(&self) -> String {
        let mut state = String::new();
        for arguments in ["get pods -A -o wide", "get weir -A -o wide", "get events.v1.events.k8s.io -A"] {
            let answer = self.kubectl.run(arguments).await;
            let _infallible = writeln!(
                state,
                "kubectl {arguments}\n{}",
                answer.unwrap_or_else(|error| format!("{error:#}"))
            );
        }
        let logs = std::fs::read_dir(self.logs.join("pods")).into_iter().flatten().flatten();
        state.extend(logs.map(|log| tail(&log.path())));
        state
    }

    /// Ends the API server as a crash would, and waits until it is gone.
    pub async fn kill_api_server(&mut self) -> Result<()> {
        let Some(mut api_server) = self.api_server.take() else {
            bail!("the API server is down already");
        };
        api_server.signal(Signal::KILL)?;
        api_server.wait().await.map(drop)
    }

    /// Starts the API server again, and waits until it is ready.
    pub async fn start_api_server(&mut self) -> Result<()> {
        let api_server = self.api_server.insert(start_api_server(&self.programs, &self.pki, &self.logs)?);
        api_server_ready(&self.client).await.with_context(|| api_server.tail())
    }
}

/// Where its logs are.
impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("logs", &self.logs).finish_non_exhaustive()
    }
}

/// Asks again and again until there is an answer, for as long as a single step may take.
pub async fn until<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    within(what, async {
        loop {
            if let Some(answer) = ask().await? {
                return Ok(answer);
            }
            sleep(ASKED_EACH).await;
        }
    })
    .await
}

async fn client(pki: &Pki) -> Result<Client> {
    let config = Kubeconfig::read_from(pki.kubeconfig("admin"))?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn api_server_ready(client: &Client) -> Result<()> {
    until("the API server to be ready", || async {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        Ok(client.request_text(request).await.ok().filter(|text| text == "ok"))
    })
    .await
    .map(drop)
}

fn start_api_server(programs: &Programs, pki: &Pki, logs: &std::path::Path) -> Result<Daemon> {
    let mut command = Command::new(&programs.control_plane.api_server);
    command.args([
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={NODE}"),
        "--secure-port=6443".into(),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--authorization-mode=Node,RBAC".into(),
        "--allow-privileged=true".into(),
        format!("--client-ca-file={}", pki.file("ca.pem")),
        format!("--tls-cert-file={}", pki.file("api-server.pem")),
        format!("--tls-private-key-file={}", pki.file("api-server.key.pem")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", pki.file("accounts.pem")),
        format!("--service-account-signing-key-file={}", pki.file("accounts.key.pem")),
    ]);
    Daemon::start(command, logs.join("kube-apiserver.log"))
}

fn start_controllers(programs: &Programs, pki: &Pki, logs: &std::path::Path) -> Result<[Daemon; 2]> {
    let mut manager = Command::new(&programs.control_plane.controller_manager);
    manager.args([
        format!("--kubeconfig={}", pki.kubeconfig("controller-manager").display()),
        "--leader-elect=false".into(),
        "--use-service-account-credentials=true".into(),
        format!("--root-ca-file={}", pki.file("ca.pem")),
        format!("--service-account-private-key-file={}", pki.file("accounts.key.pem")),
        // The player of the nodes lives as long as they do, and sends no signs of life.
        "--node-monitor-grace-period=24h".into(),
    ]);
    let mut scheduler = Command::new(&programs.control_plane.scheduler);
    scheduler.args([
        format!("--kubeconfig={}", pki.kubeconfig("scheduler").display()),
        "--leader-elect=false".into(),
    ]);
    Ok([
        Daemon::start(manager, logs.join("kube-controller-manager.log"))?,
        Daemon::start(scheduler, logs.join("kube-scheduler.log"))?,
    ])
}
