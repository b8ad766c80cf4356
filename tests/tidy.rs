//! The rules of the house, as a test: who may import whom, where each foreign library lives, what
//! the deterministic parts may not contain, and what every file looks like.
//!
//! Only the standard library, and only text: a rule that needs a compiler belongs to clippy. Each
//! rule is a function from sources to complaints, and has a self-test that breaks it on purpose.

use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom, below `crate::`. A module that is not named here may import nothing.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("env", &[]),
    ("telemetry", &["env"]),
    ("net", &["model", "env", "telemetry"]),
    ("storage", &["model"]),
    ("machine", &["model", "storage"]),
    ("watch", &["model", "env", "telemetry", "machine"]),
    ("raft", &["model", "env", "telemetry", "storage", "machine", "watch"]),
    ("service", &["model", "env", "telemetry", "net", "storage", "machine", "watch", "raft"]),
    ("peer", &["model", "env", "telemetry", "net", "raft"]),
    ("api", &["model", "env", "telemetry", "net", "service"]),
    ("client", &["model", "net"]),
    ("node", &["model", "env", "telemetry", "net", "storage", "machine", "watch", "raft", "service", "peer", "api"]),
    ("cli", &["model", "env", "telemetry", "net", "client", "node"]),
    ("main", &["cli"]),
];

/// Where each foreign library may be named. A path that ends in `/` is a folder.
const HOMES: &[(&str, &[&str])] = &[
    ("openraft", &["src/raft/"]),
    ("sled", &["src/storage/sled.rs", "src/storage/sled/"]),
    ("axum", &["src/api/"]),
    ("tonic", &["src/api/etcd/", "src/peer/", "src/client/"]),
    ("tonic_reflection", &["src/api/etcd/"]),
    ("prost", &["src/api/etcd/", "src/client/etcd/"]),
    ("prost_reflect", &["src/api/etcd/"]),
    ("tower", &["src/api/", "src/net/"]),
    ("tower_http", &["src/api/"]),
    ("hyper", &["src/net/", "src/api/"]),
    ("hyper_util", &["src/net/"]),
    ("http_body_util", &["src/net/", "src/api/"]),
    ("socket2", &["src/net/"]),
    ("reqwest", &["src/client/", "src/cli/bench"]),
    ("clap", &["src/cli/", "src/node/config"]),
    ("clap_complete", &["src/cli/"]),
    ("clap_mangen", &["src/cli/"]),
    ("comfy_table", &["src/cli/"]),
    ("indicatif", &["src/cli/"]),
    ("owo_colors", &["src/cli/"]),
    ("anstream", &["src/cli/", "src/node/"]),
    ("similar", &["src/cli/"]),
    ("toml", &["src/node/config", "src/cli/"]),
    ("rand", &["src/env/"]),
    ("ulid", &["src/env/", "src/api/"]),
    ("prometheus_client", &["src/telemetry/", "src/api/mod.rs", "src/api/ops"]),
    ("tracing_subscriber", &["src/telemetry/"]),
    ("postcard", &["src/model/codec.rs"]),
    ("quick_cache", &["src/machine/"]),
    ("imbl", &["src/machine/"]),
    ("argon2", &["src/service/auth/"]),
    ("json_patch", &["src/machine/"]),
    ("mimalloc", &["src/main.rs"]),
];

/// Calls that belong to `env`: the real clock, and starting tasks.
const ENV_ONLY: &[&str] =
    &["tokio::spawn", "task::spawn", "spawn_blocking", "spawn_local", "Instant::now", "SystemTime::now"];

/// Words that make apply depend on something other than the log, or that block on a runtime.
const NOT_DETERMINISTIC: &[&str] = &[
    "async",
    "await",
    "tokio",
    "futures_util",
    "Instant",
    "SystemTime",
    "rand",
    "HashMap",
    "HashSet",
    "RandomState",
    "DefaultHasher",
    "f32",
    "f64",
];
const DETERMINISTIC: &[&str] = &["src/model/", "src/storage/", "src/machine/"];

