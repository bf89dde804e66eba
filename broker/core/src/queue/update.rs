//! A queue whose declaration changes while it runs.

use weir_env::clock::Instant;

use super::QueueShard;
use super::shard::{Front, Settings};

impl QueueShard {
    /// New settings. They hold for what is in flight or waits for another attempt too, as if they had been there when
    /// it was delivered; a longer backoff is for the next failure.
    pub fn update(&mut self, settings: Settings, now: Instant) {
        let before = std::mem::replace(&mut self.settings, settings.dispatch);
        self.max_age = settings.max_age;
        self.limits = settings.limits;
        self.paused = settings.paused;
        self.set_dead_letters(settings.has_dead_letters);
        self.lag = settings.lag;
        self.front = Front::Unknown;
        self.set_ordering(settings.ordering);
        if before.ack_timeout() != self.settings.ack_timeout() {
            for lease in self.leases.values_mut() {
                // A deadline is the time of a delivery and the time-out.
                let since =
                    now.duration_since(lease.deadline.checked_sub(before.ack_timeout()).unwrap_or(now));
                lease.deadline = now + self.settings.ack_timeout().saturating_sub(since);
            }
            let mut deadlines: Vec<_> = self.leases.iter().map(|(offset, l)| (l.deadline, *offset)).collect();
            deadlines.sort_unstable();
            self.deadlines = deadlines.into();
        }
        let latest = now + std::time::Duration::from_millis(self.settings.backoff_max_ms);
        let late: Vec<_> = self.delayed.keys().copied().filter(|(due, _)| *due > latest).collect();
        for (due, offset) in late {
            if let Some(waiting) = self.delayed.remove(&(due, offset)) {
                self.delayed.insert((latest, offset), waiting);
                self.delayed_until.insert(offset, latest);
            }
        }
        for attached in &mut self.consumers {
            attached.full = false;
        }
    }
}
