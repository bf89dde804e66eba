//! The Helm chart: what it renders, what it refuses, and that nothing in it has drifted from what it is made of.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};
use tokio::process::Command;
use tokio::sync::OnceCell;
use weir_e2e::tools::{self, ChartTools};

/// Sets of values in `charts/weir/ci`, each a way to install.
const VALUE_SETS: [&str; 5] = ["default", "namespaced", "production", "remote", "trial"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart() -> PathBuf {
    repository().join("charts/weir")
}

async fn chart_tools() -> Result<&'static ChartTools> {
    static TOOLS: OnceCell<ChartTools> = OnceCell::const_new();
    TOOLS.get_or_try_init(tools::build_chart_tools).await
}

async fn output(program: &Path, arguments: &[&OsStr]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.with_context(|| format!("run {}", program.display()))
}

/// What helm prints, or what it complains of.
async fn helm(arguments: &[&str]) -> Result<Result<String, String>> {
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    let output = output(&chart_tools().await?.helm, &arguments).await?;
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(if output.status.success() { Ok(out) } else { Err(format!("{out}{err}")) })
}

async fn template(arguments: &[&str]) -> Result<Result<String, String>> {
    let chart = chart();
    let chart = chart.to_str().context("a path in UTF-8")?;
    let mut all = vec!["template", "weir", chart, "--namespace", "messaging"];
    all.extend(arguments);
    helm(&all).await
}

async fn render(values: &str) -> Result<String> {
    let file = chart().join(format!("ci/{values}-values.yaml"));
    let rendered = template(&["--values", file.to_str().context("a path in UTF-8")?]).await?;
    rendered.map_err(anyhow::Error::msg).with_context(|| format!("render with {}", file.display()))
}

