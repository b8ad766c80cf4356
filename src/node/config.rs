//! The settings of one member: one table of keys, four layers, one check.
//!
//! Order: flag > environment (`TENURE_…`) > file (TOML) > default; each value keeps its source. What
//! is typed lives in `Config` as text; `Config::check` parses all of it once and yields `Checked`,
//! which the rest of the process reads. Unknown keys are refused with a suggestion. It must not know
//! the command line's library, nor read the environment or a terminal by itself.

mod etcd;
mod keys;
pub mod parse;
#[cfg(test)]
mod tests;

pub use etcd::etcd_flags;
pub use keys::{KEYS, KeyDef};

use crate::model::limits;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Read when it exists and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/tenure/tenure.toml";
const ENV_PREFIX: &str = "TENURE_";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Default,
    File,
    Env,
    Flag,
}

impl Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Env => "env",
            Self::Flag => "flag",
        })
    }
}

/// One effective setting as `/v1/config` and `tenure config show` present it: secrets are masked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownSetting {
    pub name: &'static str,
    pub value: String,
    pub source: Source,
}

#[derive(Debug, Clone)]
pub struct ConfigFile {
    pub path: PathBuf,
    pub text: String,
}

/// The layers as found, before any meaning is given to them.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// By key name, as typed.
    pub flags: BTreeMap<String, String>,
    /// The process's environment; what does not begin with `TENURE_` or `ETCD_` is ignored.
    pub env: BTreeMap<String, String>,
    pub file: Option<ConfigFile>,
}

impl Layers {
    /// Reads the file: the one named, else `DEFAULT_FILE` if there is one.
    pub fn gather(
        flags: BTreeMap<String, String>,
        env: BTreeMap<String, String>,
        named: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let file = match std::fs::read_to_string(path) {
            Ok(text) => Some(ConfigFile { path: path.to_owned(), text }),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(ConfigError::one(format!("{}: {error}", path.display()))),
        };
        Ok(Self { flags, env, file })
    }
}

/// Everything that is wrong, not only the first of it.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl ConfigError {
    fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

#[derive(Debug, Clone)]
struct Setting {
    text: String,
    source: Source,
}

/// The layered settings, as text.
#[derive(Debug, Clone)]
pub struct Config {
    settings: BTreeMap<&'static str, Setting>,
    file: Option<PathBuf>,
    /// Likely mistakes that are no errors: an environment variable that almost names a key.
    pub warnings: Vec<String>,
}

impl Config {
    pub fn layer(layers: Layers) -> Result<Self, ConfigError> {
        let mut settings: BTreeMap<&'static str, Setting> = KEYS
            .iter()
            .map(|key| (key.name, Setting { text: key.default.to_owned(), source: Source::Default }))
            .collect();
        let mut problems = Vec::new();
        if let Some(file) = &layers.file {
            match file_settings(file) {
                Ok(values) => overlay(&mut settings, values, Source::File),
                Err(error) => problems.extend(error.problems),
            }
        }
        let (from_env, mut warnings) = env_settings(&layers.env);
        let etcd = etcd::translate(&layers.flags, &layers.env);
        overlay(&mut settings, etcd.env.clone(), Source::Env);
        overlay(&mut settings, from_env, Source::Env);
        overlay(&mut settings, etcd.flags.clone(), Source::Flag);
        for (name, text) in layers.flags {
            match keys::find(&name) {
                Some(key) => {
                    let text = etcd::shared_value(key.name, &text);
                    overlay(&mut settings, vec![(key.name, text)], Source::Flag);
                }
                None if etcd::is_flag(&name) => {}
                None => problems.push(unknown_key(&name, "--")),
            }
        }
        if etcd.joins() {
            let text = |name| settings.get(name).map_or("", |setting: &Setting| setting.text.as_str());
            let others = etcd::others(text("initial-cluster"), text("name"));
            overlay(&mut settings, vec![("join", others), ("initial-cluster", String::new())], Source::Flag);
        }
        warnings.extend(etcd.warnings);
        problems.extend(etcd.problems);
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        Ok(Self { settings, file: layers.file.map(|file| file.path), warnings })
    }

    /// Parses and cross-checks every setting.
    pub fn check(self) -> Result<Checked, ConfigError> {
        let mut check = Check { config: &self, problems: Vec::new() };
        let checked = check.all();
        let problems = check.problems;
        if problems.is_empty() { Ok(checked) } else { Err(ConfigError { problems }) }
    }

