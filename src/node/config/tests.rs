//! Layers, checks and messages of the settings.

use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn layers(flags: &[(&str, &str)], env: &[(&str, &str)], file: Option<&str>) -> Layers {
    let file = file.map(|text| ConfigFile { path: PathBuf::from("t.toml"), text: text.to_owned() });
    Layers { flags: map(flags), env: map(env), file }
}

fn checked(flags: &[(&str, &str)], env: &[(&str, &str)], file: Option<&str>) -> Result<Checked, ConfigError> {
    Config::layer(layers(flags, env, file))?.check()
}

fn problems(flags: &[(&str, &str)], env: &[(&str, &str)], file: Option<&str>) -> Vec<String> {
    checked(flags, env, file).map(|checked| format!("{checked:?}")).unwrap_err().problems
}

fn source_of(checked: &Checked, key: &str) -> (String, Source) {
    let shown = checked.shown.iter().find(|shown| shown.name == key).unwrap();
    (shown.value.clone(), shown.source)
}

#[test]
fn defaults_are_the_documented_limits() {
    let checked = checked(&[], &[], None).unwrap();
    assert_eq!(checked.name, "n1");
    assert_eq!(checked.listen_client.to_string(), "127.0.0.1:2379");
    assert_eq!(checked.advertise_client, "http://127.0.0.1:2379");
    assert_eq!(checked.quota_bytes, limits::QUOTA_BYTES_DEFAULT);
    assert_eq!(checked.value_cache_bytes, limits::VALUE_CACHE_BYTES_DEFAULT);
    assert_eq!(checked.admission_bytes, limits::ADMISSION_BYTES_DEFAULT);
    assert_eq!(checked.disk_reserve_bytes, limits::DISK_RESERVE_BYTES_DEFAULT);
    assert_eq!(checked.max_request_bytes, limits::REQUEST_BYTES_MAX);
    assert_eq!(checked.shutdown_timeout, Duration::from_secs(limits::SHUTDOWN_S));
    assert_eq!(checked.auto_compact, AutoCompact::Age(Duration::from_secs(3600)));
    assert_eq!(checked.election_timeout.min, Duration::from_millis(300));
    assert_eq!(checked.log_format, LogFormat::Auto);
    assert!(checked.etcd_metrics && checked.cors_origin.is_empty());
    assert_eq!(checked.shown.len(), KEYS.len());
}

#[test]
fn flag_beats_env_beats_file_beats_default() {
    let file = "quota-bytes = \"1GiB\"\nname = \"from-file\"\nheartbeat = \"50ms\"\n";
    let env = [("TENURE_QUOTA_BYTES", "3GiB"), ("TENURE_NAME", "from-env"), ("HOME", "/")];
    let checked = checked(&[("quota-bytes", "4GiB")], &env, Some(file)).unwrap();
    assert_eq!(checked.quota_bytes, 4 << 30);
    assert_eq!(source_of(&checked, "quota-bytes"), ("4GiB".to_owned(), Source::Flag));
    assert_eq!(source_of(&checked, "name"), ("from-env".to_owned(), Source::Env));
    assert_eq!(source_of(&checked, "heartbeat"), ("50ms".to_owned(), Source::File));
    assert_eq!(source_of(&checked, "log-level"), ("info".to_owned(), Source::Default));
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let checked = checked(&[], &[("TENURE_NAME", "")], Some("name = \"f\"")).unwrap();
    assert_eq!(source_of(&checked, "name"), ("f".to_owned(), Source::File));
}

#[test]
fn file_values_may_be_numbers_flags_and_lists() {
    let file = "quota-bytes = 1048576\netcd-metrics = false\ncors-origin = [\"http://a\", \"https://b:8443\"]\nauto-compact = 500";
    let checked = checked(&[], &[], Some(file)).unwrap();
    assert_eq!(checked.quota_bytes, 1 << 20);
    assert!(!checked.etcd_metrics);
    assert_eq!(checked.cors_origin, ["http://a", "https://b:8443"]);
    assert_eq!(checked.auto_compact, AutoCompact::Revisions(500));
}

#[test]
fn unknown_keys_are_refused_with_a_suggestion() {
    assert_eq!(problems(&[], &[], Some("data_dir = \"x\"")), ["t.toml: unknown key data_dir; did you mean data-dir?"]);
    assert_eq!(
        problems(&[], &[], Some("qouta-bytes = 1")),
        ["t.toml: unknown key qouta-bytes; did you mean quota-bytes?"]
    );
    assert_eq!(problems(&[], &[], Some("colour = 1")), ["t.toml: unknown key colour"]);
    assert_eq!(problems(&[("nmae", "x")], &[], None), ["unknown key --nmae; did you mean --name?"]);
    assert!(problems(&[], &[], Some("[server]\nname = \"x\""))[0].contains("unknown key server"));
}

#[test]
fn an_almost_known_variable_warns_and_an_unrelated_one_does_not() {
    let env = [("TENURE_DATADIR", "x"), ("TENURE_PORT_2379_TCP_ADDR", "10.0.0.1"), ("TENURE_TIMEOUT", "3s")];
    let config = Config::layer(layers(&[], &env, None)).unwrap();
    assert_eq!(config.warnings, ["TENURE_DATADIR is not a setting and is ignored; did you mean TENURE_DATA_DIR?"]);
}

