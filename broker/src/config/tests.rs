use std::time::Duration;

use clap::{CommandFactory, Parser};

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

/// Loads from a file's text, variables and flags.
fn load_from(file: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.toml");
    std::fs::write(&path, file).unwrap();
    let line = Line::try_parse_from(std::iter::once("weir").chain(flags.iter().copied()))
        .map_err(|error| error.to_string())?;
    let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    load(&Sources { file: Some(&path), env: &env, flags: &line.flags })
        .map_err(|error| error.to_string().replace(&*dir.path().to_string_lossy(), "DIR"))
}

#[track_caller]
fn check_refused(file: &str, env: &[(&str, &str)], flags: &[&str], expected: &[&str]) {
    let error = load_from(file, env, flags).expect_err("must be refused");
    for part in expected {
        assert!(error.contains(part), "{error}\n  lacks: {part}");
    }
}

#[test]
fn defaults_are_valid_and_on_loopback() {
    let config = load_from("", &[], &[]).unwrap();
    assert_eq!(config, Config::default());
    assert!(config.contradictions().is_empty());
}

#[test]
fn later_sources_win_setting_by_setting() {
    let file = "http = '127.0.0.1:1'\nadmin = '127.0.0.1:2'\nmanifests = 'm'\n[limits]\nreceiveMaximum = 7\n";
    let env = [("WEIR_ADMIN", "127.0.0.1:3"), ("WEIR_MANIFESTS", "n"), ("WEIR_HTTP", "")];
    let config = load_from(file, &env, &["--manifests", "o"]).unwrap();
    assert_eq!(config.http.port(), 1, "file over default; an empty variable is absent");
    assert_eq!(config.admin.port(), 3, "environment over file");
    assert_eq!(config.manifests, Some("o".into()), "flag over environment");
    assert_eq!(config.limits.receive_maximum, 7);
    assert_eq!(config.limits.connect_timeout, Limits::default().connect_timeout);
}

#[test]
fn lists_in_every_source() {
    let listeners = |config: Config| config.listeners.iter().map(ToString::to_string).collect::<Vec<_>>();
    let two = ["mqtt://127.0.0.1:0", "mqtt://[::1]:1883"];
    let file = "listen = ['mqtt://127.0.0.1:0', 'mqtt://[::1]']";
    assert_eq!(listeners(load_from(file, &[], &[]).unwrap()), two);
    let env = [("WEIR_LISTEN", "mqtt://127.0.0.1:0, mqtt://[::1]")];
    assert_eq!(listeners(load_from("", &env, &[]).unwrap()), two);
    let flags = ["--listen", "mqtt://127.0.0.1:0", "--listen", "mqtt://[::1]"];
    assert_eq!(listeners(load_from("", &[], &flags).unwrap()), two);
}

#[test]
fn switches_with_and_without_a_value() {
    let given = |flags: &[&str]| load_from("waitForQueue = true", &[], flags).unwrap();
    assert!(given(&["--allow-anonymous"]).allow_anonymous);
    assert!(!given(&["--allow-anonymous=false"]).allow_anonymous);
    assert!(!given(&["--wait-for-queue=false"]).wait_for_queue);
    assert!(given(&[]).wait_for_queue);
}

#[test]
fn every_setting_has_its_three_names_by_one_rule() {
    for setting in settings::all() {
        let name = setting.key.strip_prefix("limits.").unwrap_or(setting.key);
        let flag: String = name
            .chars()
            .flat_map(|c| match c {
                '.' => vec!['-'],
                c if c.is_ascii_uppercase() => vec!['-', c.to_ascii_lowercase()],
                c => vec![c],
            })
            .collect();
        assert_eq!(setting.flag, flag);
        assert_eq!(setting.env, format!("WEIR_{}", flag.to_uppercase().replace('-', "_")));
    }
    Line::command().debug_assert();
}

#[test]
fn every_default_is_accepted_where_it_can_be_written() {
    let defaults = Config::default();
    for setting in settings::all() {
        let text = (setting.show)(&defaults);
        if !text.is_empty() {
            let mut config = Config::default();
            (setting.set)(&mut config, std::slice::from_ref(&text)).unwrap();
            assert_eq!(config, defaults, "{}", setting.key);
        }
    }
}

