//! What kube-proxy and DNS do: connections to a Service's address go to its ready endpoints, and `/etc/hosts`
//! of all pods has the names of Services.
//!
//! TCP only; clients appear with the node's address. A connection that was made stays with its pod.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::shell;

/// How long one endpoint may take to answer before the next is tried.
const CONNECT: Duration = Duration::from_secs(1);
/// The label of a slice that names its Service.
const SERVICE: &str = "kubernetes.io/service-name";

/// Where connections to an address and port of a Service go.
type Table = BTreeMap<(Ipv4Addr, u16), Vec<SocketAddr>>;

/// Runs until it is dropped.
pub(super) async fn run(client: Client, hosts: PathBuf) {
    let (services, services_writer) = reflector::store::<Service>();
    let (slices, slices_writer) = reflector::store::<EndpointSlice>();
    let of_services = watcher(Api::all(client.clone()), watcher::Config::default());
    let of_services = of_services.default_backoff().reflect(services_writer).map(|change| change.is_ok());
    let of_slices = watcher(Api::all(client), watcher::Config::default());
    let of_slices = of_slices.default_backoff().reflect(slices_writer).map(|change| change.is_ok());
    let mut changes = Box::pin(stream::select(of_services, of_slices));
    let table = Arc::new(RwLock::new(Table::new()));
    let mut listeners = JoinSet::new();
    let mut known = BTreeSet::new();
    while let Some(is_change) = changes.next().await {
        // What failed is tried again by the watcher.
        if !is_change {
            continue;
        }
        let now = routes(&services, &slices);
        for &at in now.keys() {
            if known.insert(at) {
                match listen(at).await {
                    Ok(listener) => drop(listeners.spawn(serve(listener, at, table.clone()))),
                    Err(error) => eprintln!("the Service at {}:{}: {error:#}", at.0, at.1),
                }
            }
        }
        *table.write() = now;
        if let Err(error) = write_hosts(&services, &slices, &hosts) {
            eprintln!("write {}: {error:#}", hosts.display());
        }
    }
}

fn routes(services: &Store<Service>, slices: &Store<EndpointSlice>) -> Table {
    let mut table = Table::new();
    for service in services.state() {
        let Some(spec) = &service.spec else {
            continue;
        };
        let Some(address) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok()) else {
            continue;
        };
        for port in spec.ports.iter().flatten() {
            if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
                continue;
            }
            let Ok(number) = u16::try_from(port.port) else {
                continue;
            };
            table.insert((address, number), endpoints(&service, port.name.as_deref(), slices));
        }
    }
    table
}

/// The ready ones, or, if there is none, those that end but still serve.
fn endpoints(service: &Service, port: Option<&str>, slices: &Store<EndpointSlice>) -> Vec<SocketAddr> {
    let (mut ready, mut ending) = (Vec::new(), Vec::new());
    for slice in slices.state() {
        if !belongs(&slice, service) {
            continue;
        }
        let mut ports = slice.ports.iter().flatten();
        let of_port = ports.find(|p| p.name.as_deref().unwrap_or_default() == port.unwrap_or_default());
        let Some(number) = of_port.and_then(|port| u16::try_from(port.port?).ok()) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.as_ref();
            let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
            let sockets = addresses.map(|address| SocketAddr::new(address, number));
            if conditions.is_none_or(|conditions| conditions.ready != Some(false)) {
                ready.extend(sockets);
            } else if conditions.is_some_and(|conditions| conditions.serving == Some(true)) {
                ending.extend(sockets);
            }
        }
    }
    if ready.is_empty() { ending } else { ready }
}

fn belongs(slice: &EndpointSlice, service: &Service) -> bool {
    let of = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE));
    slice.metadata.namespace == service.metadata.namespace && of == service.metadata.name.as_ref()
}

async fn listen((address, port): (Ipv4Addr, u16)) -> Result<TcpListener> {
    shell(&format!("ip addr replace {address}/32 dev lo")).await?;
    Ok(TcpListener::bind((address, port)).await?)
}

async fn serve(listener: TcpListener, at: (Ipv4Addr, u16), table: Arc<RwLock<Table>>) {
    let mut connections = JoinSet::new();
    let mut turn = 0_usize;
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        turn = turn.wrapping_add(1);
        let mut endpoints = table.read().get(&at).cloned().unwrap_or_default();
        let first = turn.checked_rem(endpoints.len()).unwrap_or(0);
        endpoints.rotate_left(first);
        connections.spawn(carry(client, endpoints));
    }
}

/// Carries one connection to the first endpoint that answers.
async fn carry(mut client: TcpStream, endpoints: Vec<SocketAddr>) {
    for endpoint in endpoints {
        if let Ok(Ok(mut pod)) = timeout(CONNECT, TcpStream::connect(endpoint)).await {
            let _nodelay = (client.set_nodelay(true), pod.set_nodelay(true));
            // However it ends, both sides see it.
            let _ended = copy_bidirectional(&mut client, &mut pod).await;
            return;
        }
    }
}

/// Services by name, those without an address by those of their pods. Written in place: pods have it mounted.
fn write_hosts(services: &Store<Service>, slices: &Store<EndpointSlice>, hosts: &Path) -> Result<()> {
    let mut text = String::from("127.0.0.1 localhost\n");
    for service in services.state() {
        let (Some(name), Some(namespace)) = (&service.metadata.name, &service.metadata.namespace) else {
            continue;
        };
        let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
        let addresses: BTreeSet<String> = match address {
            Some(address) if address != "None" => BTreeSet::from([address.to_owned()]),
            _ => slices
                .state()
                .iter()
                .filter(|slice| belongs(slice, &service))
                .flat_map(|slice| slice.endpoints.iter().flat_map(|endpoint| endpoint.addresses.clone()))
                .collect(),
        };
        for address in addresses {
            writeln!(
                text,
                "{address} {name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local"
            )?;
        }
    }
    Ok(std::fs::write(hosts, text)?)
}
