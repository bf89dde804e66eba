//! A connection that does nothing, once it is made: as it can, or at its time of an open loop.

use anyhow::{bail, ensure};
use weir_codec::{Message, MessageProperties, QoS, SubscribeFilter, SubscriptionOptions, Will};
use weir_topic::TopicName;

use super::plan::IdlePlan;
use super::shared::{Member, add};
use super::wire::Wire;
use crate::client::{Client, ConnectOptions};

/// Seconds that a persistent session outlives its connection.
const EXPIRY_SECONDS: u32 = 3_600;

/// Connects and stays until the run stops.
pub(super) async fn run(plan: IdlePlan, member: Member) -> anyhow::Result<()> {
    let mut phases = member.shared.phases();
    let client = tokio::select! {
        client = connect(&plan, &member) => client?,
        () = Member::stopped(&mut phases) => return Ok(()),
    };
    add(&member.shared.counts.ready, 1);
    let (mut wire, _) = Wire::new(client);
    let stayed = tokio::select! {
        broken = stay(&mut wire) => broken,
        () = Member::stopped(&mut phases) => Ok(()),
    };
    wire.close().await;
    stayed
}

async fn connect(plan: &IdlePlan, member: &Member) -> anyhow::Result<Client> {
    let will = if plan.will { Some(will(member.number)?) } else { None };
    let change = |options: ConnectOptions| ConnectOptions {
        keep_alive: plan.keep_alive,
        clean_start: options.clean_start && !plan.persistent,
        session_expiry_interval: plan.persistent.then_some(EXPIRY_SECONDS),
        will,
        ..options
    };
    let mut client = match plan.rate {
        None => {
            let _turn = member.turn().await?;
            member.connect_since(member.shared.now(), change).await?
        }
        Some(rate) => {
            #[expect(clippy::cast_precision_loss, reason = "far fewer connections than 2^52")]
            let due =
                member.shared.instant(0) + std::time::Duration::from_secs_f64(member.number as f64 / rate);
            tokio::time::sleep_until(due).await;
            member.connect_since(member.shared.nanos(due), change).await?
        }
    };
    if let Some(filter) = &plan.filter {
        let options = SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
        let filter = filter.replace("{}", &member.number.to_string()).into();
        let suback = client.subscribe(vec![SubscribeFilter { filter, options }], Vec::new()).await?;
        let refused = suback.reasons.iter().find(|reason| reason.is_error());
        ensure!(refused.is_none(), "subscription refused: {refused:?}");
    }
    Ok(client)
}

fn will(number: usize) -> anyhow::Result<Will> {
    let topic = TopicName::parse(format!("bench/will/{number}"))?;
    let properties = MessageProperties::default();
    Ok(Will {
        message: Message { topic, payload: "gone".into(), properties },
        qos: QoS::AtLeastOnce,
        retain: false,
        delay_interval: 0,
        message_expiry_interval: None,
    })
}

async fn stay(wire: &mut Wire) -> anyhow::Result<()> {
    loop {
        wire.ready().await?;
        wire.transfer()?;
        wire.packets(|packet, _, _| bail!("unexpected {packet} from the server"))?;
    }
}
