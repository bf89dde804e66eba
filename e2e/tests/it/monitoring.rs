//! Dashboards and alerts of the chart: what they ask for is what brokers and the operator tell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_e2e::clients::{Client, Connect, Kind, Publish, Subscribe, Version};
use weir_e2e::weir::{Setup, StoreServer};
use weir_e2e::{http, tools, within};

const CLIENT: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };
/// Labels that a scrape adds, and the name under which it keeps one of ours that it hides.
const OF_TARGETS: [&str; 3] = ["namespace", "pod", "exported_namespace"];
const MANIFEST: &str = "
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: jobs }
spec: { topicFilter: shown/# }
---
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: journal }
spec: { topicFilter: shown/# }
";

/// Every value of every label of a metric, by the metric's name.
#[derive(Debug, Default)]
struct Told(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Told {
    /// Takes up what `/metrics` says, or the list of its series.
    fn read(&mut self, text: &str) -> Result<()> {
        for line in text.lines().filter(|line| !line.starts_with('#') && line.starts_with("weir_")) {
            let (name, labels) = match line.split_once('{') {
                Some((name, rest)) => (name, rest.rsplit_once('}').with_context(|| line.to_owned())?.0),
                None => (line.split(' ').next().unwrap_or_default(), ""),
            };
            let values = self.0.entry(name.to_owned()).or_default();
            // No value of ours has a comma or a quote in it.
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (label, value) = label.split_once('=').with_context(|| line.to_owned())?;
                values.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
            }
        }
        Ok(())
    }

    /// Fails if nothing that is told fits `selector`, and says why.
    fn check(&self, selector: &Selector<'_>) -> Result<()> {
        let name = selector.name;
        let labels = self.0.get(name).with_context(|| format!("there is no metric `{name}`"))?;
        for &(label, asked) in selector.matchers.iter().filter(|(label, _)| !OF_TARGETS.contains(label)) {
            let values = labels.get(label).with_context(|| format!("`{name}` has no label `{label}`"))?;
            // A variable of the dashboard stands for any value.
            let asked = asked.split('|').filter(|value| !value.starts_with('$'));
            let unknown: Vec<&str> = asked.filter(|value| !values.contains(*value)).collect();
            ensure!(unknown.is_empty(), "`{name}` never has {unknown:?} as `{label}`, only {values:?}");
        }
        Ok(())
    }
}

/// A metric in an expression, and the values that it asks for.
#[derive(Debug, PartialEq, Eq)]
struct Selector<'a> {
    name: &'a str,
    matchers: Vec<(&'a str, &'a str)>,
}

/// The metrics of ours in an expression of PromQL.
fn selectors(expression: &str) -> Result<Vec<Selector<'_>>> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find("weir_") {
        rest = &rest[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name;
        (name, rest) = rest.split_at(end);
        let mut matchers = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (label, after) = rest.split_once('=').context("a label without `=`")?;
                let after =
                    after.trim_start_matches('~').strip_prefix('"').context("a value without quotes")?;
                let (value, after) = after.split_once('"').context("a value that does not end")?;
                matchers.push((label.trim().trim_end_matches('!'), value));
                rest = after.trim_start().trim_start_matches(',').trim_start();
                ensure!(!rest.is_empty(), "braces that do not end");
            }
        }
        found.push(Selector { name, matchers });
    }
    Ok(found)
}

/// The labels that an expression groups by.
fn grouped_by(expression: &str) -> Result<BTreeSet<&str>> {
    let mut labels = BTreeSet::new();
    for part in expression.split("by (").skip(1) {
        let (inside, _) = part.split_once(')').context("`by (` that does not end")?;
        labels.extend(inside.split(',').map(str::trim));
    }
    Ok(labels)
}

/// Checks one expression, and says what it groups by.
fn check<'a>(expression: &'a str, told: &Told) -> Result<BTreeSet<&'a str>> {
    for (open, close) in [('(', ')'), ('[', ']'), ('{', '}')] {
        let count = |bracket| expression.matches(bracket).count();
        ensure!(count(open) == count(close), "`{open}` without `{close}`");
    }
    let selectors = selectors(expression)?;
    ensure!(!selectors.is_empty(), "it asks for nothing");
    selectors.iter().try_for_each(|selector| told.check(selector))?;
    let labels = grouped_by(expression)?;
    for label in labels.iter().filter(|label| !OF_TARGETS.contains(label)) {
        let lacks = selectors
            .iter()
            .find(|selector| told.0.get(selector.name).is_none_or(|labels| !labels.contains_key(*label)));
        ensure!(lacks.is_none(), "it groups by `{label}`, which {lacks:?} lacks");
    }
    Ok(labels)
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weir")
}