const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    "src",
    "openapi.yaml",
    "tests",
    "scripts",
    "deploy",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
];

const BANNED_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc", "stuff"];

/// Split so that this file does not contain them.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK")];
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("C:", "\\Users"),
];

/// A text file of the project. For Rust, `code` is the text with comments and the insides of
/// literals blanked, and `product` is `code` without tests.
#[derive(Debug)]
struct Source {
    path: String,
    text: String,
    code: String,
    product: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let rust = Path::new(path).extension().is_some_and(|extension| extension == "rs");
        let code = if rust { blank_comments_and_literals(text) } else { String::new() };
        let is_test = path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/");
        let product = if is_test { String::new() } else { blank_test_items(&code) };
        Self { path: path.into(), text: text.into(), code, product }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// `machine` for `src/machine/kv.rs` and `src/machine.rs`.
    fn module(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        Some(rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs"))
    }

    /// How many `super` lead from this file's module to the crate root.
    fn depth(&self) -> usize {
        let parts = self.path.trim_start_matches("src/").trim_end_matches(".rs").split('/');
        parts.filter(|part| *part != "mod").count()
    }
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Positions of `needle` in `code` as whole words.
fn words(code: &str, needle: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    let whole = |at: usize| {
        let before = at == 0 || !word(bytes[at - 1]);
        before && bytes.get(at + needle.len()).is_none_or(|byte| !word(*byte))
    };
    code.match_indices(needle).map(|(at, _)| at).filter(|at| whole(*at)).collect()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].bytes().filter(|byte| *byte == b'\n').count() + 1
}

/// Replaces comments, and what is inside string and character literals, by blanks; lines stay.
fn blank_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (keep, end) = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => (0, line_end(bytes, at)),
            b'/' if bytes.get(at + 1) == Some(&b'*') => (0, block_comment_end(bytes, at)),
            b'r' | b'b' | b'c' if at == 0 || !word(bytes[at - 1]) => match raw_string(bytes, at) {
                Some((keep, end)) => (keep, end),
                None => {
                    at += 1;
                    continue;
                }
            },
            b'"' => (1, quoted_end(bytes, at, b'"')),
            b'\'' if is_char_literal(bytes, at) => (1, quoted_end(bytes, at, b'\'')),
            _ => {
                at += 1;
                continue;
            }
        };
        let end = end.min(bytes.len());
        let inside = at + keep..end.saturating_sub(keep.min(1)).max(at + keep);
        for byte in &mut out[inside] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).expect("whole characters are blanked")
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut level) = (start, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (at, level) = (at + 2, level + 1);
        } else if bytes[at..].starts_with(b"*/") {
            (at, level) = (at + 2, level - 1);
            if level == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// `r"…"`, `br#"…"#` and the like: how much of the opening to keep, and the end.
fn raw_string(bytes: &[u8], start: usize) -> Option<(usize, usize)> {
    let mut at = start;
    while matches!(bytes.get(at), Some(b'b' | b'c')) && at < start + 1 {
        at += 1;
    }
    if bytes.get(at) != Some(&b'r') {
        return None;
    }
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(at + 1 + hashes) != Some(&b'"') {
        return None;
    }
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let inside = at + 2 + hashes;
    let length = bytes[inside..].windows(closing.len()).position(|window| window == closing);
    let end = length.map_or(bytes.len(), |length| inside + length + closing.len());
    Some((inside - start, end))
}

fn quoted_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// A quote starts a lifetime unless it closes after one character or an escape.
fn is_char_literal(bytes: &[u8], at: usize) -> bool {
    match bytes.get(at + 1) {
        Some(b'\\') => true,
        Some(byte) if byte.is_ascii() => bytes.get(at + 2) == Some(&b'\''),
        Some(_) => bytes[at + 1..].iter().take(5).any(|byte| *byte == b'\''),
        None => false,
    }
}

/// Blanks every item behind `#[cfg(test)]`.
fn blank_test_items(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(test)]") {
        let start = from + found;
        let end = item_end(code.as_bytes(), start + "#[cfg(test)]".len());
        for byte in &mut out[start..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        from = end;
    }
    String::from_utf8(out).expect("whole items are blanked")
}