#[test]
fn every_problem_is_reported_with_its_source() {
    let found = problems(&[("heartbeat", "fast")], &[("TENURE_QUOTA_BYTES", "lots")], Some("log-format = \"xml\""));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("quota-bytes = \"lots\" (from TENURE_QUOTA_BYTES):"), "{}", found[0]);
    assert!(found[1].starts_with("heartbeat = \"fast\" (from flag --heartbeat):"), "{}", found[1]);
    assert!(found[2].starts_with("log-format = \"xml\" (from t.toml):"), "{}", found[2]);
}

#[test]
fn wrong_values_are_refused() {
    let wrong = [
        ("name", ""),
        ("name", "a\nb"),
        ("data-dir", ""),
        ("listen-client", "2379"),
        ("listen-client", "127.0.0.1"),
        ("advertise-client", "10.0.0.1:2379"),
        ("advertise-client", "http://user:pw@host"),
        ("quota-bytes", "12"),
        ("quota-bytes", "99999999999TiB"),
        ("auto-compact", "0"),
        ("auto-compact", "0s"),
        ("auto-compact", "sometimes"),
        ("election-timeout", "300ms"),
        ("election-timeout", "600ms..300ms"),
        ("heartbeat", "0"),
        ("heartbeat", "200ms"),
        ("disk-stall-abort", "1s"),
        ("disk-stall-abort", "500ms"),
        ("disk-stall-abort", "soon"),
        ("max-request-bytes", "1GiB"),
        ("admission-bytes", "64KiB"),
        ("log-level", "loud"),
        ("log-level", "=info"),
        ("cors-origin", "example.org"),
        ("cors-origin", "https://a/path"),
        ("etcd-metrics", "yes"),
    ];
    for (key, value) in wrong {
        let found = checked(&[(key, value)], &[], None);
        assert!(found.as_ref().is_err_and(|error| error.problems.len() == 1), "{key}={value}: {found:?}");
        let message = found.unwrap_err().to_string();
        assert!(message.contains(key), "{key}={value}: {message}");
    }
}

#[test]
fn right_values_are_taken() {
    let right = [
        ("listen-client", "[::1]:0"),
        ("listen-client", "localhost:2379"),
        ("auto-compact", "off"),
        ("auto-compact", "90m"),
        ("log-level", "warn,tenure::raft=debug"),
        ("election-timeout", "1s..2s"),
        ("shutdown-timeout", "5"),
        ("disk-stall-abort", "0"),
        ("disk-stall-abort", "2s"),
    ];
    for (key, value) in right {
        assert!(checked(&[(key, value)], &[], None).is_ok(), "{key}={value}");
    }
}

#[test]
fn port_0_becomes_the_bound_one_unless_another_url_is_advertised() {
    let bound = "127.0.0.1:4711".parse().unwrap();
    let free = checked(&[("listen-client", "127.0.0.1:0")], &[], None).unwrap().bound(bound);
    assert_eq!((free.advertise_client.as_str(), free.listen_client), ("http://127.0.0.1:4711", bound));
    assert_eq!(source_of(&free, "advertise-client"), ("http://127.0.0.1:4711".to_owned(), Source::Default));
    let named = [("listen-client", "127.0.0.1:0"), ("advertise-client", "http://db.example:80")];
    assert_eq!(checked(&named, &[], None).unwrap().bound(bound).advertise_client, "http://db.example:80");
    let fixed = checked(&[("listen-client", "127.0.0.1:2379")], &[], None).unwrap().bound(bound);
    assert_eq!(fixed.advertise_client, "http://127.0.0.1:2379");
}

#[test]
fn sizes_and_durations() {
    assert_eq!(parse::bytes("1536KiB"), Ok(limits::REQUEST_BYTES_MAX as u64));
    assert_eq!(parse::bytes("10 MB"), Ok(10_000_000));
    assert_eq!(parse::bytes("2g"), Ok(2 << 30));
    assert!(parse::bytes("").is_err() && parse::bytes("-1").is_err() && parse::bytes("1.5GiB").is_err());
    assert_eq!(parse::duration("90"), Ok(Duration::from_secs(90)));
    assert_eq!(parse::duration("500ms"), Ok(Duration::from_millis(500)));
    assert!(parse::duration("-5s").is_err() && parse::duration("soon").is_err());
}

#[test]
fn advertise_follows_listen_unless_set() {
    let followed = checked(&[("listen-client", "10.1.1.1:99")], &[], None).unwrap();
    assert_eq!(source_of(&followed, "advertise-client"), ("http://10.1.1.1:99".to_owned(), Source::Default));
    let set = checked(&[("advertise-client", "http://n1.example:2379")], &[], None).unwrap();
    assert_eq!(source_of(&set, "advertise-client"), ("http://n1.example:2379".to_owned(), Source::Flag));
}

#[test]
fn a_named_file_must_exist_and_be_toml() {
    let missing = Layers::gather(BTreeMap::new(), BTreeMap::new(), Some(Path::new("/nonexistent/t.toml")));
    assert!(missing.unwrap_err().to_string().contains("/nonexistent/t.toml"));
    assert!(problems(&[], &[], Some("name = "))[0].starts_with("t.toml: "));
}

#[test]
fn edit_distance() {
    assert_eq!(parse::distance("", "abc"), 3);
    assert_eq!(parse::distance("qouta", "quota"), 2);
    assert_eq!(parse::distance("same", "same"), 0);
}

#[test]
fn secrets_are_masked() {
    let secret = KeyDef { name: "x", value_name: "X", default: "", help: "", secret: true, live: false };
    assert_eq!(secret.shown("hunter2"), "********");
    assert_eq!(secret.shown(""), "");
    assert_eq!(KeyDef { secret: false, ..secret }.shown("open"), "open");
}