#[test]
fn every_range_ends_where_it_says() {
    let check = |key: &str, good: &[&str], bad: &[&str]| {
        for (text, allowed) in good.iter().map(|t| (t, true)).chain(bad.iter().map(|t| (t, false))) {
            let file = format!("[limits]\n{key} = '{text}'\noutboxBytesPerClient = '1GiB'");
            assert_eq!(load_from(&file, &[], &[]).is_ok(), allowed, "{key} = {text}");
        }
    };
    check("maxPacketSize", &["1KiB", "16MiB"], &["1023B", "16777217"]);
    check("maxConnections", &["1", "1000000"], &["0", "1000001"]);
    check("keepAliveMax", &["0s", "65535s"], &["65536s", "60"]);
    check("connectionRate", &["1", "1000000"], &["0", "1000001"]);
    check("connectTimeout", &["100ms", "5m"], &["99ms", "301s", "10"]);
    check("receiveMaximum", &["1", "65535"], &["0", "65536", "-1"]);
    check("topicAliasMaximum", &["0", "65535"], &["65536"]);
    check("sessionExpiryMax", &["0s", "876000h"], &["876001h"]);
    check("maxSessions", &["1", "10000000"], &["0", "10000001"]);
    check("maxSubscriptionsPerClient", &["1", "1000000"], &["0", "1000001"]);
    check("inboxMessagesPerClient", &["1", "100000000"], &["0", "100000001"]);
    check("inboxBytesPerClient", &["64KiB", "1024GiB"], &["65535B", "1025GiB"]);
    check("inboxOverflow", &["dropNewest", "dropOldest", "rejectPublish"], &["drop", ""]);
    check("retainedMessages", &["1", "100000000"], &["0", "100000001"]);
    check("retainedBytes", &["64KiB", "1024GiB"], &["65535B", "1025GiB"]);
    check("publishBytesUnderWay", &["64KiB", "64GiB"], &["65535B", "65GiB"]);
    check("publishBytesUnderWayPerClient", &["64KiB", "64GiB"], &["65535B", "65GiB"]);
    check("streamReadBytes", &["1MiB", "64GiB"], &["1023KiB", "65GiB"]);
    check("streamTailBytes", &["0", "64GiB"], &["65GiB"]);
    check("slowClientTimeout", &["100ms", "1h"], &["99ms", "61m"]);
    check("shutdownGrace", &["100ms", "5m"], &["99ms", "301s"]);
}

#[test]
fn an_interval_is_off_or_within_its_range() {
    let interval =
        |text: &str| load_from("", &[], &["--sys-interval", text]).map(|config| config.sys_interval);
    assert_eq!(interval("0s"), Ok(Duration::ZERO));
    assert_eq!(interval("100ms"), Ok(Duration::from_millis(100)));
    assert_eq!(interval("1h"), Ok(Duration::from_hours(1)));
    for text in ["99ms", "61m", "often"] {
        let error = interval(text).expect_err("must be refused");
        assert!(error.contains("allowed: 0s, or a duration (ms, s, m, h) from 100ms to 1h"), "{error}");
    }
}

#[test]
fn unknown_keys_name_file_line_and_what_is_allowed() {
    check_refused(
        "http = '127.0.0.1:1'\n\nlisten_on = 'mqtt://127.0.0.1'\n[limits]\nmaxPackets = 3\n[lmits]\na = 1\n",
        &[],
        &[],
        &[
            "DIR/weir.toml:3: listen_on: unknown key; allowed here: store, listen, http, admin",
            "DIR/weir.toml:5: limits.maxPackets: unknown key; allowed here: maxPacketSize, maxConnections",
            "DIR/weir.toml:6: lmits: unknown key",
        ],
    );
}

