//! The crate from outside: tables per clause, and properties against naive models.

mod names_and_filters;
mod properties;
mod subscriptions;

use weir_topic::{TopicFilter, TopicName};

fn name(text: &str) -> TopicName {
    TopicName::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn filter(text: &str) -> TopicFilter {
    TopicFilter::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}