/// The end of the item that starts at `at`: its closing brace, or a semicolon before any brace.
fn item_end(bytes: &[u8], mut at: usize) -> usize {
    let mut level = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' => level += 1,
            b'}' if level <= 1 => return at + 1,
            b'}' => level -= 1,
            b';' if level == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// The modules that a path beginning with `root` names: `root::a::b`, `root::{a::b, c}`.
fn roots_named(code: &str, root: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in words(code, root) {
        let rest = &code[at + root.len()..];
        let Some(rest) = rest.trim_start().strip_prefix("::") else { continue };
        let rest = rest.trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(group_heads(group).into_iter().map(|head| (at, head)));
        } else {
            found.push((at, rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()));
        }
    }
    found
}

/// The first identifier of each member of a `{…}` group, whose inside begins at `group`.
fn group_heads(group: &str) -> Vec<String> {
    let (mut heads, mut level, mut head, mut in_head) = (Vec::new(), 0, String::new(), true);
    for c in group.chars() {
        match c {
            '{' => level += 1,
            '}' if level == 0 => break,
            '}' => level -= 1,
            ',' if level == 0 => {
                heads.push(std::mem::take(&mut head));
                in_head = true;
            }
            c if level == 0 && in_head && (c.is_alphanumeric() || c == '_') => head.push(c),
            ':' if level == 0 => in_head = false,
            _ => {}
        }
    }
    heads.push(head);
    heads.retain(|head| !head.is_empty());
    heads
}

fn imports_point_down(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let Some(module) = source.module().filter(|module| *module != "lib") else { continue };
        let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == module).map_or(&[][..], |(_, allowed)| *allowed);
        let climb = vec!["super"; source.depth()].join("::");
        let named = ["crate", "tenure", climb.as_str()].map(|root| roots_named(&source.code, root));
        for (at, target) in named.into_iter().flatten() {
            let known = MAY_IMPORT.iter().any(|(name, _)| *name == target);
            // Tests need clocks and random numbers even where the product has none.
            let tested = target == "env" && source.product.as_bytes().get(at) != source.code.as_bytes().get(at);
            if known && target != module && !allowed.contains(&target.as_str()) && !tested {
                let line = line_of(&source.code, at);
                complaints.push(format!("{}:{line}: `{module}` must not import `{target}`", source.path));
            }
        }
    }
    complaints
}

fn every_module_has_a_rank(sources: &[Source]) -> Vec<String> {
    let modules =
        sources.iter().filter(|source| source.is_rust()).filter_map(|source| Some((source, source.module()?)));
    modules
        .filter(|(_, module)| *module != "lib" && !MAY_IMPORT.iter().any(|(name, _)| name == module))
        .map(|(source, module)| format!("{}: `{module}` has no row in MAY_IMPORT", source.path))
        .collect()
}

/// Whether `code` names the library itself, not a module of ours of the same name.
fn names_library(code: &str, library: &str) -> Option<usize> {
    let bytes = code.as_bytes();
    words(code, library).into_iter().find(|at| {
        let behind = code[at + library.len()..].trim_start();
        let before = code[..*at].trim_end();
        let path_start = !before.ends_with("::") || {
            let head = &before[..before.len() - 2];
            head.as_bytes().last().is_none_or(|byte| !word(*byte) && *byte != b'>')
        };
        let imported = before.ends_with("use") || before.ends_with("extern crate");
        let field_or_method = *at > 0 && bytes[at - 1] == b'.';
        path_start && !field_or_method && (behind.starts_with("::") || imported)
    })
}