/// The objects of rendered text.
fn objects(rendered: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml::Deserializer::from_str(rendered);
    let parsed = documents.map(|document| serde::Deserialize::deserialize(document).map_err(Into::into));
    let objects: Result<Vec<Value>> = parsed.collect();
    Ok(objects?.into_iter().filter(|object| !object.is_null()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_set_passes_lint() -> Result<()> {
    for values in VALUE_SETS {
        let (chart, file) = (chart(), chart().join(format!("ci/{values}-values.yaml")));
        let paths = [chart.to_str(), file.to_str()].map(|path| path.context("a path in UTF-8"));
        let [chart, file] = paths;
        let linted = helm(&["lint", "--strict", "--quiet", chart?, "--values", file?]).await?;
        linted.map_err(anyhow::Error::msg).with_context(|| format!("lint with {values}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_each_value_set_renders() -> Result<()> {
    for values in VALUE_SETS {
        let rendered = render(values).await?;
        // The definitions have a snapshot of their own: the files of crds/; the dashboards are files too.
        let documents = rendered.split("\n---\n").filter(|document| {
            !document.contains("kind: CustomResourceDefinition") && !document.contains("grafana_folder")
        });
        insta::assert_snapshot!(
            format!("chart_{values}"),
            documents.map(str::trim).collect::<Vec<_>>().join("\n---\n")
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_is_what_its_kind_allows() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_schemas(folder.path())?;
    for values in VALUE_SETS {
        let rendered = render(values).await?;
        let mut all = rendered.clone();
        // What the Job of the release applies is an object too.
        for object in objects(&rendered)? {
            if let Some(broker) = object.pointer("/data/broker.yaml").and_then(Value::as_str) {
                all.push_str(&format!("\n---\n{broker}"));
            }
        }
        let file = folder.path().join("objects.yaml");
        std::fs::write(&file, &all)?;
        conform(folder.path(), &file).await.with_context(|| values.to_owned())?;
    }
    Ok(())
}

/// Kinds of other projects, whose schemas are theirs.
const FOREIGN_KINDS: &str = "ServiceMonitor,PodMonitor,PrometheusRule,Certificate,CustomResourceDefinition,Application,\
                             HelmRelease,GitRepository,Kustomization,Namespace";

/// Checks the objects in `path` against the schemas in `schemas`.
async fn conform(schemas: &Path, path: &Path) -> Result<()> {
    let location = format!("{}/{{{{.ResourceKind}}}}.json", schemas.display());
    let arguments = ["-strict", "-summary", "-schema-location", &location, "-skip", FOREIGN_KINDS];
    let mut arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    arguments.push(path.as_os_str());
    let output = output(&chart_tools().await?.kubeconform, &arguments).await?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!told.contains("Valid: 0"), "nothing was checked: {told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_are_what_their_kinds_allow() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_schemas(folder.path())?;
    for examples in ["docs/gitops/platform/broker", "docs/gitops/teams", "docs/examples"] {
        conform(folder.path(), &repository().join(examples)).await.with_context(|| examples.to_owned())?;
    }
    let wrong = folder.path().join("wrong.yaml");
    let queue = "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: { name: q }\nspec: { topicFiler: a/b }\n";
    std::fs::write(&wrong, queue)?;
    let refused = conform(folder.path(), &wrong).await.err().context("a misspelt field was taken")?;
    ensure!(format!("{refused:#}").contains("topicFiler"), "{refused:#}");
    Ok(())
}

/// A schema file of each kind that the chart makes, in which unknown fields are errors.
fn write_schemas(folder: &Path) -> Result<()> {
    use k8s_openapi::api::{apps, batch, core, networking, policy, rbac};
    macro_rules! kinds {
        ($($kind:path),* $(,)?) => {
            [$((
                <$kind as k8s_openapi::Resource>::KIND,
                SchemaGenerator::new(SchemaSettings::draft07()).into_root_schema_for::<$kind>(),
            )),*]
        };
    }
    let kinds = kinds![
        apps::v1::Deployment,
        batch::v1::Job,
        core::v1::ConfigMap,
        core::v1::Pod,
        core::v1::Service,
        core::v1::ServiceAccount,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::ClusterRole,
        rbac::v1::ClusterRoleBinding,
        rbac::v1::Role,
        rbac::v1::RoleBinding,
    ];
    for (kind, schema) in kinds {
        let mut schema = serde_json::to_value(schema)?;
        close(&mut schema);
        // They belong to any object, and the type of the kind does not say so.
        if let Some(fields) = schema.pointer_mut("/properties").and_then(Value::as_object_mut) {
            fields.insert("apiVersion".into(), json!({ "type": "string" }));
            fields.insert("kind".into(), json!({ "const": kind }));
        }
        std::fs::write(folder.join(format!("{}.json", kind.to_lowercase())), schema.to_string())?;
    }
    for (plural, kind) in [("brokers", "broker"), ("messagequeues", "messagequeue"), ("streams", "stream")] {
        let definition = std::fs::read_to_string(repository().join(format!("crds/{plural}.yaml")))?;
        let mut definition: Value = serde_yaml::from_str(&definition)?;
        let schema = definition.pointer_mut("/spec/versions/0/schema/openAPIV3Schema");
        let schema = schema.with_context(|| format!("the schema of {plural}"))?;
        close(schema);
        for field in ["apiVersion", "kind"] {
            schema["properties"][field] = json!({ "type": "string" });
        }
        schema["properties"]["metadata"] = json!({ "type": "object" });
        std::fs::write(folder.join(format!("{kind}.json")), schema.to_string())?;
    }
    Ok(())
}

/// Forbids fields that are not named, wherever fields are.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("properties").is_some_and(Value::is_object)
                && !fields.contains_key("additionalProperties")
            {
                fields.insert("additionalProperties".into(), Value::Bool(false));
            }
            // An integer or a text, and null for absent.
            let nullable = fields.remove("x-kubernetes-int-or-string").is_some();
            if nullable {
                *fields = Map::from_iter([("type".into(), json!(["integer", "string"]))]);
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_mean_nothing_are_refused_and_named() -> Result<()> {
    let cases = [
        ("operator.replicas=many", "/operator/replicas"),
        ("operator.replicas=-1", "/operator/replicas"),
        ("operator.concurrency=0", "/operator/concurrency"),
        ("operator.resync=soon", "/operator/resync"),
        ("operator.resync=1.5h", "/operator/resync"),
        ("operator.clusterId=", "/operator/clusterId"),
        ("operator.clusterId=Prod_1", "/operator/clusterId"),
        ("operator.replica=3", "replica"),
        ("operator.watchNamespaces={City}", "/operator/watchNamespaces/0"),
        ("operator.resources.limits.memory=much", "/operator/resources/limits/memory"),
        ("operator.log.format=xml", "/operator/log/format"),
        ("image.digest=sha256:12", "/image/digest"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("weir-crds.kep=true", "kep"),
        ("broker.name=Main", "/broker/name"),
        ("broker.store.type=kafka", "/broker/store/type"),
        ("broker.store.remote.address=nowhere", "/broker/store/remote/address"),
        ("broker.tls.certManager.issuerRef.names=x", "names"),
        ("broker.auth.allowAnonymus=true", "allowAnonymus"),
        ("broker.auth.usersSecretRef.name=users", "/broker/auth/usersSecretRef"),
        ("broker.auth.rulesConfigMapRef.key=rules.toml", "/broker/auth/rulesConfigMapRef"),
        ("keda.enabled=always", "/keda/enabled"),
        ("metrics.serviceMonitor.interval=30", "/metrics/serviceMonitor/interval"),
        ("brokers.enabled=true", "brokers"),
    ];
    for (value, named) in cases {
        let refused = template(&["--set", value]).await?;
        let error = refused.err().with_context(|| format!("`{value}` was taken"))?;
        ensure!(error.contains(named), "`{value}` is refused without naming {named}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_do_not_go_together_say_what_to_set() -> Result<()> {
    let cases: [(&[&str], &str); 6] = [
        (&["broker.replicas=3"], "set broker.replicas to 1"),
        (&["broker.scaling.maxReplicas=3"], "leave broker.scaling empty"),
        (&["broker.store.type=fdb"], "broker.store.fdb.configMap is needed"),
        (&["broker.store.type=remote"], "broker.store.remote.address is needed"),
        (&["broker.tls.enabled=true"], "set broker.tls.existingSecret"),
        (&["broker.plaintext=false"], "set broker.plaintext or broker.tls.enabled"),
    ];
    for (values, told) in cases {
        let mut arguments = vec!["--set", "broker.enabled=true,broker.auth.allowAnonymous=true"];
        arguments.extend(values.iter().flat_map(|value| ["--set", value]));
        let error = template(&arguments).await?.err().with_context(|| format!("{values:?} were taken"))?;
        ensure!(error.contains(told), "{values:?}: {error}");
    }
    let told = "broker.auth.jwksSecretRef, broker.auth.clientCaSecretRef or broker.auth.allowAnonymous";
    for nobody in ["broker.enabled=true", "broker.enabled=true,broker.spec.auth.allowAnonymous=false"] {
        let error =
            template(&["--set", nobody]).await?.err().with_context(|| format!("`{nobody}` was taken"))?;
        ensure!(error.contains(told), "{nobody}: {error}");
    }
    for somebody in [
        "broker.auth.usersSecretRef.name=users,broker.auth.usersSecretRef.key=users",
        "broker.auth.jwksSecretRef.name=tokens,broker.auth.jwksSecretRef.key=jwks.json",
        "broker.spec.auth.usersSecretRef.name=users,broker.spec.auth.usersSecretRef.key=users",
    ] {
        let taken = template(&["--set", "broker.enabled=true", "--set", somebody]).await?;
        taken.map_err(anyhow::Error::msg).with_context(|| somebody.to_owned())?;
    }
    let error = template(&["--set", "serviceAccount.create=false"]).await?.err().context("no account")?;
    ensure!(error.contains("serviceAccount.name is needed"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_leaves_the_number_of_pods_to_whoever_decides_it() -> Result<()> {
    for (replicas, is_there) in [("1", true), ("null", false)] {
        let values =
            format!("broker.enabled=true,broker.auth.allowAnonymous=true,broker.replicas={replicas}");
        let objects = template(&["--set", &values]).await?.map_err(anyhow::Error::msg)?;
        let (_, broker) = objects.split_once("broker.yaml: |").context("the Broker")?;
        let (broker, _) = broker.split_once("\n---").context("the object behind it")?;
        ensure!(broker.contains("replicas:") == is_there, "{replicas}: {broker}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_tells_of_every_value() -> Result<()> {
    let tools = chart_tools().await?;
    let root = chart();
    let arguments = ["--chart-search-root", root.to_str().context("a path in UTF-8")?, "--dry-run"];
    let more = ["--sort-values-order", "file", "--log-level", "error"];
    let arguments: Vec<&OsStr> = arguments.iter().chain(&more).map(OsStr::new).collect();
    let output = output(&tools.helm_docs, &arguments).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made = String::from_utf8(output.stdout)?;
    let readme = std::fs::read_to_string(root.join("README.md"))?;
    ensure!(
        made.contains(readme.trim_end()),
        "charts/weir/README.md has drifted: run `helm-docs --chart-search-root charts/weir --sort-values-order file`"
    );
    let undocumented: Vec<&str> = readme.lines().filter(|line| line.ends_with("|  |")).collect();
    ensure!(undocumented.is_empty(), "values without a word: {undocumented:#?}");
    Ok(())
}

#[test]
fn the_definitions_are_those_of_the_repository() -> Result<()> {
    let names = |folder: &Path| -> Result<BTreeSet<_>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
    };
    let (ours, theirs) = (repository().join("crds"), chart().join("charts/weir-crds/files"));
    ensure!(names(&ours)? == names(&theirs)?, "copy crds/ to {}", theirs.display());
    for name in names(&ours)? {
        let same = std::fs::read(ours.join(&name))? == std::fs::read(theirs.join(&name))?;
        ensure!(same, "{} has drifted: copy it from crds/", theirs.join(&name).display());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_outlive_the_release_unless_told_otherwise() -> Result<()> {
    for (arguments, kept) in [(&[][..], true), (&["--set", "weir-crds.keep=false"][..], false)] {
        let rendered = template(arguments).await?.map_err(anyhow::Error::msg)?;
        let definitions: Vec<Value> = objects(&rendered)?
            .into_iter()
            .filter(|object| object["kind"] == "CustomResourceDefinition")
            .collect();
        ensure!(definitions.len() == 3, "{} definitions", definitions.len());
        for definition in definitions {
            let policy = definition.pointer("/metadata/annotations/helm.sh~1resource-policy");
            ensure!((policy == Some(&json!("keep"))) == kept, "{kept}: {}", definition["metadata"]);
            let name = definition["spec"]["names"]["plural"].as_str().context("its plural")?;
            let source = std::fs::read_to_string(repository().join(format!("crds/{name}.yaml")))?;
            let source: Value = serde_yaml::from_str(&source)?;
            ensure!(definition["spec"] == source["spec"], "the definition of {name} is not that of crds/");
        }
    }
    Ok(())
}