#[test]
fn wrong_values_name_their_source_and_what_is_allowed() {
    check_refused("a = \n", &[], &[], &["DIR/weir.toml:1: "]);
    check_refused(
        "\n[limits]\nmaxPacketSize = '17MiB'",
        &[("WEIR_HTTP", "example.org:80")],
        &["--receive-maximum", "0"],
        &[
            "DIR/weir.toml:3: limits.maxPacketSize: `17MiB` is not allowed; allowed: a size (B, KiB, MiB, GiB) from \
             1KiB to 16MiB",
            "environment variable WEIR_HTTP: `example.org:80` is not allowed; allowed: ADDRESS:PORT",
            "--receive-maximum: `0` is not allowed; allowed: a number from 1 to 65535",
        ],
    );
    check_refused("http = 1.5", &[], &[], &["DIR/weir.toml:1: http: a value of this type is not allowed"]);
    check_refused("listen = []", &[], &[], &["listen: an empty list is not allowed"]);
    check_refused("http = ['127.0.0.1:1']", &[], &[], &["http: a value of this type is not allowed"]);
    check_refused(
        "[log]\nformat = 'xml'",
        &[],
        &[],
        &["log.format: `xml` is not allowed; allowed: text, json"],
    );
    check_refused("[log]\nfilter = 'weir=loud'", &[], &[], &["log.filter: `weir=loud` is not allowed"]);
    check_refused("", &[], &["--otlp-endpoint", "https://x:1"], &["allowed: http://HOST:PORT"]);
}

#[test]
fn a_store_is_named_by_its_engine_and_its_place() {
    let allowed = "is not allowed; allowed: embedded:DIR, fdb:CLUSTER_FILE, remote:HOST:PORT, memory:";
    for store in ["disk", "fdb:", "fdb", "embedded:", "remote:", "remote:host", "remote::1", "remote:a b:1"] {
        check_refused("", &[], &["--store", store], &[&format!("`{store}` {allowed}")]);
    }
    let name = "`a/b` is not allowed; allowed: 1 to 32 letters, digits, `-`, `_` and `.`";
    check_refused("", &[], &["--fdb-prefix", "a/b"], &[name]);
    let half = "remote.certificateFile and remote.keyFile go together";
    check_refused("", &[], &["--remote-key-file", "key.pem"], &[half]);
    check_refused("[fdb]\ntimeout = '10ms'", &[], &[], &["fdb.timeout: `10ms` is not allowed"]);
}

#[test]
fn only_loopback_is_safe_without_authentication() {
    for addr in ["0.0.0.0:1883", "[::]:1883", "192.0.2.1:0"] {
        let url = format!("mqtt://{addr}");
        let message = format!("{url} is reachable from other machines and no authentication is configured");
        check_refused("", &[], &["--listen", "mqtt://127.0.0.1:0", "--listen", &url], &[&message]);
        assert!(load_from("allowAnonymous = true", &[], &["--listen", &url]).is_ok());
    }
    check_refused(
        "allowAnonymous = true\nadmin = '0.0.0.0:1'",
        &[],
        &[],
        &["admin address 0.0.0.0:1 is reachable"],
    );
    assert!(load_from("http = '0.0.0.0:1'", &[], &[]).is_ok(), "metrics may be read from anywhere");
}

#[test]
fn who_can_prove_who_they_are_may_come_from_elsewhere() {
    let listen = "listen = 'mqtt://0.0.0.0:1883'\n[auth]\n";
    for auth in
        ["usersFile = '/u'", "certificateAsUser = true", "jwt.keyFile = '/k'", "jwt.secretFile = '/s'"]
    {
        assert!(load_from(&format!("{listen}{auth}"), &[], &[]).is_ok(), "{auth}");
    }
    check_refused(&format!("{listen}rulesFile = '/r'"), &[], &[], &["no authentication is configured"]);
}

#[test]
fn the_admin_api_is_protected_off_loopback() {
    let admin = "admin = '0.0.0.0:1'\n";
    for access in [
        "adminTokenFile = '/t'",
        "adminClientCaFile = '/c'\nadminCertificateFile = '/c'\nadminKeyFile = '/k'",
    ] {
        assert!(load_from(&format!("{admin}{access}"), &[], &[]).is_ok(), "{access}");
    }
    let tls = "adminCertificateFile = '/c'\nadminKeyFile = '/k'";
    check_refused(&format!("{admin}{tls}"), &[], &[], &["admin address 0.0.0.0:1 is reachable"]);
    check_refused("adminKeyFile = '/k'", &[], &[], &["one of them is missing"]);
    check_refused("adminClientCaFile = '/c'", &[], &[], &["needs adminCertificateFile"]);
}