/// Everything that a broker with a queue, a stream, a consumer group and other pods tells, and all that an operator can.
async fn what_is_told() -> Result<Told> {
    let store = StoreServer::start().await?;
    let pod = || Setup::remote(store.address())?.with_manifest("shown.yaml", MANIFEST);
    let pods = [pod()?, pod()?].map(|setup| setup.with_arguments(&["--peer", "127.0.0.1:0"]));
    let (weir, other) = (pods[0].start().await?, pods[1].start().await?);
    let connect = |id: &str| Connect::clean(weir.mqtt(), id);
    let mut worker = CLIENT.subscribe(connect("worker"), Subscribe::to("$queue/jobs", 1)).await?;
    let group = Subscribe::to("$share/audit/$stream/journal", 1);
    let mut member = CLIENT.subscribe(connect("member"), group.property("stream-offset", "earliest")).await?;
    CLIENT.publish(connect("publisher"), Publish::to("shown/a", 1, ["x"])).await?;
    worker.next().await?;
    member.next().await?;
    // A group has series as soon as it has a position, a pod as soon as there is a link: a little later.
    let text = within("series of the group and of the other pod", async {
        loop {
            // A group is told of by the pod that divides its shards.
            let mut text = String::new();
            for pod in [&weir, &other] {
                let (status, told) = http::get(pod.http(), "/metrics").await?;
                ensure!(status == 200, "{status}");
                text.push_str(&told);
            }
            let awaited = ["weir_stream_group_lag_age_seconds{", "weir_peer_sent_bytes_total{"];
            if awaited.iter().all(|series| text.contains(series)) {
                return Ok(text);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut told = Told::default();
    told.read(&text.await?)?;
    let list = "../operator/src/snapshots/weir_operator__metrics__tests__list_of_metrics.snap";
    told.read(&std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(list))?)?;
    worker.disconnect().await?;
    member.disconnect().await?;
    other.terminate().await?;
    weir.terminate().await?;
    Ok(told)
}

#[tokio::test]
async fn dashboards_and_alerts_ask_for_what_there_is() -> Result<()> {
    let told = what_is_told().await?;
    let mut problems = Vec::new();
    let mut expressions = 0;
    for entry in std::fs::read_dir(chart().join("dashboards"))? {
        let path = entry?.path();
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        let panels = dashboard["panels"].as_array().context("panels")?;
        for panel in panels {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().context("an expression")?;
                expressions += 1;
                if let Err(problem) = check(expression, &told) {
                    problems.push(format!("{}: {}: {problem}", path.display(), panel["title"]));
                }
            }
        }
        for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
            let Some(query) = variable["definition"].as_str() else { continue };
            let asked = query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", "));
            let (selector, _) = asked.with_context(|| query.to_owned())?;
            if let Err(problem) = check(selector, &told) {
                problems.push(format!("{}: variable {}: {problem}", path.display(), variable["name"]));
            }
        }
    }
    ensure!(expressions > 50, "only {expressions} expressions were found");

    let alerts: Value = serde_yaml::from_str(&std::fs::read_to_string(chart().join("alerts.yaml"))?)?;
    for group in alerts["groups"].as_array().context("groups")? {
        for rule in group["rules"].as_array().context("rules")? {
            let name = rule["alert"].as_str().context("a name")?;
            match check(rule["expr"].as_str().context("an expression")?, &told) {
                Err(problem) => problems.push(format!("{name}: {problem}")),
                Ok(grouped_by) => problems.extend(unknown_labels(rule, &grouped_by).map(|label| {
                    format!("{name}: its texts name `{label}`, which is not among {grouped_by:?}")
                })),
            }
            let has = |field: &str| rule["annotations"][field].as_str().is_some_and(|text| !text.is_empty());
            if !has("summary") || !has("description") || rule["labels"]["severity"].is_null() {
                problems.push(format!("{name}: it lacks a summary, a description or a severity"));
            }
        }
    }
    ensure!(problems.is_empty(), "{problems:#?}");
    Ok(())
}

