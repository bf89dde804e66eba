//! Calls about pods: what each has to do, and having one drained. What is known of other pods is what they say with their
//! signs of life, so any pod answers for all.

use std::time::Duration;

use tonic::Status;
use weir_core::Error;
use weir_core::cluster::{DrainOrder, DrainState};
use weir_core::keyspace::owner::PodId;
use weir_core::pods::{Asked, PodReport};
use weir_proto::admin::v1 as wire;

use super::Service;

/// Longest grace that is stored.
const GRACE_MAX: Duration = Duration::from_hours(24);

impl Service {
    pub(super) fn pods(&self) -> Vec<wire::Pod> {
        self.core.pods().iter().map(pod).collect()
    }

    /// Has the pod `id`, or this one, drain as `order` says, or stay.
    pub(super) async fn order(&self, id: &str, order: Option<DrainOrder>) -> Result<wire::Pod, Status> {
        let unknown =
            || Status::not_found(format!("there is no pod `{id}`; `weir pod list` shows what there is"));
        let target = if id.is_empty() { self.core.pod() } else { parsed(id).ok_or_else(unknown)? };
        match self.core.drain_pod(target, order).await {
            Ok(Asked::Done) => {}
            Ok(Asked::Unknown) => return Err(unknown()),
            Ok(Asked::Last) => {
                return Err(Status::failed_precondition(
                    "no other pod would take its clients: stop the pod to end it, or resume another one before",
                ));
            }
            Err(Error::Record(error)) => {
                let text =
                    format!("pod {target} is of another version of Weir: {error}; stop it to drain it");
                return Err(Status::failed_precondition(text));
            }
            Err(error) => return Err(Status::unavailable(format!("pod {target}: {error}; try again"))),
        }
        match order {
            Some(DrainOrder { rate, grace }) => tracing::info!(pod = %target, rate, ?grace, "asked to drain"),
            None => tracing::info!(pod = %target, "asked to stay"),
        }
        let report = self.core.pods().into_iter().find(|report| report.id == target);
        report.as_ref().map(pod).ok_or_else(unknown)
    }
}

/// How a pod is to drain; zeros: as it is configured.
pub(super) fn order(rate: u32, grace_millis: u64) -> Result<DrainOrder, Status> {
    let grace = Duration::from_millis(grace_millis);
    if grace > GRACE_MAX {
        return Err(Status::invalid_argument("grace_millis: a grace is at most 24 h"));
    }
    Ok(DrainOrder { rate, grace })
}

fn pod(report: &PodReport) -> wire::Pod {
    let PodReport { id, info, is_draining, is_self, load, age } = report;
    let state = match load.state {
        DrainState::Serving if *is_draining => wire::PodState::Draining,
        DrainState::Serving => wire::PodState::Serving,
        DrainState::Draining => wire::PodState::Draining,
        DrainState::Drained => wire::PodState::Drained,
    };
    wire::Pod {
        id: id.to_string(),
        peer_address: info.peer.to_string(),
        admin_address: info.admin.to_string(),
        server_reference: info.server_reference.to_string(),
        zone: info.zone.to_string(),
        version: info.version.to_string(),
        started_micros: info.started.as_micros(),
        state: state.into(),
        is_self: *is_self,
        load: Some(wire::PodLoad {
            connections: load.connections,
            subscriptions: load.subscriptions,
            shards: load.shards,
            connect_rate: per_second(load.connects),
            publish_rate: per_second(load.publishes),
            deliver_rate: per_second(load.deliveries),
            append_rate: per_second(load.appends),
            bytes_in_rate: per_second(load.bytes_in),
            bytes_out_rate: per_second(load.bytes_out),
            shed: load.shed,
            cpu_millis: per_second(load.cpu),
        }),
        load_age_millis: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
    }
}

fn per_second(rate: u64) -> f64 {
    rate as f64 / 1000.0
}

/// The id that these 32 hexadecimal digits are.
fn parsed(text: &str) -> Option<PodId> {
    let digits = Some(text).filter(|text| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u128::from_str_radix(digits, 16).ok().map(|id| PodId(id.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = PodId([0, 1, 0xab, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff]);
        assert_eq!(parsed(&id.to_string()), Some(id));
        for wrong in ["", "00", "+0000000000000000000000000000000", &"0".repeat(33), &"g".repeat(32)] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
