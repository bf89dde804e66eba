//! Somebody who has a consumer group read all of its stream again, at whichever pod.

use std::sync::Arc;

use weir_core::catalog::Object;
use weir_core::definition::Kind;
use weir_core::stream::Start;

use super::client::Client;
use super::history::Event;

/// Longest time between two moves, in milliseconds.
const PAUSE_MAX: u64 = 4000;

/// Moves `group` of `stream` to the beginning so many times, or tries to.
pub(super) async fn run(client: Client, stream: &'static str, group: &'static str, moves: u16) {
    for n in 0..moves {
        client.idle(PAUSE_MAX).await;
        let Some(pod) = client.net.pick(&client.seed) else { continue };
        let core = &pod.broker.core;
        let stream: Option<Arc<Object>> = core.catalog().view().find(Kind::Stream, stream);
        let Some(stream) = stream else { continue };
        client.history.note(Event::Moves(n));
        let moving = core.groups().seek(&stream, group, &Start::Earliest, false);
        if let Ok(Ok(_)) = tokio::time::timeout(super::client::PATIENCE, moving).await {
            client.history.note(Event::Moved(n));
        }
    }
}