fn libraries_have_one_home(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with("src/")) {
        for (library, homes) in HOMES {
            if homes.iter().any(|home| source.path.starts_with(home)) {
                continue;
            }
            if let Some(at) = names_library(&source.product, library) {
                let line = line_of(&source.product, at);
                complaints.push(format!("{}:{line}: `{library}` lives in {}", source.path, homes.join(", ")));
            }
        }
    }
    complaints
}

fn clocks_and_spawning_live_in_env(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with("src/") && source.module() != Some("env")) {
        for call in ENV_ONLY {
            for at in words(&source.product, call) {
                let line = line_of(&source.product, at);
                complaints.push(format!("{}:{line}: `{call}` belongs to src/env", source.path));
            }
        }
    }
    complaints
}

fn the_core_is_deterministic(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| DETERMINISTIC.iter().any(|folder| source.path.starts_with(folder))) {
        for banned in NOT_DETERMINISTIC {
            for at in words(&source.product, banned) {
                complaints.push(format!("{}:{}: `{banned}`", source.path, line_of(&source.product, at)));
            }
        }
    }
    complaints
}

fn every_file_says_what_it_is(sources: &[Source]) -> Vec<String> {
    let rust = sources.iter().filter(|source| source.is_rust());
    rust.filter(|source| !source.text.starts_with("//! "))
        .map(|source| format!("{}: does not open with `//!`", source.path))
        .collect()
}

fn names_have_meaning(sources: &[Source]) -> Vec<String> {
    let stems = |path: &str| path.split('/').map(|part| part.split('.').next().unwrap_or(part).to_owned()).collect();
    let named: Vec<(&str, Vec<String>)> =
        sources.iter().map(|source| (source.path.as_str(), stems(&source.path))).collect();
    let banned = |stems: &Vec<String>| stems.iter().any(|stem| BANNED_NAMES.contains(&stem.as_str()));
    named
        .iter()
        .filter(|(_, stems)| banned(stems))
        .map(|(path, _)| format!("{path}: says nothing by its name"))
        .collect()
}

fn nothing_is_left_unfinished(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        for marker in UNFINISHED {
            for at in words(&source.text, marker) {
                complaints.push(format!("{}:{}: {marker}", source.path, line_of(&source.text, at)));
            }
        }
    }
    complaints
}

fn no_paths_of_one_machine(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        for path in MACHINE_PATHS {
            for (at, _) in source.text.match_indices(path) {
                complaints.push(format!("{}:{}: {path}", source.path, line_of(&source.text, at)));
            }
        }
    }
    complaints
}

fn the_top_level_is_closed(names: &[String]) -> Vec<String> {
    let allowed = |name: &&String| name.starts_with('.') || TOP_LEVEL.contains(&name.as_str());
    names.iter().filter(|name| !allowed(name)).map(|name| format!("{name}: not at the top level")).collect()
}

/// The literal that is the first argument of each call of `function`.
fn first_literals<'a>(source: &'a Source, function: &str) -> Vec<(usize, &'a str)> {
    let literal = |at: usize| {
        let open = source.text[at + function.len()..].strip_prefix('(')?.trim_start().strip_prefix('"')?;
        Some((at, open.split('"').next()?))
    };
    words(&source.product, function).into_iter().filter_map(literal).collect()
}

fn metric_names_follow_the_convention(sources: &[Source]) -> Vec<String> {
    let (mut complaints, mut seen) = (Vec::new(), Vec::new());
    for source in sources.iter().filter(|source| source.path.starts_with("src/")) {
        let home = source.module() == Some("telemetry");
        for function in ["counter", "gauge", "seconds", "register", "register_with_unit"] {
            for (at, name) in first_literals(source, function) {
                let place = format!("{}:{}: metric `{name}`", source.path, line_of(&source.text, at));
                if !home && function.starts_with("register") {
                    complaints.push(format!("{place} is registered outside src/telemetry"));
                }
                if !home {
                    continue;
                }
                let snake = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
                if !snake {
                    complaints.push(format!("{place} is not in snake case"));
                }
                // The names of etcd's dashboards are whole and as they are.
                let suffixed = ["_total", "_seconds", "_bytes"].iter().any(|end| name.ends_with(end));
                if name.starts_with("tenure") || (suffixed && !name.starts_with("etcd_")) {
                    complaints.push(format!("{place} repeats what the registry adds"));
                }
                if seen.contains(&name) {
                    complaints.push(format!("{place} is there twice"));
                }
                seen.push(name);
            }
        }
    }
    complaints
}

