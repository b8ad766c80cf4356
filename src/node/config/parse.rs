//! Text to values: durations, sizes, addresses, origins. Each parser says what it expected.

use super::{AutoCompact, ElectionTimeout, LogFormat};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

const NAME_BYTES_MAX: usize = 256;
const PEER_PORT: u16 = 2380;

/// `500ms`, `30s`, `5m`, `24h`, or a bare number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| "expected a duration such as 500ms, 30s, 5m or 24h".to_owned())
}

/// A number of bytes with an optional unit: `1536KiB`, `64MiB`, `2GiB`, `10MB`, `4096`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(size_expected()),
    };
    let number: u64 = number.parse().map_err(|_| size_expected())?;
    number.checked_mul(factor).ok_or_else(|| "the size does not fit 64 bits".to_owned())
}

fn size_expected() -> String {
    "expected a size such as 4096, 64MiB or 2GiB".to_owned()
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let mut found = text.to_socket_addrs().map_err(|_| "expected HOST:PORT such as 127.0.0.1:2379".to_owned())?;
    found.next().ok_or_else(|| "the host has no address".to_owned())
}

/// `http://HOST[:PORT]`, without path or credentials.
pub(super) fn url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").ok_or("expected a URL such as http://10.0.0.1:2379")?;
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '?' | '#' | '@');
    if rest.is_empty() || rest.contains(odd) {
        return Err("expected a URL such as http://10.0.0.1:2379, without path or user".to_owned());
    }
    Ok(text.to_owned())
}

/// A peer's URL: as `url`, with a port.
pub(super) fn peer_url(text: &str) -> Result<String, String> {
    let parsed = url(text)?;
    let port = parsed.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(port)) if port > 0 => Ok(parsed),
        _ => Err("expected a URL with a port such as http://10.0.0.1:2380".to_owned()),
    }
}

/// Peer URLs, or hosts whose peer port is the usual one.
pub(super) fn peer_urls(text: &str) -> Result<Vec<String>, String> {
    let hosts = text.split(',').map(str::trim).filter(|host| !host.is_empty());
    let whole = |host: &str| {
        let host = if host.contains("://") { host.to_owned() } else { format!("http://{host}") };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        peer_url(&if has_port { host } else { format!("{host}:{PEER_PORT}") })
    };
    hosts.map(whole).collect()
}

/// `n1=http://10.0.0.1:2380,n2=…`, each name and each URL once.
pub(super) fn initial_cluster(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut members: Vec<(String, String)> = Vec::new();
    for member in text.split(',').map(str::trim).filter(|member| !member.is_empty()) {
        let expected = || format!("{member:?} is not NAME=URL such as n1=http://10.0.0.1:2380");
        let (member_name, member_url) = member.split_once('=').ok_or_else(expected)?;
        let found = (name(member_name)?, peer_url(member_url)?);
        if members.iter().any(|(name, url)| *name == found.0 || *url == found.1) {
            return Err(format!("{member:?} has a name or a URL that another one has too"));
        }
        members.push(found);
    }
    Ok(members)
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a number such as 3".to_owned())
}

pub(super) fn name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.contains(char::is_control) {
        return Err(format!("expected 1 to {NAME_BYTES_MAX} bytes without control characters"));
    }
    Ok(text.to_owned())
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("expected a path".to_owned()) } else { Ok(PathBuf::from(text)) }
}

pub(super) fn auto_compact(text: &str) -> Result<AutoCompact, String> {
    if text == "off" {
        return Ok(AutoCompact::Off);
    }
    let parsed = match text.parse::<u64>() {
        Ok(count) => AutoCompact::Revisions(count),
        Err(_) => AutoCompact::Age(
            duration(text).map_err(|_| "expected a duration such as 1h, a number of revisions, or off".to_owned())?,
        ),
    };
    match parsed {
        AutoCompact::Revisions(0) | AutoCompact::Age(Duration::ZERO) => {
            Err("0 would keep no history; to switch compaction off write off".to_owned())
        }
        kept => Ok(kept),
    }
}

pub(super) fn election_timeout(text: &str) -> Result<ElectionTimeout, String> {
    let expected = || "expected a range such as 300ms..600ms".to_owned();
    let (min, max) = text.split_once("..").ok_or_else(expected)?;
    let min = duration(min).map_err(|_| expected())?;
    let max = duration(max).map_err(|_| expected())?;
    if min >= max {
        return Err("the lower bound must be below the upper one, or elections would collide for ever".to_owned());
    }
    Ok(ElectionTimeout { min, max })
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected auto, text or json".to_owned()),
    }
}

pub(super) fn log_level(text: &str) -> Result<String, String> {
    let known = |level: &str| matches!(level, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let fine = text.split(',').all(|directive| match directive.split_once('=') {
        None => known(directive),
        Some((target, level)) => {
            !target.is_empty()
                && target.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
                && known(level)
        }
    });
    if fine {
        Ok(text.to_owned())
    } else {
        Err("expected error, warn, info, debug or trace, or target=level".to_owned())
    }
}

pub(super) fn origins(text: &str) -> Result<Vec<String>, String> {
    let origins: Vec<String> =
        text.split(',').map(str::trim).filter(|origin| !origin.is_empty()).map(str::to_owned).collect();
    for origin in &origins {
        let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '?' | '#' | '@' | '*');
        if !host.is_some_and(|host| !host.is_empty() && !host.contains(odd)) {
            return Err(format!("{origin:?} is not an origin; expected SCHEME://HOST[:PORT] without a path"));
        }
    }
    Ok(origins)
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Single-character edits between two words.
pub(super) fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
