//! The command `weir-operator` from outside.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use weir_proto::externalscaler::ScaledObjectRef;
use weir_proto::externalscaler::external_scaler_client::ExternalScalerClient;

const REGENERATE: &str = "cargo run -p weir-operator -- crds --out crds";

fn operator() -> Command {
    Command::new(env!("CARGO_BIN_EXE_weir-operator"))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| PathBuf::from(entry.unwrap().file_name()))
        .filter(|name| name.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

#[test]
fn committed_crds_are_the_generated_ones() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
    let generated = tempfile::tempdir().unwrap();
    let out = generated.path().join("new/folder");
    assert!(operator().args(["crds", "--out"]).arg(&out).status().unwrap().success());

    assert_eq!(files(&committed), files(&out), "regenerate with: {REGENERATE}");
    assert_eq!(files(&out).len(), 3);
    for file in files(&out) {
        let same = fs::read(committed.join(&file)).unwrap() == fs::read(out.join(&file)).unwrap();
        assert!(same, "crds/{} is out of date; regenerate with: {REGENERATE}", file.display());
    }
}

#[test]
fn crds_go_to_standard_output() {
    let output = operator().arg("crds").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let documents: Vec<&str> = text.split("---\n").skip(1).collect();
    assert_eq!(documents.len(), 3);
    for (document, name) in
        documents.iter().zip(["brokers.weir.dev", "messagequeues.weir.dev", "streams.weir.dev"])
    {
        assert!(document.contains(&format!("  name: {name}\n")), "{document}");
    }
}

#[tokio::test]
async fn keda_is_served_until_the_process_is_to_end() {
    let mut child = operator()
        .args(["keda", "--listen", "127.0.0.1:0", "--broker-address", "city/main=http://127.0.0.1:1"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines.find_map(|line| Some(line.unwrap().split_once("address=")?.1.to_owned())).unwrap();
    let mut keda = ExternalScalerClient::connect(format!("http://{address}")).await.unwrap();
    let metadata = [("broker", "main"), ("queue", "jobs")];
    let object = ScaledObjectRef {
        name: "workers".into(),
        namespace: "city".into(),
        scaler_metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    };
    let specs = keda.get_metric_spec(object.clone()).await.unwrap().into_inner().metric_specs;
    assert_eq!((specs[0].metric_name.as_str(), specs[0].target_size), ("weir-queue-jobs", 100));
    let error = keda.is_active(object).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let ended = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}