#[test]
fn rules_and_tokens_that_contradict_each_other() {
    let both = "[auth]\nrulesFile = '/r'\n[[auth.rules]]\nallow = ['publish']\ntopics = ['#']\n";
    check_refused(both, &[], &[], &["both hold rules"]);
    check_refused("[auth.jwt]\nissuer = 'me'", &[], &[], &["no key to verify tokens"]);
    check_refused(
        "[auth.jwt]\nalgorithms = ['none']",
        &[],
        &[],
        &["weir.toml:2: auth.jwt.algorithms: `none` is not allowed"],
    );
    let wrong = "[auth]\n[[auth.rules]]\nallow = ['read']\ntopics = ['#']\n";
    check_refused(wrong, &[], &[], &["weir.toml:3: auth.rules: allow: `read` is not allowed"]);
}

#[test]
fn limits_that_contradict_each_other() {
    let file = "[limits]\nmaxPacketSize = '8MiB'\noutboxBytesPerClient = '4MiB'";
    check_refused(file, &[], &[], &["outboxBytesPerClient (4MiB) is below limits.maxPacketSize (8MiB)"]);
}

#[test]
fn otlp_endpoint_from_the_variable_other_tools_use() {
    let otel = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other:4317");
    let endpoint = |env: &[(&str, &str)]| load_from("", env, &[]).unwrap().otlp_endpoint;
    assert_eq!(endpoint(&[otel]).as_deref(), Some("http://other:4317"));
    assert_eq!(
        endpoint(&[otel, ("WEIR_OTLP_ENDPOINT", "http://ours:4317")]).as_deref(),
        Some("http://ours:4317")
    );
}

#[test]
fn a_missing_file_is_named() {
    let flags = Flags::default();
    let path = Path::new("/does/not/exist.toml");
    let error = load(&Sources { file: Some(path), env: &|_| None, flags: &flags }).expect_err("no file");
    assert_eq!(error.to_string(), "read configuration file `/does/not/exist.toml`");
}

#[test]
fn file_values_of_every_kind() {
    let file = "store = 'memory:'\nallowAnonymous = true\notlpEndpoint = 'http://c:1'\n\
                [limits]\nreceiveMaximum = 1_000\nmaxPacketSize = 2048\nconnectTimeout = '5s'\n\
                [log]\nformat = 'json'\nfilter = 'warn'";
    let config = load_from(file, &[], &[]).unwrap();
    assert_eq!(config.store, StoreConfig::Memory);
    assert_eq!(config.limits.receive_maximum, 1000);
    assert_eq!(config.limits.max_packet_size, ByteCount(2048));
    assert_eq!(config.limits.connect_timeout, Duration::from_secs(5));
    assert_eq!(config.log, LogConfig { format: LogFormat::Json, filter: "warn".to_owned() });
}

#[test]
fn tables_of_listeners() {
    let file = "[tls]\ncert = 'c'\nkey = 'k'\nclientCa = 'ca'\n[[listeners]]\nname = 'devices'\nurl = 'mqtts://[::]'\n\
                [[listeners]]\nproxyProtocol = true\nproxyFrom = ['10.0.0.0/8', '::1']\n\
                origins = 'https://a.example'\nurl = 'wss://127.0.0.1:7/x'\nmaxConnections = 5\n\
                tls = { clientAuth = 'none' }\n[[listeners]]\nurl = 'unix:/s'\nmode = '0600'\n";
    let loaded = load_from(&format!("allowAnonymous = true\n{file}"), &[], &[]).unwrap();
    let [devices, web, local] = &loaded.listeners[..] else { panic!("{:?}", loaded.listeners) };
    assert_eq!((&*devices.name, devices.to_string()), ("devices", "mqtts://[::]:8883".to_owned()));
    assert_eq!(devices.tls, loaded.tls, "as [tls] says");
    assert!(devices.requires_certificate());
    assert_eq!((&*web.name, web.to_string()), ("wss", "wss://127.0.0.1:7/x".to_owned()));
    assert_eq!(web.tls.cert, loaded.tls.cert);
    assert_eq!((web.tls.client_auth(), &web.tls.client_ca), (ClientAuth::None, &None), "its own decision");
    assert_eq!((web.proxy_protocol, web.max_connections), (true, Some(5)));
    assert_eq!(web.proxy_from, ["10.0.0.0/8", "::1"].map(|network| network.parse().unwrap()));
    assert_eq!(web.origins, ["https://a.example"]);
    assert_eq!((local.socket_mode, local.is_local()), (0o600, true));

    let url = "wss://127.0.0.1:7/x is reachable from other machines";
    check_refused(file, &[], &[], &[url]);
    let both = load_from(&format!("listen = 'mqtt://127.0.0.1:0'\nallowAnonymous = true\n{file}"), &[], &[]);
    assert_eq!(both.unwrap().listeners.len(), 4, "beside `listen`");
}

