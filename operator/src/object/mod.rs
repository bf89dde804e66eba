//! What MessageQueues and Streams share: [`plan`] decides, [`reconcile`] carries out. Owns no state but the context that it
//! is given; knows a broker by [`crate::brokers`] only.

mod declares;
pub(crate) mod plan;
mod reconcile;
#[cfg(test)]
pub(crate) mod tests;

use kube::runtime::events::{Event, EventType};

pub(crate) use declares::Declares;
pub(crate) use reconcile::{Objects, Urgency, again_after, reconcile};

/// Held while the queue or stream of an object may have to be released.
pub(crate) const FINALIZER: &str = "weir.dev/release";
/// While an object has it with any value but `false`, the operator leaves its queue or stream alone.
pub(crate) const PAUSE: &str = "weir.dev/pause";
/// Lets an object go whose queue or stream cannot be released.
pub(crate) const FORCE_RELEASE: &str = "weir.dev/force-release";

/// Characters of an event's note that are kept: an API server takes 1,024 bytes.
const NOTE_BYTES_MAX: usize = 1000;

/// Something that people should see happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) is_warning: bool,
    pub(crate) reason: String,
    pub(crate) text: String,
}

impl Note {
    /// All is well.
    pub(crate) fn normal(reason: impl Into<String>, text: impl Into<String>) -> Self {
        Self { is_warning: false, reason: reason.into(), text: text.into() }
    }

    /// Somebody should look.
    pub(crate) fn warning(reason: impl Into<String>, text: impl Into<String>) -> Self {
        Self { is_warning: true, reason: reason.into(), text: text.into() }
    }

    /// As an event.
    pub(crate) fn event(&self) -> Event {
        let mut note = self.text.clone();
        note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
        Event {
            type_: if self.is_warning { EventType::Warning } else { EventType::Normal },
            reason: self.reason.clone(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        }
    }
}
