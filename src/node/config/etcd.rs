//! The flags and variables by which etcd is started, as far as they mean something here, so that what
//! launches `etcd` can launch `tenure serve`.
//!
//! Invariants: what cannot be ignored without doing something else than was asked, such as encryption, is
//! refused; everything else that has no meaning here earns a warning that says so.

use super::Source;
use std::collections::BTreeMap;

/// What a flag of etcd's becomes.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    /// A setting of ours, after its value has been put into our words.
    Setting(&'static str, fn(&str) -> Result<String, String>),
    /// Read together with others, in `settle`.
    Joint,
    /// It has no effect, and this is why.
    Moot(&'static str),
    /// To ignore it would be wrong.
    Refused(&'static str),
}

use Meaning::{Joint, Moot, Refused, Setting};

const NO_TLS: &str = "this release does not encrypt connections; put a proxy or a private network in front";
const OWN_CARE: &str = "Tenure does this by itself";

/// Flags that are not settings of ours by the same name; variables are `ETCD_` and the name.
const FLAGS: &[(&str, Meaning)] = &[
    ("listen-client-urls", Setting("listen-client", listen)),
    ("advertise-client-urls", Setting("advertise-client", first_url)),
    ("listen-peer-urls", Setting("listen-peer", listen)),
    ("initial-advertise-peer-urls", Setting("advertise-peer", first_url)),
    ("quota-backend-bytes", Setting("quota-bytes", quota)),
    ("heartbeat-interval", Setting("heartbeat", millis)),
    ("experimental-watch-progress-notify-interval", Setting("watch-progress-notify-interval", same)),
    ("initial-cluster-state", Joint),
    ("auto-compaction-mode", Joint),
    ("auto-compaction-retention", Joint),
    ("initial-cluster-token", Moot("a cluster's id is random here, so that two are never taken for one")),
    ("snapshot-count", Moot("--snapshot-bytes says how much log there may be")),
    ("max-txn-ops", Moot("a transaction has at most 128 operations")),
    ("max-snapshots", Moot(OWN_CARE)),
    ("max-wals", Moot(OWN_CARE)),
    ("pre-vote", Moot("members always ask before they stand for election")),
    ("strict-reconfig-check", Moot("changes of the membership are always checked")),
    ("enable-grpc-gateway", Moot("the gateway is always there")),
    ("enable-v2", Moot("etcd's first API is not offered")),
    ("enable-pprof", Moot("there are no profiles")),
    ("metrics", Moot("/metrics tells everything")),
    ("listen-metrics-urls", Moot("metrics are at /metrics of the client address")),
    ("logger", Moot("--log-format chooses")),
    ("log-outputs", Moot("the log goes to standard error")),
    ("backend-batch-limit", Moot(OWN_CARE)),
    ("backend-batch-interval", Moot(OWN_CARE)),
    ("auth-token", Moot("tokens are random and kept by the cluster")),
    ("bcrypt-cost", Moot("passwords are hashed by argon2id")),
    ("experimental-initial-corrupt-check", Moot("snapshots and log are always checked at the start")),
    ("experimental-corrupt-check-time", Moot("compare members by `tenure status` or HashKV")),
    ("experimental-compact-hash-check-enabled", Moot("compare members by `tenure status` or HashKV")),
    ("grpc-keepalive-min-time", Moot("clients may ping as often as they like")),
    ("grpc-keepalive-interval", Moot("idle connections are closed after five minutes")),
    ("grpc-keepalive-timeout", Moot("idle connections are closed after five minutes")),
    ("wal-dir", Refused("the log is below --data-dir; mount its `wal` directory where it should be")),
    ("config-file", Refused("write the settings into a TOML file, and give it as --config")),
    ("force-new-cluster", Refused("restore a snapshot into an empty data directory instead")),
    ("discovery", Refused("use --join and --bootstrap-expect instead")),
    ("discovery-srv", Refused("use --join and --bootstrap-expect instead")),
    ("cert-file", Refused(NO_TLS)),
    ("key-file", Refused(NO_TLS)),
    ("trusted-ca-file", Refused(NO_TLS)),
    ("client-cert-auth", Refused(NO_TLS)),
    ("auto-tls", Refused(NO_TLS)),
    ("peer-cert-file", Refused(NO_TLS)),
    ("peer-key-file", Refused(NO_TLS)),
    ("peer-trusted-ca-file", Refused(NO_TLS)),
    ("peer-client-cert-auth", Refused(NO_TLS)),
    ("peer-auto-tls", Refused(NO_TLS)),
];

/// Settings of ours that etcd has by the same name; their variables are read, too.
const SHARED: &[&str] = &[
    "name",
    "data-dir",
    "initial-cluster",
    "election-timeout",
    "max-request-bytes",
    "log-level",
    "watch-progress-notify-interval",
    "auth-token-ttl",
];

const ENV_PREFIX: &str = "ETCD_";

/// Names of etcd's flags that are none of ours, for the command line.
pub fn etcd_flags() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().map(|(name, _)| *name)
}

pub(super) fn is_flag(name: &str) -> bool {
    FLAGS.iter().any(|(known, _)| *known == name)
}

/// What was found of etcd's, in our words.
#[derive(Debug, Default)]
pub(super) struct Translated {
    pub(super) env: Vec<(&'static str, String)>,
    pub(super) flags: Vec<(&'static str, String)>,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<String>,
    joint: BTreeMap<&'static str, (String, Source)>,
}

pub(super) fn translate(flags: &BTreeMap<String, String>, env: &BTreeMap<String, String>) -> Translated {
    let mut found = Translated::default();
    for (variable, text) in env {
        let Some(rest) = variable.strip_prefix(ENV_PREFIX).filter(|_| !text.is_empty()) else { continue };
        let name = rest.to_ascii_lowercase().replace('_', "-");
        if let Some(shared) = SHARED.iter().find(|shared| **shared == name) {
            found.env.push((shared, shared_value(shared, text)));
        } else {
            found.take(&name, text, variable, Source::Env);
        }
    }
    for (name, text) in flags {
        found.take(name, text, &format!("--{name}"), Source::Flag);
    }
    found.retention();
    found
}

/// A value of a setting that both have, where etcd writes it in another way.
pub(super) fn shared_value(name: &str, text: &str) -> String {
    match name {
        // etcd's is one time in milliseconds, within twice of which a member stands for election.
        "election-timeout" => match text.parse::<u64>() {
            Ok(ms) => format!("{ms}ms..{}ms", ms.saturating_mul(2)),
            Err(_) => text.to_owned(),
        },
        "log-level" if matches!(text, "panic" | "dpanic" | "fatal") => "error".to_owned(),
        _ => text.to_owned(),
    }
}

impl Translated {
    fn take(&mut self, name: &str, text: &str, shown: &str, source: Source) {
        let Some((name, meaning)) = FLAGS.iter().find(|(known, _)| *known == name) else { return };
        let off = matches!(text, "false" | "");
        match meaning {
            Setting(key, words) => match words(text) {
                Ok(value) if value.is_empty() => {}
                Ok(value) if source == Source::Flag => self.flags.push((key, value)),
                Ok(value) => self.env.push((key, value)),
                Err(problem) => self.problems.push(format!("{shown} = {text:?}: {problem}")),
            },
            Joint => {
                self.joint.insert(name, (text.to_owned(), source));
            }
            Refused(_) if off => {}
            Refused(why) => self.problems.push(format!("{shown} is not supported: {why}")),
            Moot(why) => self.warnings.push(format!("{shown} has no effect: {why}")),
        }
    }

    /// Mode and retention are one setting here.
    fn retention(&mut self) {
        let Some((retention, source)) = self.joint.get("auto-compaction-retention").cloned() else { return };
        let mode = self.joint.get("auto-compaction-mode").map_or("periodic", |(mode, _)| mode.as_str());
        let value = match (mode, retention.parse::<u64>()) {
            (_, Ok(0)) => "off".to_owned(),
            ("revision", Ok(count)) => count.to_string(),
            ("periodic", Ok(hours)) => format!("{hours}h"),
            ("periodic", Err(_)) => retention,
            _ => {
                self.problems.push(format!("--auto-compaction-retention = {retention:?}: not for mode {mode:?}"));
                return;
            }
        };
        if source == Source::Flag { &mut self.flags } else { &mut self.env }.push(("auto-compact", value));
    }

    /// True if the members named by `initial-cluster` are there already, and are to be joined.
    pub(super) fn joins(&self) -> bool {
        self.joint.get("initial-cluster-state").is_some_and(|(state, _)| state == "existing")
    }
}

/// The peer URLs of the others in an `initial-cluster`.
pub(super) fn others(initial_cluster: &str, name: &str) -> String {
    let members = initial_cluster.split(',').filter_map(|member| member.split_once('='));
    members.filter(|(member, _)| *member != name).map(|(_, url)| url).collect::<Vec<_>>().join(",")
}

fn same(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn millis(text: &str) -> Result<String, String> {
    let ms: u64 = text.parse().map_err(|_| "expected a number of milliseconds".to_owned())?;
    Ok(format!("{ms}ms"))
}

/// Zero is etcd's word for its default.
fn quota(text: &str) -> Result<String, String> {
    Ok(if text == "0" { String::new() } else { text.to_owned() })
}

fn first_url(text: &str) -> Result<String, String> {
    let first = text.split(',').next().unwrap_or_default().trim();
    match first.starts_with("https://") {
        true => Err(NO_TLS.to_owned()),
        false => Ok(first.to_owned()),
    }
}

/// Where to listen: the first of the URLs, unless another one listens on all addresses.
fn listen(text: &str) -> Result<String, String> {
    let urls: Vec<&str> = text.split(',').map(str::trim).filter(|url| !url.is_empty()).collect();
    let all = urls.iter().find(|url| url.contains("//0.0.0.0:"));
    let Some(url) = all.or(urls.first()) else { return Ok(String::new()) };
    if urls.len() > 1 && all.is_none() {
        return Err("Tenure listens on one address; give one URL, or http://0.0.0.0:PORT for all".to_owned());
    }
    if url.starts_with("https://") {
        return Err(NO_TLS.to_owned());
    }
    let address = url.strip_prefix("http://").ok_or_else(|| "expected http://HOST:PORT".to_owned())?;
    Ok(address.trim_end_matches('/').replace("localhost:", "127.0.0.1:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(given: &[(&str, &str)]) -> Translated {
        let given = given.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        translate(&given, &BTreeMap::new())
    }

    #[test]
    fn the_lines_that_start_etcd_start_this() {
        let found = flags(&[
            ("listen-client-urls", "http://0.0.0.0:2379"),
            ("advertise-client-urls", "http://10.0.0.1:2379,http://a:2379"),
            ("heartbeat-interval", "100"),
            ("quota-backend-bytes", "8589934592"),
            ("auto-compaction-mode", "periodic"),
            ("auto-compaction-retention", "8"),
        ]);
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        let expected = [
            ("advertise-client", "http://10.0.0.1:2379"),
            ("heartbeat", "100ms"),
            ("listen-client", "0.0.0.0:2379"),
            ("quota-bytes", "8589934592"),
            ("auto-compact", "8h"),
        ];
        assert_eq!(found.flags, expected.map(|(key, value)| (key, value.to_owned())));
    }

    #[test]
    fn encryption_is_refused_and_not_ignored() {
        for flag in ["cert-file", "client-cert-auth", "peer-key-file"] {
            assert_eq!(flags(&[(flag, "true")]).problems.len(), 1, "{flag}");
            assert!(flags(&[(flag, "false")]).problems.is_empty(), "{flag}");
        }
        assert_eq!(flags(&[("listen-client-urls", "https://0.0.0.0:2379")]).problems.len(), 1);
    }

    #[test]
    fn what_has_no_meaning_is_said() {
        let found = flags(&[("snapshot-count", "10000"), ("max-wals", "5")]);
        assert_eq!((found.warnings.len(), found.problems.len()), (2, 0));
    }

    #[test]
    fn variables_are_read_as_flags_are() {
        let env =
            [("ETCD_NAME", "a"), ("ETCD_ELECTION_TIMEOUT", "1000"), ("ETCD_LISTEN_PEER_URLS", "http://localhost:1")];
        let env = env.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let found = translate(&BTreeMap::new(), &env);
        let expected = [("election-timeout", "1000ms..2000ms"), ("listen-peer", "127.0.0.1:1"), ("name", "a")];
        assert_eq!(found.env, expected.map(|(key, value)| (key, value.to_owned())));
    }

    #[test]
    fn an_existing_cluster_is_joined_by_the_others() {
        assert!(flags(&[("initial-cluster-state", "existing")]).joins());
        assert_eq!(others("a=http://a:1,b=http://b:1,c=http://c:1", "b"), "http://a:1,http://c:1");
    }
}