    fn shown(&self, advertise_client: &str) -> Vec<ShownSetting> {
        KEYS.iter()
            .filter_map(|key| {
                let setting = self.settings.get(key.name)?;
                let text = if key.name == "advertise-client" { advertise_client } else { &setting.text };
                Some(ShownSetting { name: key.name, value: key.shown(text).to_owned(), source: setting.source })
            })
            .collect()
    }
}

fn overlay(settings: &mut BTreeMap<&'static str, Setting>, values: Vec<(&'static str, String)>, source: Source) {
    for (name, text) in values {
        settings.insert(name, Setting { text, source });
    }
}

fn file_settings(file: &ConfigFile) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let shown = file.path.display();
    let table: toml::Table = toml::from_str(&file.text)
        .map_err(|error| ConfigError::one(format!("{shown}: {}", error.to_string().trim())))?;
    let mut values = Vec::new();
    let mut problems = Vec::new();
    for (name, value) in table {
        match (keys::find(&name), scalar_text(&value)) {
            (None, _) => problems.push(format!("{shown}: {}", unknown_key(&name, ""))),
            (Some(key), Some(text)) => values.push((key.name, text)),
            (Some(_), None) => problems.push(format!(
                "{shown}: {name}: a {} is not expected here, write text, a number, true or false",
                value.type_str()
            )),
        }
    }
    if problems.is_empty() { Ok(values) } else { Err(ConfigError { problems }) }
}

/// A list is the same as its members joined by commas.
fn scalar_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            texts.map(|texts| texts.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// Unknown variables are no error (Kubernetes injects `TENURE_PORT` and its like for a service of
/// that name), but one that is a slip away from a key earns a warning. An empty one counts as unset.
fn env_settings(env: &BTreeMap<String, String>) -> (Vec<(&'static str, String)>, Vec<String>) {
    let mut values = Vec::new();
    let mut warnings = Vec::new();
    for (variable, text) in env {
        let Some(rest) = variable.strip_prefix(ENV_PREFIX) else { continue };
        let name = rest.to_ascii_lowercase().replace('_', "-");
        match keys::find(&name) {
            Some(_) if text.is_empty() => {}
            Some(key) => values.push((key.name, text.clone())),
            None => {
                if let Some(key) = keys::suggestion(&name).filter(|_| !keys::CLIENT_VARIABLES.contains(&rest)) {
                    warnings
                        .push(format!("{variable} is not a setting and is ignored; did you mean {}?", env_name(key)));
                }
            }
        }
    }
    (values, warnings)
}

/// The environment variable of a key.
#[must_use]
pub fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_ascii_uppercase().replace('-', "_"))
}

