//! The one list of a member's settings. Flags, variables, file keys, help and the reference are all
//! derived from it.

use super::parse::distance;

#[derive(Debug, Clone, Copy)]
pub struct KeyDef {
    /// As a flag and in the file; the variable is `TENURE_` and this in upper snake case.
    pub name: &'static str,
    pub value_name: &'static str,
    pub default: &'static str,
    pub help: &'static str,
    /// Never shown.
    pub secret: bool,
    /// May change while the member runs: SIGHUP applies it.
    pub live: bool,
}

const MASK: &str = "********";

impl KeyDef {
    /// A value as it may be shown to people and in errors.
    pub(super) fn shown<'a>(&self, text: &'a str) -> &'a str {
        if self.secret && !text.is_empty() { MASK } else { text }
    }
}

const fn key(name: &'static str, value_name: &'static str, default: &'static str, help: &'static str) -> KeyDef {
    KeyDef { name, value_name, default, help, secret: false, live: false }
}

const fn live(name: &'static str, value_name: &'static str, default: &'static str, help: &'static str) -> KeyDef {
    KeyDef { live: true, ..key(name, value_name, default, help) }
}

pub const KEYS: &[KeyDef] = &[
    key("name", "NAME", "n1", "Name of this member"),
    key("data-dir", "DIR", "./tenure-data", "Where log, snapshots and state are kept"),
    key("listen-client", "HOST:PORT", "127.0.0.1:2379", "Address for clients; port 0 picks a free one"),
    key("advertise-client", "URL", "", "URL that others are told [default: http:// and listen-client]"),
    key("listen-peer", "HOST:PORT", "127.0.0.1:2380", "Address for other members; port 0 picks a free one"),
    key("advertise-peer", "URL", "", "URL that other members are told [default: http:// and listen-peer]"),
    key("initial-cluster", "NAME=URL,…", "", "All members of a new cluster with their peer URLs, this one among them"),
    key("bootstrap-expect", "COUNT", "0", "Form a new cluster once this many members have found each other by --join"),
    key("join", "URL,…", "", "Peer URLs of members to form a cluster with, or of a cluster to join; may be repeated"),
    live("quota-bytes", "BYTES", "2GiB", "Size of live and retained data at which growth is refused"),
    live("auto-compact", "AGE|COUNT|off", "1h", "History to keep: a duration, a number of revisions, or off"),
    key(
        "snapshot-bytes",
        "BYTES",
        "64MiB",
        "Log since the last snapshot that starts the next; an eighth more on each further member",
    ),
    key("value-cache-bytes", "BYTES", "512MiB", "Newest values kept in memory"),
    live("admission-bytes", "BYTES", "256MiB", "Bytes of requests and answers in flight before new ones are refused"),
    key("heartbeat", "DURATION", "100ms", "How often the leader is heard from"),
    key(
        "election-timeout",
        "MIN..MAX",
        "300ms..600ms",
        "Silence of the leader after which a member stands for election",
    ),
    key("max-request-bytes", "BYTES", "1536KiB", "Largest request body"),
    live("disk-reserve-bytes", "BYTES", "256MiB", "Free disk space below which growth is refused"),
    live(
        "disk-stall-abort",
        "DURATION",
        "60s",
        "How long the disk may keep a write of the log unanswered before the process ends; 0 means never",
    ),
    key(
        "watch-progress-notify-interval",
        "DURATION",
        "10m",
        "How often watches of etcd's clients that ask for it are told how far they are",
    ),
    key("auth-token-ttl", "DURATION", "5m", "How long a token counts after its last use"),
    key("shutdown-timeout", "DURATION", "15s", "How long a graceful stop may take"),
    key("log-format", "auto|text|json", "auto", "Log lines; auto is text on a terminal, else JSON"),
    live("log-level", "LEVEL", "info", "error, warn, info, debug or trace; also target=level, separated by commas"),
    key("cors-origin", "ORIGIN,…", "", "Web origins whose pages may call this member"),
    key("etcd-metrics", "true|false", "true", "Also expose the etcd metric names that its dashboards need"),
];

/// What the client reads from the environment; never a misspelt setting of the server.
pub(super) const CLIENT_VARIABLES: &[&str] =
    &["ENDPOINTS", "TIMEOUT", "CONTEXT", "OUTPUT", "COLOR", "CONFIG", "CLIENT_CONFIG"];

/// Further from a known key than this, a name is not taken for a slip.
const SLIP_MAX: usize = 3;

pub(super) fn find(name: &str) -> Option<&'static KeyDef> {
    KEYS.iter().find(|key| key.name == name)
}

/// The key that `name` was probably meant to be.
pub(super) fn suggestion(name: &str) -> Option<&'static str> {
    let name = name.replace('_', "-").to_ascii_lowercase();
    KEYS.iter()
        .map(|key| (distance(&name, key.name), key.name))
        .filter(|(steps, near)| *steps <= SLIP_MAX && steps * 2 <= near.len())
        .min()
        .map(|(_, near)| near)
}