fn metrics_carry_the_products_name(sources: &[Source]) -> Vec<String> {
    let (mut complaints, mut found) = (Vec::new(), false);
    for source in sources.iter().filter(|source| source.path.starts_with("src/")) {
        for (at, prefix) in first_literals(source, "sub_registry_with_prefix") {
            let line = line_of(&source.text, at);
            let ours = prefix == "tenure" || prefix.starts_with("tenure_");
            found |= ours;
            if !ours || source.module() != Some("telemetry") {
                complaints.push(format!("{}:{line}: metrics below `{prefix}`", source.path));
            }
        }
    }
    if !found {
        complaints.push("src/telemetry: nothing registers below the prefix `tenure`".into());
    }
    complaints
}

/// `(method, path, operationId)` of each operation, by the indentation of openapi.yaml.
fn operations(document: &str) -> Vec<(String, String, String)> {
    let (mut path, mut method, mut found) = (String::new(), String::new(), Vec::new());
    let body = document.split("\npaths:\n").nth(1).and_then(|rest| rest.split("\ncomponents:\n").next());
    for line in body.unwrap_or_default().lines() {
        let indent = line.len() - line.trim_start().len();
        let name = line.trim().trim_end_matches(':');
        match indent {
            2 if name.starts_with('/') => name.clone_into(&mut path),
            4 => method = name.to_uppercase(),
            6 if line.trim().starts_with("operationId: ") => {
                let id = line.trim().trim_start_matches("operationId: ");
                found.push((method.clone(), path.clone(), id.to_owned()));
            }
            _ => {}
        }
    }
    found
}

fn operations_are_routed(document: &str, sources: &[Source]) -> Vec<String> {
    let api: Vec<&Source> = sources.iter().filter(|source| source.path.starts_with("src/api/")).collect();
    let listed = operations(document);
    if listed.is_empty() {
        return vec!["openapi.yaml: no operation was found".into()];
    }
    let unrouted = |id: &str| !api.iter().any(|source| source.text.contains(&format!("\"{id}\"")));
    let missing = listed.iter().filter(|(_, _, id)| unrouted(id));
    missing.map(|(method, path, id)| format!("openapi.yaml: {method} {path} ({id}) is not in src/api")).collect()
}