/// Labels that the texts of an alert name and that its result does not have.
fn unknown_labels<'a>(rule: &'a Value, known: &BTreeSet<&str>) -> impl Iterator<Item = &'a str> {
    let texts =
        ["summary", "description"].map(|field| rule["annotations"][field].as_str().unwrap_or_default());
    let named = texts.into_iter().flat_map(|text| text.split("$labels.").skip(1)).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    });
    named.filter(|label| !known.contains(*label))
}

#[test]
fn an_expression_that_asks_for_nothing_there_is_named() -> Result<()> {
    let mut told = Told::default();
    told.read("weir_queue_messages_total{queue=\"jobs\",event=\"published\"} 1\nweir_leader 1\n")?;
    let cases = [
        ("sum(weir_queue_message_total)", "no metric `weir_queue_message_total`"),
        ("weir_queue_messages_total{reason=\"x\"}", "no label `reason`"),
        ("rate(weir_queue_messages_total{event=~\"published|lost\"}[5m])", "never has [\"lost\"]"),
        ("sum by (shard) (weir_queue_messages_total)", "groups by `shard`"),
        ("sum(weir_leader", "`(` without `)`"),
        ("weir_queue_messages_total{event=published}", "without quotes"),
        ("1 + 1", "asks for nothing"),
    ];
    for (expression, wanted) in cases {
        let problem = check(expression, &told).err().with_context(|| format!("{expression} was taken"))?;
        ensure!(format!("{problem}").contains(wanted), "{expression}: {problem}");
    }
    let fine =
        "sum by (queue, pod) (rate(weir_queue_messages_total{namespace=~\"$namespace\"}[$__rate_interval]))";
    check(fine, &told)?;
    Ok(())
}

/// Statuses of objects, and what Argo CD is to show for them.
const HEALTH: [(&str, &str, &str); 8] = [
    ("nil", "Progressing", "the operator has not looked at it yet"),
    ("{}", "Progressing", "the operator has not looked at it yet"),
    (
        "{ observedGeneration = 1, conditions = { { type = 'Ready', status = 'True' } } }",
        "Progressing",
        "the operator has not looked at this generation yet",
    ),
    ("{ conditions = { { type = 'Ready', status = 'Unknown' } } }", "Progressing", ""),
    (
        "{ observedGeneration = 2, conditions = { { type = 'Ready', status = 'True', reason = 'Ready', message = 'as declared' } } }",
        "Healthy",
        "Ready: as declared",
    ),
    (
        "{ observedGeneration = 2, conditions = { { type = 'Ready', status = 'False', reason = 'NameConflict', message = 'm' },
           { type = 'Stalled', status = 'True', reason = 'NameConflict', message = 'owned by b/q' } } }",
        "Degraded",
        "NameConflict: owned by b/q",
    ),
    (
        "{ observedGeneration = 2, conditions = { { type = 'Ready', status = 'False', reason = 'Unavailable', message = 'm' },
           { type = 'Reconciling', status = 'True', reason = 'Retrying', message = 'again' } } }",
        "Progressing",
        "Retrying: again",
    ),
    (
        "{ observedGeneration = 2, conditions = { { type = 'Ready', status = 'False', reason = 'DeadLetterBlocked', message = 'm' } } }",
        "Degraded",
        "DeadLetterBlocked: m",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn argo_cd_shows_what_the_conditions_say() -> Result<()> {
    let lua = tools::build_chart_tools().await?.lua;
    let health = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/gitops/argocd/health.lua");
    let folder = tempfile::tempdir()?;
    let mut script = String::new();
    for (status, ..) in HEALTH {
        script.push_str(&format!(
            "obj = {{ metadata = {{ generation = 2 }}, status = {status} }}\n\
             health = dofile({health:?})\n\
             print(health.status .. '|' .. health.message)\n"
        ));
    }
    let file = folder.path().join("health.lua");
    std::fs::write(&file, script)?;
    let output = tokio::process::Command::new(lua).arg(&file).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout)?;
    ensure!(printed.lines().count() == HEALTH.len(), "{printed}");
    for ((status, wanted, message), line) in HEALTH.into_iter().zip(printed.lines()) {
        let (shown, text) = line.split_once('|').context("a status and a message")?;
        ensure!(shown == wanted, "{status} is {line}, not {wanted}");
        ensure!(message.is_empty() || text == message, "{status} says {text:?}, not {message:?}");
    }
    Ok(())
}
