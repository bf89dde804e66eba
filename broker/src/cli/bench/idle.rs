//! A connection that does nothing.

use anyhow::bail;

use super::shared::{Member, add};
use super::wire::Wire;

/// Connects and stays until the run stops.
pub(super) async fn run(member: Member) -> anyhow::Result<()> {
    let mut phases = member.shared.phases();
    let client = member.connect().await?;
    add(&member.shared.counts.ready, 1);
    let (mut wire, _) = Wire::new(client);
    let stayed = tokio::select! {
        broken = stay(&mut wire) => broken,
        () = Member::stopped(&mut phases) => Ok(()),
    };
    wire.close().await;
    stayed
}

async fn stay(wire: &mut Wire) -> anyhow::Result<()> {
    loop {
        wire.ready().await?;
        wire.transfer()?;
        wire.packets(|packet, _, _| bail!("unexpected {packet} from the server"))?;
    }
}
