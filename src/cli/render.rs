//! Entries as files that other programs read: shell variables, YAML, Java properties.
//!
//! Names are relative to the prefix that was asked for. What such a file cannot hold is refused, never
//! bent: two keys that would get one name, a value that is no text.

use super::exit::CliError;
use super::output::shown;
use crate::client::quote;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;

/// Key and value, byte for byte.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// `DB_HOST='db 1'` lines, safe to `source`.
pub(super) fn env(pairs: &[Pair], prefix: &[u8]) -> Result<String, CliError> {
    render(pairs, prefix, env_name, |name, value| {
        if value.contains('\0') { None } else { Some(format!("{name}={}\n", quote(value.as_bytes()))) }
    })
}

/// `db.host=db 1` lines.
pub(super) fn properties(pairs: &[Pair], prefix: &[u8]) -> Result<String, CliError> {
    let name = |key: &str| Some(key.replace('/', "."));
    render(pairs, prefix, name, |name, value| {
        Some(format!("{}={}\n", property_escaped(name, true), property_escaped(value, false)))
    })
}

/// A flat map; every name and text is a JSON string, which YAML reads as its own.
pub(super) fn yaml(pairs: &[Pair], prefix: &[u8]) -> Result<String, CliError> {
    let mut text = String::new();
    for (key, value) in pairs {
        let name = match std::str::from_utf8(relative(key, prefix)) {
            Ok(name) => json_string(name),
            Err(_) => format!("? !!binary {}\n", STANDARD.encode(relative(key, prefix))),
        };
        let value = match std::str::from_utf8(value) {
            Ok(value) => json_string(value),
            Err(_) => format!("!!binary {}", STANDARD.encode(value)),
        };
        text.push_str(&format!("{name}: {value}\n"));
    }
    if text.is_empty() {
        text.push_str("{}\n");
    }
    Ok(text)
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn relative<'a>(key: &'a [u8], prefix: &[u8]) -> &'a [u8] {
    match key.strip_prefix(prefix) {
        Some(rest) if !rest.is_empty() => rest,
        _ => key,
    }
}

fn render(
    pairs: &[Pair],
    prefix: &[u8],
    name_of: impl Fn(&str) -> Option<String>,
    line_of: impl Fn(&str, &str) -> Option<String>,
) -> Result<String, CliError> {
    let mut text = String::new();
    let mut taken: BTreeMap<String, &[u8]> = BTreeMap::new();
    for (key, value) in pairs {
        let refuse = |why: &str| Err(CliError::other(format!("{}: {why}; use -o json or yaml", shown(key))));
        let name = std::str::from_utf8(relative(key, prefix)).ok().and_then(&name_of);
        let Some(name) = name else { return refuse("the key does not make a name") };
        let line = std::str::from_utf8(value).ok().and_then(|value| line_of(&name, value));
        let Some(line) = line else { return refuse("the value is not text") };
        if let Some(other) = taken.insert(name.clone(), key) {
            return refuse(&format!("{} gives the same name, {name}", shown(other)));
        }
        text.push_str(&line);
    }
    Ok(text)
}

fn env_name(key: &str) -> Option<String> {
    let name: String = key
        .trim_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
        .collect();
    match name.chars().next() {
        None => None,
        Some(first) if first.is_ascii_digit() => Some(format!("_{name}")),
        Some(_) => Some(name),
    }
}

/// As `java.util.Properties` reads it back: ISO 8859-1 with `\uXXXX` for the rest.
fn property_escaped(text: &str, is_name: bool) -> String {
    let mut escaped = String::new();
    for (index, c) in text.chars().enumerate() {
        match c {
            '\\' => escaped.push_str(r"\\"),
            '\n' => escaped.push_str(r"\n"),
            '\r' => escaped.push_str(r"\r"),
            '\t' => escaped.push_str(r"\t"),
            ' ' if is_name || index == 0 => escaped.push_str(r"\ "),
            ':' | '=' if is_name => escaped.extend(['\\', c]),
            '#' | '!' if is_name && index == 0 => escaped.extend(['\\', c]),
            ' '..='~' => escaped.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<Pair> {
        pairs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn env_lines_survive_a_shell() {
        let value = "it's \"$HOME\" `x` \\ two\nlines";
        let text = env(&pairs(&[("app/db/host", value), ("app/1st", "x")]), b"app/").unwrap();
        assert!(text.starts_with("DB_HOST='it"), "{text}");
        assert!(text.ends_with("\n_1ST=x\n"), "{text}");
        let output = Command::new("sh").arg("-c").arg(format!("{text}\nprintf %s \"$DB_HOST\"")).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
    }

    #[test]
    fn two_keys_of_one_name_are_refused() {
        let error = env(&pairs(&[("a/b", "1"), ("a_b", "2")]), b"").unwrap_err();
        assert_eq!(error.to_string(), "a_b: a/b gives the same name, A_B; use -o json or yaml");
        assert!(properties(&pairs(&[("a/b", "1"), ("a.b", "2")]), b"").is_err());
        assert!(yaml(&pairs(&[("a/b", "1"), ("a.b", "2")]), b"").is_ok());
    }

    #[test]
    fn bytes_that_are_no_text() {
        let binary = vec![(b"k".to_vec(), b"\xff\x00".to_vec())];
        assert!(env(&binary, b"").is_err() && properties(&binary, b"").is_err());
        assert_eq!(yaml(&binary, b"").unwrap(), "\"k\": !!binary /wA=\n");
        assert!(env(&[(b"k".to_vec(), b"a\0b".to_vec())], b"").is_err());
    }

    #[test]
    fn property_lines() {
        let text = properties(&pairs(&[("a/b c", " grün=1 \u{1f600}\\"), ("#x:y", "2")]), b"").unwrap();
        assert_eq!(text, "a.b\\ c=\\ gr\\u00fcn=1 \\ud83d\\ude00\\\\\n\\#x\\:y=2\n");
    }

    #[test]
    fn yaml_reads_back() {
        let text = yaml(&pairs(&[("app/on", "yes"), ("app/n: #1", "two\nlines\t\"q\"")]), b"app/").unwrap();
        let back: BTreeMap<String, String> = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back["on"], "yes");
        assert_eq!(back["n: #1"], "two\nlines\t\"q\"");
        assert_eq!(yaml(&[], b"").unwrap(), "{}\n");
    }

    #[test]
    fn the_prefix_itself_keeps_its_name() {
        assert_eq!(env(&pairs(&[("app/", "1")]), b"app/").unwrap(), "APP=1\n");
    }
}
