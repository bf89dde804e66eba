//! Rules against a model that asks about every topic of a small world, one by one, and shares no code with them.

use proptest::collection::vec;
use proptest::prelude::*;
use weir_auth::{Access, Client, Request, Rules, TopicPattern};
use weir_topic::{TopicFilter, TopicName};

const CLIENT: Client<'static> = Client { user: Some("u"), client_id: "c", address: None, certificate: false };

/// Every topic of up to four levels. `z` is in no filter: it stands for all texts that nobody wrote down.
fn world() -> Vec<TopicName> {
    let firsts = ["a", "b", "u", "", "$a", "z"];
    let levels = ["a", "b", "u", "", "z"];
    let mut all: Vec<String> = firsts.iter().map(|first| (*first).to_owned()).collect();
    let mut longest = all.clone();
    for _ in 0..3 {
        longest = longest.iter().flat_map(|t| levels.iter().map(move |l| format!("{t}/{l}"))).collect();
        all.extend(longest.iter().cloned());
    }
    all.into_iter().filter_map(|topic| TopicName::parse(topic).ok()).collect()
}

fn pattern() -> impl Strategy<Value = String> {
    let first = prop::sample::select(vec!["a", "b", "u", "", "$a", "+", "%u"]);
    let level = prop::sample::select(vec!["a", "b", "u", "", "+", "%u"]);
    (first, vec(level, 0..3), any::<bool>()).prop_filter_map("a topic filter", |(first, rest, multi)| {
        let mut levels = vec![first];
        levels.extend(rest);
        if multi {
            let last = levels.len() - 1;
            // `#` alone too.
            if levels.len() == 1 { levels[last] = "#" } else { levels.push("#") }
        }
        let text = levels.join("/");
        TopicPattern::parse(&text).ok().map(|_| text)
    })
}

fn filter() -> impl Strategy<Value = TopicFilter> {
    pattern().prop_map(|text| TopicFilter::parse(text.replace("%u", "u")).unwrap())
}

#[derive(Clone, Debug)]
struct ModelRule {
    allow: bool,
    concerns: bool,
    topics: Vec<String>,
}

fn rules() -> impl Strategy<Value = Vec<ModelRule>> {
    let rule = (any::<bool>(), prop::bool::weighted(0.8), vec(pattern(), 1..3))
        .prop_map(|(allow, concerns, topics)| ModelRule { allow, concerns, topics });
    vec(rule, 1..6)
}

fn parsed(rules: &[ModelRule]) -> Rules {
    let text: String = rules
        .iter()
        .map(|rule| {
            format!(
                "[[rules]]\n{} = [\"publish\", \"subscribe\"]\nusers = [\"{}\"]\ntopics = {:?}\n",
                if rule.allow { "allow" } else { "deny" },
                if rule.concerns { "u" } else { "other" },
                rule.topics
            )
        })
        .collect();
    Rules::parse(&text).unwrap()
}

/// Whether the model allows one topic.
fn allows(rules: &[ModelRule], topic: &TopicName) -> bool {
    let matches = |text: &String| TopicFilter::parse(text.replace("%u", "u")).unwrap().matches(topic);
    rules
        .iter()
        .filter(|rule| rule.concerns)
        .find(|rule| rule.topics.iter().any(matches))
        .is_some_and(|r| r.allow)
}

fn may_subscribe(rules: &Rules, filter: &TopicFilter) -> bool {
    rules.decide(&CLIENT, &Request::Subscribe { filter }).is_allowed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_topic_is_judged_as_by_the_model(model in rules()) {
        let rules = parsed(&model);
        for topic in world() {
            let request = Request::Publish { topic: &topic, retain: false, will: false };
            let expected = allows(&model, &topic);
            prop_assert_eq!(rules.decide(&CLIENT, &request).is_allowed(), expected, "publish to {}", topic);
            let filter = TopicFilter::from(topic);
            prop_assert_eq!(may_subscribe(&rules, &filter), expected, "subscribe to {}", filter);
        }
    }

    #[test]
    fn no_topic_of_a_granted_subscription_escapes_a_denial(model in rules(), filter in filter()) {
        let rules = parsed(&model);
        if may_subscribe(&rules, &filter) {
            for topic in world().iter().filter(|topic| filter.matches(topic)) {
                prop_assert!(allows(&model, topic), "{} is in {}", topic, filter);
            }
        }
    }

    #[test]
    fn a_filter_that_one_rule_covers_and_none_denies_is_granted(allowed in pattern(), denied in pattern(), filter in filter()) {
        let rule = |allow, topic: &String| ModelRule { allow, concerns: true, topics: vec![topic.clone()] };
        let model = [rule(false, &denied), rule(true, &allowed)];
        let mut topics = world().into_iter().filter(|topic| filter.matches(topic)).peekable();
        // A filter longer than the world has no topic in it.
        let expected = topics.peek().is_some() && topics.all(|topic| allows(&model, &topic));
        if filter.levels().count() < 4 {
            prop_assert_eq!(may_subscribe(&parsed(&model), &filter), expected);
        }
    }

    #[test]
    fn access_and_explanation_say_the_same(model in rules(), filter in filter()) {
        let rules = std::sync::Arc::new(parsed(&model));
        let request = Request::Subscribe { filter: &filter };
        let decision = rules.decide(&CLIENT, &request);
        let access = Access::new(rules.clone(), &CLIENT);
        prop_assert_eq!(access.decide(&request), decision);
        let explanation = rules.explain(&CLIENT, &request);
        prop_assert_eq!(explanation.decision, decision);
        let before = decision.rule.map_or(rules.all().len(), |rule| rules.all().iter().position(|r| r == rule).unwrap());
        prop_assert!(explanation.passed.len() >= before);
    }

    #[test]
    fn names_of_clients_widen_nothing(user in "[ab+#/$]{0,3}", id in "[ab+#/$]{0,3}", pattern in "(%u|%c|a%ub)(/(%u|%c|a|#))?") {
        let Ok(parsed) = TopicPattern::parse(&pattern) else { return Ok(()) };
        let client = Client { user: Some(&user), client_id: &id, ..CLIENT };
        for topic in world() {
            if parsed.covers(topic.as_str(), &client) {
                let levels = (pattern.split('/').count(), topic.levels().count());
                prop_assert!(pattern.ends_with('#') || levels.0 == levels.1, "{} takes {}", pattern, topic);
                prop_assert!(!topic.is_reserved(), "{} takes {}", pattern, topic);
                prop_assert!(parsed.touches(topic.as_str(), &client));
            }
            // Whatever a denial means with harmless names, it means at least that for these.
            if parsed.is_usable(&client) && parsed.touches(topic.as_str(), &client) && !topic.as_str().contains(['u', 'c']) {
                let filter = pattern.replace("%u", &user).replace("%c", &id);
                prop_assert!(TopicFilter::parse(filter).unwrap().matches(&topic));
            }
        }
    }

    #[test]
    fn no_text_panics(text in "(\\[\\[rules\\]\\]\n|allow = |deny = |topics = |names = |\\[\"publish\"\\]|\\[\"#\"\\]|true|\n|\"|é){0,12}") {
        let _ = Rules::parse(&text);
        let _ = Rules::parse_configuration(&text);
    }
}
