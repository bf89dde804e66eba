use super::*;

const RUNS: Runs<'_> = Runs { image: "weir:0.1.0", replicas: 1 };

fn broker(spec: &str) -> Broker {
    let text = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {{ name: main, namespace: messaging, uid: u1 }}\nspec:\n{spec}"
    );
    serde_yaml::from_str(&text).unwrap()
}

/// All objects as YAML.
fn shown(spec: &str) -> String {
    let broker = broker(spec);
    assert_eq!(broker.problems(), []);
    let objects = desired(&broker, RUNS).unwrap();
    let shown: Vec<String> =
        objects.iter().map(|owned| serde_yaml::to_string(&owned.object).unwrap()).collect();
    shown.join("---\n")
}

const TRIAL: &str = "  store: { embedded: { storage: 10Gi } }\n  auth: { allowAnonymous: true }\n";
const FDB: &str = "  replicas: 3
  image: registry.example.com/weir:1.0
  store: { fdb: { clusterFile: { configMapRef: { name: fdb-config } } } }
  resources: { requests: { cpu: 2, memory: 4Gi }, limits: { memory: 4Gi } }
  service: { type: LoadBalancer, annotations: { example.com/internal: 'true' }, loadBalancerClass: example.com/lb }
";
const REMOTE: &str = "  replicas: 2
  store:
    remote:
      address: store.messaging:4600
      tokenSecretRef: { name: store-token, key: token }
      caSecretRef: { name: store-ca, key: ca.crt }
  autoCreate: { queues: [{ namePattern: auto-* }], streams: [] }
";
const SECURE: &str = "  store: { remote: { address: 'store:4600' } }
  waitForQueue: false
  peerTls: { secretRef: { name: weir-pods } }
  adminTls: { secretRef: { name: weir-pods } }
  listeners:
    - { name: mqtts, type: mqtts, port: 8883, tlsSecretRef: { name: weir-tls } }
    - { name: wss, type: wss, port: 8884, tlsSecretRef: { name: web-tls } }
    - { name: inner, type: mqtts, port: 8885, tlsSecretRef: { name: weir-tls } }
  auth:
    usersSecretRef: { name: users, key: list }
    rulesConfigMapRef: { name: rules }
    jwksSecretRef: { name: issuer, key: keys.json }
    clientCaSecretRef: { name: devices, key: authorities }
    clientAuth: optional
    certificateAsUser: true
";
const PLACED: &str = "  scaling: { minReplicas: 2, maxReplicas: 9, connectionsPerPod: 50000 }
  store: { remote: { address: 'store:4600' } }
  pods:
    labels: { team: platform, app.kubernetes.io/name: not-this }
    annotations: { example.com/note: a }
    nodeSelector: { pool: edge }
    tolerations: [{ key: dedicated, operator: Exists, effect: NoSchedule }]
    affinity: { nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [{ matchExpressions: [{ key: arch, operator: In, values: [amd64] }] }] } } }
    priorityClassName: high
    imagePullSecrets: [{ name: images }]
    env: { WEIR_LOG_FILTER: 'info,weir=debug' }
";

#[test]
fn objects_of_brokers() {
    for (name, spec) in
        [("trial", TRIAL), ("fdb", FDB), ("remote", REMOTE), ("secure", SECURE), ("placed", PLACED)]
    {
        insta::assert_snapshot!(format!("broker_{name}"), shown(spec));
    }
}

#[test]
fn every_object_goes_with_its_broker_but_the_volume() {
    let objects = desired(&broker(TRIAL), RUNS).unwrap();
    for Owned { resource, object } in &objects {
        let kept = resource.kind == "PersistentVolumeClaim";
        assert_eq!(object.owner_references().is_empty(), kept, "{}", resource.kind);
        assert_eq!(object.namespace().as_deref(), Some("messaging"));
        assert!(object.labels().get(BROKER_LABEL).is_some_and(|name| name == "main"));
    }
    assert!(objects.iter().any(|owned| owned.resource.kind == "PersistentVolumeClaim"));
}

/// The labels by which pods are found never change, whatever the pods' own settings are.
#[test]
fn pods_carry_the_labels_they_are_found_by() {
    let objects = desired(&broker(PLACED), RUNS).unwrap();
    let deployment = objects.iter().find(|owned| owned.resource.kind == "Deployment").unwrap();
    let labels = &deployment.object.data["spec"]["template"]["metadata"]["labels"];
    for (name, value) in selector(&broker(PLACED)) {
        assert_eq!(labels[&name], value.as_str(), "{name}");
    }
}

#[test]
fn another_configuration_makes_other_pods() {
    let hash = |spec: &str| {
        let objects = desired(&broker(spec), RUNS).unwrap();
        let deployment = objects.into_iter().find(|owned| owned.resource.kind == "Deployment").unwrap();
        deployment.object.data["spec"]["template"]["metadata"]["annotations"]["weir.dev/config"].clone()
    };
    assert_eq!(hash(TRIAL), hash(TRIAL));
    assert_ne!(hash(TRIAL), hash(&TRIAL.replace("true", "false")));
    assert_eq!(hash(PLACED), hash(&PLACED.replace("high", "low")), "not part of the configuration");
}

#[test]
fn what_is_no_affinity_is_named() {
    let spec = PLACED.replace("nodeSelectorTerms: [", "nodeSelectorTerms: x, y: [");
    let problem = desired(&broker(&spec), RUNS).unwrap_err();
    assert!(problem.starts_with("spec.pods.affinity: "), "{problem}");
}

#[test]
fn brokers_that_share_a_foundationdb_have_prefixes_of_their_own() {
    let prefix = |namespace: &str, name: &str| {
        let mut broker = broker(FDB);
        broker.metadata.namespace = Some(namespace.into());
        broker.metadata.name = Some(name.into());
        let config: toml::Table = files(&broker).config.parse().unwrap();
        config["fdb"]["prefix"].as_str().unwrap().to_owned()
    };
    assert_eq!(prefix("messaging", "main"), "messaging.main");
    let long = "a-namespace-with-a-long-name";
    assert_ne!(prefix(long, "broker-one"), prefix(long, "broker-two"));
    assert!(prefix(long, "broker-one").len() <= 32);
}