fn unknown_key(name: &str, dashes: &str) -> String {
    match keys::suggestion(name) {
        Some(near) => format!("unknown key {dashes}{name}; did you mean {dashes}{near}?"),
        None => format!("unknown key {dashes}{name}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompact {
    Off,
    /// Keep this much history.
    Age(Duration),
    /// Keep this many revisions.
    Revisions(u64),
}

/// How a member without data comes to its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forming {
    /// It founds one of its own.
    Alone,
    /// With these, by name and peer URL, itself among them.
    Static(Vec<(String, String)>),
    /// With as many as `expect` that find each other.
    Expect { expect: usize, join: Vec<String> },
    /// An existing one takes it in as a learner.
    Join(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElectionTimeout {
    pub min: Duration,
    pub max: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    Text,
    Json,
}

/// Settings that have been parsed and agree with each other.
#[derive(Debug, Clone)]
pub struct Checked {
    pub name: String,
    pub data_dir: PathBuf,
    pub listen_client: SocketAddr,
    /// The URL that others are told; follows `listen_client` unless set.
    pub advertise_client: String,
    /// It was set.
    pub advertise_client_set: bool,
    pub listen_peer: SocketAddr,
    /// `listen-peer` was set, so that it must be had.
    pub listen_peer_set: bool,
    /// Empty if it follows from the address that was bound.
    pub advertise_peer: String,
    pub forming: Forming,
    pub quota_bytes: u64,
    pub auto_compact: AutoCompact,
    pub snapshot_bytes: u64,
    pub value_cache_bytes: u64,
    pub admission_bytes: u64,
    pub heartbeat: Duration,
    pub election_timeout: ElectionTimeout,
    pub max_request_bytes: usize,
    pub disk_reserve_bytes: u64,
    /// `None`: never.
    pub disk_stall_abort: Option<Duration>,
    pub watch_progress_notify_interval: Duration,
    pub auth_token_ttl: Duration,
    pub shutdown_timeout: Duration,
    pub log_format: LogFormat,
    /// Directives `[target=]level`, separated by commas.
    pub log_level: String,
    pub cors_origin: Vec<String>,
    pub etcd_metrics: bool,
    /// Every key with its effective value and source.
    pub shown: Vec<ShownSetting>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    pub warnings: Vec<String>,
}

impl Checked {
    /// With the address that port 0 became, in the URL that follows it.
    #[must_use]
    pub fn bound(mut self, address: SocketAddr) -> Self {
        if self.listen_client.port() == 0 && self.advertise_client == format!("http://{}", self.listen_client) {
            self.advertise_client = format!("http://{}", SocketAddr::new(self.listen_client.ip(), address.port()));
            let shown = self.shown.iter_mut().filter(|shown| shown.name == "advertise-client");
            shown.for_each(|shown| shown.value.clone_from(&self.advertise_client));
        }
        if self.listen_client.port() == 0 {
            self.listen_client.set_port(address.port());
        }
        self
    }
}

/// Collects problems while it parses, so that one run reports them all.
struct Check<'a> {
    config: &'a Config,
    problems: Vec<String>,
}

impl Check<'_> {
    fn all(&mut self) -> Checked {
        let listen_client = self.value("listen-client", parse::address, SocketAddr::from(([127, 0, 0, 1], 0)));
        let advertised = self.text("advertise-client").to_owned();
        let advertise_client_set = !advertised.is_empty();
        let advertise_client = if advertised.is_empty() { format!("http://{listen_client}") } else { advertised };
        self.require("advertise-client", parse::url(&advertise_client).map(drop));
        let name = self.value("name", parse::name, String::new());
        let advertise_peer = self.text("advertise-peer").to_owned();
        if !advertise_peer.is_empty() {
            self.require("advertise-peer", parse::peer_url(&advertise_peer).map(drop));
        }
        let checked = Checked {
            listen_peer: self.value("listen-peer", parse::address, SocketAddr::from(([127, 0, 0, 1], 0))),
            listen_peer_set: self.config.settings.get("listen-peer").is_some_and(|set| set.source != Source::Default),
            forming: self.forming(&name),
            advertise_peer,
            name,
            data_dir: self.value("data-dir", parse::path, PathBuf::new()),
            listen_client,
            quota_bytes: self.bytes("quota-bytes", 4096, u64::MAX),
            auto_compact: self.value("auto-compact", parse::auto_compact, AutoCompact::Off),
            snapshot_bytes: self.bytes("snapshot-bytes", 4096, u64::MAX),
            value_cache_bytes: self.bytes("value-cache-bytes", 0, u64::MAX),
            admission_bytes: self.bytes("admission-bytes", 4096, u64::MAX),
            heartbeat: self.duration("heartbeat", Duration::from_millis(5)),
            election_timeout: self.value(
                "election-timeout",
                parse::election_timeout,
                ElectionTimeout { min: Duration::MAX, max: Duration::MAX },
            ),
            max_request_bytes: usize::try_from(self.bytes("max-request-bytes", 1024, 64 << 20)).unwrap_or(usize::MAX),
            disk_reserve_bytes: self.bytes("disk-reserve-bytes", 0, u64::MAX),
            disk_stall_abort: self.disk_stall_abort(),
            watch_progress_notify_interval: self.duration("watch-progress-notify-interval", Duration::from_millis(100)),
            auth_token_ttl: self.auth_token_ttl(),
            shutdown_timeout: self.duration("shutdown-timeout", Duration::from_millis(100)),
            log_format: self.value("log-format", parse::log_format, LogFormat::Auto),
            log_level: self.value("log-level", parse::log_level, String::new()),
            cors_origin: self.value("cors-origin", parse::origins, Vec::new()),
            etcd_metrics: self.value("etcd-metrics", parse::boolean, true),
            shown: self.config.shown(&advertise_client),
            advertise_client,
            advertise_client_set,
            file: self.config.file.clone(),
            warnings: self.config.warnings.clone(),
        };
        if self.problems.is_empty() {
            self.relations(&checked);
        }
        checked
    }

    fn forming(&mut self, name: &str) -> Forming {
        let members = self.value("initial-cluster", parse::initial_cluster, Vec::new());
        let expect = self.value("bootstrap-expect", parse::count, 0);
        let join = self.value("join", parse::peer_urls, Vec::new());
        if !members.is_empty() {
            if !join.is_empty() || expect > 0 {
                let problem = "give either this or join and bootstrap-expect, not both".to_owned();
                self.require("initial-cluster", Err(problem));
            } else if !members.iter().any(|(member, _)| member == name) {
                self.require("initial-cluster", Err(format!("this member's own name, {name:?}, is not among them")));
            }
            return if members.len() == 1 { Forming::Alone } else { Forming::Static(members) };
        }
        match (expect, join.is_empty()) {
            (0, true) | (1, _) => Forming::Alone,
            (0, false) => Forming::Join(join),
            (expect, false) => Forming::Expect { expect, join },
            (_, true) => {
                self.require("bootstrap-expect", Err("needs join, to find the others".to_owned()));
                Forming::Alone
            }
        }
    }

    /// What must hold between settings; looked at only when each is fine by itself.
    fn relations(&mut self, checked: &Checked) {
        if checked.heartbeat * 2 > checked.election_timeout.min {
            self.problems.push(format!(
                "heartbeat {:?}: must be at most half of the shortest election timeout, {:?}",
                checked.heartbeat, checked.election_timeout.min
            ));
        }
        if let Some(abort) = checked.disk_stall_abort
            && abort < checked.election_timeout.max * 2
        {
            self.problems.push(format!(
                "disk-stall-abort {abort:?}: must be at least two of the longest election timeouts, {:?}",
                checked.election_timeout.max * 2
            ));
        }
        if checked.admission_bytes < u64::try_from(checked.max_request_bytes).unwrap_or(u64::MAX) {
            self.problems.push("admission-bytes: must hold at least one request of max-request-bytes".to_owned());
        }
        if checked.max_request_bytes < limits::KEY_BYTES_MAX {
            self.problems.push(format!("max-request-bytes: must hold a key of {} bytes", limits::KEY_BYTES_MAX));
        }
    }

    fn text(&self, name: &'static str) -> &str {
        self.config.settings.get(name).map_or("", |setting| setting.text.as_str())
    }

    fn value<T>(&mut self, name: &'static str, parse: fn(&str) -> Result<T, String>, otherwise: T) -> T {
        let parsed = parse(self.text(name));
        match parsed {
            Ok(value) => value,
            Err(problem) => {
                self.require(name, Err(problem));
                otherwise
            }
        }
    }

    fn bytes(&mut self, name: &'static str, min: u64, max: u64) -> u64 {
        let bytes = self.value(name, parse::bytes, min);
        if bytes < min || bytes > max {
            self.require(name, Err(format!("must be between {min} and {max} bytes")));
        }
        bytes
    }

    fn duration(&mut self, name: &'static str, min: Duration) -> Duration {
        let duration = self.value(name, parse::duration, min);
        if duration < min {
            self.require(name, Err(format!("must be at least {min:?}")));
        }
        duration
    }

    fn auth_token_ttl(&mut self) -> Duration {
        const NAME: &str = "auth-token-ttl";
        let ttl = self.duration(NAME, Duration::from_secs(limits::AUTH_TOKEN_TTL_MIN_S));
        if ttl > Duration::from_secs(limits::AUTH_TOKEN_TTL_MAX_S) {
            self.require(NAME, Err("must be at most 720h".to_owned()));
        }
        ttl
    }

    /// 0 stands for never, so it is not held to the minimum.
    fn disk_stall_abort(&mut self) -> Option<Duration> {
        const NAME: &str = "disk-stall-abort";
        if self.value(NAME, parse::duration, Duration::ZERO).is_zero() {
            return None;
        }
        Some(self.duration(NAME, Duration::from_secs(1)))
    }

    fn require(&mut self, name: &'static str, result: Result<(), String>) {
        let Err(problem) = result else { return };
        let setting = self.config.settings.get(name);
        let text = setting.map_or("", |setting| keys::find(name).map_or("", |key| key.shown(&setting.text)));
        let source = match setting.map_or(Source::Default, |setting| setting.source) {
            Source::Default => "the default".to_owned(),
            Source::Flag => format!("flag --{name}"),
            Source::Env => env_name(name),
            Source::File => self.config.file.as_ref().map_or("the file".to_owned(), |path| path.display().to_string()),
        };
        self.problems.push(format!("{name} = {text:?} (from {source}): {problem}"));
    }
}