#[test]
fn wrong_tables_of_listeners() {
    check_refused(
        "[[listeners]]\nurl = 'mqtt://h'\n\n[[listeners]]\nname = 'x'\n[[listeners]]\nport = 1\nname = 'a b'\n\
         url = 'mqtt://127.0.0.1'\nmode = 'rw'\ntls = { certs = 'x' }\n",
        &[],
        &[],
        &[
            "DIR/weir.toml:2: listeners[0].url: `mqtt://h` is not allowed; allowed: mqtt://ADDRESS[:PORT], mqtts://",
            "DIR/weir.toml:5: listeners[1].name: listeners[1] has no url",
            "DIR/weir.toml:7: listeners[2].port: unknown key; allowed here: name, url, tls",
            "DIR/weir.toml:8: listeners[2].name: `a b` is not allowed; allowed: letters",
            "DIR/weir.toml:10: listeners[2].mode: `rw` is not allowed; allowed: an octal mode",
            "DIR/weir.toml:11: tls.certs: unknown key; allowed here: cert, key, clientCa",
        ],
    );
    check_refused("listeners = 1", &[], &[], &["DIR/weir.toml:1: listeners: not a list of tables"]);
}

#[test]
fn listeners_that_contradict_themselves_or_each_other() {
    let listen =
        |more: &str, parts: &[&str]| check_refused(more, &[], &["--listen", "mqtts://127.0.0.1"], parts);
    listen("", &["listener mqtts: mqtts://127.0.0.1:8883 needs a certificate: set tls.cert and tls.key"]);
    listen(
        "tls.cert = ['a', 'b']\ntls.key = 'k'",
        &["2 tls.cert and 1 tls.key: each certificate needs its key"],
    );
    let pair = "tls.cert = 'c'\ntls.key = 'k'\n";
    listen(&format!("{pair}tls.clientAuth = 'optional'"), &["nobody's are trusted: set tls.clientCa"]);
    listen(&format!("{pair}tls.clientCa = 'a'\ntls.clientAuth = 'none'"), &["mean nothing"]);
    listen(&format!("{pair}tls.clientAuth = 'maybe'"), &["allowed: none, optional, required"]);
    let twice = "[[listeners]]\nname = 'a'\nurl = 'mqtt://127.0.0.1:1'\n[[listeners]]\nname = 'a'\nurl = 'ws://127.0.0.1:1'";
    check_refused(
        twice,
        &[],
        &[],
        &["two listeners have the name a", "two listeners are at the address of ws://"],
    );
    let plain = "[[listeners]]\nurl = 'ws://127.0.0.1'\ntls = { clientAuth = 'required' }";
    check_refused(plain, &[], &[], &["ws://127.0.0.1:8083 does not speak TLS: use mqtts:// or wss://"]);
}

#[test]
fn pods_need_a_store_that_several_can_have() {
    let parts = ["belongs to one process alone", "remote:HOST:PORT", "fdb:CLUSTER_FILE"];
    for store in ["embedded:data", "memory:"] {
        check_refused("peer = '127.0.0.1:1'", &[], &["--store", store], &[&parts[..], &[store]].concat());
    }
    load_from("peer = '127.0.0.1:1'", &[], &["--store", "remote:127.0.0.1:2"]).unwrap();
}