fn operations_are_described_once(document: &str) -> Vec<String> {
    let listed = operations(document);
    let mut complaints = Vec::new();
    for (at, (method, path, id)) in listed.iter().enumerate() {
        if listed[..at].iter().any(|(_, _, other)| other == id) {
            complaints.push(format!("openapi.yaml: {id} is there twice"));
        }
        if listed[..at].iter().any(|(m, p, _)| m == method && p == path) {
            complaints.push(format!("openapi.yaml: {method} {path} is there twice"));
        }
    }
    let examples = document.matches("\n      x-curl: |\n").count();
    if examples != listed.len() {
        complaints.push(format!("openapi.yaml: {} operations, but {examples} with curl lines", listed.len()));
    }
    complaints
}

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// The names that .gitignore keeps out of the repository, and git's own folder.
fn ignored(root: &Path) -> Vec<String> {
    let listed = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
    let names = listed.lines().map(|line| line.trim_matches('/').to_owned()).filter(|line| !line.is_empty());
    names.chain([".git".to_owned()]).collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("a readable folder").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn top_level() -> Vec<String> {
    let ignored = ignored(&root());
    names_in(&root()).into_iter().filter(|name| !ignored.contains(name)).collect()
}

/// Every text file of the project. Lock files are not ours.
fn project() -> Vec<Source> {
    let root = root();
    let mut sources = Vec::new();
    let mut pending: Vec<String> = top_level().into_iter().filter(|name| name != "Cargo.lock").collect();
    while let Some(path) = pending.pop() {
        let place = root.join(&path);
        if place.is_dir() {
            pending.extend(names_in(&place).into_iter().map(|name| format!("{path}/{name}")));
        } else if let Ok(text) = fs::read_to_string(&place) {
            sources.push(Source::new(&path, &text));
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "run from the package's root");
    sources
}

fn document() -> String {
    fs::read_to_string(root().join("openapi.yaml")).expect("openapi.yaml at the top level")
}

#[track_caller]
fn expect_none(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}:\n  {}", complaints.join("\n  "));
}

type Rule = fn(&[Source]) -> Vec<String>;

#[test]
fn the_house_is_tidy() {
    let rules: &[(&str, Rule)] = &[
        ("imports point down the ranks", imports_point_down),
        ("every module has a rank", every_module_has_a_rank),
        ("each foreign library has one home", libraries_have_one_home),
        ("clocks and spawning live in env", clocks_and_spawning_live_in_env),
        ("the core is deterministic", the_core_is_deterministic),
        ("every file says what it is", every_file_says_what_it_is),
        ("names have meaning", names_have_meaning),
        ("nothing is left unfinished", nothing_is_left_unfinished),
        ("no paths of one machine", no_paths_of_one_machine),
        ("metric names follow the convention", metric_names_follow_the_convention),
        ("metrics carry the product's name", metrics_carry_the_products_name),
    ];
    let sources = project();
    let broken: Vec<String> = rules
        .iter()
        .map(|(name, rule)| (name, rule(&sources)))
        .filter(|(_, complaints)| !complaints.is_empty())
        .map(|(name, complaints)| format!("{name}:\n  {}", complaints.join("\n  ")))
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_top_level_holds_what_it_should() {
    expect_none("the top level is closed", &the_top_level_is_closed(&top_level()));
}

#[test]
fn the_document_and_the_routes_agree() {
    let document = document();
    expect_none("operations are routed", &operations_are_routed(&document, &project()));
    expect_none("operations are described once", &operations_are_described_once(&document));
}

/// Each rule must complain about something made to break it, and not about its harmless neighbour.
mod self_tests {
    use super::*;

    #[track_caller]
    fn check(rule: Rule, bad: &[(&str, &str)], good: &[(&str, &str)]) {
        for (path, text) in bad {
            assert!(!rule(&[Source::new(path, text)]).is_empty(), "not caught in {path}: {text}");
        }
        for (path, text) in good {
            expect_none(text, &rule(&[Source::new(path, text)]));
        }
    }

    #[test]
    fn imports() {
        check(
            imports_point_down,
            &[
                ("src/model/key.rs", "use crate::storage::Engine;"),
                ("src/machine/kv.rs", "use crate::{model::Key, service};"),
                ("src/machine/kv.rs", "fn f() { crate::raft::propose() }"),
                ("src/machine/kv.rs", "use super::super::watch::Hub;"),
                ("src/watch/hub.rs", "use crate::raft::Consensus;"),
                ("src/api/rest/kv.rs", "use crate::{\n    model::{Key, Op},\n    machine::View,\n};"),
                ("src/cli/get.rs", "mod tests { use crate::machine::View; }"),
                ("src/main.rs", "fn main() { tenure::node::run() }"),
                ("src/storage/log.rs", "use crate::env::Clock;"),
            ],
            &[
                ("src/machine/kv.rs", "use crate::{model::{Key, raft}, storage};"),
                ("src/machine/kv.rs", "// crate::raft knows us\nconst A: &str = \"crate::raft::x\";"),
                ("src/raft/apply.rs", "use crate::watch::Hub; use super::super::machine::View;"),
                ("src/machine/kv/put.rs", "use super::super::watch;"),
                ("src/main.rs", "fn main() { tenure::cli::run() }"),
                ("src/storage/tests/soak.rs", "use crate::env::SystemClock;"),
                ("src/storage/log.rs", "#[cfg(test)]\nmod tests { use crate::env::SystemClock; }"),
                ("src/lib.rs", "pub mod raft; use crate::raft::X;"),
            ],
        );
    }

    #[test]
    fn ranks() {
        check(every_module_has_a_rank, &[("src/engine/mod.rs", "")], &[("src/raft/mod.rs", ""), ("src/lib.rs", "")]);
    }

    #[test]
    fn homes() {
        check(
            libraries_have_one_home,
            &[
                ("src/service/kv.rs", "use openraft::Raft;"),
                ("src/service/kv.rs", "use ::openraft::Raft;"),
                ("src/node/mod.rs", "#[derive(clap::Args)] struct A;"),
                ("src/storage/mod.rs", "fn f() -> sled::Db { }"),
                ("src/raft/mod.rs", "let x = rand ::random();"),
                ("src/service/mod.rs", "use axum;"),
            ],
            &[
                ("src/raft/log.rs", "use openraft::Raft;"),
                ("src/node/config.rs", "use clap::Args;"),
                ("src/storage/mod.rs", "pub use self::sled::Engine; use crate::storage::sled::Engine;"),
                ("src/service/kv.rs", "/// As openraft::Raft does.\nfn f() {}"),
                ("src/service/kv.rs", "#[cfg(test)]\nmod tests { use rand::random; }"),
                ("src/service/tests.rs", "use rand::random;"),
            ],
        );
    }

    #[test]
    fn clocks() {
        check(
            clocks_and_spawning_live_in_env,
            &[
                ("src/raft/a.rs", "let now = Instant::now();"),
                ("src/raft/a.rs", "tokio::spawn(async {});"),
                ("src/raft/a.rs", "tokio::task::spawn_blocking(f);"),
            ],
            &[("src/env/clock.rs", "Instant::now();"), ("src/raft/a.rs", "tasks.spawn(\"x\", f);")],
        );
    }

    #[test]
    fn determinism() {
        check(
            the_core_is_deterministic,
            &[
                ("src/machine/a.rs", "use std::collections::HashMap;"),
                ("src/machine/a.rs", "async fn f() {}"),
                ("src/model/a.rs", "fn f() -> f64 { 0.0 }"),
                ("src/storage/a.rs", "use std::collections::{BTreeMap, HashSet};"),
            ],
            &[
                (
                    "src/machine/a.rs",
                    "// no HashMap\nfn f() {}\n#[cfg(test)]\nmod tests { use std::collections::HashMap; }",
                ),
                ("src/watch/a.rs", "use std::collections::HashMap;"),
                ("src/machine/a.rs", "let asynchronous = 'f'; let s = r#\"f64 \"async\"\"#;"),
            ],
        );
        let resumed = Source::new("src/machine/a.rs", "#[cfg(test)]\nfn t() { f64 }\nfn f() -> f64 {}");
        assert_eq!(the_core_is_deterministic(&[resumed]).len(), 1, "what follows a test item counts again");
    }

    #[test]
    fn opening_docs() {
        check(every_file_says_what_it_is, &[("src/a.rs", "use x;"), ("src/a.rs", "// x")], &[("src/a.rs", "//! x")]);
    }

    #[test]
    fn names() {
        check(
            names_have_meaning,
            &[("src/api/utils.rs", ""), ("src/common/mod.rs", ""), ("scripts/helpers.sh", "")],
            &[("src/api/commons.rs", "")],
        );
    }

    #[test]
    fn unfinished() {
        let bad = format!("// {}: later", UNFINISHED[0]);
        let marked = format!("{} {}", UNFINISHED[1], UNFINISHED[2]);
        check(
            nothing_is_left_unfinished,
            &[("src/a.rs", bad.as_str()), ("README.md", marked.as_str())],
            &[("scripts/a.sh", "mktemp -d tenure.XXXXXX"), ("src/a.rs", "TODOS")],
        );
    }

    #[test]
    fn machine_paths() {
        let bad = format!("cd {}x", MACHINE_PATHS[2]);
        check(no_paths_of_one_machine, &[("scripts/a.sh", bad.as_str())], &[("scripts/a.sh", "cd /tmp/x")]);
    }

    #[test]
    fn closed_top_level() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(the_top_level_is_closed(&names(&["src", "notes.txt", "docs", ".ci"])).len(), 2);
        assert!(the_top_level_is_closed(&names(&["src", ".gitignore", "deploy"])).is_empty());
    }

    #[test]
    fn metrics() {
        check(
            metric_names_follow_the_convention,
            &[
                ("src/telemetry/metrics.rs", "let a = counter(\"wal_bytes_total\", \"h\");"),
                ("src/telemetry/metrics.rs", "let a = counter(\"tenure_wal\", \"h\");"),
                ("src/telemetry/metrics.rs", "let a = gauge(\"walWrites\", \"h\");"),
                ("src/telemetry/metrics.rs", "registry.register(\"a_b\", h); registry.register(\n  \"a_b\", h);"),
                ("src/raft/mod.rs", "registry.register(\"raft_x\", \"h\", m);"),
            ],
            &[("src/telemetry/metrics.rs", "counter(\"a_b\", \"h\"); gauge(\"a_c\", \"h\");")],
        );
        check(
            metrics_carry_the_products_name,
            &[("src/telemetry/metrics.rs", "registry.sub_registry_with_prefix(\"other\");")],
            &[("src/telemetry/metrics.rs", "registry.sub_registry_with_prefix(\"tenure\");")],
        );
    }

    const DOCUMENT: &str = "openapi: 3.1.0\npaths:\n  /a:\n    parameters:\n      - x\n    get:\n      operationId: aGet\n      x-curl: |\n        curl a\n  /b/{key}:\n    put:\n      operationId: bPut\n      x-curl: |\n        curl b\n\ncomponents:\n  a: b\n";

    #[test]
    fn routes() {
        let get = ("GET".to_owned(), "/a".to_owned(), "aGet".to_owned());
        let put = ("PUT".to_owned(), "/b/{key}".to_owned(), "bPut".to_owned());
        assert_eq!(operations(DOCUMENT), vec![get, put]);
        let both = Source::new("src/api/routes.rs", "[(\"aGet\"), (\"bPut\")]");
        let one = Source::new("src/api/routes.rs", "[(\"aGet\")]");
        assert!(operations_are_routed(DOCUMENT, &[both]).is_empty());
        assert_eq!(operations_are_routed(DOCUMENT, &[one]).len(), 1);
        assert_eq!(operations_are_routed("", &[]).len(), 1, "an unreadable document is no agreement");
        assert!(operations_are_described_once(DOCUMENT).is_empty());
        assert_eq!(operations_are_described_once(&DOCUMENT.replace("bPut", "aGet")).len(), 1);
        assert_eq!(operations_are_described_once(&DOCUMENT.replacen("x-curl", "x-other", 1)).len(), 1);
    }

    #[test]
    fn literals_and_comments_are_not_code() {
        let text = "a /* b /* c */ d */ e \"f\\\"g\" 'h' 'i r#\"j\"# // k\nl";
        let code = blank_comments_and_literals(text);
        for gone in ["b", "c", "d", "f", "g", "h", "j", "k"] {
            assert!(words(&code, gone).is_empty(), "{gone} in {code:?}");
        }
        for kept in ["a", "e", "i", "l"] {
            assert_eq!(words(&code, kept).len(), 1, "{kept} in {code:?}");
        }
        assert_eq!(code.len(), text.len());
    }
}
