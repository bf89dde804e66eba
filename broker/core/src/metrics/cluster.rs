//! What goes on among the pods of a cluster. All is zero where there is one pod alone.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why a virtual shard was taken over: a bounded label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Takeover {
    /// `new`: nobody had it; `dead`: its owner is gone; `given`: its owner has handed it over; `own`: this pod had it.
    pub reason: &'static str,
}

/// Members, their signs of life, and the change feed, as this pod sees them. Clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct ClusterMetrics {
    /// Members known, this pod included.
    pub members: Gauge,
    /// Pods that this one has declared dead.
    pub declared_dead: Counter,
    /// Signs of life that the store did not take.
    pub missed_beats: Counter,
    /// Age of the last sign of life, in milliseconds.
    pub beat_age_ms: Gauge,
    /// 1 while there was no sign of life for so long that others may be about to declare this pod dead.
    pub quiet: Gauge,
    /// Changes read from the feed.
    pub changes: Counter,
    /// Times that everything was read again, the first included.
    pub reloads: Counter,
    /// Changes that wait for the slowest follower in this pod.
    pub waiting: Gauge,
    /// Times that a change in the feed could not be read.
    pub unreadable: Counter,
    /// Virtual shards taken over.
    pub takeovers: Family<Takeover, Counter>,
    /// Virtual shards handed to other pods.
    pub handed_over: Counter,
    /// Filters and groups of clients of this pod, as other pods know them.
    pub interest: Gauge,
    /// Filters and groups of clients of other pods, over all pods.
    pub interest_elsewhere: Gauge,
    /// Subscriptions acknowledged before all pods knew of them.
    pub interest_late: Counter,
    /// Deliveries of queues settled here that the pods whose queues they are of have not heard of.
    pub settles_waiting: Gauge,
    /// Records and questions for shards of other pods that have no answer.
    pub requests_waiting: Gauge,
    /// Times that the words of another pod about a shard had to wait, and with them all that it said of shards.
    pub words_held_up: Counter,
    /// Words of members of consumer groups here that wait to be sent to the pods which divide their streams.
    pub group_words_waiting: Gauge,
    /// Talks of other pods with shards of this one: for each shard, those that have asked something of it.
    pub talks: Gauge,
}

impl ClusterMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("cluster_members", "Members of the cluster", self.members.clone());
        registry.register(
            "cluster_declared_dead",
            "Pods declared dead by this one",
            self.declared_dead.clone(),
        );
        let missed = self.missed_beats.clone();
        registry.register("cluster_missed_heartbeats", "Signs of life that the store did not take", missed);
        let age = self.beat_age_ms.clone();
        registry.register("cluster_heartbeat_age_milliseconds", "Age of the last sign of life", age);
        let help = "1 while signs of life are missing for so long that others may declare this pod dead";
        registry.register("cluster_quiet", help, self.quiet.clone());
        registry.register("cluster_changes", "Changes read from the change feed", self.changes.clone());
        let reloads = self.reloads.clone();
        registry.register(
            "cluster_reloads",
            "Times that everything was read again, the first included",
            reloads,
        );
        let waiting = self.waiting.clone();
        registry.register("cluster_changes_waiting", "Changes that wait for the slowest cache", waiting);
        let unreadable = self.unreadable.clone();
        registry.register(
            "cluster_unreadable",
            "Times that a change in the feed could not be read",
            unreadable,
        );
        registry.register("cluster_takeovers", "Virtual shards taken over", self.takeovers.clone());
        let handed_over = self.handed_over.clone();
        registry.register("cluster_handed_over", "Virtual shards handed to other pods", handed_over);
        let interest = self.interest.clone();
        registry.register(
            "cluster_interest",
            "Filters and groups that other pods send publishes for",
            interest,
        );
        let elsewhere = self.interest_elsewhere.clone();
        let help = "Filters and groups of other pods that publishes are sent to";
        registry.register("cluster_interest_elsewhere", help, elsewhere);
        let late = self.interest_late.clone();
        let help = "Subscriptions acknowledged before all pods knew of them";
        registry.register("cluster_interest_late", help, late);
        let settles = self.settles_waiting.clone();
        let help = "Settled deliveries that the pods with their queues have not heard of";
        registry.register("cluster_settles_waiting", help, settles);
        let help = "Records and questions for shards of other pods without an answer";
        registry.register("cluster_requests_waiting", help, self.requests_waiting.clone());
        let help = "Times that words of another pod about a shard waited for those before them";
        registry.register("cluster_words_held_up", help, self.words_held_up.clone());
        let words = self.group_words_waiting.clone();
        let help = "Words about members of consumer groups that wait to be sent";
        registry.register("cluster_group_words_waiting", help, words);
        let help = "Pods that have asked something of a shard of this one, over all shards";
        registry.register("cluster_talks", help, self.talks.clone());
    }
}
