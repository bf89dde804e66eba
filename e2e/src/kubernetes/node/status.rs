//! What the API is told of a pod.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::now_rfc3339;

/// The state of a pod's containers, shared by those who run them.
#[derive(Debug)]
pub(super) struct Report {
    address: Ipv4Addr,
    started: String,
    init: Vec<Seen>,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    containers: BTreeMap<String, Seen>,
    initialized: bool,
    /// When each condition changed last, and to what.
    conditions: BTreeMap<&'static str, (bool, String)>,
}

#[derive(Clone, Debug)]
struct Seen {
    name: String,
    image: String,
    state: Value,
    last: Value,
    since: String,
    ready: bool,
    restarts: u32,
    exit_code: Option<i32>,
}

impl Report {
    pub(super) fn new(pod: &Pod, address: Ipv4Addr) -> Self {
        let spec = pod.spec.as_ref();
        let init = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let own = spec.iter().flat_map(|spec| &spec.containers);
        let state = State {
            containers: init.clone().chain(own).map(|c| (c.name.clone(), Seen::new(c))).collect(),
            initialized: false,
            conditions: BTreeMap::new(),
        };
        let init = init.map(Seen::new).collect();
        let changes = watch::Sender::new(());
        Self { address, started: now_rfc3339(), init, state: Mutex::new(state), changes }
    }

    /// Tells of each change.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    pub(super) fn initialized(&self) {
        self.state.lock().initialized = true;
        self.changes.send_replace(());
    }

    pub(super) fn waiting_all(&self, reason: &str, message: &str) {
        let names: Vec<String> = self.state.lock().containers.keys().cloned().collect();
        names.iter().for_each(|name| self.waiting(name, reason, message));
    }

    pub(super) fn waiting(&self, name: &str, reason: &str, message: &str) {
        self.change(name, |seen| {
            seen.state = json!({ "waiting": { "reason": reason, "message": message } });
        });
    }

    pub(super) fn running(&self, name: &str) {
        self.change(name, |seen| {
            seen.since = now_rfc3339();
            seen.exit_code = None;
            seen.state = json!({ "running": { "startedAt": seen.since } });
        });
    }

    pub(super) fn ready(&self, name: &str, ready: bool) {
        self.change(name, |seen| seen.ready = ready);
    }

    pub(super) fn terminated(&self, name: &str, exit_code: i32, message: &str) {
        self.change(name, |seen| {
            seen.ready = false;
            seen.exit_code = Some(exit_code);
            seen.state = json!({ "terminated": {
                "exitCode": exit_code, "reason": if exit_code == 0 { "Completed" } else { "Error" },
                "message": message, "startedAt": seen.since, "finishedAt": now_rfc3339(),
            }});
        });
    }

    /// It ended, and will be started again.
    pub(super) fn restarting(&self, name: &str) {
        self.change(name, |seen| {
            seen.restarts += 1;
            seen.last = seen.state.take();
            seen.state =
                json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "will be started again" } });
        });
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.state.lock().containers.get_mut(name) {
            change(seen);
        }
        self.changes.send_replace(());
    }

    /// The `status` of the pod; `done`: none of its containers will run again.
    pub(super) fn status(&self, done: bool) -> Value {
        let mut state = self.state.lock();
        let is_init = |seen: &Seen| self.init.iter().any(|init| init.name == seen.name);
        let (init, own): (Vec<Seen>, Vec<Seen>) = state.containers.values().cloned().partition(is_init);
        let ready = !done && state.initialized && own.iter().all(|seen| seen.ready);
        let phase = match (done, state.initialized) {
            (true, true) if own.iter().all(|seen| seen.exit_code == Some(0)) => "Succeeded",
            (true, _) => "Failed",
            (false, true) => "Running",
            (false, false) => "Pending",
        };
        let initialized = state.initialized;
        let mut condition = |kind: &'static str, is: bool| {
            let known = state.conditions.entry(kind).or_insert_with(|| (!is, String::new()));
            if known.0 != is {
                *known = (is, now_rfc3339());
            }
            let status = if is { "True" } else { "False" };
            json!({ "type": kind, "status": status, "lastTransitionTime": known.1 })
        };
        let conditions = [
            condition("PodReadyToStartContainers", true),
            condition("Initialized", initialized),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ];
        json!({
            "phase": phase,
            "conditions": conditions,
            "hostIP": super::super::NODE,
            "hostIPs": [{ "ip": super::super::NODE }],
            "podIP": self.address,
            "podIPs": [{ "ip": self.address }],
            "startTime": self.started,
            "initContainerStatuses": init.iter().map(Seen::json).collect::<Vec<_>>(),
            "containerStatuses": own.iter().map(Seen::json).collect::<Vec<_>>(),
        })
    }
}

impl Seen {
    fn new(container: &Container) -> Self {
        Self {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: json!({ "waiting": { "reason": "ContainerCreating" } }),
            last: json!({}),
            since: String::new(),
            ready: false,
            restarts: 0,
            exit_code: None,
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "ready": self.ready,
            "started": self.state.get("running").is_some(),
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        })
    }
}
